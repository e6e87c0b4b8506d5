"""Plain PyTorch definition of the linear map between blocks; the tests' source of truth."""

import torch
from torch import Tensor

from .maps import BlockMap


def block_linear_reference(
    x: Tensor,
    weights: Tensor,
    linear: BlockMap,
    index: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """
    One number after another.

    Args:
        x: ``[n_rows, x_dim]``.
        weights: ``[n_weights]``.
        linear: The map.
        index: ``[n_rows]`` species of each row; all 0 if None.
        bias: ``[n_biases]``, for a map with biases.

    Returns:
        ``[n_rows, out_dim]``.
    """
    columns = [torch.zeros_like(x[:, 0]) for _ in range(linear.out_dim)]
    species = torch.zeros(len(x), dtype=torch.int64) if index is None else index
    for path in linear.paths:
        a, b = linear.x[path.x], linear.out[path.out]
        for component in range(a.dim):
            for u in range(a.channels):
                for v in range(b.channels):
                    of_species, of_x, of_out = path.strides
                    weight = weights[path.first + species * of_species + u * of_x + v * of_out]
                    source = x[:, a.first + u * a.strides[0] + component * a.strides[1]]
                    place = b.first + v * b.strides[0] + component * b.strides[1]
                    columns[place] = columns[place] + path.scale * weight * source
    if bias is not None:
        for block, first in zip(linear.out, linear.biases, strict=True):
            for v in range(block.channels if first >= 0 else 0):
                place = block.first + v * block.strides[0]
                columns[place] = columns[place] + bias[first + v]
    return torch.stack(columns, 1)
