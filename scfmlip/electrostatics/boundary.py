"""
Boundary conditions of systems, and the corrections that a periodic sum needs for them.

A k-space sum without its k = 0 term is the energy of a three-dimensional crystal in a neutralising background
and conducting surroundings. The correction of a slab removes the images along one axis, that of a molecule in
a cubic box the images along all three. What remains decays exponentially (slab), or as the inverse fifth
power of the box (molecule). Both need only the charge, dipole and second moment of the system.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from scfmlip_kernels import polynomial_field, polynomial_moments, slab_strengths
from scfmlip_kernels.constants import constant
from scfmlip_kernels.identity import ByIdentity

from ..segments import Segments
from ..types import BoundaryName, Compat
from ..units import COULOMB_CONSTANT, CUBIC_MADELUNG, FIELD_CONSTANT
from .density import symmetric_matrices
from .slab_forms import fits, low_moments, slab_energy, slab_field
from .tensors import products


class Boundary(IntEnum):
    """
    The boundary condition of one system.

    Example:
        >>> import torch, scfmlip
        >>> coulomb, cell = scfmlip.Coulomb(l_max=0), 10.0 * torch.eye(3)
        >>> plan = coulomb.plan(cell, [True, True, False], None, n_atoms=2)  # periodic along two axes
        >>> plan.boundaries
        [<Boundary.SLAB: 1>]
    """

    PERIODIC = 0
    SLAB = 1
    MOLECULE_IN_BOX = 2
    OPEN = 3


@dataclass(frozen=True)
class Quirks:
    """
    Deviations of a reference code from the exact expressions, for models trained with it.

    Attributes:
        numerical_self_interaction: Compute self terms by a trapezoid rule instead of the closed form.
        slab_charge: Include terms of a slab's net charge; graph_longrange has none.
        slab_along_z: Slabs are open along Cartesian z, whatever the cell.
        cell_average: Measure potentials of a slab with a counter-charge from their average over the periodic
            cell, before the dipole correction; they then depend on the origin.
        box_second_moment: Include the Gaussians' own second moment 3 sigma^2 q in a molecule's box.
        box_exponents: The edge of a box is its volume to this power, for energies and for features.
        madelung: Madelung constant of the simple cubic lattice.
        open_offsets: Finite-difference displacements of open dipoles, for energies and for features,
            angstrom; None for analytic dipoles.
        softening: Length added to open distances, angstrom.
        field_sign: -1 if the energy is -dipole . field, +1 for graph_longrange's opposite convention.
    """

    numerical_self_interaction: bool = False
    slab_charge: bool = True
    slab_along_z: bool = False
    cell_average: bool = False
    box_second_moment: bool = True
    box_exponents: tuple[float, float] = (1 / 3, 1 / 3)
    madelung: float = CUBIC_MADELUNG
    open_offsets: tuple[float, float] | None = None
    softening: float = 0.0
    field_sign: float = -1.0


EXACT = Quirks()
GRAPH_LONGRANGE = Quirks(
    numerical_self_interaction=True,
    slab_charge=False,
    slab_along_z=True,
    cell_average=True,
    box_second_moment=False,
    box_exponents=(0.3333, 0.333333),
    madelung=2.837297,
    open_offsets=(0.02, 0.1),
    softening=1e-6,
    field_sign=1.0,
)

_NAMES: dict[str, Boundary] = {
    "periodic": Boundary.PERIODIC,
    "pbc": Boundary.PERIODIC,
    "slab": Boundary.SLAB,
    "molecule_in_box": Boundary.MOLECULE_IN_BOX,
    "open": Boundary.OPEN,
    "realspace": Boundary.OPEN,
}


def resolve_boundaries(
    name: BoundaryName, pbc: list[tuple[bool, bool, bool]], compat: Compat | None
) -> tuple[list[Boundary], list[int]]:
    """
    Determine the boundary condition of each system, and the open axis of slabs.

    Args:
        name: "auto" reads ``pbc``: three periodic directions are a crystal, two a slab, none an open
            molecule. Any other name applies to every system. With ``compat`` the names have the meaning of
            graph_longrange's ``pbc_handling``, including "mixed_periodic" and its "auto", which depends on
            the whole batch; "separate" applies "auto" to every system by itself.
        pbc: Periodicity of each system.
        compat: None or "graph_longrange".

    Returns:
        Boundary of each system, and its open axis (2 for systems that are not slabs).

    Raises:
        ValueError: for an unknown name, or an unsupported periodicity.
    """
    if name == "separate":
        each = [resolve_boundaries("auto", [flags], compat) for flags in pbc]
        return [kinds[0] for kinds, _ in each], [axes[0] for _, axes in each]
    if name in ("auto", "mixed_periodic"):
        if compat == "graph_longrange":
            return _reference_boundaries(name, pbc)
        if name == "mixed_periodic":
            raise ValueError(
                "boundary='mixed_periodic' is graph_longrange's; use boundary='auto', or pass "
                "compat='graph_longrange'"
            )
        boundaries, axes = [], []
        for i, flags in enumerate(pbc):
            if sum(flags) == 1:
                raise ValueError(
                    f"system {i} is periodic along one direction only (pbc={flags}): wires are not "
                    "implemented. Choose boundary='periodic' with enough vacuum, or boundary='open'"
                )
            kinds = {3: Boundary.PERIODIC, 2: Boundary.SLAB, 0: Boundary.OPEN}
            boundaries.append(kinds[sum(flags)])
            axes.append(flags.index(False) if sum(flags) == 2 else 2)
        return boundaries, axes
    if name not in _NAMES:
        raise ValueError(f"boundary must be one of 'auto', 'separate', {sorted(_NAMES)}, got {name!r}")
    kind = _NAMES[name]
    axes = []
    for i, flags in enumerate(pbc):
        axis = 2
        if kind == Boundary.SLAB and compat != "graph_longrange" and sum(flags) != 3:
            if sum(flags) != 2:
                raise ValueError(f"boundary='slab' needs two periodic directions, system {i} has pbc={flags}")
            axis = flags.index(False)
        axes.append(axis)
    return [kind] * len(pbc), axes


def _reference_boundaries(name: str, pbc: list[tuple[bool, bool, bool]]) -> tuple[list[Boundary], list[int]]:
    """graph_longrange's own rule: open only if no system of the batch is periodic."""
    if name == "auto" and not any(any(flags) for flags in pbc):
        return [Boundary.OPEN] * len(pbc), [2] * len(pbc)
    kinds = {
        (False, False, False): Boundary.MOLECULE_IN_BOX,
        (True, True, False): Boundary.SLAB,
    }
    return [kinds.get(flags, Boundary.PERIODIC) for flags in pbc], [2] * len(pbc)


_weights: ByIdentity[Tensor] = ByIdentity(8)


@dataclass
class Correction:
    """
    Corrections to the k-space sum of a batch, from the low moments of each system.

    Slab, with z along its normal, height L = volume / area (Yeh and Berkowitz, J. Chem. Phys. 111, 3155
    (1999); Ballenegger, Arnold, Cerda, J. Chem. Phys. 131, 094107 (2009), eq. 13, for the charge):
    ``E = (1 / 2 eps0 V) (M_z^2 - Q T_zz - Q^2 L^2 / 12)``, T the second moment.
    Molecule in a cubic box of edge L (Makov and Payne, Phys. Rev. B 51, 4014 (1995); Dabo et al.,
    Phys. Rev. B 77, 115139 (2008)): ``E = alpha k_e Q^2 / 2 L + (1 / 6 eps0 V) (M^2 - Q tr T)``.
    Gaussians contribute sigma^2 q per axis to T, and quadrupoles ``2 c_ab`` of their Cartesian moments.

    Attributes:
        positions: ``[n_atoms, 3]`` float64, angstrom.
        origin: ``[n_systems, 3]`` float64 origin of the moments; near the atoms, to avoid cancellation.
        volume: ``[n_systems]`` float64.
        slab: ``[n_systems]`` float64, 1 for a slab.
        box: ``[n_systems]`` float64, 1 for a molecule in a box; None if there is none.
        inverse: ``[n_systems, 3, 3]`` float64 inverse cells.
        axis: ``[n_systems]`` int64 open direction of slabs.
        segments: The system of each atom.
        widths: Source widths, angstrom.
        quirks: Deviations of a reference code.
    """

    positions: Tensor
    origin: Tensor
    volume: Tensor
    slab: Tensor
    box: Tensor | None
    inverse: Tensor
    axis: Tensor
    segments: Segments
    widths: tuple[float, ...]
    quirks: Quirks

    def _moments(
        self, moments: Tensor, sums: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """
        Charge, dipole along the normal, second moment along it, dipole vector, trace of the second.

        Of ``moments [n_atoms, n_channels, n_widths, M]``, or sums: each ``[n_systems, n_channels(, 3)]``.
        """
        if sums is None and moments.is_cuda:
            return self._fused_moments(moments.double())
        sums = self.segments.combine(self.own_sums(moments)) if sums is None else sums
        charge, height_moment, second_z, trace = sums[..., :4].unbind(-1)
        return charge, height_moment, second_z, sums[..., 4:], trace

    def own_sums(self, moments: Tensor) -> Tensor:
        """
        Sums over the atoms of this process, which ranks that share a system add up.

        Args:
            moments: As in `energy`.

        Returns:
            ``[n_systems, n_channels, 7]`` float64: charge, dipole along the normal, second moment along it,
            trace of the second moment, dipole.
        """
        m = moments.double()
        q = m[..., 0]
        variance = constant(self.widths, q.dtype, q.device) ** 2
        normal = self.segments.expand(self.normal)[:, None]
        r = (self.positions - self.segments.expand(self.origin))[:, None]
        z = (r * normal).sum(-1)
        charge = q.sum(-1)
        dipole = charge[..., None] * r
        height_moment = charge * z
        second_z = charge * z**2
        trace = charge * (r**2).sum(-1)
        if m.shape[-1] > 1:
            d = m[..., 1:4].sum(2)
            d_z = (d * normal).sum(-1)
            dipole = dipole + d
            height_moment = height_moment + d_z
            second_z = second_z + 2 * d_z * z
            trace = trace + 2 * (d * r).sum(-1)
        if m.shape[-1] > 4:  # traceless
            c = symmetric_matrices(m[..., 4:].sum(2))
            second_z = second_z + 2 * (normal * (c @ normal[..., None])[..., 0]).sum(-1)
        spread = (q * variance).sum(-1)
        second_z = second_z + spread
        if self.quirks.box_second_moment:
            trace = trace + 3 * spread
        numbers = torch.stack((charge, height_moment, second_z, trace), -1)
        return self.segments.own_sum(torch.cat((numbers, dipole), -1))

    def __post_init__(self) -> None:
        """Compute what every call uses, with the graph of the first one."""
        self._strengths = self._axes = None
        if self.positions.is_cuda:
            self._own = self.positions - self.segments.expand(self.origin)
            if self.box is None and self.quirks.slab_charge and not self.quirks.slab_along_z:
                weight = _weights.get((self.slab,), None, lambda: FIELD_CONSTANT * self.slab)
                self._strengths = slab_strengths(self.inverse, self.volume, self.axis, weight)
        if self._strengths is None:
            self._axes = self._make_axes()

    def _make_axes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Unit normals, heights, and products of the normals."""
        normal = torch.take_along_dim(self.inverse, self.axis[:, None, None], 2).squeeze(2)
        height = 1 / normal.norm(dim=-1)
        normal = normal * height[:, None]
        if self.quirks.slab_along_z:
            normal = torch.zeros_like(normal)
            normal[:, 2] = 1.0
        return normal, height, products(normal)

    @property
    def _geometry(self) -> tuple[Tensor, Tensor, Tensor]:
        """The same, made when it is first asked for where most calls do without."""
        if self._axes is not None:
            return self._axes
        # a first call without gradients may be followed by one with gradients
        with torch.enable_grad():
            axes = self._make_axes()
        if not torch.is_inference_mode_enabled():
            self._axes = axes
        return axes

    @property
    def normal(self) -> Tensor:
        """``[n_systems, 3]`` float64 unit normals of the slabs."""
        return self._geometry[0]

    @property
    def height(self) -> Tensor:
        """``[n_systems]`` float64, volume over area, angstrom."""
        return self._geometry[1]

    @property
    def _squares(self) -> Tensor:
        return self._geometry[2]

    def _relative(self, at: tuple[Tensor, Segments] | None) -> Tensor:
        """Positions of the atoms, or of points, about the origins of their systems."""
        if at is None:
            return self._own
        return at[0] - at[1].expand(self.origin)

    def _fused_moments(self, m: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The same from the moments of each atom about the origin, in few launches."""
        r = self._relative(None)
        variance = constant(tuple(w**2 for w in self.widths), m.dtype, m.device)
        whole = m[:, :, 0] if m.shape[2] == 1 else m.sum(2)
        rows = torch.cat((polynomial_moments(r, whole), (m[..., 0] @ variance)[..., None]), -1)
        sums = self.segments.sum(rows)
        charge, dipole, second, spread = sums.split((1, 3, 6, 1), -1)
        along = (dipole @ self.normal[..., None])[..., 0]
        height = 2 * (second @ self._squares[..., None]) + spread[..., None]
        trace = spread[..., 0]  # of no use without boxes
        if self.box is not None:
            trace = 2 * (second[..., 0] + second[..., 3] + second[..., 5])
            trace = trace + 3 * spread[..., 0] if self.quirks.box_second_moment else trace
        return charge[..., 0], along, height[..., 0, 0], dipole, trace

    def second_moment(self, moments: Tensor) -> Tensor:
        """``[n_systems, n_channels]`` along the normals, e angstrom^2."""
        return self._moments(moments)[2]

    def energy(self, moments: Tensor, sums: Tensor | None = None) -> Tensor:
        """
        Energy of the correction.

        Args:
            moments: As in `GaussianMultipoles.to_moments`.
            sums: `own_sums` of all processes, where they are known.

        Returns:
            ``[n_systems, n_channels]`` float64, eV.
        """
        if sums is None and self._strengths is not None and fits(moments):
            s = low_moments(self._own, moments, self.segments)
            return slab_energy(s, self._strengths, self.widths[0])
        charge, m_z, t_zz, dipole, trace = self._moments(moments, sums)
        volume, height = self.volume[:, None], self.height[:, None]
        slab = m_z**2
        if self.quirks.slab_charge:
            slab = slab - charge * t_zz - charge**2 * height**2 / 12
        slab = self.slab[:, None] * FIELD_CONSTANT / (2 * volume) * slab
        if self.box is None:
            return slab
        edge = volume ** self.quirks.box_exponents[0]
        box = 0.5 * self.quirks.madelung * COULOMB_CONSTANT * charge**2 / edge
        box = box + FIELD_CONSTANT / (6 * volume) * ((dipole**2).sum(-1) - charge * trace)
        return slab + self.box[:, None] * box

    def field(
        self,
        moments: Tensor,
        widths: tuple[float, ...],
        rank: int,
        at: tuple[Tensor, Segments] | None = None,
        sums: Tensor | None = None,
    ) -> Tensor:
        """
        Potential and derivatives of the correction at the atoms, averaged over Gaussians.

        Args:
            moments: As in `energy`.
            widths: Widths of the receiving Gaussians, angstrom.
            rank: 0 for the potential, 1 to add its gradient, 2 its second derivatives.
            at: Points to use instead of the atoms: float64 positions, and their systems.
            sums: `own_sums` of all processes, where they are known.

        Returns:
            ``[n_atoms, n_channels, n_widths, 1 | 4 | 10]`` float64, V, V/angstrom and V/angstrom^2.
        """
        if sums is None and moments.is_cuda:
            return self._fused_field(moments, widths, rank, at)
        charge, m_z, t_zz, dipole, trace = self._moments(moments, sums)
        volume, height = self.volume[:, None], self.height[:, None]
        boxes = torch.zeros_like(self.slab) if self.box is None else self.box
        positions, segments = at or (self.positions, self.segments)
        spread = segments.expand
        r = (positions - spread(self.origin))[:, None]
        normal = spread(self.normal)[:, None]
        z = (r * normal).sum(-1)
        slab = (self.slab[:, None] * FIELD_CONSTANT / volume).expand_as(m_z)
        box = (boxes[:, None] * FIELD_CONSTANT / (6 * volume)).expand_as(m_z)
        edge = volume ** self.quirks.box_exponents[1]
        offset = boxes[:, None] * self.quirks.madelung * COULOMB_CONSTANT * charge / edge
        offset = offset - box * trace
        charged = self.quirks.slab_charge
        if charged:
            offset = offset - slab * (0.5 * t_zz + charge * height**2 / 12)
        slab_m, slab_q = spread(slab * m_z), spread(slab * charge)
        box_m, box_q = spread(box[..., None] * dipole), spread(box * charge)
        values = spread(offset) + slab_m * z
        values = values + 2 * (box_m * r).sum(-1) - box_q * (r**2).sum(-1)
        if charged:
            values = values - 0.5 * slab_q * z**2
        out = values[..., None].expand(*values.shape, len(widths))
        variance = constant(widths, values.dtype, values.device) ** 2
        if charged:
            out = out - 0.5 * slab_q[..., None] * variance
        if self.quirks.box_second_moment:
            out = out - 3 * box_q[..., None] * variance
        out = out[..., None]
        if rank == 0:
            return out
        along = slab_m - (slab_q * z if charged else 0.0)
        gradient = along[..., None] * normal + 2 * (box_m - box_q[..., None] * r)
        parts = [out, gradient[:, :, None]]
        if rank > 1:
            trace = constant((1.0, 0.0, 0.0, 1.0, 0.0, 1.0), values.dtype, values.device)
            second = -2 * box_q[..., None] * trace
            if charged:
                second = second - slab_q[..., None] * products(normal)
            parts.append(second[:, :, None])
        return torch.cat([part.expand(-1, -1, len(widths), -1) for part in parts], -1)

    def _polynomials(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        """
        The potential as a polynomial about each origin, see `polynomial_field`, and what Gaussians add to it.

        Returns:
            ``[n_systems, n_channels, 10]``, and ``[n_systems, n_channels]`` the potential for each square of
            a receiver's width.
        """
        charge, m_z, t_zz, dipole, trace = self._moments(moments)
        volume = self.volume[:, None]
        strength = self.slab[:, None] * FIELD_CONSTANT / volume
        linear = (strength * m_z)[..., None] * self.normal[:, None]
        offset, wide = torch.zeros_like(charge), torch.zeros_like(charge)
        second = linear.new_zeros((*charge.shape, 6))
        if self.quirks.slab_charge:
            curve = strength * charge
            offset = -0.5 * strength * t_zz - curve * (self.height**2 / 12)[:, None]
            second, wide = -curve[..., None] * self._squares[:, None], -0.5 * curve
        if self.box is not None:
            box = self.box[:, None] * FIELD_CONSTANT / (6 * volume)
            edge = volume ** self.quirks.box_exponents[1]
            offset = offset + self.box[:, None] * self.quirks.madelung * COULOMB_CONSTANT * charge / edge
            offset = offset - box * trace
            linear = linear + 2 * box[..., None] * dipole
            curve = box * charge
            diagonal = constant((1.0, 0.0, 0.0, 1.0, 0.0, 1.0), charge.dtype, charge.device)
            second = second - 2 * curve[..., None] * diagonal
            if self.quirks.box_second_moment:
                wide = wide - 3 * curve
        return torch.cat((offset[..., None], linear, second), -1), wide

    def _fused_field(
        self, moments: Tensor, widths: tuple[float, ...], rank: int, at: tuple[Tensor, Segments] | None
    ) -> Tensor:
        """See `field`; in few launches."""
        segments = self.segments if at is None else at[1]
        if self._strengths is not None and fits(moments):
            s = low_moments(self._own, moments, self.segments)
            here = (widths, rank, self._relative(at), segments)
            return slab_field(s, self._strengths, self.widths[0], *here)
        polynomials, wide = self._polynomials(moments)
        rows = segments.expand(torch.cat((polynomials, wide[..., None]), -1))
        own, wide = rows.split((10, 1), -1)
        field = polynomial_field(self._relative(at), own, rank)
        variance = constant(tuple(w**2 for w in widths), field.dtype, field.device)
        wider = torch.nn.functional.pad((wide * variance)[..., None], (0, field.shape[-1] - 1))
        return field[:, :, None] + wider

    def far_levels(self, moments: Tensor) -> Tensor:
        """``[n_systems, n_channels, 2]`` V far below and above slabs, without ``-(2 pi k_e / A) Q |z|``."""
        half = 0.5 * FIELD_CONSTANT * self.height[:, None] / self.volume[:, None]
        step = half * self._moments(moments)[1]
        return torch.stack((-step, step), -1)

    def far_field(self, moments: Tensor, positions: Tensor, segments: Segments) -> Tensor:
        """
        Potential and gradient far above and below slabs, ``-(2 pi k_e / A) (Q abs(z) - sign(z) M_z)``.

        Args:
            moments: As in `energy`.
            positions: ``[n, 3]`` float64, angstrom.
            segments: The system of each point.

        Returns:
            ``[n, n_channels, 4]`` float64, V and V/angstrom.
        """
        charge, m_z, *_ = self._moments(moments)
        half = 0.5 * FIELD_CONSTANT * self.height[:, None] / self.volume[:, None]
        normal = segments.expand(self.normal)
        z = ((positions - segments.expand(self.origin)) * normal).sum(1, keepdim=True)
        slope = -segments.expand(half * charge) * z.sign()
        value = slope * z + segments.expand(half * m_z) * z.sign()
        return torch.cat((value[..., None], slope[..., None] * normal[:, None]), -1)
