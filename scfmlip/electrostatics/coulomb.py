"""The public Coulomb operator: options, checks, plans and geometries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from scfmlip_kernels.transforms import is_batched, on_values
from scfmlip_kernels.tuned import tuned

from ..segments import Segments
from ..types import BoundaryName, Compat, MultipoleOrder
from . import checks
from .arguments import check_counter_charge, check_field, read_systems, to_cells, to_systems
from .boundary import EXACT, GRAPH_LONGRANGE, Boundary, Quirks, resolve_boundaries
from .choice import Batch, Choice, Need, choose, plan_neighbours
from .cutoff import check_cutoff, cutoff_for_tolerance, reference_cutoff, truncation_error
from .density import GaussianMultipoles, to_widths
from .geometry import Geometry
from .near_field import Smoothing
from .open_mesh import choose_boxes, worth_a_look
from .openspace import DISPLACED
from .plan import CoulombPlan, SubBatch, make_plan
from .slab import SlabPlan, extents_of, plan_slabs, slab_extents, slab_normals, slab_steps

Background = Literal["uniform", "none"]


@dataclass(frozen=True)
class Coulomb:
    """
    The Coulomb operator of Gaussian multipole densities. It holds options only, no state.

    A charged periodic system has a uniform background of the opposite charge (its k = 0 term is left out),
    which is part of the energy; ``background="none"`` refuses such systems instead. A charged slab has the
    energy of two-dimensional periodicity, with the potential -2 pi k_e Q |z| / area far away.
    ``counter_charge`` in `prepare` makes it neutral, and is then the reference of potentials.

    A slab is two-dimensional: the length of the cell vector along its open axis does not matter. The vector
    may be zero, and atoms may lie beyond it; it only says which side is up.

    Args:
        l_max: 0 for charges, 1 for charges and dipoles, 2 for quadrupoles too, whose components
            `GaussianMultipoles` names.
        sigma: Gaussian width of the density, angstrom; several widths give each atom several
            coefficients.
        boundary: "auto" follows each system's ``pbc`` (crystal, slab along any axis, isolated);
            "periodic", "slab", "molecule_in_box" (cubic box, Makov-Payne) and "open" apply to all systems.
        self_interaction: Whether to include the interaction of a Gaussian with itself.
        method: Method for crystals, slabs and boxes: "direct" sums over atoms x wave vectors; "mesh" uses a
            mesh and Fourier transforms, O(N log N), and splits narrow Gaussians, see ``smooth``. "auto" takes
            the cheapest by a table of measured costs: "direct" for small systems, and on a GPU without a
            table; `CoulombPlan.method` says which. Isolated systems are summed over "pairs" of atoms, or
            through a mesh in a box that holds them if "mesh" or costs say so.
        tolerance: Energy, eV, of the omitted wave vectors for a pair of charges of 1 e, dipoles of 1 e times
            the width, or quadrupoles of 1 e times its square; sets the cutoff or the mesh. The images of a
            slab contribute a hundredth of it. The estimate assumes a large cell. Measured errors in cubes
            exceed it by up to 1.5x (edge above 8 widths), 3.5x (4 to 8) and 11x (below 4). The error of a
            mesh stays below the tolerance in all of them.
        kspace_cutoff: Largest wave vector, 1/angstrom; overrides ``tolerance``.
        compat: "graph_longrange" reproduces that package's formulas, quirks and option names (0.4.4):
            finite-difference open boundary, uncorrected charged slabs, its box and self terms, and
            external fields with energy ``+dipole . field``. "les" is exact, with any cutoff a model was
            trained with.
        feature_widths: Widths that will be passed to `features`, so that the cutoff resolves them too.
        order: Components of dipole rows: "cartesian" ``[q, d_x, d_y, d_z]`` or "e3nn" ``[q, d_y, d_z, d_x]``.
        background: "uniform" or "none", see above.
        validate: Check values (NaN, cell) as well as shapes; costs a synchronisation on a GPU.
        smooth: Of crystals, slabs and boxes: Gaussians narrower than this, angstrom, are summed as if they
            were so wide, and the rest over neighbours (found on the host): far fewer waves or mesh points. 0
            leaves all as they are, None takes what costs least (and 0 for method="direct").

    Raises:
        ValueError: for an option that does not exist or a cutoff that does not resolve the Gaussians.

    Formulas: Baldwin et al., arXiv:2603.14700; Essmann et al., J. Chem. Phys. 103, 8577 (1995).

    Example:
        >>> import torch, scfmlip
        >>> positions = torch.tensor([[0.0, 0.0, 0.0], [2.8, 0.0, 0.0]], dtype=torch.float64)
        >>> charges = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
        >>> coulomb = scfmlip.Coulomb(l_max=0, sigma=0.5)
        >>> geometry = coulomb.prepare(positions, None, False)  # a molecule in free space
        >>> round(float(geometry.energy(charges)), 4)  # eV
        -5.1423
    """

    l_max: int = 1
    sigma: float | Sequence[float] = 1.5
    boundary: BoundaryName = "auto"
    self_interaction: bool = False
    method: Literal["auto", "direct", "mesh"] = "auto"
    tolerance: float = 1e-6
    kspace_cutoff: float | None = None
    compat: Compat | None = None
    feature_widths: Sequence[float] | None = None
    order: MultipoleOrder = "cartesian"
    background: Background = "uniform"
    validate: bool = True
    smooth: float | None = None
    source: GaussianMultipoles = field(init=False)
    quirks: Quirks = field(init=False)

    def __post_init__(self) -> None:
        if self.method not in ("auto", "direct", "mesh"):
            raise ValueError(f"method must be 'auto', 'direct' or 'mesh', got {self.method!r}")
        if self.method == "mesh" and (self.kspace_cutoff is not None or self.compat is not None):
            given = "kspace_cutoff" if self.kspace_cutoff is not None else "compat"
            raise ValueError(
                f"method='mesh' takes its waves from the tolerance, {given} is for method='direct': leave "
                "one of them out"
            )
        if self.boundary not in get_args(BoundaryName):
            raise ValueError(f"boundary must be one of {list(get_args(BoundaryName))}, got {self.boundary!r}")
        if self.compat not in (None, *get_args(Compat)):
            raise ValueError(f"compat must be None or one of {list(get_args(Compat))}, got {self.compat!r}")
        if self.background not in ("uniform", "none"):
            raise ValueError(f"background must be 'uniform' or 'none', got {self.background!r}")
        if not checks.is_between(self.tolerance, 0.0, 1.0):
            raise ValueError(f"tolerance must be between 0 and 1 eV, got {self.tolerance!r}")
        self._check_smooth()
        if self.compat is not None and self.l_max > 1:
            raise ValueError(
                f"compat={self.compat!r} knows charges and dipoles, got l_max={self.l_max}: leave compat out"
            )
        source = GaussianMultipoles(self.l_max, to_widths("sigma", self.sigma), order=self.order)
        object.__setattr__(self, "source", source)
        exact = self.compat != "graph_longrange"
        object.__setattr__(self, "quirks", EXACT if exact else GRAPH_LONGRANGE)
        if self.feature_widths is not None:
            widths = to_widths("feature_widths", self.feature_widths)
            GaussianMultipoles(self.l_max, widths)
            object.__setattr__(self, "feature_widths", widths)
        if self.kspace_cutoff is not None:
            if not checks.is_between(self.kspace_cutoff, 0.0, 1e6):
                raise ValueError(
                    f"kspace_cutoff must be a positive number in 1/angstrom, got {self.kspace_cutoff!r}"
                )
            if self.compat is None:
                check_cutoff(self._pair_sigma_squared, self.kspace_cutoff, self.l_max)

    def __repr__(self) -> str:
        """The options that are not the defaults, with ``l_max`` and ``sigma``."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        default = {f.name: f.default for f in fields(self) if f.init}
        shown = [name for name in given if name in ("l_max", "sigma") or given[name] != default[name]]
        return f"Coulomb({', '.join(f'{name}={given[name]!r}' for name in shown)})"

    def _check_smooth(self) -> None:
        if self.smooth is None:
            return
        if self.smooth != 0 and not checks.is_between(self.smooth, 0.0, 1e4):
            raise ValueError(f"smooth must be a width in angstrom, 0 or None, got {self.smooth!r}")
        if self.smooth and (self.kspace_cutoff is not None or self.compat is not None):
            given = "kspace_cutoff" if self.kspace_cutoff is not None else "compat"
            raise ValueError(
                f"smooth={self.smooth!r} takes its waves from the tolerance, {given} is for Gaussians as "
                "they are: leave one of them out"
            )

    @property
    def _pair_sigma_squared(self) -> float:
        """Half the sum of squared widths of the narrowest interacting pair."""
        narrow = min(self.source.widths)
        other = min((narrow, *(self.feature_widths or ())))
        return 0.5 * (narrow**2 + other**2)

    @property
    def widest(self) -> tuple[float, float]:
        """Width of the widest Gaussian of the density, and of those that feel it, angstrom."""
        return max(self.source.widths), max((*self.source.widths, *(self.feature_widths or ())))

    @property
    def receivers(self) -> tuple[float, float]:
        """Widths of the narrowest and of the widest Gaussian that feels the density, angstrom."""
        widths = (*self.source.widths, *(self.feature_widths or ()))
        return min(widths), max(widths)

    @property
    def cutoff(self) -> float:
        """The wave-vector cutoff in use, 1/angstrom."""
        if self.kspace_cutoff is not None:
            return self.kspace_cutoff
        if self.compat == "graph_longrange":
            widths = (*self.source.widths, *(self.feature_widths or ()))
            return reference_cutoff(widths, self.l_max)
        return cutoff_for_tolerance(self._pair_sigma_squared, self.tolerance, self.l_max)

    @property
    def image_tolerance(self) -> float:
        """Energy, eV, that images of a slab may leave: small beside what the cutoff leaves out."""
        tail = truncation_error(self._pair_sigma_squared, self.cutoff, self.l_max)
        return max(1e-2 * min(self.tolerance, tail), 1e-13)

    @on_values
    def plan(
        self,
        cell: Tensor | None,
        pbc: Tensor | Sequence | bool | None,
        batch_idx: Tensor | Segments | None,
        n_atoms: int,
        device: torch.device | str | None = None,
        positions: Tensor | None = None,
    ) -> CoulombPlan:
        """
        The part of `prepare` that depends on cells and sizes only; reuse it while these do not change.

        Reads cells, periodicity and the thickness of slabs on the host (synchronises on a GPU).

        Args:
            cell: ``[3, 3]`` or ``[n_systems, 3, 3]`` angstrom, or None without periodicity.
            pbc: ``[3]`` or ``[n_systems, 3]`` booleans, one boolean, or None: periodic if a cell is given.
            batch_idx: ``[n_atoms]`` system of each atom, or None for one system; or `Segments`, which several
                processes may share: they call together.
            n_atoms: Number of atoms.
            device: Device of the tables; that of the cell, else of ``batch_idx``, else the CPU.
            positions: ``[n_atoms, 3]`` angstrom. The plan then allows slabs and boxes of isolated systems up
                to half an angstrom larger than with these positions. Without them it allows slabs as thick
                as their cell is high, and sums isolated systems over pairs.

        Raises:
            ValueError: for an invalid cell, periodicity or batch; says why.
        """
        if device is None:
            known = batch_idx.index if isinstance(batch_idx, Segments) else batch_idx
            given = cell if cell is not None else known
            device = given.device if given is not None else torch.device("cpu")
        cells, pbcs, atom_ptr = read_systems(cell, pbc, batch_idx, n_atoms)
        boundaries, axes = resolve_boundaries(self.boundary, pbcs, self.compat)
        lattice = [i for i, kind in enumerate(boundaries) if kind != Boundary.OPEN]
        if cells is None and lattice:
            i = lattice[0]
            raise ValueError(
                f"system {i} has pbc={pbcs[i]} and boundary {boundaries[i].name.lower()!r} but no cell was "
                "given: pass cell [n_systems, 3, 3], or set pbc to False"
            )
        segments = batch_idx
        if not isinstance(segments, Segments):
            segments = Segments.counted(atom_ptr.diff(), torch.device(device))
        host_cells = slabs = None
        choice = Choice(self.cutoff, Smoothing(0.0, self.source.widths), 0.0, 0.0)
        given = (boundaries, axes, lattice, segments, positions, device)
        if cells is not None:
            host_cells = cells.detach().to("cpu", torch.float64)
            # graph_longrange corrects a box of any shape as if it were a cube of its volume
            compat = self.compat == "graph_longrange"
            checks.check_cell(host_cells, boundaries, axes, cubic_boxes=not compat, whole_slabs=compat)
            if not compat and lattice:
                slabs = self._plan_slabs(host_cells, *given, self.widest)
            if lattice and self.compat is None and self.kspace_cutoff is None:
                counts = segments.counts.cpu().long()[lattice]
                batch = Batch.of(host_cells[lattice], slabs, counts, torch.device(device))
                dtype = (cells if positions is None else positions).dtype
                choice = choose(self.method, self.smooth, self._need, batch, dtype, self.cutoff)
                if choice.reach and slabs is not None:
                    widest = choice.smoothing.widest(self._need.receivers)
                    slabs = self._plan_slabs(host_cells, *given, widest)
        ways = (choice.resolution, slabs, choice.smoothing)
        groups = (1,) if self.quirks.open_offsets is None else (1, DISPLACED)
        plan = make_plan(host_cells, boundaries, axes, atom_ptr, segments, *ways, groups)
        if choice.reach:
            assert plan.lattice is not None and cells is not None
            plan.near = plan_neighbours(plan.lattice, self._need, choice, positions, cells)
        if plan.open is not None and positions is not None:
            self._plan_boxes(plan, plan.open, plan.open.take(positions))
        return plan

    def _plan_boxes(self, plan: CoulombPlan, sub: SubBatch, positions: Tensor) -> None:
        """Boxes for isolated systems, if a mesh is asked for or costs less than sums over pairs."""
        if self.method == "direct" or self.kspace_cutoff is not None or self.compat is not None:
            return
        costs = None
        if self.method == "auto":
            table = tuned("coulomb", positions.device, positions.dtype)
            if not table["measured"]:
                return
            costs = table["dipoles" if self.l_max else "charges"]
        if not worth_a_look(sub, costs):
            return
        extents = slab_steps(extents_of(positions, sub.segments))
        ways = (self.widest, self._pair_sigma_squared, (self.tolerance, self.image_tolerance))
        plan.boxes = choose_boxes(sub, extents.cpu(), *ways, self.l_max, positions.dtype, costs)
        plan.open_extents = extents

    @property
    def _need(self) -> Need:
        widths = self.source.widths
        return Need(widths, (*widths, *(self.feature_widths or ())), self.tolerance, self.l_max)

    def _plan_slabs(
        self,
        cells: Tensor,
        boundaries: list[Boundary],
        axes: list[int],
        lattice: list[int],
        segments: Segments,
        positions: Tensor | None,
        device: torch.device | str,
        widest: tuple[float, float],
    ) -> SlabPlan | None:
        """Cell heights of the slabs among the systems ``lattice``; ``cells`` must be on the CPU."""
        kinds = [boundaries[i] == Boundary.SLAB for i in lattice]
        extents = None
        if positions is not None and any(kinds):
            normal, _ = slab_normals(cells, torch.tensor(axes), cells.new_ones(len(cells)))
            low, high = slab_extents(positions, normal.to(positions.device), segments)
            extents = (high - low).clamp(min=0.0)[lattice].tolist()
        return plan_slabs(
            cells[lattice],
            kinds,
            [axes[i] for i in lattice],
            extents,
            widest,
            self.image_tolerance,
            self.l_max,
            torch.device(device),
        )

    def prepare(
        self,
        positions: Tensor,
        cell: Tensor | None = None,
        pbc: Tensor | Sequence | bool | None = None,
        batch_idx: Tensor | Segments | None = None,
        *,
        plan: CoulombPlan | None = None,
        external_field: Tensor | None = None,
        external_potential: Tensor | None = None,
        counter_charge: Tensor | Sequence | None = None,
    ) -> Geometry:
        """
        The operator at one geometry; prepare it once and reuse it in every step of a self-consistent field.

        Args:
            positions: ``[n_atoms, 3]`` angstrom, float32 or float64, any image of the atoms along periodic
                directions.
            cell: ``[3, 3]`` or ``[n_systems, 3, 3]``, rows are lattice vectors of either handedness,
                angstrom. None for isolated systems. Only the two lateral vectors of a slab matter.
            pbc: ``[3]`` or ``[n_systems, 3]`` booleans; None: periodic if a cell is given.
            batch_idx: ``[n_atoms]`` system of each atom, not decreasing, or `Segments` of them; None for one
                system.
            plan: From `plan`, to skip what depends on cells and sizes only (needed under torch.compile).
            external_field: ``[3]`` or ``[n_systems, 3]`` V/angstrom: a charge q feels the force q E. Only
                along open directions, where its energy is defined.
            external_potential: scalar or ``[n_systems]`` V, the same everywhere: adds potential x charge.
            counter_charge: ``[2]`` or ``[n_systems, 2]`` lower and upper end, ``position . normal`` in
                angstrom, of a uniform charge that makes every slab neutral, smoothed by the density's
                Gaussian. The normal points to the side of the plane where the open cell vector is
                (right-handed without one). All potentials are then measured from their average over it, and
                external fields act on it too: where the system stands does not matter.

        Returns:
            The geometry; differentiable in positions, cell and external fields.

        Raises:
            ValueError: for NaN, wrong shapes, a cell without volume, periodicity without a cell, or a field
                along a periodic direction; names the system and what to do.
            TypeError: for another dtype or different dtypes; fields and bounds are converted instead.
        """
        checks.check_positions(positions)
        validate = self.validate and not torch.compiler.is_compiling()
        if validate:
            checks.check_finite("positions", positions, "angstrom")
        cell = to_cells(cell)
        if cell is not None:
            checks.check_same("cell", cell, positions)
        if plan is None:
            plan = self._plan_for(positions, cell, pbc, batch_idx)
        elif validate and not is_batched(positions):
            checks.check_thickness(plan, positions, cell)
        checks.check_plan(plan, len(positions), cell)

        def each(name: str, value: Any, *shape: int) -> Tensor | None:
            return to_systems(name, value, plan.n_systems, shape, positions, validate)

        cell = None if cell is None else cell.expand(plan.n_systems, 3, 3)
        fields, bounds = each("external_field", external_field, 3), each("counter_charge", counter_charge, 2)
        if fields is not None and validate and self.compat != "graph_longrange":
            check_field(fields, cell, plan)
        if bounds is not None and not torch.compiler.is_compiling():
            check_counter_charge(bounds, plan.boundaries)
        return Geometry(
            self,
            plan,
            positions,
            cell,
            fields,
            each("external_potential", external_potential),
            None if bounds is None else bounds.double(),
            validate,
        )

    def _plan_for(
        self,
        positions: Tensor,
        cell: Tensor | None,
        pbc: Tensor | Sequence | bool | None,
        batch_idx: Tensor | Segments | None,
    ) -> CoulombPlan:
        """Make a plan for these positions."""
        mapped = is_batched(positions)
        n_atoms, known, operator = len(positions), positions, self
        if mapped:  # neighbours cannot be looked for
            known = None
            operator = replace(self, smooth=0.0) if self.smooth is None else self
        plan = operator.plan(cell, pbc, batch_idx, n_atoms, positions.device, known)
        if mapped and plan.lattice is not None and plan.lattice.slabs is not None:
            raise ValueError(
                "torch.vmap over positions of slabs cannot see how thick the thickest is: make the plan "
                "outside, plan(..., positions=positions), and pass it on"
            )
        return plan
