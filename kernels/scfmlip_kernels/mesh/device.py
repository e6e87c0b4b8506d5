"""Per-atom tables of the two mesh kernels."""

import torch
from torch import Tensor

from .grid import lower_points
from .splines import spline_weights


def sorted_splines(
    coords: Tensor,
    atoms: Tensor,
    atom_system: Tensor,
    table: Tensor,
    order: int,
    rank: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Splines of the atoms, sorted by block.

    Returns:
        ``[n_atoms, 3]`` int32 first mesh points, ``[n_atoms, 3, rank + 1, order]`` splines of ``dtype``, and
        ``[n_atoms, 8]`` int64 rows of the table.
    """
    rows = table[atom_system[atoms]]
    first, offsets = lower_points(coords[atoms], order)
    weights = spline_weights(offsets.to(dtype), order, rank)
    return first.remainder(rows[:, :3]).int(), weights.contiguous(), rows
