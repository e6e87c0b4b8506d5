"""Operator registration: dispatch, fake tensors, derivatives, public functions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_floats, check_shape, check_tensors, outside_autocast
from ..columns import dense_rows
from ..constants import constant
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from .kernel import launch_grouped_dot, launch_grouped_dot_backward, launch_grouped_scale


@operator("scfmlip::grouped_dot")
def _grouped_dot(x: Tensor, y: Tensor, groups: Sequence[int], n_groups: int) -> Tensor:
    x, y = x.contiguous(), y.contiguous()
    if runs_triton(x):
        return launch_grouped_dot(x, y, tuple(groups), n_groups)
    columns = constant(tuple(groups), torch.int64, x.device)
    return x.new_zeros((len(x), n_groups)).index_add(1, columns, x * y)


@_grouped_dot.register_fake
def _(x, y, groups, n_groups):
    return x.new_empty((x.shape[0], n_groups))


@operator("scfmlip::grouped_scale")
def _grouped_scale(scales: Tensor, x: Tensor, groups: Sequence[int]) -> Tensor:
    if runs_triton(x):
        return launch_grouped_scale(dense_rows(scales), dense_rows(x), tuple(groups))
    return scales.index_select(1, constant(tuple(groups), torch.int64, x.device)) * x


@_grouped_scale.register_fake
def _(scales, x, groups):
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@operator("scfmlip::grouped_dot_backward")
def _grouped_dot_backward(grad: Tensor, x: Tensor, y: Tensor, groups: Sequence[int]) -> tuple[Tensor, Tensor]:
    given = dense_rows(grad), dense_rows(x), dense_rows(y)
    return launch_grouped_dot_backward(*given, tuple(groups))


@_grouped_dot_backward.register_fake
def _(grad, x, y, groups):
    return x.new_empty(x.shape), y.new_empty(y.shape)


def _setup_dot(ctx, inputs, output):
    x, y, ctx.groups, _ = inputs
    ctx.save_for_backward(x, y)


def _dot_backward(ctx, grad):
    x, y = ctx.saved_tensors
    d_x = d_y = None
    if all(ctx.needs_input_grad[:2]) and not torch.is_grad_enabled() and runs_triton(x):
        return *torch.ops.scfmlip.grouped_dot_backward(grad, x, y, ctx.groups), None, None
    if ctx.needs_input_grad[0]:
        d_x = torch.ops.scfmlip.grouped_scale(grad, y, ctx.groups)
    if ctx.needs_input_grad[1]:
        d_y = torch.ops.scfmlip.grouped_scale(grad, x, ctx.groups)
    return d_x, d_y, None, None


def _setup_scale(ctx, inputs, output):
    scales, x, ctx.groups = inputs
    ctx.save_for_backward(scales, x)


def _scale_backward(ctx, grad):
    scales, x = ctx.saved_tensors
    d_scales = d_x = None
    if ctx.needs_input_grad[0]:
        d_scales = torch.ops.scfmlip.grouped_dot(grad, x, ctx.groups, scales.shape[1])
    if ctx.needs_input_grad[1]:
        d_x = torch.ops.scfmlip.grouped_scale(scales, grad, ctx.groups)
    return d_scales, d_x, None


_grouped_dot.register_autograd(_dot_backward, setup_context=_setup_dot)
_grouped_scale.register_autograd(_scale_backward, setup_context=_setup_scale)
vmap_by_loop(_grouped_dot, "grouped_dot")
vmap_by_loop(_grouped_dot_backward, "grouped_dot_backward")
vmap_by_loop(_grouped_scale, "grouped_scale")


def _check_groups(op: str, groups: tuple[int, ...], n_groups: int) -> None:
    if any(not 0 <= g < n_groups for g in groups):
        raise ValueError(f"{op}: groups must be 0 to {n_groups - 1}, got {min(groups)} to {max(groups)}")


def grouped_dot(x: Tensor, y: Tensor, groups: tuple[int, ...], n_groups: int) -> Tensor:
    """
    Products of two matrices, summed over groups of columns.

    Args:
        x: ``[n_rows, n_columns]`` float32 or float64.
        y: Likewise.
        groups: Group of each column.
        n_groups: Number of groups.

    Returns:
        ``[n_rows, n_groups]``. Differentiable any number of times.

    Raises:
        TypeError: for another dtype.
        ValueError: for shapes that do not match, or a group out of range.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import grouped_dot
        >>> vectors = torch.tensor([[1.0, 2.0, 3.0, 10.0]])  # a vector and a number
        >>> grouped_dot(vectors, vectors, (0, 0, 0, 1), 2)
        tensor([[ 14., 100.]])
    """
    x, y = outside_autocast(x, y)
    check_tensors("grouped_dot", x=x, y=y)
    check_floats("grouped_dot", x=x, y=y)
    for name, tensor in (("x", x), ("y", y)):
        check_shape("grouped_dot", name, tensor, (x.shape[0], len(groups)))
    _check_groups("grouped_dot", groups, n_groups)
    return torch.ops.scfmlip.grouped_dot(x, y, list(groups), n_groups)


def grouped_scale(scales: Tensor, x: Tensor, groups: tuple[int, ...]) -> Tensor:
    """
    A matrix, each of its columns times its group's number in the row.

    Args:
        scales: ``[n_rows, n_groups]`` float32 or float64.
        x: ``[n_rows, n_columns]``, same dtype.
        groups: Group of each column.

    Returns:
        ``[n_rows, n_columns]``. Differentiable any number of times.

    Raises:
        TypeError: for another dtype.
        ValueError: for shapes that do not match, or a group out of range.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import grouped_scale
        >>> vectors = torch.tensor([[1.0, 2.0, 3.0, 10.0]])  # a vector and a number
        >>> grouped_scale(torch.tensor([[2.0, 0.1]]), vectors, (0, 0, 0, 1))
        tensor([[2., 4., 6., 1.]])
    """
    scales, x = outside_autocast(scales, x)
    check_tensors("grouped_scale", scales=scales, x=x)
    check_floats("grouped_scale", scales=scales, x=x)
    check_shape("grouped_scale", "x", x, ("n_rows", len(groups)))
    check_shape("grouped_scale", "scales", scales, (x.shape[0], "n_groups"))
    _check_groups("grouped_scale", groups, scales.shape[1])
    return torch.ops.scfmlip.grouped_scale(scales, x, list(groups))
