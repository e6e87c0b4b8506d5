"""
The wave vectors of a batch of cells, stored as boxes of Miller indices.

Wave vectors are k = 2 pi n . inverse(cell)^T with integer n = (h, k, l). Sums run over h >= 0, half of
a sphere |k| <= cutoff. Points are stored box by box: consecutive planes h share one rectangle of
(k, l) large enough for the sphere, so that a lattice sum over a box factorises into three
one-dimensional tables. Points of a box that lie outside the sphere, or in the half of plane h = 0
that is the mirror of the other, carry weight 0. See Essmann et al., J. Chem. Phys. 103, 8577 (1995),
section II for the lattice sums themselves.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import check_pointers, check_shape, check_tensors
from ..dispatch import needs_kernel_tables
from ..transforms import on_values
from .tiles import build_atom_tiles, build_tiles, lattice_launch

# More boxes per sphere save multiplications but cost calls and tables. A further box does not pay if it saves
# fewer (atom, point) products than this (measured on 2 CPU cores, 500 to 8,000 atoms). On a GPU, tiles
# outside the sphere are skipped whatever the boxes are.
_WORK_WORTH_A_BOX = 50_000_000
_MAX_CUTS = 48
_MOST_POINTS = 2**31 - 1


class LatticeGrid(NamedTuple):
    """
    Miller boxes of a batch of systems.

    Attributes:
        boxes: ``[n_boxes, 6]`` int64, on the CPU: system, first h, number of h, largest ``abs(k)``,
            largest ``abs(l)``, index of the first point. Boxes of one system are contiguous.
        atom_ptr: ``[n_systems + 1]`` int64, on the CPU: first atom of each system.
        miller: ``[n_points, 3]`` int32 Miller indices.
        system: ``[n_points]`` int64, the system of each point.
        weight: ``[n_points]`` float64: 1 inside the half sphere, 1/2 at the origin, 0 elsewhere.
        point_ptr: ``[n_systems + 1]`` int64 on the CPU, first point of each system.
        points: ``[n_points, 5]`` int32 for the CPU path: system, h, k, l, and 1 inside the half sphere; empty
            on a GPU.
        row_tiles: int32 work table of the Triton kernels, see `lattice.tiles`; empty on a CPU.
        point_tiles: Likewise.
        atom_tiles: Likewise.
        row_ptr: ``[n_systems + 1]`` int32 on the CPU, first row tile of each system.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import build_lattice_grid
        >>> cell = 4.0 * torch.eye(3, dtype=torch.float64).unsqueeze(0)  # a cube of 4 angstrom
        >>> grid = build_lattice_grid(cell, cutoff=1.6, atom_ptr=torch.tensor([0, 2]))  # 1/angstrom
        >>> grid.miller[grid.weight > 0].tolist()  # the origin, and one of each pair n, -n
        [[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]]
    """

    boxes: Tensor
    atom_ptr: Tensor
    miller: Tensor
    system: Tensor
    weight: Tensor
    point_ptr: Tensor
    points: Tensor
    row_tiles: Tensor
    point_tiles: Tensor
    atom_tiles: Tensor
    row_ptr: Tensor

    @property
    def tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Arguments of the operators: points, atom_ptr and the three work tables."""
        return self.points, self.atom_ptr, self.row_tiles, self.point_tiles, self.atom_tiles

    @property
    def n_points(self) -> int:
        """Number of stored points, including those of weight 0."""
        return self.miller.shape[0]

    @property
    def n_systems(self) -> int:
        """Number of systems in the batch."""
        return self.atom_ptr.shape[0] - 1


def _plane_extents(cell: np.ndarray, cutoff: float) -> list[tuple[int, int, int]]:
    """
    Largest ``abs(k)`` and ``abs(l)`` of the sphere's points in each plane h = 0, 1, ...

    The sphere is the ellipsoid n^T G n <= cutoff^2 in index space with G^-1 = cell cell^T / 4 pi^2.
    Its projection on the (h, k) plane is the ellipse given by the inverse of the (h, k) block of G^-1.
    """
    inverse_metric = cell @ cell.T / (4 * math.pi**2)
    h_max = math.floor(cutoff * math.sqrt(inverse_metric[0, 0]) + 1e-9)
    h = np.arange(h_max + 1)
    extents = []
    for axis in (1, 2):
        shadow = np.linalg.inv(inverse_metric[np.ix_((0, axis), (0, axis))])
        center = -shadow[0, 1] / shadow[1, 1] * h
        room = cutoff**2 - h**2 / inverse_metric[0, 0]
        half = np.sqrt(np.maximum(room, 0.0) / shadow[1, 1])
        extents.append(np.floor(np.abs(center) + half + 1e-9).astype(int))
    return list(zip(h.tolist(), extents[0].tolist(), extents[1].tolist(), strict=True))


def _group_planes(extents: list[tuple[int, int, int]], n_atoms: int) -> list[tuple[int, int, int, int]]:
    """Split the planes into runs ``(first h, number, n_k, n_l)``, balancing wasted points against calls."""
    # planes shrink slowly: considering a cut every few planes is enough and bounds the search
    stride = max(1, len(extents) // _MAX_CUTS)
    cuts = [*range(0, len(extents), stride), len(extents)]
    blocks = [(max(e[1] for e in extents[i:j]), max(e[2] for e in extents[i:j])) for i, j in pairwise(cuts)]
    # best[i]: lowest cost to cover the first i blocks, where its last run starts, and that run's extents
    best: list[tuple[float, int, int, int]] = [(0.0, 0, 0, 0)]
    for last in range(1, len(cuts)):
        n_k = n_l = 0
        options = []
        for first in range(last - 1, -1, -1):
            n_k, n_l = max(n_k, blocks[first][0]), max(n_l, blocks[first][1])
            points = (cuts[last] - cuts[first]) * (2 * n_k + 1) * (2 * n_l + 1)
            options.append((best[first][0] + points * n_atoms + _WORK_WORTH_A_BOX, first, n_k, n_l))
        best.append(min(options))
    runs = []
    last = len(cuts) - 1
    while last > 0:
        _, first, n_k, n_l = best[last]
        runs.append((cuts[first], cuts[last] - cuts[first], n_k, n_l))
        last = first
    return runs[::-1]


def _check_grid(cells: Tensor, cutoff: float, atom_ptr: Tensor) -> None:
    check_tensors("build_lattice_grid", cells=cells)
    check_tensors("build_lattice_grid", atom_ptr=atom_ptr)
    if not cells.is_floating_point():
        raise TypeError(f"build_lattice_grid: cells must hold real numbers, got {cells.dtype}: convert them")
    if atom_ptr.is_floating_point() or atom_ptr.is_complex() or atom_ptr.dtype == torch.bool:
        raise TypeError(f"build_lattice_grid: atom_ptr must hold integers, got {atom_ptr.dtype}: convert it")
    check_shape("build_lattice_grid", "cells", cells, ("n_systems", 3, 3))
    check_shape("build_lattice_grid", "atom_ptr", atom_ptr, ("n_systems + 1",))
    if not 0 < cutoff < math.inf:
        raise ValueError(f"build_lattice_grid: cutoff must be above 0 and finite, got {cutoff!r}")


def _check_cell(system: int, cell: np.ndarray, cutoff: float) -> None:
    what = f"build_lattice_grid: cells[{system}]"
    if not np.isfinite(cell).all():
        raise ValueError(f"{what} holds NaN or infinity: {cell.tolist()}")
    volume = abs(float(np.linalg.det(cell)))
    if volume <= 1e-14 * float(np.prod(np.linalg.norm(cell, axis=1))):
        raise ValueError(f"{what} has no volume: {cell.tolist()}; give it three independent lattice vectors")
    # points of the box around the half ellipsoid
    extents = cutoff * np.linalg.norm(cell, axis=1) / (2 * math.pi)
    number = float(np.prod(2 * extents + 1)) / 2
    if number > _MOST_POINTS:
        raise ValueError(
            f"{what} has up to {number:.2g} wave vectors within {cutoff:.3g}, too many for 32-bit tables: "
            "lower the cutoff, or use a smaller cell"
        )


@on_values
def build_lattice_grid(
    cells: Tensor, cutoff: float, atom_ptr: Tensor, device: torch.device | None = None
) -> LatticeGrid:
    """
    Miller boxes that hold every wave vector of length at most ``cutoff``.

    Reads the cells on the host (one synchronisation if they are on a GPU).

    Args:
        cells: ``[n_systems, 3, 3]``, rows are lattice vectors; not differentiated.
        cutoff: Largest wave vector, in the inverse unit of the cells.
        atom_ptr: ``[n_systems + 1]`` integers, first atom of each system.
        device: Device of the per-point arrays; that of ``cells`` if None.

    Returns:
        The grid of the batch.

    Raises:
        TypeError: for other dtypes.
        ValueError: for shapes that do not match, pointers that decrease, cells that are not finite or have no
            volume, a cutoff that is not above 0, or too many wave vectors for 32-bit tables.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import build_lattice_grid
        >>> cell = 4.0 * torch.eye(3, dtype=torch.float64).unsqueeze(0)  # a cube of 4 angstrom
        >>> grid = build_lattice_grid(cell, cutoff=10.0, atom_ptr=torch.tensor([0, 2]))
        >>> 2 * int((grid.weight == 1).sum()) + 1  # wave vectors in the whole sphere
        1045
    """
    _check_grid(cells, cutoff, atom_ptr)
    device = cells.device if device is None else torch.device(device)
    host_cells = cells.detach().to("cpu", torch.float64).numpy()
    ptr = atom_ptr.detach().to("cpu", torch.int64)
    check_pointers("build_lattice_grid", "atom_ptr", ptr, int(ptr[-1]), "atoms")
    check_shape("build_lattice_grid", "atom_ptr", ptr, (len(cells) + 1,))
    for i, cell in enumerate(host_cells):
        _check_cell(i, cell, cutoff)
    counts = (ptr[1:] - ptr[:-1]).tolist()
    boxes, miller, system, weight = [], [], [], []
    n_points, point_ptr, tiled = 0, [0], needs_kernel_tables(device)
    for i, (cell, n_atoms) in enumerate(zip(host_cells, counts, strict=True)):
        reciprocal = 2 * math.pi * np.linalg.inv(cell).T
        for h_first, h_count, n_k, n_l in _group_planes(_plane_extents(cell, cutoff), n_atoms):
            boxes.append((i, h_first, h_count, n_k, n_l, n_points))
            n = np.stack(
                np.meshgrid(
                    np.arange(h_first, h_first + h_count),
                    np.arange(-n_k, n_k + 1),
                    np.arange(-n_l, n_l + 1),
                    indexing="ij",
                ),
                axis=-1,
            ).reshape(-1, 3)
            h, k, l = n.T
            # a shell exactly on the sphere counts as inside, despite rounding
            inside = ((n @ reciprocal) ** 2).sum(1) <= cutoff**2 * (1 + 1e-12)
            upper = (h > 0) | (k > 0) | ((k == 0) & (l > 0))
            origin = (h == 0) & (k == 0) & (l == 0)
            miller.append(n.astype(np.int32))
            system.append(np.full(len(n), i))
            weight.append((inside & upper) + 0.5 * origin)
            if not tiled:  # the CPU path needs no boxes
                keep = weight[-1] > 0
                n = n[keep]
                miller[-1], system[-1], weight[-1] = miller[-1][keep], system[-1][keep], weight[-1][keep]
            n_points += len(n)
        point_ptr.append(n_points)
    box_table = torch.tensor(boxes if tiled else [], dtype=torch.int64).reshape(-1, 6)

    row_tiles = torch.zeros((0, 8), dtype=torch.int32)
    point_tiles = atom_tiles = torch.zeros((0, 4), dtype=torch.int32)
    row_ptr = torch.zeros(len(ptr), dtype=torch.int32)
    if tiled:
        options = lattice_launch(device, torch.float32)
        row_tiles, point_tiles, row_ptr = build_tiles(box_table.numpy(), weight, ptr.numpy(), options)
        atom_tiles = build_atom_tiles(row_ptr, ptr, options)

    def joined(parts: list[np.ndarray], empty: np.ndarray) -> Tensor:
        return torch.from_numpy(np.concatenate([empty, *parts])).to(device)

    grid_miller = joined(miller, np.zeros((0, 3), np.int32))
    grid_system = joined(system, np.zeros(0, np.int64))
    grid_weight = joined(weight, np.zeros(0, np.float64))
    points = torch.zeros((0, 5), dtype=torch.int32)
    if device.type == "cpu":
        inside = grid_weight > 0
        points = torch.cat((grid_system[:, None].int(), grid_miller, inside[:, None].int()), 1)
    return LatticeGrid(
        boxes=box_table,
        atom_ptr=ptr,
        miller=grid_miller,
        system=grid_system,
        weight=grid_weight,
        point_ptr=torch.tensor(point_ptr),
        points=points.to(device),
        row_tiles=row_tiles.to(device),
        point_tiles=point_tiles.to(device),
        atom_tiles=atom_tiles.to(device),
        row_ptr=row_ptr,
    )


@on_values
def grid_at_points(grid: LatticeGrid, point_ptr: Tensor) -> LatticeGrid:
    """The same wave vectors for another set of points ``[n_systems + 1]``, to evaluate a field there."""
    ptr = point_ptr.to("cpu", torch.int64)
    device = grid.weight.device
    atom_tiles = grid.atom_tiles
    if needs_kernel_tables(device):
        options = lattice_launch(device, torch.float32)
        atom_tiles = build_atom_tiles(grid.row_ptr, ptr, options).to(device)
    return grid._replace(atom_ptr=ptr, atom_tiles=atom_tiles)
