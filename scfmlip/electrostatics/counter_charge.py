"""
A uniform counter-charge that makes slabs neutral, and the zero of their potential.

Only the average over the plane interacts, so everything is a function of the height z. The potential of a
plane of Gaussian charges of width s is ``P(z; s) = -(2 pi k_e / A) <abs(z)>_s``. A unit charge between the
ends a and b gives ``u(z; s) = 1 / (b - a) int_a^b P(z - z'; s) dz'`` at a Gaussian, where s^2 is the sum of
both squared widths. A slab of charge Q and its counter-charge -Q have the energy
    E = E_slab - Q sum_i p_i . u_i + 1/2 Q^2 <u>
with ``p . u = q u + d_z u'`` and ``<u>`` the average over the counter-charge itself. Potentials are measured
from their average over the counter-charge, which is the reservoir of charge. Then the potential at an atom is
``dE/dq``, does not depend on the origin or the position of the system, and vanishes beyond the counter-charge
of a neutral slab.
"""

import math

import torch
from torch import Tensor

from scfmlip_kernels.constants import constant

from ..segments import Segments
from ..units import FIELD_CONSTANT
from .plan import LatticePlan
from .tensors import products


def _mean_distance(z: Tensor, s: Tensor, order: int) -> Tensor:
    """
    ``<abs(z)>`` over a normal distribution of standard deviation ``s``, integrated ``order`` times in z.

    Order -1 is its derivative.
    """
    error = torch.erf(z / (math.sqrt(2) * s))
    gauss = torch.exp(-0.5 * (z / s) ** 2) / math.sqrt(2 * math.pi)
    if order == -1:
        return error
    if order == 0:
        return z * error + 2 * s * gauss
    if order == 1:
        return 0.5 * (z**2 + s**2) * error + z * s * gauss
    return z * (z**2 + 3 * s**2) / 6 * error + s * (z**2 + 2 * s**2) / 3 * gauss


class CounterCharge:
    """
    Unit counter-charges of a batch of slabs, smoothed with the density's narrowest Gaussian.

    Args:
        bounds: ``[n_systems, 2]`` float64, lower and upper end along the normal, angstrom.
        plan: The slabs.
        cell: ``[n_systems, 3, 3]`` float64, angstrom.
        source_widths: Widths of the density, angstrom.
    """

    def __init__(
        self, bounds: Tensor, plan: LatticePlan, cell: Tensor, source_widths: tuple[float, ...]
    ) -> None:
        if plan.slabs is not None:
            self.normal, self.area = plan.slabs.normals(cell)
        else:  # for a reference that knows slabs along z only
            self.normal = torch.zeros_like(bounds[:, :1]) + cell.new_tensor([0.0, 0.0, 1.0])
            self.area = torch.linalg.cross(cell[:, 0], cell[:, 1]).norm(dim=1)
        self.bounds, self.width, self.source_widths = bounds, min(source_widths), source_widths
        length = bounds[:, 1] - bounds[:, 0]
        self.scale = 0.5 * FIELD_CONSTANT / (self.area * length)
        s = torch.full_like(length, math.sqrt(2) * self.width)
        ends = 2 * (_mean_distance(length, s, 2) - _mean_distance(torch.zeros_like(s), s, 2))
        self.own = -self.scale * ends / length

    @property
    def second_moment(self) -> Tensor:
        """``[n_systems]`` mean of ``z^2``, angstrom^2."""
        low, high = self.bounds.unbind(1)
        return (low**2 + low * high + high**2) / 3 + self.width**2

    @property
    def center(self) -> Tensor:
        """``[n_systems, 3]`` a point in the middle, on the normal through the origin."""
        return self.bounds.mean(1, keepdim=True) * self.normal

    def unit(
        self, positions: Tensor, segments: Segments, widths: tuple[float, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Potential, slope and curvature along the normal that a unit counter-charge makes at Gaussians.

        Args:
            positions: ``[n, 3]`` angstrom.
            segments: The system of each point.
            widths: Widths of the Gaussians, angstrom.

        Returns:
            Three ``[n, len(widths)]`` float64, V/e, V/(e angstrom) and V/(e angstrom^2).
        """
        each = torch.cat((self.normal, self.bounds, self.scale[:, None]), 1)
        each = segments.expand(each)
        z = (positions.double() * each[:, :3]).sum(1, keepdim=True)
        s = constant(tuple(math.hypot(self.width, w) for w in widths), z.dtype, z.device)
        low, high, scale = z - each[:, 3:4], z - each[:, 4:5], each[:, 5:]
        value, slope, bend = (
            -scale * (_mean_distance(low, s, n) - _mean_distance(high, s, n)) for n in (1, 0, -1)
        )
        return value, slope, bend

    def far_levels(self, charge: Tensor, zero: Tensor, origin: Tensor) -> Tensor:
        """
        Its contribution far below and above the slabs, without the term ``(2 pi k_e / A) Q abs(z)``.

        Args:
            charge: ``[n_systems, n_channels]`` charges of the slabs, e.
            zero: The zero level of potentials, V, of the same shape.
            origin: ``[n_systems, 3]`` origin of z, angstrom.

        Returns:
            ``[n_systems, n_channels, 2]`` V.
        """
        middle = self.bounds.mean(1) - (origin * self.normal).sum(1)
        step = 0.5 * FIELD_CONSTANT * (middle / self.area)[:, None] * charge
        return torch.stack((step - zero, -step - zero), -1)

    def density(self, positions: Tensor, segments: Segments) -> Tensor:
        """Density of a unit counter-charge at points, ``[n]`` float64 e/angstrom^3."""
        each = torch.cat((self.normal, self.bounds, self.area[:, None]), 1)
        each = segments.expand(each)
        z = (positions.double() * each[:, :3]).sum(1)
        s = torch.full_like(z, self.width)
        edges = _mean_distance(z - each[:, 3], s, -1) - _mean_distance(z - each[:, 4], s, -1)
        return 0.5 * edges / (each[:, 5] * (each[:, 4] - each[:, 3]))

    def own_overlap(self, moments: Tensor, positions: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        """
        Total charge Q, and the energy ``sum_i p_i . u_i`` with a unit counter-charge; of this process' atoms.

        ``moments [n_atoms, n_channels, n_widths, 1 | 4 | 10]`` -> two ``[n_systems, n_channels]`` float64.
        """
        m = moments.double()
        value, slope, bend = self.unit(positions, segments, self.source_widths)
        per_atom = (m[..., 0] * value[:, None]).sum(-1)
        if m.shape[-1] > 1:
            normal = segments.expand(self.normal)[:, None, None]
            along = (m[..., 1:4] * normal).sum(-1)
            per_atom = per_atom + (along * slope[:, None]).sum(-1)
            if m.shape[-1] > 4:
                twice = (m[..., 4:] * products(normal)).sum(-1)
                per_atom = per_atom + (twice * bend[:, None]).sum(-1)
        return segments.own_sum(m[..., 0].sum(-1)), segments.own_sum(per_atom)

    def energy(self, charge: Tensor, overlap: Tensor) -> Tensor:
        """``[n_systems, n_channels]`` float64 eV that it adds; arguments from `own_overlap`, of all atoms."""
        return -charge * overlap + 0.5 * charge**2 * self.own[:, None]

    def field(
        self,
        charge: Tensor,
        zero: Tensor,
        positions: Tensor,
        segments: Segments,
        widths: tuple[float, ...],
        rank: int,
    ) -> Tensor:
        """
        What it adds to the potential, and to its derivatives, at Gaussians.

        Args:
            charge: ``[n_systems, n_channels]`` charges of the slabs, e.
            zero: The zero level of potentials, V, of the same shape.
            positions: ``[n, 3]`` angstrom.
            segments: The system of each point.
            widths: Widths of the Gaussians, angstrom.
            rank: 0 for the potential, 1 to add its gradient, 2 its second derivatives.

        Returns:
            ``[n, n_channels, len(widths), 1 | 4 | 10]`` float64, V, V/angstrom and V/angstrom^2.
        """
        value, slope, bend = self.unit(positions, segments, widths)
        q, level = (segments.expand(x)[..., None] for x in (charge, zero))
        normal = segments.expand(self.normal)[:, None, None]
        parts = [(-q * value[:, None] - level)[..., None], (-q * slope[:, None])[..., None] * normal]
        if rank > 1:
            parts.append((-q * bend[:, None])[..., None] * products(normal))
        return torch.cat(parts[: rank + 1], -1)
