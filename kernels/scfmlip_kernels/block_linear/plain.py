"""The map and its gradient in the weights as one matrix product for each path, on any device."""

import torch
from torch import Tensor

from ..dispatch import runs_triton
from ..indexed_linear.cpu import indexed_linear_cpu, indexed_linear_weights_cpu
from ..indexed_linear.kernel import launch_indexed_linear_weights
from .maps import Block, BlockMap, BlockPath, allocate, count_rows, map_of, part_of


def _channels(rows: Tensor, block: Block, parts: tuple[int, ...] = ()) -> Tensor:
    """``[n_rows, dim, channels]`` view of a block of a matrix, or of several in one vector."""
    channel, component = block.strides
    n_rows, (before, width) = count_rows(rows, parts), part_of(block, parts)
    offset = rows.storage_offset() + block.first + before * (n_rows - 1)
    step = width if parts else rows.stride(0)
    return rows.as_strided((n_rows, block.dim, block.channels), (step, component, channel), offset)


def _matrices(weights: Tensor, linear: BlockMap, path: BlockPath) -> Tensor:
    """``[n_species, channels of x, channels of the output]`` view of a path's weights."""
    size = (linear.n_species, linear.x[path.x].channels, linear.out[path.out].channels)
    return weights.as_strided(size, path.strides, weights.storage_offset() + path.first)


def block_linear_plain(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    ptr: Tensor | None,
    text: str,
) -> Tensor:
    """``[n_rows, out_dim]``; arguments as in `kernel.launch_block_linear`."""
    linear = map_of(text)
    out = allocate(count_rows(x, linear.x_parts), linear.out_dim, linear.out_parts, x).zero_()
    if not out.numel():
        return out
    if bias is not None:
        for block, first in zip(linear.out, linear.biases, strict=True):
            if first >= 0:
                _channels(out, block).add_(bias[first : first + block.channels])
    for path in linear.paths:
        rows = _channels(x, linear.x[path.x], linear.x_parts)
        matrices = _matrices(weights, linear, path) * path.scale
        if order is None or ptr is None:
            value = rows @ matrices[0]
        else:
            value = indexed_linear_cpu(rows.contiguous(), matrices, order, ptr)
        _channels(out, linear.out[path.out], linear.out_parts).add_(value)
    return out


def block_linear_weights_plain(
    x: Tensor, grad: Tensor, order: Tensor | None, ptr: Tensor | None, text: str
) -> Tensor:
    """``[n_weights]`` sums over rows of x times grad, in the places of the weights."""
    linear = map_of(text)
    out = x.new_zeros(linear.n_weights)
    if not x.numel():
        return out
    for path in linear.paths:
        left = _channels(x, linear.x[path.x], linear.x_parts)
        right = _channels(grad, linear.out[path.out], linear.out_parts)
        if order is None or ptr is None:
            found = (left.flatten(0, 1).mT @ right.flatten(0, 1))[None]
        elif runs_triton(x):
            found = launch_indexed_linear_weights(left, right, order, ptr)
        else:
            found = indexed_linear_weights_cpu(left, right, order, ptr)
        torch.add(_matrices(out, linear, path), found, alpha=path.scale, out=_matrices(out, linear, path))
    return out
