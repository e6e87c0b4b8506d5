"""Plans: everything that depends on cells, periodicity and sizes of a batch, but not on its charges."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scfmlip_kernels import LatticeGrid, MeshGrid, build_lattice_grid, build_mesh_grid, pair_tiles
from scfmlip_kernels.dispatch import needs_kernel_tables
from scfmlip_kernels.mesh import smooth_size

from ..segments import Segments
from .boundary import Boundary
from .checks import check_mesh, check_wave_vectors
from .mesh_error import MeshResolution
from .near_field import NearPlan, Smoothing
from .near_list import near_list
from .slab import SlabPlan, plan_slabs


@dataclass
class SubBatch:
    """
    The systems of a batch that share a method, renumbered from 0.

    Attributes:
        atoms: ``[n]`` int64 indices of their atoms in the batch, or None for all atoms.
        systems: The numbers of the systems in the batch.
        host_ptr: ``[n_systems + 1]`` int64 on the CPU, first atom of each system.
        segments: The system of each atom, on the device.
    """

    atoms: Tensor | None
    systems: Tensor
    host_ptr: Tensor
    segments: Segments

    @property
    def counts(self) -> list[int]:
        """Atoms of each system, of all processes that share it."""
        return self.segments.host_counts if self.segments.shared else self.host_ptr.diff().tolist()

    def take(self, values: Tensor) -> Tensor:
        """Select this sub-batch's rows from per-atom values of the batch."""
        return values if self.atoms is None else values.index_select(0, self.atoms)


@dataclass
class LatticePlan(SubBatch):
    """
    The systems that are summed over wave vectors.

    Attributes:
        slab_axis: ``[n_systems]`` int64 open lattice direction of a slab.
        slab, box: ``[n_systems]`` float64, 1 for a slab, or for a molecule in a box.
        corrected: Whether any of them is a slab or a molecule in a box.
        boxed: Whether any of them is a molecule in a box.
        slabs: The cells in which slabs are summed; None without slabs, or with ``compat``, which uses the
            user's cells.
        grid: Miller boxes, or meshes.
        mesh: Resolution of the meshes, or None.
        point_ptr: ``[n_systems + 1]`` int64 on the device, first wave vector of each system.
    """

    slab_axis: Tensor
    slab: Tensor
    box: Tensor
    corrected: bool
    boxed: bool
    slabs: SlabPlan | None
    grid: LatticeGrid | MeshGrid
    mesh: MeshResolution | None
    point_ptr: Tensor

    def cells(self, cell: Tensor) -> Tensor:
        """The cells of the sums, ``[n_systems, 3, 3]``, from the user's cells."""
        return cell if self.slabs is None else self.slabs.cells(cell)

    def resized(
        self,
        cell: Tensor,
        extents: list[float],
        widths: tuple[float, float],
        tolerance: float,
        l_max: int,
        resolution: float | MeshResolution,
    ) -> LatticePlan:
        """
        The same systems with other wave vectors, and slab cells for another thickness.

        Args:
            cell: ``[n_systems, 3, 3]`` the user's cells.
            extents: Extents of the atoms along the normals, see `plan_slabs`.
            widths: Widths of the widest source and receiver, angstrom.
            tolerance: Largest residual interaction with images of slabs, eV.
            l_max: Highest multipole.
            resolution: Cutoff, 1/angstrom, or resolution of a mesh.
        """
        host, slabs = cell.detach().to("cpu", torch.float64), None
        if self.slabs is not None:
            kinds, axes = self.slabs.slab.tolist(), self.slabs.axis.tolist()
            slabs = plan_slabs(host, kinds, axes, extents, widths, tolerance, l_max, self.systems.device)
        return dataclasses.replace(self, **_waves(host, slabs, resolution, self))


def summed_cells(host_cell: Tensor, slabs: SlabPlan | None) -> Tensor:
    """The cells of the sums on the CPU, ``[n_systems, 3, 3]``, from the user's cells."""
    return host_cell if slabs is None else slabs.on_host().cells(host_cell)


def _waves(
    host_cell: Tensor, slabs: SlabPlan | None, resolution: float | MeshResolution, sub: SubBatch
) -> dict:
    device, cells, mesh = sub.systems.device, summed_cells(host_cell, slabs), None
    if isinstance(resolution, MeshResolution):
        mesh = resolution
        shapes = [mesh.shape(cell, smooth_size) for cell in cells]
        check_mesh(shapes, sub.systems.tolist(), mesh, device)
        grid = build_mesh_grid(shapes, mesh.order, sub.segments.index, device)
    else:
        check_wave_vectors(cells, sub.systems.tolist(), resolution, device)
        grid = build_lattice_grid(cells, resolution, sub.host_ptr, device)
    return {"slabs": slabs, "grid": grid, "mesh": mesh, "point_ptr": grid.point_ptr.to(device)}


def boxed(sub: SubBatch, cells: Tensor, mesh: MeshResolution) -> LatticePlan:
    """
    Isolated systems on meshes of their own.

    Args:
        sub: The isolated systems.
        cells: ``[n_systems, 3, 3]`` float64 on the CPU, boxes that hold them.
        mesh: Resolution of the meshes.
    """
    nothing = torch.zeros(len(cells), dtype=torch.float64, device=sub.systems.device)
    parts = {**vars(sub), **_waves(cells, None, mesh, sub)}
    return LatticePlan(
        **parts, slab_axis=nothing.long(), slab=nothing, box=nothing, corrected=False, boxed=False
    )


@dataclass
class Boxes:
    """
    The boxes that isolated systems are summed in, with an interaction that ends at a radius.

    Attributes:
        lattice: The systems and their meshes.
        cells: ``[n_systems, 3, 3]`` float64, angstrom.
        radius: ``[n_systems]`` float64, angstrom.
        extents: ``[n_systems, 3]`` float64 lengths along x, y and z of the largest that fit, angstrom.
    """

    lattice: LatticePlan
    cells: Tensor
    radius: Tensor
    extents: Tensor


@dataclass
class CoulombPlan:
    """
    The part of a Coulomb operator that is independent of charges; reuse it while cells and sizes do not
    change.

    A plan for slabs is valid while they are not thicker than `SlabPlan.thickness`, and one with boxes for
    isolated systems while these are not longer than `Boxes.extents`.

    Attributes:
        boundaries: Boundary of each system.
        atom_ptr: ``[n_systems + 1]`` int64 on the CPU.
        segments: The system of each atom, on the device.
        lattice: Systems summed over wave vectors, or None.
        open: Isolated systems, summed over pairs or in boxes; or None.
        resolution: Cutoff of the wave vectors, 1/angstrom, or resolution of the meshes.
        smoothing: The widths that waves are summed with.
        near: What neighbours add to waves of other widths, or None.
        boxes: Boxes and meshes of the isolated systems; None for sums over pairs.
        open_extents: ``[n_open, 3]`` extents of the isolated systems, in whole steps, that this was chosen
            by; None if they do not matter.
        pair_tiles: Tables of the sums over pairs, by the number of points that stand for an atom; empty where
            no kernel runs.

    Example:
        >>> import torch, scfmlip
        >>> cell = 4.0 * torch.eye(3, dtype=torch.float64)
        >>> charges = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
        >>> coulomb = scfmlip.Coulomb(l_max=0, sigma=0.5)
        >>> plan = coulomb.plan(cell, True, None, n_atoms=2)  # once for a trajectory in this cell
        >>> for x in (1.9, 2.0):
        ...     positions = torch.tensor([[0.0, 0.0, 0.0], [x, x, x]], dtype=torch.float64)
        ...     print(round(float(coulomb.prepare(positions, cell, True, plan=plan).energy(charges)), 3))
        -7.341
        -7.327
    """

    boundaries: list[Boundary]
    atom_ptr: Tensor
    segments: Segments
    lattice: LatticePlan | None
    open: SubBatch | None
    resolution: float | MeshResolution
    smoothing: Smoothing
    near: NearPlan | None
    boxes: Boxes | None = None
    open_extents: Tensor | None = None
    pair_tiles: dict[int, Tensor] = field(default_factory=dict)

    @property
    def n_systems(self) -> int:
        """Number of systems of the batch."""
        return len(self.boundaries)

    @property
    def method(self) -> list[str]:
        """How each system is summed: "direct", "mesh" or "pairs"."""
        waves = "mesh" if isinstance(self.resolution, MeshResolution) else "direct"
        opened = "pairs" if self.boxes is None else "mesh"
        return [opened if kind == Boundary.OPEN else waves for kind in self.boundaries]

    @property
    def smooth_width(self) -> float | None:
        """Width, angstrom, that waves are smoothed to, the rest over neighbours; None where none are."""
        return None if self.near is None else self.smoothing.width

    @property
    def atom_counts(self) -> list[int]:
        """Atoms of each system, of all processes that share it."""
        return self.segments.host_counts if self.segments.shared else self.atom_ptr.diff().tolist()

    def cells(self, cell: Tensor) -> Tensor:
        """``[n_systems, 3, 3]`` the user's cells, with the cells of slabs replaced by those of the sums."""
        if self.lattice is None or self.lattice.slabs is None:
            return cell
        if self.lattice.atoms is None:
            return self.lattice.cells(cell)
        systems = self.lattice.systems
        return cell.index_copy(0, systems, self.lattice.cells(cell.index_select(0, systems)))

    def join(self, lattice: Tensor | None, opened: Tensor | None, per_system: bool) -> Tensor:
        """The rows of the two sub-batches, of which one may not be there, in the order of the batch."""
        if opened is None:
            assert lattice is not None
            return lattice
        if lattice is None:
            return opened
        assert self.lattice is not None and self.open is not None
        n = self.n_systems if per_system else self.segments.n_rows
        out = lattice.new_zeros((n, *lattice.shape[1:]))
        for sub, values in ((self.lattice, lattice), (self.open, opened)):
            place = sub.systems if per_system else sub.atoms
            assert place is not None
            out = out.index_copy(0, place, values)
        return out

    def with_neighbours(self, positions: Tensor, cell: Tensor) -> CoulombPlan:
        """
        The same plan with the neighbours of narrow Gaussians at other positions.

        Args:
            positions: ``[n_atoms, 3]`` angstrom.
            cell: ``[n_systems, 3, 3]`` angstrom, the user's cells, as the plan was made for.
        """
        sub, near = self.lattice, self.near
        if sub is None or near is None:
            return self
        cells = cell if sub.atoms is None else cell.index_select(0, sub.systems)
        found = near_list(sub, sub.take(positions), cells.double(), near.reach)
        return dataclasses.replace(self, near=dataclasses.replace(near, found=found))

    @property
    def corrected(self) -> bool:
        """Whether any system is a slab or a molecule in a box."""
        return self.lattice is not None and self.lattice.corrected


def _sub_batch(systems: list[int], atom_ptr: Tensor, whole: Segments) -> SubBatch | None:
    if not systems:
        return None
    device = whole.index.device
    counts = (atom_ptr[1:] - atom_ptr[:-1])[systems]
    host_ptr = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    atoms, segments = None, whole
    if len(systems) != len(atom_ptr) - 1:
        ptr = atom_ptr.tolist()
        atoms = torch.cat([torch.arange(ptr[i], ptr[i + 1]) for i in systems]).to(device)
        segments = Segments.counted(counts, device)
    number = torch.tensor(systems, device=device)
    return SubBatch(atoms, number, host_ptr, segments)


def make_plan(
    host_cell: Tensor | None,
    boundaries: list[Boundary],
    axes: list[int],
    atom_ptr: Tensor,
    segments: Segments,
    resolution: float | MeshResolution,
    slabs: SlabPlan | None,
    smoothing: Smoothing,
    groups: tuple[int, ...] = (1,),
) -> CoulombPlan:
    """
    Sort the systems of a batch by method, and make their wave vectors.

    Args:
        host_cell: ``[n_systems, 3, 3]`` float64 on the CPU.
        boundaries: Boundary of each system.
        axes: Open lattice direction of each slab.
        atom_ptr: ``[n_systems + 1]`` int64 on the CPU.
        segments: The system of each atom, on the device where tables go.
        resolution: Cutoff of the wave vectors, 1/angstrom, or resolution of the meshes.
        slabs: Slab cells of the systems that are summed over wave vectors.
        smoothing: The widths that waves are summed with.
        groups: How many points may stand for an atom in sums over pairs.
    """
    numbers = [i for i, b in enumerate(boundaries) if b != Boundary.OPEN]
    device = segments.index.device
    sub, lattice = _sub_batch(numbers, atom_ptr, segments), None
    if sub is not None:
        assert host_cell is not None
        kinds = torch.tensor([int(boundaries[i]) for i in numbers])
        lattice = LatticePlan(
            **vars(sub),
            slab_axis=torch.tensor([axes[i] for i in numbers], device=device),
            slab=(kinds == Boundary.SLAB).double().to(device),
            box=(kinds == Boundary.MOLECULE_IN_BOX).double().to(device),
            corrected=bool((kinds != Boundary.PERIODIC).any()),
            boxed=bool((kinds == Boundary.MOLECULE_IN_BOX).any()),
            **_waves(host_cell[numbers], slabs, resolution, sub),
        )
    opened = _sub_batch([i for i, b in enumerate(boundaries) if b == Boundary.OPEN], atom_ptr, segments)
    tiles: dict[int, Tensor] = {}
    if opened is not None and needs_kernel_tables(device):
        tiles = {group: pair_tiles(opened.host_ptr, device, group) for group in groups}
    return CoulombPlan(
        boundaries=boundaries,
        atom_ptr=atom_ptr,
        segments=segments,
        lattice=lattice,
        open=opened,
        resolution=resolution,
        smoothing=smoothing,
        near=None,
        pair_tiles=tiles,
    )
