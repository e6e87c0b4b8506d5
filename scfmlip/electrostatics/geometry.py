"""The Coulomb operator at given positions and cells, for any multipoles."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..units import FIELD_CONSTANT
from . import checks
from .boundary import Boundary
from .counter_charge import CounterCharge
from .cutoff import truncation_error
from .density import GaussianMultipoles, to_widths
from .fused import fused_energy, fused_rows
from .joint import energies, fields
from .kspace import KSpace
from .mesh import Mesh
from .mesh_error import MeshResolution, mesh_error
from .near_field import NearField
from .open_mesh import OpenMesh
from .openspace import OpenSpace
from .plan import CoulombPlan, SubBatch
from .points import PointValues, evaluate_points

if TYPE_CHECKING:
    from .coulomb import Coulomb


class Geometry:
    """
    The Coulomb operator K at one geometry; made by `Coulomb.prepare`.

    All methods take multipoles ``[n_atoms, dim]`` or ``[n_atoms, n_channels, dim]`` (several independent
    densities, for instance two spins) in the basis ``coulomb.source``: rows ``[q, d_x, d_y, d_z]`` for
    l_max = 1 and one width, unless the operator was made with ``order="e3nn"``. Results are
    differentiable in positions, cell, multipoles and external fields, twice and more.

    Example:
        >>> import torch, scfmlip
        >>> positions = torch.tensor([[0.0, 0.0, 0.0], [2.8, 0.0, 0.0]]).double().requires_grad_()
        >>> charges = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
        >>> geometry = scfmlip.Coulomb(l_max=0, sigma=0.5).prepare(positions, None, False)
        >>> (gradient,) = torch.autograd.grad(geometry.energy(charges).sum(), positions)
        >>> round(float(-gradient[0, 0]), 3)  # force on the first charge, eV/angstrom, towards the second
        1.834
        >>> [round(v, 3) for v in geometry.potential(charges)[:, 0].tolist()]  # V, of the other charge
        [-5.142, 5.142]
    """

    def __init__(
        self,
        coulomb: Coulomb,
        plan: CoulombPlan,
        positions: Tensor,
        cell: Tensor | None,
        external_field: Tensor | None,
        external_potential: Tensor | None,
        counter_bounds: Tensor | None,
        validate: bool,
    ) -> None:
        self.coulomb, self.plan, self.positions = coulomb, plan, positions
        self.external_field, self.external_potential = external_field, external_potential
        self.cell, self.counter_bounds = cell, counter_bounds
        self.validate = validate
        self.kspace = self.openspace = self.counter = self.near = None
        self._roomy: dict[tuple[float, ...], Geometry] = {}
        source = coulomb.source
        if plan.lattice is not None:
            sub = plan.lattice
            assert cell is not None
            cells = (cell if sub.atoms is None else cell.index_select(0, sub.systems)).double()
            quirks = coulomb.quirks
            if counter_bounds is not None:
                self.counter = CounterCharge(counter_bounds, sub, cells, source.widths)
                quirks = dataclasses.replace(quirks, slab_charge=True)
            kind = KSpace if sub.mesh is None else Mesh
            mine = sub.take(positions)
            self.kspace = kind(sub, mine, cells, plan.smoothing.sources, quirks)
            if plan.near is not None:
                self.near = NearField(sub, plan.smoothing, plan.near, mine, cells, self.kspace.volume)
        if plan.open is not None:
            self.openspace = self._open_space(plan.open, plan.open.take(positions))

    @property
    def method(self) -> list[str]:
        """How each system is summed: "direct", "mesh" or "pairs"."""
        return self.plan.method

    @property
    def smooth_width(self) -> float | None:
        """Width, angstrom, that waves are smoothed to, the rest over neighbours; None where none are."""
        return self.plan.smooth_width

    def _open_space(self, sub: SubBatch, positions: Tensor) -> OpenSpace:
        coulomb, boxes = self.coulomb, self.plan.boxes
        if boxes is not None:
            tiles = self.plan.pair_tiles
            return OpenMesh(positions, sub, coulomb.source, coulomb.quirks, boxes, coulomb.receivers, tiles)
        sizes = (sub.host_ptr, sub.segments)
        return OpenSpace(positions, *sizes, coulomb.source.widths, coulomb.quirks, self.plan.pair_tiles)

    # shapes ---------------------------------------------------------------------------------------

    def _rows(self, multipoles: Tensor) -> Tensor:
        """``[n_atoms, n_channels, dim]`` after checking."""
        source = self.coulomb.source
        checks.check_tensor("multipoles", multipoles, "[n_atoms, (n_channels,) dim]")
        if (
            multipoles.ndim not in (2, 3)
            or multipoles.shape[0] != len(self.positions)
            or multipoles.shape[-1] != source.dim
        ):
            raise ValueError(
                f"multipoles must have shape [{len(self.positions)}, {source.dim}] or "
                f"[{len(self.positions)}, n_channels, {source.dim}] for l_max={source.l_max} and "
                f"{source.n_widths} width(s), got {list(multipoles.shape)}"
            )
        checks.check_same("multipoles", multipoles, self.positions)
        if self.validate and not torch.compiler.is_compiling():
            checks.check_finite("multipoles", multipoles, "e, e angstrom")
        return multipoles if multipoles.ndim == 3 else multipoles[:, None]

    @property
    def _only_lattice(self) -> bool:
        """Whether all there is are sums over wave vectors of all systems."""
        others = (self.openspace, self.counter, self.near, self.external_field, self.external_potential)
        return self.coulomb.background != "none" and all(part is None for part in others)

    def _moments(self, multipoles: Tensor) -> Tensor:
        """``[n_atoms, n_channels, n_widths, M]`` after checking."""
        return self._moments_of(self._rows(multipoles))

    def _moments_of(self, rows: Tensor) -> Tensor:
        moments = self.coulomb.source.to_moments(rows)
        background = self.coulomb.background
        lattice = self.plan.lattice
        if background == "none" and lattice is not None and not torch.compiler.is_compiling():
            charges = lattice.take(moments)[..., 0]
            totals = lattice.segments.sum(charges.double().sum(-1))
            checks.check_neutral(charges, totals, self.plan.boundaries, lattice.systems.tolist())
        return moments

    def __repr__(self) -> str:
        """Sizes, boundaries, how sums are done, dtype and device."""
        counts = Counter(boundary.name.lower() for boundary in self.plan.boundaries)
        kinds = ", ".join(f"{n} {name}" for name, n in counts.items())
        systems = f"{self.plan.n_systems} system{'s' if self.plan.n_systems != 1 else ''}"
        parts = [f"{len(self.positions)} atoms", f"{systems}: {kinds}" if kinds else systems]
        if self.plan.lattice is not None:
            mesh = self.plan.lattice.mesh is not None
            parts.append("mesh" if mesh else f"{self.plan.lattice.grid.n_points:,} wave vectors")
        for name in ("external_field", "external_potential"):
            if getattr(self, name) is not None:
                parts.append(name.replace("_", " "))
        if self.counter is not None:
            parts.append("counter-charge")
        dtype = str(self.positions.dtype).removeprefix("torch.")
        return f"Geometry({'; '.join(parts)}; {dtype} on {self.positions.device})"

    # the operator ---------------------------------------------------------------------------------

    def energy(self, multipoles: Tensor, self_interaction: bool | None = None) -> Tensor:
        """
        Electrostatic energy of each system, ``1/2 p.K p`` plus the energy in the external fields.

        Args:
            multipoles: See the class.
            self_interaction: Whether to include each Gaussian's interaction with itself; the operator's
                setting if None.

        Returns:
            ``[n_systems]`` (``[n_systems, n_channels]`` for several channels) eV, in the positions' dtype.

        Raises:
            ValueError: for wrong shapes, NaN, or a charge that the boundary condition cannot hold.
            TypeError: for another dtype.
        """
        rows = self._rows(multipoles)
        with_self = self.coulomb.self_interaction if self_interaction is None else self_interaction
        if self._only_lattice and with_self and self.kspace is not None:
            fused = fused_energy(self.kspace, rows, self.coulomb.source)
            if fused is not None:
                return (fused if multipoles.ndim == 3 else fused[:, 0]).to(self.positions.dtype)
        energy, _ = energies(self, self._moments_of(rows), with_self)
        energy = energy.to(self.positions.dtype)
        return energy if multipoles.ndim == 3 else energy[:, 0]

    def _own_overlap(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        assert self.counter is not None
        return self.counter.own_overlap(moments, self.positions, self.plan.segments)

    def _counter_zero(
        self, moments: Tensor, conjugate: bool = False, sums: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        Charges, and the zero level of potentials of slabs with a counter-charge, V.

        ``sums`` are those of `_own_overlap` over all atoms, where they are known.
        """
        assert self.counter is not None and self.kspace is not None and self.kspace.correction is not None
        if sums is None:
            sums = self.plan.segments.combine_all(*self._own_overlap(moments))
        charge, overlap = sums
        if conjugate or not self.coulomb.quirks.cell_average:
            return charge, overlap - charge * self.counter.own[:, None]
        moment = self.kspace.correction.second_moment(moments) - charge * self.counter.second_moment[:, None]
        return charge, -0.5 * FIELD_CONSTANT / self.kspace.volume[:, None] * moment

    def _external_field(self, widths: tuple[float, ...], rank: int) -> Tensor:
        """``[n_atoms, 1, len(widths), 1 | 4 | 10]`` float64: a linear potential is its own average."""
        segments = self.plan.segments
        positions = self.positions.double()  # far from the origin -r.E is large and cancels
        if self.counter is not None:  # the field acts on the counter-charge too
            positions = positions - segments.expand(self.counter.center)
        values = positions.new_zeros(len(positions))
        gradient = torch.zeros_like(positions)
        if self.external_potential is not None:
            values = values + segments.expand(self.external_potential.double())
        if self.external_field is not None:
            gradient = segments.expand(self.external_field.double())
            gradient = self.coulomb.quirks.field_sign * gradient
            values = values + (gradient * positions).sum(-1)
        out = values[:, None]
        if rank > 0:
            out = torch.cat((out, gradient), -1)
        if rank > 1:
            out = torch.nn.functional.pad(out, (0, 6))
        return out[:, None, None].expand(-1, -1, len(widths), -1)

    def _field(
        self,
        multipoles: Tensor,
        basis: GaussianMultipoles,
        conjugate: bool,
        self_interaction: bool | None,
        *others: Tensor,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Potential projected on the functions of ``basis``, and other sums as in `joint.fields`."""
        given = self._rows(multipoles)
        with_self = self.coulomb.self_interaction if self_interaction is None else self_interaction
        rank, widths, source, quirks = basis.l_max, basis.widths, self.coulomb.source, self.coulomb.quirks
        if self._only_lattice and self.kspace is not None:
            fused = fused_rows(self.kspace, given, source, basis, quirks, with_self)
            if fused is not None:
                return fused if multipoles.ndim == 3 else fused[:, 0], others
        field, rest = fields(self, self._moments_of(given), widths, rank, conjugate, with_self, *others)
        if self.external_field is not None or self.external_potential is not None:
            field = field + self._external_field(widths, rank).to(field.dtype)
        rows = basis.project(field)
        return rows if multipoles.ndim == 3 else rows[:, 0], rest

    def potential(self, multipoles: Tensor, self_interaction: bool | None = None) -> Tensor:
        """
        The potential conjugate to each multipole coefficient, ``K p = dE/dp``.

        Args:
            multipoles: See the class.
            self_interaction: See `energy`.

        Returns:
            Shape, order and dtype of ``multipoles``; V for charges, V/angstrom for dipoles (minus the field).
            External fields are included. Potentials of a slab with a counter-charge are measured from their
            average over that, here and in `features` and `at`.

        Raises:
            ValueError, TypeError: as `energy`.
        """
        return self._field(multipoles, self.coulomb.source, True, self_interaction)[0]

    def features(
        self,
        multipoles: Tensor,
        widths: float | Sequence[float] | None = None,
        l_max: int | None = None,
        self_interaction: bool | None = None,
    ) -> Tensor:
        """
        Projections of the potential on Gaussian orbitals at every atom, as MACE-POLAR's field features.

        ``v_nlm = int V(r) phi_nlm(r - r_i) dr`` with "receiver" normalisation: sqrt(4 pi) times the
        Gaussian-averaged potential for l = 0, sqrt(3/2) pi width times its averaged gradient for l = 1, and
        its averaged second derivatives in the components of `GaussianMultipoles` for l = 2.
        External fields are included.

        Args:
            multipoles: See the class.
            widths: Widths of the orbitals, angstrom; the operator's ``feature_widths`` if None.
            l_max: 0, 1 or 2; that of the multipoles if None.
            self_interaction: See `energy`.

        Returns:
            ``[n_atoms, n_widths * (l_max + 1)^2]``, with a channel dimension in second place if the
            multipoles have one; l = 0 of every width, then l = 1 of every width, in the operator's order.

        Raises:
            ValueError: for widths that the wave-vector cutoff does not resolve, and as `energy`.
        """
        coulomb = self.coulomb
        if widths is None:
            widths = coulomb.feature_widths or coulomb.source.widths
        l_max = coulomb.source.l_max if l_max is None else l_max
        basis = GaussianMultipoles(l_max, to_widths("widths", widths), "receiver", coulomb.source.order)
        if basis.l_max > 1 and coulomb.compat == "graph_longrange":
            raise ValueError("compat='graph_longrange' knows features up to l_max=1: leave compat out")
        self._check_resolved(basis)
        slabs = self.plan.lattice is not None and self.plan.lattice.slabs is not None
        if slabs and max(basis.widths) > coulomb.widest[1]:
            return self._with_room(basis.widths)._field(multipoles, basis, False, self_interaction)[0]
        return self._field(multipoles, basis, False, self_interaction)[0]

    def _with_room(self, widths: tuple[float, ...]) -> Geometry:
        """The same geometry with slab cells high enough for Gaussians of ``widths``."""
        if widths in self._roomy:
            return self._roomy[widths]
        if torch.compiler.is_compiling():
            raise ValueError(
                f"features of width {max(widths):g} angstrom need taller cells of slabs than this plan "
                f"has, which a compiled graph cannot make: pass feature_widths={widths} to Coulomb"
            )
        lattice, coulomb = self.plan.lattice, self.coulomb
        assert lattice is not None and lattice.slabs is not None and self.cell is not None
        cell = self.cell if lattice.atoms is None else self.cell.index_select(0, lattice.systems)
        taller = lattice.resized(
            cell,
            lattice.slabs.thickness.tolist(),
            self.plan.smoothing.widest(widths),
            coulomb.image_tolerance,
            coulomb.l_max,
            self.plan.resolution,
        )
        # a first call without gradients may be followed by one with gradients
        with torch.enable_grad():
            roomy = Geometry(
                coulomb,
                dataclasses.replace(self.plan, lattice=taller),
                self.positions,
                self.cell,
                self.external_field,
                self.external_potential,
                self.counter_bounds,
                self.validate,
            )
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            self._roomy[widths] = roomy
        return roomy

    def _check_resolved(self, basis: GaussianMultipoles) -> None:
        if self.kspace is None or self.coulomb.compat is not None:
            return
        smoothing = self.plan.smoothing
        pair = 0.5 * (min(smoothing.sources) ** 2 + min(smoothing.receivers(basis.widths)) ** 2)
        l_max = max(self.coulomb.source.l_max, basis.l_max)
        resolution = self.plan.resolution
        more, rest = "more wave vectors than this geometry holds", ", or a larger kspace_cutoff"
        if isinstance(resolution, MeshResolution):
            if torch.compiler.is_compiling():  # an integral that a graph cannot hold
                return
            more, rest = "a finer mesh than this geometry has", ""
            error = mesh_error(pair, resolution.order, resolution.spacing, l_max)
        else:
            error = truncation_error(pair, resolution, l_max)
        if error > max(1e-3, 100 * self.coulomb.tolerance):
            raise ValueError(
                f"features of width {min(basis.widths):g} angstrom need {more} (error up to {error:.2g} eV): "
                f"pass feature_widths={basis.widths} to Coulomb{rest}"
            )

    def vacuum_levels(self, multipoles: Tensor) -> Tensor:
        """
        The constant potential far below and far above slabs, consistent with `at`.

        Args:
            multipoles: ``[n_atoms, dim]``.

        Returns:
            ``[n_systems, 2]`` V, on the side that the normal points away from and on the side it points to.

        Raises:
            ValueError: for a system that is not a slab, a charged slab without a counter-charge, or an
                external field: their potential is not constant far away.
        """
        moments, kinds = self._moments(multipoles), self.plan.boundaries
        for i, kind in enumerate(kinds):
            if kind != Boundary.SLAB:
                raise ValueError(
                    f"system {i} of the batch is not a slab (pbc): it has no vacuum on two sides"
                )
        if self.external_field is not None and bool(self.external_field.any()):
            raise ValueError(
                "in an external field the potential of the vacuum is not flat: leave the field out"
            )
        assert self.kspace is not None and self.kspace.correction is not None
        if self.counter is None:
            charges = self.plan.segments.sum(moments[..., 0].double().sum(-1))
            checks.check_neutral_slabs(moments[..., 0], charges)
        levels = self.kspace.correction.far_levels(moments)[:, 0]
        if self.counter is not None:
            charge, zero = self._counter_zero(moments)
            levels = levels + self.counter.far_levels(charge, zero, self.kspace.correction.origin)[:, 0]
        if self.external_potential is not None:
            levels = levels + self.external_potential[:, None]
        return levels

    def at(self, points: Tensor, multipoles: Tensor, points_batch_idx: Tensor | None = None) -> PointValues:
        """
        Density, potential and electric field at any points.

        Args:
            points: ``[n_points, 3]`` angstrom, dtype and device of the positions.
            multipoles: ``[n_atoms, dim]``.
            points_batch_idx: ``[n_points]`` system of each point, not decreasing; may be None for one
                system.

        Returns:
            ``density [n_points]`` e/angstrom^3, ``potential [n_points]`` V, ``field [n_points, 3]``
            V/angstrom (minus the gradient of the potential), external fields included.

        Raises:
            ValueError: for wrong shapes or NaN.
        """
        return evaluate_points(self, points, multipoles, points_batch_idx)
