"""Meshes of a batch of systems, and the atoms sorted into their blocks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..constants import constant
from ..dispatch import needs_kernel_tables
from .fourier import count_points, count_waves
from .splines import window

# mesh points per block: the unit of work of one matrix product, or of one program of a kernel
CPU_BLOCK, KERNEL_BLOCK = (4, 4, 8), (4, 4, 16)
MIN_ORDER, MAX_ORDER = 2, 20


@dataclass
class MeshGrid:
    """
    One mesh per system, and its waves.

    Attributes:
        shapes: Three numbers of mesh points for each system, in one list.
        order: Order of the splines, even.
        block: Mesh points along each axis of a block of atoms.
        table: ``[n_systems, 8]`` int64 on the device: mesh points, blocks along each axis, first block, first
            point.
        atom_system: ``[n_atoms]`` int64 system of each atom.
        miller: ``[n_waves, 3]`` int32 waves in the half that a real transform returns.
        weight: ``[n_waves]`` float64: 1, or 1/2 if the mirror image is included too; 0 for waves with a
            wavelength of two mesh points.
        window: ``[n_waves]`` float64, product of `splines.window` over the three axes.
        system: ``[n_waves]`` int64 system of each wave.
        point_ptr: ``[n_systems + 1]`` int64 on the CPU, first wave of each system.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import build_mesh_grid
        >>> system = torch.zeros(2, dtype=torch.long)  # both atoms belong to the first system
        >>> grid = build_mesh_grid([(8, 8, 10)], 4, system, torch.device("cpu"))
        >>> grid.n_points, grid.n_waves  # a real transform keeps 8 * 8 * (10 / 2 + 1) waves
        (640, 384)
    """

    shapes: list[int]
    order: int
    block: tuple[int, int, int]
    table: Tensor
    atom_system: Tensor
    miller: Tensor
    weight: Tensor
    window: Tensor
    system: Tensor
    point_ptr: Tensor

    @property
    def n_points(self) -> int:
        """Number of mesh points of all systems."""
        return count_points(self.shapes)

    @property
    def n_waves(self) -> int:
        """Waves of all systems."""
        return count_waves(self.shapes)

    @property
    def n_blocks(self) -> int:
        """Number of blocks of all systems."""
        return sum(a * b * c for a, b, c in self.blocks())

    def blocks(self) -> list[tuple[int, int, int]]:
        """Number of blocks along each axis of each system."""
        return blocks_of(self.shapes, self.block)

    def at_points(self, system: Tensor) -> MeshGrid:
        """The same meshes for other points; ``system [n]`` int64 is the system of each."""
        return dataclasses.replace(self, atom_system=system)


class MeshPlaces(NamedTuple):
    """
    Atoms sorted into blocks of their meshes; made by `place_atoms`.

    Attributes:
        atoms: ``[n_atoms]`` int64 atoms sorted by block.
        block_ptr: ``[n_blocks + 1]`` int64 where each block starts in ``atoms``.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import build_mesh_grid, place_atoms
        >>> grid = build_mesh_grid([(16, 16, 16)], 4, torch.zeros(2, dtype=torch.long), torch.device("cpu"))
        >>> places = place_atoms(torch.tensor([[12.0, 12.0, 12.0], [1.5, 1.5, 1.5]]).double(), grid)
        >>> places.atoms  # the second atom is in the first block
        tensor([1, 0])
    """

    atoms: Tensor
    block_ptr: Tensor


def blocks_of(shapes: Sequence[int], block: Sequence[int]) -> list[tuple[int, int, int]]:
    """Number of blocks along each axis of each system."""
    b = [-(-n // block[i % 3]) for i, n in enumerate(shapes)]
    return list(zip(b[::3], b[1::3], b[2::3], strict=True))


def smooth_size(n: int) -> int:
    """The smallest product of powers of 2, 3, 5 and 7 that is at least n."""
    while True:
        rest = n
        for factor in (2, 3, 5, 7):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return n
        n += 1


def build_mesh_grid(
    shapes: Sequence[Sequence[int]], order: int, atom_system: Tensor, device: torch.device
) -> MeshGrid:
    """
    Meshes and their tables for a batch of systems.

    Args:
        shapes: Mesh points of each system along its three lattice vectors, each at least ``order``.
        order: Order of the splines, even.
        atom_system: ``[n_atoms]`` int64 system of each atom.
        device: Device of the tables.

    Raises:
        ValueError: for an order that is odd or not between 2 and 20, or a mesh that is too small.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import build_mesh_grid
        >>> system = torch.tensor([0, 0, 1])  # two atoms in the first system, one in the second
        >>> grid = build_mesh_grid([(8, 8, 8), (8, 8, 12)], 4, system, torch.device("cpu"))
        >>> grid.shapes, grid.n_points
        ([8, 8, 8, 8, 8, 12], 1280)
    """
    if order % 2 or not MIN_ORDER <= order <= MAX_ORDER:
        raise ValueError(f"build_mesh_grid: order must be even, {MIN_ORDER} to {MAX_ORDER}, got {order}")
    for shape in shapes:
        if len(shape) != 3 or min(shape) < order:
            raise ValueError(
                f"build_mesh_grid: shapes must hold three numbers of at least {order} (the order of the "
                f"splines), got {tuple(shape)}"
            )
    flat = [int(n) for shape in shapes for n in shape]
    block = KERNEL_BLOCK if needs_kernel_tables(device) else CPU_BLOCK
    rows, first_block, first_point = [], 0, 0
    miller, weight, factor = [], [], []
    known = {n: window(n, order) for n in set(flat)}
    for i, (a, b, c) in enumerate(blocks_of(flat, block)):
        n1, n2, n3 = flat[3 * i : 3 * i + 3]
        rows.append((n1, n2, n3, a, b, c, first_block, first_point))
        first_block, first_point = first_block + a * b * c, first_point + n1 * n2 * n3
        axes = [(torch.fft.fftfreq(n) * n).round().int() for n in (n1, n2)]
        axes.append(torch.arange(n3 // 2 + 1, dtype=torch.int32))
        miller.append(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 3))
        wx, wy, wz = known[n1], known[n2], known[n3][: n3 // 2 + 1]
        product = (wx[:, None, None] * wy[:, None] * wz).flatten()
        once = torch.full((n3 // 2 + 1,), 1.0, dtype=torch.float64)
        once[0] = 0.5
        weight.append(torch.where(product == 0, 0.0, once.repeat(n1 * n2)))
        factor.append(product)
    counts = torch.tensor([len(m) for m in miller], dtype=torch.int64)
    empty = torch.zeros(0, dtype=torch.float64)
    return MeshGrid(
        shapes=flat,
        order=order,
        block=block,
        table=torch.tensor(rows, dtype=torch.int64).reshape(-1, 8).to(device),
        atom_system=atom_system.to(device),
        miller=torch.cat([torch.zeros((0, 3), dtype=torch.int32), *miller]).to(device),
        weight=torch.cat([empty, *weight]).to(device),
        window=torch.cat([empty, *factor]).to(device),
        system=torch.arange(len(counts)).repeat_interleave(counts).to(device),
        point_ptr=torch.cat((counts.new_zeros(1), counts.cumsum(0))),
    )


def lower_points(coords: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """First mesh point (not wrapped) that a spline of even order reaches, and the distance above it."""
    shifted = coords - (order // 2 - 1)
    first = shifted.floor()
    return first.long(), shifted - first


def place_atoms(coords: Tensor, grid: MeshGrid) -> MeshPlaces:
    """
    Sort atoms by blocks of mesh points; needed once per geometry.

    Args:
        coords: ``[n_atoms, 3]`` float64 in mesh spacings, any range.
        grid: Meshes of the batch.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import build_mesh_grid, place_atoms
        >>> grid = build_mesh_grid([(16, 16, 16)], 4, torch.zeros(2, dtype=torch.long), torch.device("cpu"))
        >>> places = place_atoms(torch.tensor([[12.0, 12.0, 12.0], [1.5, 1.5, 1.5]]).double(), grid)
        >>> int(places.block_ptr[-1])  # every atom is in a block
        2
    """
    first, _ = lower_points(coords.detach(), grid.order)
    rows = grid.table[grid.atom_system]
    block = first.remainder(rows[:, :3]) // constant(grid.block, first.dtype, first.device)
    number = (block[:, 0] * rows[:, 4] + block[:, 1]) * rows[:, 5] + block[:, 2] + rows[:, 6]
    counts = torch.zeros(grid.n_blocks + 1, dtype=torch.int64, device=number.device)
    counts = counts.scatter_add(0, number + 1, torch.ones_like(number))
    return MeshPlaces(torch.argsort(number, stable=True), counts.cumsum(0))
