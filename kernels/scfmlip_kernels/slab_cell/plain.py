"""Cells and strengths of slabs and their derivatives in PyTorch, on any device."""

import torch
from torch import Tensor

from ..constants import constant

_ROWS, _COLUMNS = (0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2)
_PLACES = (0, 1, 2, 1, 3, 4, 2, 4, 5)


def _open(axis: Tensor, factor: Tensor) -> Tensor:
    """``[n, 3, 1]`` bool, the vector of a slab that is replaced."""
    return (torch.nn.functional.one_hot(axis, 3).bool() & (factor != 0)[:, None])[..., None]


def _row(cell: Tensor, axis: Tensor) -> Tensor:
    return torch.take_along_dim(cell, (axis % 3)[:, None, None], 1)[:, 0]


def slab_cell_plain(cell: Tensor, axis: Tensor, factor: Tensor) -> Tensor:
    """``[n, 3, 3]``."""
    cross = torch.linalg.cross(_row(cell, axis + 1), _row(cell, axis + 2))
    vector = factor[:, None] * cross / cross.norm(dim=1, keepdim=True)
    return torch.where(_open(axis, factor), vector[:, None], cell)


def slab_cell_gradient_plain(cell: Tensor, axis: Tensor, factor: Tensor, grad: Tensor) -> Tensor:
    """Derivatives in the cell; differentiable in the cell and the gradient."""
    a, b, g = _row(cell, axis + 1), _row(cell, axis + 2), _row(grad, axis)
    cross = torch.linalg.cross(a, b)
    size = cross.norm(dim=1, keepdim=True)
    unit = cross / size
    d = factor[:, None] / size * (g - (g * unit).sum(1, keepdim=True) * unit)
    rest = torch.where(_open(axis, factor), torch.zeros_like(grad), grad)
    place = torch.nn.functional.one_hot((axis + 1) % 3, 3).to(cell)[..., None]
    other = torch.nn.functional.one_hot((axis + 2) % 3, 3).to(cell)[..., None]
    return rest + place * torch.linalg.cross(b, d)[:, None] + other * torch.linalg.cross(d, a)[:, None]


def _parts(
    inverse: Tensor, volume: Tensor, axis: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Columns, squared heights, strengths and products of a column with itself."""
    column = torch.take_along_dim(inverse, axis[:, None, None], 2)[..., 0]
    square = 1 / column.square().sum(1, keepdim=True)
    rows, columns = (constant(c, torch.int64, inverse.device) for c in (_ROWS, _COLUMNS))
    pairs = column.index_select(1, rows) * column.index_select(1, columns)
    return column, square, (weight / volume)[:, None], pairs


def slab_strengths_plain(inverse: Tensor, volume: Tensor, axis: Tensor, weight: Tensor) -> Tensor:
    """``[n, 8]``."""
    _, square, strength, pairs = _parts(inverse, volume, axis, weight)
    return strength * torch.cat((torch.ones_like(square), square / 12, square * pairs), 1)


def slab_strengths_gradient_plain(
    inverse: Tensor, volume: Tensor, axis: Tensor, weight: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Derivatives in the inverse and the volume; differentiable in them and the gradient."""
    column, square, strength, pairs = _parts(inverse, volume, axis, weight)
    g_one, g_height, g_pairs = grad.split((1, 1, 6), 1)
    along = g_height / 12 + (g_pairs * pairs).sum(1, keepdim=True)
    d_strength = g_one + square * along
    # a symmetric matrix whose product with the column is the derivative of the products
    places = constant(_PLACES, torch.int64, inverse.device)
    matrix = g_pairs.index_select(1, places).unflatten(1, (3, 3))
    twice = 1 + torch.eye(3, dtype=inverse.dtype, device=inverse.device)
    d_column = ((matrix * twice) @ column[..., None])[..., 0] - 2 * square * along * column
    d_column = strength * square * d_column
    where = torch.nn.functional.one_hot(axis, 3).to(inverse)[:, None]
    d_volume = -(d_strength * strength)[:, 0] / volume
    return d_column[..., None] * where, d_volume
