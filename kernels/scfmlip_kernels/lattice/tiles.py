"""Work tables and launch parameters of the two lattice kernels."""

from typing import NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor

from ..tuned import tuned

_BLOCKS = ("rows", "l", "atoms", "field_atoms")


class LatticeLaunch(NamedTuple):
    """Launch parameters; the block sizes are built into the tables of a grid."""

    rows: int
    l: int
    atoms: int
    flush: int
    num_warps: int
    num_stages: int
    precision: str
    field_atoms: int
    field_warps: int


def lattice_launch(device: torch.device, dtype: torch.dtype) -> LatticeLaunch:
    """
    The recorded parameters for a device and dtype.

    A grid's tables are made once for both dtypes, so the block sizes are always float32's.
    """
    blocks = {k: v for k, v in tuned("lattice", device, torch.float32).items() if k in _BLOCKS}
    return LatticeLaunch(**{**tuned("lattice", device, dtype), **blocks})


# limit of a CUDA grid's second dimension; tables hold 32-bit indices
_MOST_CHANNELS = 65535


def check_places(op: str, n_rows: int, n_columns: int) -> None:
    """Raise if a kernel's index would exceed 32 bits."""
    if n_rows * n_columns >= 2**31:
        raise ValueError(
            f"{op}: {n_rows} atoms with {n_columns} numbers each are more than 32 bits count: split the batch"
        )


def channel_parts(values: Tensor, per_channel: int = 1) -> tuple[Tensor, ...]:
    """Split ``[n, n_channels, ...]`` into parts for one launch each, ``per_channel`` programs per channel."""
    return values.split(max(1, _MOST_CHANNELS // max(1, per_channel)), 1)


def splits_for(n_programs: int, n_work: int, work_per_split: int, tensor: Tensor) -> int:
    """
    How many programs share one tile, so that small problems still fill the device.

    Depends on shapes and the device only, so results are reproducible on a given device.
    """
    if n_programs == 0 or not tensor.is_cuda:
        return 1
    wanted = 4 * torch.cuda.get_device_properties(tensor.device).multi_processor_count
    return max(1, min(wanted // n_programs, triton.cdiv(n_work, work_per_split), 64))


def build_tiles(
    boxes: np.ndarray, weights: list[np.ndarray], atom_ptr: np.ndarray, options: LatticeLaunch
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Split the boxes into tiles, without those that hold no point of the half sphere.

    Args:
        boxes: ``[n_boxes, 6]`` as in `LatticeGrid`.
        weights: Weights of the points, one array per box.
        atom_ptr: ``[n_systems + 1]``.
        options: Block sizes.

    Returns:
        int32 tables on the CPU: ``row_tiles [n, 8]`` (first row, first h, n_k, n_l, rows of the box,
        first point of the box, number of l to visit, system), ``point_tiles [n, 4]`` (row tile,
        first l, first atom, last atom), ``row_ptr [n_systems + 1]`` first row tile of each system.
    """
    row_tiles: list[tuple[int, ...]] = []
    point_tiles: list[tuple[int, ...]] = []
    row_counts = [0] * (len(atom_ptr) - 1)
    for (system, h_first, h_count, n_k, n_l, first), weight in zip(boxes.tolist(), weights, strict=True):
        n_rows = h_count * (2 * n_k + 1)
        occupied = weight.reshape(n_rows, 2 * n_l + 1) > 0
        occupied = occupied[:, n_l:] | occupied[:, n_l::-1]  # by abs(l)
        for row in range(0, n_rows, options.rows):
            columns = np.flatnonzero(occupied[row : row + options.rows].any(0))
            if len(columns) == 0:
                continue
            l_stop = int(columns[-1]) + 1
            for l in range(0, l_stop, options.l):
                if occupied[row : row + options.rows, l : l + options.l].any():
                    point_tiles.append((len(row_tiles), l, int(atom_ptr[system]), int(atom_ptr[system + 1])))
            row_tiles.append((row, h_first, n_k, n_l, n_rows, first, l_stop, system))
            row_counts[system] += 1
    row_ptr = np.concatenate([[0], np.cumsum(row_counts)]).astype(np.int32)
    return (
        torch.tensor(row_tiles, dtype=torch.int32).reshape(-1, 8),
        torch.tensor(point_tiles, dtype=torch.int32).reshape(-1, 4),
        torch.from_numpy(row_ptr),
    )


def build_atom_tiles(row_ptr: Tensor, atom_ptr: Tensor, options: LatticeLaunch) -> Tensor:
    """
    Split the atoms into tiles.

    Returns:
        ``[n, 4]`` int32 on the CPU: first atom, last atom of its system, the system's first and last row
        tile.
    """
    rows, ptr = row_ptr.tolist(), atom_ptr.tolist()
    tiles = [
        (atom, ptr[i + 1], rows[i], rows[i + 1])
        for i in range(len(ptr) - 1)
        for atom in range(ptr[i], ptr[i + 1], options.field_atoms)
    ]
    return torch.tensor(tiles, dtype=torch.int32).reshape(-1, 4)
