"""What depends on cells, periodicity and sizes of a batch, but not on its positions or charges."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scfmlip_kernels import LatticeGrid, build_lattice_grid

from .boundary import Boundary


@dataclass
class SubBatch:
    """
    The systems of a batch that share a solver, renumbered from 0.

    Attributes:
        atoms: ``[n]`` int64 positions of their atoms in the batch, or None when it is all of them.
        systems: The systems' numbers in the batch.
        host_ptr: ``[n_systems + 1]`` int64 on the CPU.
        ptr: The same on the device.
        index: ``[n]`` int64 system of each atom.
    """

    atoms: Tensor | None
    systems: Tensor
    host_ptr: Tensor
    ptr: Tensor
    index: Tensor

    def take(self, values: Tensor) -> Tensor:
        """Rows of this sub-batch out of per-atom values of the batch."""
        return values if self.atoms is None else values.index_select(0, self.atoms)


@dataclass
class CoulombPlan:
    """
    The geometry-independent part of a Coulomb operator: reuse it while cells and sizes stay.

    Attributes:
        boundaries: Boundary of each system.
        atom_ptr: ``[n_systems + 1]`` int64 on the CPU.
        ptr: The same on the device.
        index: ``[n_atoms]`` system of each atom.
        lattice: Systems summed over wave vectors, or None.
        grid: Their Miller boxes, or None.
        point_ptr: First wave vector of each of them, on the device, or None.
        slab_axis, slab, box: Per lattice system, see `KSpace`.
        corrected: Whether any of them is a slab or a molecule in a box.
        open: Systems summed over pairs, or None.
        kspace_cutoff: 1/angstrom.
    """

    boundaries: list[Boundary]
    atom_ptr: Tensor
    ptr: Tensor
    index: Tensor
    lattice: SubBatch | None
    grid: LatticeGrid | None
    point_ptr: Tensor | None
    slab_axis: Tensor | None
    slab: Tensor | None
    box: Tensor | None
    corrected: bool
    open: SubBatch | None
    kspace_cutoff: float

    @property
    def n_systems(self) -> int:
        """Number of systems of the batch."""
        return len(self.boundaries)


def _sub_batch(systems: list[int], atom_ptr: Tensor, device: torch.device) -> SubBatch | None:
    if not systems:
        return None
    counts = (atom_ptr[1:] - atom_ptr[:-1])[systems]
    host_ptr = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    atoms = None
    if len(systems) != len(atom_ptr) - 1:
        ptr = atom_ptr.tolist()
        atoms = torch.cat([torch.arange(ptr[i], ptr[i + 1]) for i in systems]).to(device)
    index = torch.arange(len(systems)).repeat_interleave(counts).to(device)
    number = torch.tensor(systems, device=device)
    return SubBatch(atoms, number, host_ptr, host_ptr.to(device), index)


def make_plan(
    host_cell: Tensor | None,
    boundaries: list[Boundary],
    axes: list[int],
    atom_ptr: Tensor,
    device: torch.device,
    kspace_cutoff: float,
) -> CoulombPlan:
    """
    Sort the systems of a batch by solver and lay out their wave vectors.

    ``host_cell [n_systems, 3, 3]`` float64 on the CPU, where the wave vectors are counted.
    """
    lattice = _sub_batch([i for i, b in enumerate(boundaries) if b != Boundary.OPEN], atom_ptr, device)
    opened = _sub_batch([i for i, b in enumerate(boundaries) if b == Boundary.OPEN], atom_ptr, device)
    grid = point_ptr = slab_axis = slab = box = None
    corrected = False
    if lattice is not None:
        assert host_cell is not None
        numbers = [i for i, b in enumerate(boundaries) if b != Boundary.OPEN]
        grid = build_lattice_grid(host_cell[numbers], kspace_cutoff, lattice.host_ptr, device)
        point_ptr = grid.point_ptr.to(device)
        kinds = torch.tensor([int(boundaries[i]) for i in numbers])
        slab_axis = torch.tensor([axes[i] for i in numbers], device=device)
        slab = (kinds == Boundary.SLAB).double().to(device)
        box = (kinds == Boundary.MOLECULE_IN_BOX).double().to(device)
        corrected = bool((kinds != Boundary.PERIODIC).any())
    counts = atom_ptr[1:] - atom_ptr[:-1]
    return CoulombPlan(
        boundaries=boundaries,
        atom_ptr=atom_ptr,
        ptr=atom_ptr.to(device),
        index=torch.arange(len(counts)).repeat_interleave(counts).to(device),
        lattice=lattice,
        grid=grid,
        point_ptr=point_ptr,
        slab_axis=slab_axis,
        slab=slab,
        box=box,
        corrected=corrected,
        open=opened,
        kspace_cutoff=kspace_cutoff,
    )
