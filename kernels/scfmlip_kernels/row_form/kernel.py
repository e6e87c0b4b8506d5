"""
Forms of rows: columns as sums of products of a column, a number of the row's system, and a factor.

Grid of the values: blocks of results, one number each. Grid of the derivatives in the systems' numbers:
(systems, numbers); one program adds over the rows of its system in float64. Terms stand in small tables. No
atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..constants import constant
from ..tuned import compiler_options
from .terms import form_of, table_of

_BLOCK = 256


@triton.jit
def _row_form_kernel(
    x_ptr,  # [n_rows, n_x]
    m_ptr,  # [n_systems, n_m] or None
    index_ptr,  # [n_rows] int64 or None
    table_ptr,  # [n_out, n_most, 2] int32 columns of x and numbers of systems; -1 for 1, -2 for no term
    factors_ptr,  # [n_out, n_most]
    out_ptr,  # [n_rows, n_out]
    n_results,
    n_out,
    n_m,
    n_most,
    x_stride,
    ROW_M: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n_results
    row = place // n_out
    column = place % n_out
    system = row * 0
    if index_ptr is not None:
        system = tl.load(index_ptr + row, mask=inside, other=0)
    elif ROW_M:
        system = row
    total = tl.zeros((BLOCK,), x_ptr.dtype.element_ty)
    for term in range(n_most):
        entry = column * n_most + term
        of_x = tl.load(table_ptr + 2 * entry, mask=inside, other=-2)
        value = tl.load(factors_ptr + entry, mask=inside, other=0.0)
        here = tl.load(x_ptr + row * x_stride + of_x, mask=inside & (of_x >= 0), other=1.0)
        value = value * here
        if m_ptr is not None:
            of_m = tl.load(table_ptr + 2 * entry + 1, mask=inside, other=-2)
            value = value * tl.load(m_ptr + system * n_m + of_m, mask=inside & (of_m >= 0), other=1.0)
        total += value
    tl.store(out_ptr + place, total, mask=inside)


@triton.jit
def _row_form_sums_kernel(
    g_ptr,  # [n_rows, n_out]
    x_ptr,  # [n_rows, n_x]
    ptr_ptr,  # [n_systems + 1] int64 or None
    table_ptr,  # [n_m, n_most, 2] int32 columns of x and of g
    factors_ptr,  # [n_m, n_most]
    out_ptr,  # [n_systems, n_m]
    n_rows,
    n_m,
    n_most,
    g_stride,
    x_stride,
    BLOCK: tl.constexpr,
):
    system = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1)
    first = system * 0
    last = first + n_rows
    if ptr_ptr is not None:
        first = tl.load(ptr_ptr + system)
        last = tl.load(ptr_ptr + system + 1)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(first, last, BLOCK):
        row = start + tl.arange(0, BLOCK)
        inside = row < last
        for term in range(n_most):
            entry = number * n_most + term
            of_x = tl.load(table_ptr + 2 * entry)
            of_g = tl.load(table_ptr + 2 * entry + 1)
            factor = tl.load(factors_ptr + entry)
            x = tl.load(x_ptr + row * x_stride + of_x, mask=inside & (row * 0 + of_x >= 0), other=1.0)
            g = tl.load(g_ptr + row * g_stride + of_g, mask=inside & (row * 0 + of_g >= 0), other=0.0)
            total += (factor * x * g).to(tl.float64)
    tl.store(out_ptr + system * n_m + number, tl.sum(total, 0))


def _strided(rows: Tensor) -> Tensor:
    """Rows whose columns are neighbours in memory."""
    return rows if rows.stride(1) == 1 else rows.contiguous()


def launch_row_form(x: Tensor, m: Tensor | None, index: Tensor | None, text: str) -> Tensor:
    """``[n_rows, n_out]``; arguments as in `row_form`."""
    form = form_of(text)
    out = x.new_empty((len(x), form.n_out))
    if out.numel():
        x, m = _strided(x), None if m is None else m.contiguous()
        numbers, factors = table_of(text, "out")
        _row_form_kernel[(triton.cdiv(out.numel(), _BLOCK),)](
            x_ptr=x,
            m_ptr=m,
            index_ptr=None if index is None else index.contiguous(),
            table_ptr=constant(numbers, torch.int32, x.device),
            factors_ptr=constant(factors, x.dtype, x.device),
            out_ptr=out,
            n_results=out.numel(),
            n_out=form.n_out,
            n_m=form.n_m,
            n_most=len(factors[0]),
            x_stride=x.stride(0),
            ROW_M=m is not None and len(m) == len(x),
            BLOCK=_BLOCK,
            **compiler_options(4, 1, x),
        )
    return out


def launch_row_form_sums(g: Tensor, x: Tensor, ptr: Tensor | None, n_systems: int, text: str) -> Tensor:
    """``[n_systems, n_m]``; arguments as in `row_form_sums`."""
    form = form_of(text)
    out = x.new_empty((n_systems, form.n_m))
    if out.numel():
        g, x = _strided(g), _strided(x)
        numbers, factors = table_of(text, "m")
        _row_form_sums_kernel[(n_systems, form.n_m)](
            g_ptr=g,
            x_ptr=x,
            ptr_ptr=None if n_systems == 1 else ptr,
            table_ptr=constant(numbers, torch.int32, x.device),
            factors_ptr=constant(factors, x.dtype, x.device),
            out_ptr=out,
            n_rows=len(x),
            n_m=form.n_m,
            n_most=len(factors[0]),
            g_stride=g.stride(0),
            x_stride=x.stride(0),
            BLOCK=_BLOCK,
            **compiler_options(4, 1, x),
        )
    return out
