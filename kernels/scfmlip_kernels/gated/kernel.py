"""
Gates: functions of scalars, and columns times functions of their gates.

Grid of the values: blocks of results. Grid of first and second derivatives: blocks of rows, because the
divisor of a row needs a sum over its columns; columns of a gate stand in a small table. Second derivatives
are those of the gradients along ``w``, what all gradients of gradients give for ``x / divisor + residual``;
`plain.second_plain` has the formulas. No atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..constants import constant
from ..grouped_dot.kernel import columns_of
from ..tuned import compiler_options
from .description import Gate

_BLOCK, _ROWS, _COLUMNS = 256, 4, 128


@triton.jit
def _function(v, SILU: tl.constexpr):
    s = 1.0 / (1.0 + tl.exp(-v))
    if SILU:
        s = v * s
    return s


@triton.jit
def _slope(v, SILU: tl.constexpr):
    s = 1.0 / (1.0 + tl.exp(-v))
    slope = s * (1.0 - s)
    if SILU:
        slope = s + v * slope
    return slope


@triton.jit
def _bend(v, SILU: tl.constexpr):
    s = 1.0 / (1.0 + tl.exp(-v))
    bend = 1.0 - 2.0 * s
    if SILU:
        bend = 2.0 + v * bend
    return s * (1.0 - s) * bend


@triton.jit
def _along(x_ptr, divisor_ptr, v_x_ptr, v_divisor_ptr, v_y_ptr, row, place, inside):
    """Gradients of all gradients, as one of the gradients before the functions."""
    w = tl.zeros_like(place).to(x_ptr.dtype.element_ty)
    if v_y_ptr is not None:
        w += tl.load(v_y_ptr + place, mask=inside, other=0.0)
    if divisor_ptr is not None:
        divisor = tl.load(divisor_ptr + row, mask=inside, other=1.0)
        if v_x_ptr is not None:
            w += tl.load(v_x_ptr + place, mask=inside, other=0.0) / divisor
        if v_divisor_ptr is not None:
            share = tl.load(v_divisor_ptr + row, mask=inside, other=0.0) / (divisor * divisor)
            w -= share * tl.load(x_ptr + place, mask=inside, other=0.0)
    return w


@triton.jit
def _sum_of(x_ptr, divisor_ptr, residual_ptr, row, place, inside):
    """A row's number divided, plus the residual."""
    y = tl.load(x_ptr + place, mask=inside, other=0.0)
    if divisor_ptr is not None:
        y = y / tl.load(divisor_ptr + row, mask=inside, other=1.0)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + place, mask=inside, other=0.0)
    return y


@triton.jit
def _gated_kernel(
    x_ptr,  # [n_rows, n_in]
    divisor_ptr,  # [n_rows] or None
    residual_ptr,  # [n_rows, n_in] or None
    groups_ptr,  # [n_gated] int32 gate of each gated column
    out_ptr,  # [n_rows, n_out]
    n_results,
    n_in,
    n_out,
    n_scalars,
    n_gates,
    SCALAR_SILU: tl.constexpr,
    GATE_SILU: tl.constexpr,
    SCALAR_FACTOR: tl.constexpr,
    GATE_FACTOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n_results
    row = place // n_out
    column = place % n_out
    scalar = column < n_scalars
    gate = tl.load(groups_ptr + column - n_scalars, mask=inside & ~scalar, other=0)
    # of a scalar its own place twice
    of_gate = tl.where(scalar, column, n_scalars + gate)
    of_value = tl.where(scalar, column, column + n_gates)
    y = _sum_of(x_ptr, divisor_ptr, residual_ptr, row, row * n_in + of_gate, inside)
    v = _sum_of(x_ptr, divisor_ptr, residual_ptr, row, row * n_in + of_value, inside & ~scalar)
    opened = _function(y, GATE_SILU) * GATE_FACTOR * v
    tl.store(
        out_ptr + place, tl.where(scalar, _function(y, SCALAR_SILU) * SCALAR_FACTOR, opened), mask=inside
    )


@triton.jit
def _gated_backward_kernel(
    x_ptr,  # [n_rows, n_in]
    divisor_ptr,  # [n_rows] or None
    residual_ptr,  # [n_rows, n_in] or None
    grad_ptr,  # [n_rows, n_out]
    groups_ptr,  # [n_gated] int32 gate of each gated column
    table_ptr,  # [n_gates, n_most] int32 gated columns of each gate, -1 where there are fewer
    d_y_ptr,  # [n_rows, n_in] derivatives in the residual
    d_x_ptr,  # [n_rows, n_in] or None where they are the same
    d_divisor_ptr,  # [n_rows] or None
    n_rows,
    n_in,
    n_out,
    n_scalars,
    n_gates,
    n_most,
    SCALAR_SILU: tl.constexpr,
    GATE_SILU: tl.constexpr,
    SCALAR_FACTOR: tl.constexpr,
    GATE_FACTOR: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    dtype = x_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    first = n_scalars + n_gates
    along = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype)
    for start in range(0, n_in, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
        inside = (row < n_rows) & (column < n_in)
        scalar = inside & (column < n_scalars)
        is_gate = inside & (column >= n_scalars) & (column < first)
        rest = inside & (column >= first)
        place = row * n_in + column
        y = _sum_of(x_ptr, divisor_ptr, residual_ptr, row, place, inside)
        of_scalar = tl.load(grad_ptr + row * n_out + column, mask=scalar, other=0.0)
        d_y = of_scalar * _slope(y, SCALAR_SILU) * SCALAR_FACTOR
        gate = tl.load(groups_ptr + column - first, mask=rest, other=0)
        opening = _sum_of(x_ptr, divisor_ptr, residual_ptr, row, row * n_in + n_scalars + gate, rest)
        of_rest = tl.load(grad_ptr + row * n_out + column - n_gates, mask=rest, other=0.0)
        d_y += of_rest * _function(opening, GATE_SILU) * GATE_FACTOR
        total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype)
        for term in range(n_most):
            gated = tl.load(table_ptr + (column - n_scalars) * n_most + term, mask=is_gate, other=-1)
            there = is_gate & (gated >= 0)
            g = tl.load(grad_ptr + row * n_out + n_scalars + gated, mask=there, other=0.0)
            total += g * _sum_of(x_ptr, divisor_ptr, residual_ptr, row, row * n_in + first + gated, there)
        d_y = tl.where(is_gate, total * _slope(y, GATE_SILU) * GATE_FACTOR, d_y)
        tl.store(d_y_ptr + place, d_y, mask=inside)
        if d_x_ptr is not None:
            d_x = d_y / tl.load(divisor_ptr + row, mask=row < n_rows, other=1.0)
            tl.store(d_x_ptr + place, d_x, mask=inside)
            along += d_x * tl.load(x_ptr + place, mask=inside, other=0.0)
    if d_divisor_ptr is not None:
        line = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        divisor = tl.load(divisor_ptr + line, mask=line < n_rows, other=1.0)
        tl.store(d_divisor_ptr + line, -tl.sum(along, 1) / divisor, mask=line < n_rows)


@triton.jit
def _gated_second_kernel(
    v_x_ptr,  # [n_rows, n_in] or None
    v_divisor_ptr,  # [n_rows] or None
    v_y_ptr,  # [n_rows, n_in] or None
    x_ptr,  # [n_rows, n_in]
    divisor_ptr,  # [n_rows] or None
    residual_ptr,  # [n_rows, n_in] or None
    grad_ptr,  # [n_rows, n_out]
    d_y_ptr,  # [n_rows, n_in] derivatives before the functions
    groups_ptr,  # [n_gated] int32 gate of each gated column
    table_ptr,  # [n_gates, n_most] int32 gated columns of each gate, -1 where there are fewer
    of_x_ptr,  # [n_rows, n_in] or None
    of_divisor_ptr,  # [n_rows] or None
    of_residual_ptr,  # [n_rows, n_in]
    of_grad_ptr,  # [n_rows, n_out]
    n_rows,
    n_in,
    n_out,
    n_scalars,
    n_gates,
    n_most,
    SCALAR_SILU: tl.constexpr,
    GATE_SILU: tl.constexpr,
    SCALAR_FACTOR: tl.constexpr,
    GATE_FACTOR: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    dtype = x_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    first = n_scalars + n_gates
    total = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype)
    twice = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype)
    for start in range(0, n_in, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)[None, :]
        inside = (row < n_rows) & (column < n_in)
        scalar = inside & (column < n_scalars)
        is_gate = inside & (column >= n_scalars) & (column < first)
        rest = inside & (column >= first)
        place = row * n_in + column
        y = _sum_of(x_ptr, divisor_ptr, residual_ptr, row, place, inside)
        w = _along(x_ptr, divisor_ptr, v_x_ptr, v_divisor_ptr, v_y_ptr, row, place, inside)
        of_scalar = tl.load(grad_ptr + row * n_out + column, mask=scalar, other=0.0)
        bend = of_scalar * w * _bend(y, SCALAR_SILU) * SCALAR_FACTOR
        gate_place = row * n_in + n_scalars + tl.load(groups_ptr + column - first, mask=rest, other=0)
        gate = _sum_of(x_ptr, divisor_ptr, residual_ptr, row, gate_place, rest)
        gate_w = _along(x_ptr, divisor_ptr, v_x_ptr, v_divisor_ptr, v_y_ptr, row, gate_place, rest)
        slope = _slope(gate, GATE_SILU) * GATE_FACTOR * gate_w
        of_rest = tl.load(grad_ptr + row * n_out + column - n_gates, mask=rest, other=0.0)
        bend += of_rest * slope
        value = tl.where(
            scalar,
            _slope(y, SCALAR_SILU) * SCALAR_FACTOR * w,
            _function(gate, GATE_SILU) * GATE_FACTOR * w + slope * y,
        )
        out_column = column - tl.where(rest, n_gates, 0)
        tl.store(of_grad_ptr + row * n_out + out_column, value, mask=scalar | rest)
        of_values = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype)
        of_along = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), dtype)
        for term in range(n_most):
            gated = tl.load(table_ptr + (column - n_scalars) * n_most + term, mask=is_gate, other=-1)
            there = is_gate & (gated >= 0)
            g = tl.load(grad_ptr + row * n_out + n_scalars + gated, mask=there, other=0.0)
            at = row * n_in + first + gated
            of_values += g * _sum_of(x_ptr, divisor_ptr, residual_ptr, row, at, there)
            of_along += g * _along(x_ptr, divisor_ptr, v_x_ptr, v_divisor_ptr, v_y_ptr, row, at, there)
        of_gate = of_values * _bend(y, GATE_SILU) * w + of_along * _slope(y, GATE_SILU)
        bend = tl.where(is_gate, of_gate * GATE_FACTOR, bend)
        tl.store(of_residual_ptr + place, bend, mask=inside)
        if divisor_ptr is not None:
            divisor = tl.load(divisor_ptr + row, mask=row < n_rows, other=1.0)
            x = tl.load(x_ptr + place, mask=inside, other=0.0)
            d_y = tl.load(d_y_ptr + place, mask=inside, other=0.0)
            of_x = bend / divisor
            total += of_x * x
            if v_x_ptr is not None:
                total += tl.load(v_x_ptr + place, mask=inside, other=0.0) * d_y / divisor
            if v_divisor_ptr is not None:
                v_divisor = tl.load(v_divisor_ptr + row, mask=row < n_rows, other=0.0)
                of_x -= v_divisor / (divisor * divisor) * d_y
                twice += d_y * x
            tl.store(of_x_ptr + place, of_x, mask=inside)
    if divisor_ptr is not None:
        line = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        of_row = tl.load(divisor_ptr + line, mask=line < n_rows, other=1.0)
        found = -tl.sum(total, 1) / of_row
        if v_divisor_ptr is not None:
            share = tl.load(v_divisor_ptr + line, mask=line < n_rows, other=0.0) / (of_row * of_row)
            found += 2.0 * share / of_row * tl.sum(twice, 1)
        tl.store(of_divisor_ptr + line, found, mask=line < n_rows)


def _options(gate: Gate, x: Tensor) -> dict:
    return {
        "groups_ptr": constant(gate.groups or (0,), torch.int32, x.device),
        "n_in": gate.n_in,
        "n_out": gate.n_out,
        "n_scalars": gate.n_scalars,
        "n_gates": gate.n_gates,
        "SCALAR_SILU": gate.scalar == "silu",
        "GATE_SILU": gate.gate == "silu",
        "SCALAR_FACTOR": gate.scalar_factor,
        "GATE_FACTOR": gate.gate_factor,
        **compiler_options(4, 1, x),
    }


def launch_gated(x: Tensor, divisor: Tensor | None, residual: Tensor | None, gate: Gate) -> Tensor:
    """``[n_rows, n_out]``; contiguous arguments."""
    out = x.new_empty((len(x), gate.n_out))
    if out.numel():
        _gated_kernel[(triton.cdiv(out.numel(), _BLOCK),)](
            x_ptr=x,
            divisor_ptr=divisor,
            residual_ptr=residual,
            out_ptr=out,
            n_results=out.numel(),
            BLOCK=_BLOCK,
            **_options(gate, x),
        )
    return out


def _derivative_options(gate: Gate, x: Tensor, rows: int) -> dict:
    table = columns_of(gate.groups, gate.n_gates) or ((-1,),)
    return {
        "table_ptr": constant(table, torch.int32, x.device),
        "n_rows": len(x),
        "n_most": len(table[0]),
        "BLOCK_ROWS": rows,
        "BLOCK_COLUMNS": _COLUMNS,
        **_options(gate, x),
    }


def launch_gated_backward(
    x: Tensor, divisor: Tensor | None, residual: Tensor | None, grad: Tensor, gate: Gate
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives in x, the divisor and the residual; without a divisor in that alone. All contiguous."""
    d_y = torch.empty_like(x)
    d_x = None if divisor is None else torch.empty_like(x)
    d_divisor = None if divisor is None else torch.empty_like(divisor)
    if x.numel():
        _gated_backward_kernel[(triton.cdiv(len(x), _ROWS),)](
            x_ptr=x,
            divisor_ptr=divisor,
            residual_ptr=residual,
            grad_ptr=grad,
            d_y_ptr=d_y,
            d_x_ptr=d_x,
            d_divisor_ptr=d_divisor,
            **_derivative_options(gate, x, _ROWS),
        )
    return *(x.new_empty(0) if t is None else t for t in (d_x, d_divisor)), d_y  # type: ignore[return-value]


def launch_gated_second(
    along: tuple[Tensor | None, ...], tensors: tuple[Tensor, ...], d_y: Tensor, gate: Gate
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of the derivatives; see `plain.second_plain`. Contiguous arguments."""
    x, divisor, residual, grad = tensors
    rows = _ROWS // 2  # more would spill in float64
    of_residual, of_grad = torch.empty_like(x), torch.empty_like(grad)
    of_x = None if divisor is None else torch.empty_like(x)
    of_divisor = None if divisor is None else torch.empty_like(divisor)
    if x.numel():
        _gated_second_kernel[(triton.cdiv(len(x), rows),)](
            v_x_ptr=along[0],
            v_divisor_ptr=along[1],
            v_y_ptr=along[2],
            x_ptr=x,
            divisor_ptr=divisor,
            residual_ptr=residual,
            grad_ptr=grad,
            d_y_ptr=d_y,
            of_x_ptr=of_x,
            of_divisor_ptr=of_divisor,
            of_residual_ptr=of_residual,
            of_grad_ptr=of_grad,
            **_derivative_options(gate, x, rows),
        )
    first = (x.new_empty(0) if t is None else t for t in (of_x, of_divisor))
    return *first, of_residual, of_grad  # type: ignore[return-value]
