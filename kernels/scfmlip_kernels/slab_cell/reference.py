"""Plain PyTorch definitions of the cells and strengths of slabs; the tests' source of truth."""

import torch
from torch import Tensor


def slab_cell_reference(cell: Tensor, axis: Tensor, factor: Tensor) -> Tensor:
    """One system after another; arguments as in `slab_cell`."""
    found = []
    for rows, a, f in zip(cell, axis.tolist(), factor, strict=True):
        each = list(rows)
        if float(f) != 0:
            cross = torch.linalg.cross(rows[(a + 1) % 3], rows[(a + 2) % 3])
            each[a] = f * cross / cross.norm()
        found.append(torch.stack(each))
    return torch.stack(found) if found else cell.clone()


def slab_strengths_reference(inverse: Tensor, volume: Tensor, axis: Tensor, weight: Tensor) -> Tensor:
    """One system after another; arguments as in `slab_strengths`."""
    found = []
    for matrix, v, a, w in zip(inverse, volume, axis.tolist(), weight, strict=True):
        column = matrix[:, a]
        height = 1 / column.norm()
        n = column * height
        pairs = [n[i] * n[j] for i, j in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))]
        found.append(w / v * torch.stack([torch.ones_like(height), height**2 / 12, *pairs]))
    return torch.stack(found) if found else inverse.new_zeros((0, 8))
