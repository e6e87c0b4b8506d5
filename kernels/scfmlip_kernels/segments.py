"""
Sums over the contiguous segments of a ragged batch, and their adjoint; deterministic on every device.

`torch.segment_reduce` does the work. These two operators exist because the backward pass of indexing uses
atomics on a GPU, which makes energies irreproducible.
"""

import math

import torch
from torch import Tensor

from .checks import check_floats, check_tensors, outside_autocast, readable
from .dispatch import loop_over_batch
from .operators import operator


@operator("scfmlip::segment_sum")
def _segment_sum(values: Tensor, ptr: Tensor, index: Tensor) -> Tensor:
    flat = values.reshape(values.shape[0], math.prod(values.shape[1:])).contiguous()
    if flat.shape[0] == 0 or flat.shape[1] == 0:
        return values.new_zeros((ptr.shape[0] - 1, *values.shape[1:]))
    sums = torch.segment_reduce(flat, "sum", offsets=ptr, axis=0, initial=0.0)
    return sums.view(ptr.shape[0] - 1, *values.shape[1:])


@_segment_sum.register_fake
def _(values, ptr, index):
    return values.new_empty((ptr.shape[0] - 1, *values.shape[1:]))


@operator("scfmlip::segment_expand")
def _segment_expand(values: Tensor, ptr: Tensor, index: Tensor) -> Tensor:
    return values.contiguous()[index]


@_segment_expand.register_fake
def _(values, ptr, index):
    return values.new_empty((index.shape[0], *values.shape[1:]))


def _setup_context(ctx, inputs, output):
    _, ptr, index = inputs
    ctx.save_for_backward(ptr, index)
    # keep missing gradients as None: zeros would trigger needless adjoint solves upstream
    ctx.set_materialize_grads(False)


def _sum_backward(ctx, grad):
    if grad is None:
        return None, None, None
    return torch.ops.scfmlip.segment_expand(grad, *ctx.saved_tensors), None, None


def _expand_backward(ctx, grad):
    if grad is None:
        return None, None, None
    return torch.ops.scfmlip.segment_sum(grad, *ctx.saved_tensors), None, None


_segment_sum.register_autograd(_sum_backward, setup_context=_setup_context)
_segment_expand.register_autograd(_expand_backward, setup_context=_setup_context)


@_segment_sum.register_vmap
def _(info, in_dims, values, ptr, index):
    return _trailing(torch.ops.scfmlip.segment_sum, info, in_dims, values, ptr, index)


@_segment_expand.register_vmap
def _(info, in_dims, values, ptr, index):
    return _trailing(torch.ops.scfmlip.segment_expand, info, in_dims, values, ptr, index)


def _trailing(op, info, in_dims, values, ptr, index):
    """Both operators act on rows, so a batch of values becomes one more trailing dimension."""
    if in_dims[1] is not None or in_dims[2] is not None:
        return loop_over_batch(op, info, in_dims, values, ptr, index)
    return op(values.movedim(in_dims[0], -1), ptr, index), -1


def _check(op: str, values: Tensor, ptr: Tensor, index: Tensor) -> None:
    """Check metadata, and the last pointer where reading it is free: `torch.segment_reduce` does not."""
    check_tensors(op, values=values, ptr=ptr, index=index)
    n_rows = index.shape[0] if index.ndim == 1 else -1
    if ptr.dtype != torch.int64 or index.dtype != torch.int64:
        raise TypeError(f"{op}: ptr and index must be int64, got {ptr.dtype} and {index.dtype}")
    if ptr.ndim != 1 or n_rows < 0 or ptr.shape[0] == 0:
        shapes = f"{list(ptr.shape)} and {list(index.shape)}"
        raise ValueError(f"{op}: ptr must be [n_segments + 1] and index [n_rows], got {shapes}")
    if readable(ptr):
        # converting a short tensor to a list is faster than reading one element
        last = ptr.tolist()[-1] if ptr.shape[0] < 64 else int(ptr[-1])
        if last != n_rows:
            raise ValueError(f"{op}: ptr ends at {last}, index has {n_rows} rows")


def segment_sum(values: Tensor, ptr: Tensor, index: Tensor) -> Tensor:
    """
    Sum the rows of each segment.

    Args:
        values: ``[n_rows, ...]``, float32 or float64.
        ptr: ``[n_segments + 1]`` int64, first row of each segment.
        index: ``[n_rows]`` int64, segment of each row; the same information as ``ptr``.

    Returns:
        ``[n_segments, ...]``; empty segments are 0. Differentiable any number of times.

    Raises:
        TypeError: for values that are not float32 or float64, or pointers and indices not int64.
        ValueError: for shapes that do not match, or tensors on different devices.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import segment_sum
        >>> energies = torch.tensor([-1.0, -2.0, -0.5])  # two atoms in the first system, one in the second
        >>> segment_sum(energies, torch.tensor([0, 2, 3]), torch.tensor([0, 0, 1]))
        tensor([-3.0000, -0.5000])
    """
    (values,) = outside_autocast(values)
    _check("segment_sum", values, ptr, index)
    check_floats("segment_sum", values=values)
    if values.ndim == 0 or values.shape[0] != index.shape[0]:
        raise ValueError(f"segment_sum: values must be [{len(index)}, ...], got {list(values.shape)}")
    if ptr.shape[0] == 2:
        return values.sum(0, keepdim=True)
    return torch.ops.scfmlip.segment_sum(values, ptr, index)


def segment_expand(values: Tensor, ptr: Tensor, index: Tensor) -> Tensor:
    """
    Copy each segment's value to all of its rows: the adjoint of `segment_sum`.

    Args:
        values: ``[n_segments, ...]``.
        ptr: ``[n_segments + 1]`` int64, first row of each segment.
        index: ``[n_rows]`` int64, segment of each row; the same information as ``ptr``.

    Returns:
        ``[n_rows, ...]``. Differentiable any number of times.

    Raises:
        TypeError: for pointers and indices that are not int64.
        ValueError: for shapes that do not match, or tensors on different devices.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import segment_expand
        >>> potential = torch.tensor([0.3, -0.1])  # one value for each system
        >>> segment_expand(potential, torch.tensor([0, 2, 3]), torch.tensor([0, 0, 1]))  # one for each atom
        tensor([ 0.3000,  0.3000, -0.1000])
    """
    (values,) = outside_autocast(values)
    _check("segment_expand", values, ptr, index)
    if values.ndim == 0 or values.shape[0] != ptr.shape[0] - 1:
        raise ValueError(f"segment_expand: values must be [{len(ptr) - 1}, ...], got {list(values.shape)}")
    if ptr.shape[0] == 2:
        return values.expand(index.shape[0], *values.shape[1:])
    return torch.ops.scfmlip.segment_expand(values, ptr, index)
