"""
The Coulomb operator of large isolated systems through a mesh: O(N log N) instead of all pairs.

An interaction that is 1/r up to R and 0 beyond has the Fourier transform ``4 pi (1 - cos k R) / k^2``. Its
sum over a periodic box is that of an isolated system if all pairs of atoms are nearer than R, and all images
farther: Jarvis, White, Godby and Payne, Phys. Rev. B 56, 14972 (1997). Gaussians are smooth, so few waves
are enough: Vico, Greengard and Ferrando, J. Comput. Phys. 323, 191 (2016). The box is chosen here from the
extents of the atoms and the tails of the Gaussians, as the cells of slabs are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..units import FIELD_CONSTANT
from .boundary import EXACT, Quirks
from .choice import CHEAP, WORTH
from .density import GaussianMultipoles
from .mesh import Mesh
from .mesh_error import choose_mesh, mesh_cost
from .openspace import OpenSpace
from .plan import Boxes, LatticePlan, SubBatch, boxed
from .self_interaction import self_field
from .slab import gaussian_reach

# of the tolerance: what the mesh may miss; 1 - cos k R is up to 2 where the estimate has 1
_MESH_SHARE = 0.4


def worth_a_look(sub: SubBatch, costs: dict | None) -> bool:
    """Whether boxes may be better than sums over pairs, for these sizes; arguments as in `choose_boxes`."""
    if not len(sub.systems) or not all(sub.counts):
        return False
    return costs is None or costs["open"] * _pairs(sub) >= max(CHEAP, WORTH * costs["mesh"])


def _pairs(sub: SubBatch) -> float:
    return float(sum(n**2 for n in sub.counts))


def choose_boxes(
    sub: SubBatch,
    extents: Tensor,
    widths: tuple[float, float],
    sigma_squared: float,
    tolerances: tuple[float, float],
    l_max: int,
    dtype: torch.dtype,
    costs: dict | None,
) -> Boxes | None:
    """
    Boxes and meshes for isolated systems; None where sums over pairs cost less.

    Args:
        sub: The isolated systems.
        extents: ``[n_systems, 3]`` lengths along x, y and z that they have to hold, angstrom, on the CPU.
        widths: Widths of the widest source and receiver, angstrom.
        sigma_squared: Half the sum of the squared widths of the narrowest pair, angstrom^2.
        tolerances: eV, of the mesh and of the Gaussians' tails, for a pair of unit multipoles.
        l_max: Highest multipole.
        dtype: Of the positions.
        costs: What parts of the sums cost, ns; None to take boxes in any case.
    """
    pairs = 0.0 if costs is None else costs["open"] * _pairs(sub)
    reach = gaussian_reach(widths[0] ** 2 + widths[1] ** 2, tolerances[1], l_max)
    radius = extents.norm(dim=1) + reach
    edges = extents + radius[:, None] + reach
    n_atoms, device = sum(sub.counts), sub.systems.device
    volume, height = float(edges.prod(1).sum()), float(edges.min())
    mesh = choose_mesh(sigma_squared, _MESH_SHARE * tolerances[0], l_max, n_atoms, volume, height)
    if costs is not None:
        if WORTH * (costs["mesh"] + costs["point"] * mesh_cost(mesh, n_atoms, volume)) > pairs:
            return None
        if dtype == torch.float32 and mesh.least:  # not accurate enough, see `check_single`
            return None
    cells = torch.diag_embed(edges)
    return Boxes(boxed(sub, cells, mesh), cells.to(device), radius.to(device), extents.to(device))


class _BoxedMesh(Mesh):
    """A mesh whose interaction ends at the radius of each box."""

    def __init__(self, lattice: LatticePlan, positions: Tensor, boxes: Boxes, widths: tuple[float, ...]):
        super().__init__(lattice, positions, boxes.cells, widths, EXACT)
        radius = self.points.expand(boxes.radius)
        origin = (self.grid.miller == 0).all(-1)
        # (1 - cos k R) / k^2 is R^2 / 2 at the origin, which counts half, as its own mirror image
        limit = 0.25 * FIELD_CONSTANT * radius**2 / self.points.expand(self.volume)
        self.coulomb = torch.where(
            origin, limit, self.coulomb * 2 * torch.sin(0.5 * radius * self.k_squared.sqrt()) ** 2
        )
        if self.waves is not None:
            self.waves = torch.stack((self.k_squared, self.coulomb), 1)


class OpenMesh(OpenSpace):
    """
    Isolated systems in boxes; see `OpenSpace`. Receivers that the mesh is not made for are summed over pairs.

    Args:
        boxes: From `choose_boxes`.
        receivers: Widths of the narrowest and widest Gaussian that the mesh was made for, angstrom.
    """

    def __init__(
        self,
        positions: Tensor,
        sub: SubBatch,
        source: GaussianMultipoles,
        quirks: Quirks,
        boxes: Boxes,
        receivers: tuple[float, float],
        tiles: dict[int, Tensor],
    ) -> None:
        super().__init__(positions, sub.host_ptr, sub.segments, source.widths, quirks, tiles)
        self.source, self.made_for = source, receivers
        self.mesh = _BoxedMesh(boxes.lattice, positions, boxes, source.widths)

    def field_with(
        self, moments: Tensor, widths: tuple[float, ...], rank: int, conjugate: bool, *others: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `OpenSpace`."""
        least, most = self.made_for
        if min(widths) < least or max(widths) > most or rank > self.source.l_max:  # over pairs
            return super().field_with(moments, widths, rank, False, *others)
        field, rest = self.mesh.field_with(moments, widths, rank, *others)
        return field - self_field(moments, self.source, widths, rank, self.quirks), rest

    def _own_energies(self, moments: Tensor) -> Tensor:
        """``[n_systems, n_channels]`` float64, eV, of Gaussians with themselves, of this process' atoms."""
        rows = moments.double()
        own = self_field(rows, self.source, self.widths, self.source.l_max, self.quirks)
        return self.segments.own_sum(0.5 * (own * rows).sum((2, 3)))

    def energy_with(self, moments: Tensor, *others: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `OpenSpace`."""
        energy, (own, *rest) = self.mesh.energy_with(moments, self._own_energies(moments), *others)
        return energy - own, tuple(rest)

    def conjugate_and_energy(
        self, moments: Tensor, rank: int, *others: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """See `OpenSpace`."""
        parts = (self._own_energies(moments), *others)
        field, energy, (own, *rest) = self.mesh.field_and_energy(moments, rank, *parts)
        field = field - self_field(moments, self.source, self.widths, rank, self.quirks)
        return field, energy - own, tuple(rest)
