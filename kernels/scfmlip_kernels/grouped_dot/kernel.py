"""
Products of rows whose columns are in groups: sums over a group, and numbers for a group.

Grid: blocks of results, one number each. Which columns belong to a group stands in a small table. No atomics.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..constants import constant
from ..tuned import compiler_options

_BLOCK = 256


@triton.jit
def _grouped_dot_kernel(
    x_ptr,  # [n_rows, n_columns]
    y_ptr,  # [n_rows, n_columns]
    table_ptr,  # [n_groups, n_most] int64 columns of each group, -1 where there are fewer
    out_ptr,  # [n_rows, n_groups]
    n_results,
    n_columns,
    n_groups,
    n_most,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n_results
    row = place // n_groups
    group = place % n_groups
    total = tl.zeros((BLOCK,), x_ptr.dtype.element_ty)
    for term in range(n_most):
        column = tl.load(table_ptr + group * n_most + term, mask=inside, other=-1)
        there = inside & (column >= 0)
        x = tl.load(x_ptr + row * n_columns + column, mask=there, other=0.0)
        total += x * tl.load(y_ptr + row * n_columns + column, mask=there, other=0.0)
    tl.store(out_ptr + place, total, mask=inside)


@triton.jit
def _grouped_scale_kernel(
    scales_ptr,  # [n_rows, n_groups], rows scales_stride apart
    x_ptr,  # [n_rows, n_columns], rows x_stride apart
    groups_ptr,  # [n_columns] int64 group of each column
    out_ptr,  # [n_rows, n_columns]
    n_results,
    n_columns,
    scales_stride,
    x_stride,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n_results
    row = place // n_columns
    column = place % n_columns
    group = tl.load(groups_ptr + column, mask=inside, other=0)
    scale = tl.load(scales_ptr + row * scales_stride + group, mask=inside, other=0.0)
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0)
    tl.store(out_ptr + place, scale * x, mask=inside)


@triton.jit
def _grouped_dot_backward_kernel(
    grad_ptr,  # [n_rows, n_groups], rows grad_stride apart
    x_ptr,  # [n_rows, n_columns], rows x_stride apart
    y_ptr,  # [n_rows, n_columns], rows y_stride apart
    groups_ptr,  # [n_columns] int64 group of each column
    d_x_ptr,  # [n_rows, n_columns]
    d_y_ptr,  # [n_rows, n_columns]
    n_results,
    n_columns,
    grad_stride,
    x_stride,
    y_stride,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n_results
    row = place // n_columns
    column = place % n_columns
    group = tl.load(groups_ptr + column, mask=inside, other=0)
    grad = tl.load(grad_ptr + row * grad_stride + group, mask=inside, other=0.0)
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0)
    y = tl.load(y_ptr + row * y_stride + column, mask=inside, other=0.0)
    tl.store(d_x_ptr + place, grad * y, mask=inside)
    tl.store(d_y_ptr + place, grad * x, mask=inside)


@lru_cache(maxsize=1024)
def columns_of(groups: tuple[int, ...], n_groups: int) -> tuple[tuple[int, ...], ...]:
    """Columns of each group, padded with -1 to the most."""
    found: list[list[int]] = [[] for _ in range(n_groups)]
    for column, group in enumerate(groups):
        found[group].append(column)
    most = max([1, *map(len, found)])
    return tuple((*columns, *(-1,) * (most - len(columns))) for columns in found)


def launch_grouped_dot(x: Tensor, y: Tensor, groups: tuple[int, ...], n_groups: int) -> Tensor:
    """``[n_rows, n_groups]``; contiguous arguments."""
    out = x.new_empty((len(x), n_groups))
    if out.numel():
        table = columns_of(groups, n_groups)
        _grouped_dot_kernel[(triton.cdiv(out.numel(), _BLOCK),)](
            x_ptr=x,
            y_ptr=y,
            table_ptr=constant(table, torch.int64, x.device),
            out_ptr=out,
            n_results=out.numel(),
            n_columns=len(groups),
            n_groups=n_groups,
            n_most=len(table[0]),
            BLOCK=_BLOCK,
            **compiler_options(4, 1, x),
        )
    return out


def launch_grouped_scale(scales: Tensor, x: Tensor, groups: tuple[int, ...]) -> Tensor:
    """``[n_rows, n_columns]``; arguments with dense rows."""
    out = x.new_empty(x.shape)
    if out.numel():
        _grouped_scale_kernel[(triton.cdiv(out.numel(), _BLOCK),)](
            scales_ptr=scales,
            x_ptr=x,
            groups_ptr=constant(groups, torch.int64, x.device),
            out_ptr=out,
            n_results=out.numel(),
            n_columns=len(groups),
            scales_stride=scales.stride(0),
            x_stride=x.stride(0),
            BLOCK=_BLOCK,
            **compiler_options(4, 1, x),
        )
    return out


def launch_grouped_dot_backward(
    grad: Tensor, x: Tensor, y: Tensor, groups: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """``[n_rows, n_columns]`` derivatives in x and y; arguments with dense rows."""
    d_x, d_y = x.new_empty(x.shape), y.new_empty(y.shape)
    if d_x.numel():
        _grouped_dot_backward_kernel[(triton.cdiv(d_x.numel(), _BLOCK),)](
            grad_ptr=grad,
            x_ptr=x,
            y_ptr=y,
            groups_ptr=constant(groups, torch.int64, x.device),
            d_x_ptr=d_x,
            d_y_ptr=d_y,
            n_results=d_x.numel(),
            n_columns=len(groups),
            grad_stride=grad.stride(0),
            x_stride=x.stride(0),
            y_stride=y.stride(0),
            BLOCK=_BLOCK,
            **compiler_options(4, 1, x),
        )
    return d_x, d_y
