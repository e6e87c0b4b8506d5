"""Algebra of 3 x 3 matrices and their six different elements, with nothing that a GPU's host waits for."""

from __future__ import annotations

import torch
from torch import Tensor

from scfmlip_kernels import cell_inverse
from scfmlip_kernels.constants import constant

_ROWS, _COLUMNS = (0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2)
_UPPER, _PLACES = (0, 1, 2, 4, 5, 8), (0, 1, 2, 1, 3, 4, 2, 4, 5)


def inverse_and_volume(cell: Tensor) -> tuple[Tensor, Tensor]:
    """
    Inverse and determinant of ``[n, 3, 3]``, by cross products of the rows.

    `torch.linalg.inv` has the host wait for a check; cells are checked where they are made.
    """
    if cell.is_cuda:
        return cell_inverse(cell)
    a, b, c = cell.unbind(-2)
    faces = torch.stack([torch.linalg.cross(*pair) for pair in ((b, c), (c, a), (a, b))], -1)
    volume = (a * faces[..., 0]).sum(-1)
    return faces / volume[..., None, None], volume


def products(vectors: Tensor) -> Tensor:
    """``[..., 6]`` products xx, xy, xz, yy, yz, zz of ``[..., 3]``."""
    rows, columns = (constant(c, torch.int64, vectors.device) for c in (_ROWS, _COLUMNS))
    return vectors.index_select(-1, rows) * vectors.index_select(-1, columns)


def upper_triangles(matrices: Tensor) -> Tensor:
    """``[..., 6]`` elements xx, xy, xz, yy, yz, zz of ``[..., 3, 3]``."""
    return matrices.flatten(-2).index_select(-1, constant(_UPPER, torch.int64, matrices.device))


def from_upper_triangles(elements: Tensor) -> Tensor:
    """Symmetric ``[..., 3, 3]`` of ``[..., 6]`` elements xx, xy, xz, yy, yz, zz."""
    places = constant(_PLACES, torch.int64, elements.device)
    return elements.index_select(-1, places).unflatten(-1, (3, 3))
