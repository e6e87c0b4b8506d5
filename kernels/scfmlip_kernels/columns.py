"""Columns of a matrix in another order: a gather forwards and backwards, where PyTorch scatters backwards."""

import torch
from torch import Tensor

from .checks import check_tensors
from .constants import constant
from .dispatch import vmap_by_loop
from .operators import operator


@operator("scfmlip::take_columns")
def _take_columns(x: Tensor, columns: list[int]) -> Tensor:
    return x.index_select(1, constant(tuple(columns), torch.int64, x.device))


@_take_columns.register_fake
def _(x, columns):
    return x.new_empty((x.shape[0], len(columns)))


def _setup_context(ctx, inputs, output):
    ctx.columns = inputs[1]


def _backward(ctx, grad):
    back = [0] * len(ctx.columns)
    for place, column in enumerate(ctx.columns):
        back[column] = place
    return torch.ops.scfmlip.take_columns(grad, back), None


_take_columns.register_autograd(_backward, setup_context=_setup_context)
vmap_by_loop(_take_columns, "take_columns")


def take_columns(x: Tensor, columns: tuple[int, ...]) -> Tensor:
    """
    The columns of a matrix in another order.

    Args:
        x: ``[n_rows, n_columns]``.
        columns: A permutation: the column of x that each column of the result is.

    Returns:
        ``[n_rows, n_columns]``. Differentiable any number of times.

    Raises:
        ValueError: for columns that are not a permutation of those of x.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import take_columns
        >>> take_columns(torch.tensor([[1.0, 2.0, 3.0]]), (2, 0, 1))
        tensor([[3., 1., 2.]])
    """
    check_tensors("take_columns", x=x)
    if x.ndim != 2 or sorted(columns) != list(range(x.shape[1])):
        raise ValueError(
            f"take_columns: columns must be a permutation of those of x {list(x.shape)}, got {len(columns)} "
            f"of {len(set(columns))} values"
        )
    return torch.ops.scfmlip.take_columns(x, list(columns))


def dense_rows(x: Tensor) -> Tensor:
    """``[n, k]`` itself if the numbers of a row follow each other, wherever rows begin; else a copy."""
    return x if x.shape[1] == 1 or x.stride(1) == 1 else x.contiguous()
