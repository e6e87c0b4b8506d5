"""
Networks of normalised layers, all layers of a block of rows in one program.

Grid: blocks of rows. A layer is a matrix product of what the program has written to memory before, read in
blocks of BLOCK_K columns, which stay in the cache; rows are normalised in registers. What layers give before
their normalisation is kept for the derivatives, which walk back through them the same way. No atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuned import compiler_options, tuned
from .description import ENDS, NormNetwork


@triton.jit
def _statistics(z, inside, n, EPS: tl.constexpr):
    """Mean and inverse deviation of each row."""
    count = n.to(z.dtype)
    mean = tl.sum(tl.where(inside[None, :], z, z * 0), 1) / count
    off = tl.where(inside[None, :], z - mean[:, None], z * 0)
    return mean, 1.0 / tl.sqrt(tl.sum(off * off, 1) / count + EPS)


@triton.jit
def _times(total, rows_ptr, stride, row, there, matrix_ptr, k_stride, column_stride, n_k, column, inside,
           mean, rstd, gain_ptr, shift_ptr, ACTIVE: tl.constexpr, BLOCK_K: tl.constexpr,
           PRECISION: tl.constexpr):  # fmt: skip
    """``total`` plus rows times a matrix; of what the rows' normalisation and silu give if ACTIVE."""
    dtype = total.dtype
    for start in range(0, n_k, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        valid = k < n_k
        left = tl.load(
            rows_ptr + row[:, None] * stride + k[None, :], mask=there[:, None] & valid[None, :], other=0.0
        )
        if ACTIVE:
            gain = tl.load(gain_ptr + k, mask=valid, other=0.0)
            shift = tl.load(shift_ptr + k, mask=valid, other=0.0)
            y = (left - mean[:, None]) * rstd[:, None] * gain[None, :] + shift[None, :]
            left = y / (1.0 + tl.exp(-y))
        right = tl.load(
            matrix_ptr + k[:, None] * k_stride + column[None, :] * column_stride,
            mask=valid[:, None] & inside[None, :],
            other=0.0,
        )
        total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=dtype)
    return total


@triton.jit
def _norm_network_kernel(
    x_ptr,  # [n_rows, n_in]
    parameters_ptr,  # see NormNetwork
    offsets_ptr,  # [n_offsets, n_hidden] or None
    index_ptr,  # [n_rows, N_INDICES] int64 or None
    saved_ptr,  # [N_LAYERS, n_rows, n_hidden] before normalisations, then the last map's [n_rows, n_out]
    out_ptr,  # [n_rows, n_out]
    n_rows,
    n_in,
    n_first,
    n_hidden,
    n_out,
    EPS: tl.constexpr,
    N_LAYERS: tl.constexpr,
    N_INDICES: tl.constexpr,
    END: tl.constexpr,  # 0 linear, 1 ones, 2 tanh_square
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    dtype = x_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    there = row < n_rows
    column = tl.arange(0, BLOCK_HIDDEN)
    inside = column < n_hidden
    both = there[:, None] & inside[None, :]
    mean = tl.zeros((BLOCK_ROWS,), dtype)
    rstd = tl.zeros((BLOCK_ROWS,), dtype)
    z = tl.zeros((BLOCK_ROWS, BLOCK_HIDDEN), dtype)
    matrix = parameters_ptr
    gain = parameters_ptr
    saved = saved_ptr
    for layer in tl.static_range(N_LAYERS):
        width = n_hidden
        if layer == 0:
            width = n_first
        bias = matrix + n_hidden * width
        first = tl.load(bias + column, mask=inside, other=0.0)
        z = tl.zeros((BLOCK_ROWS, BLOCK_HIDDEN), dtype) + first[None, :]
        if layer == 0:
            for number in tl.static_range(N_INDICES):
                kind = tl.load(index_ptr + row * N_INDICES + number, mask=there, other=0)
                row_place = kind[:, None] * n_hidden + column[None, :]
                z += tl.load(offsets_ptr + row_place, mask=both, other=0.0)
            z = _times(z, x_ptr, n_in, row, there, matrix, 1, n_first, n_in, column, inside, mean, rstd,
                       gain, gain, False, BLOCK_K, PRECISION)  # fmt: skip
        else:
            z = _times(z, saved, n_hidden, row, there, matrix, 1, width, width, column, inside, mean, rstd,
                       gain, gain + n_hidden, True, BLOCK_K, PRECISION)  # fmt: skip
            saved += n_hidden * n_rows.to(tl.int64)
        mean, rstd = _statistics(z, inside, n_hidden, EPS)
        tl.store(saved + row[:, None] * n_hidden + column[None, :], z, mask=both)
        tl.debug_barrier()
        gain = bias + n_hidden
        matrix = gain + 2 * n_hidden
    if END == 1:
        g = tl.load(gain + column, mask=inside, other=0.0)
        shift = tl.load(gain + n_hidden + column, mask=inside, other=0.0)
        y = (z - mean[:, None]) * rstd[:, None] * g[None, :] + shift[None, :]
        out = out_ptr + row * (n_hidden + 1)
        tl.store(out[:, None] + column[None, :], y / (1.0 + tl.exp(-y)), mask=both)
        tl.store(out + n_hidden, tl.zeros((BLOCK_ROWS,), dtype) + 1.0, mask=there)
    else:
        last = saved + n_hidden * n_rows.to(tl.int64)
        for start in range(0, n_out, BLOCK_OUT):
            to = start + tl.arange(0, BLOCK_OUT)
            valid = to < n_out
            given = tl.load(matrix + n_out * n_hidden + to, mask=valid, other=0.0)
            value = tl.zeros((BLOCK_ROWS, BLOCK_OUT), dtype) + given[None, :]
            value = _times(value, saved, n_hidden, row, there, matrix, 1, n_hidden, n_hidden, to, valid,
                           mean, rstd, gain, gain + n_hidden, True, BLOCK_K, PRECISION)  # fmt: skip
            place = row[:, None] * n_out + to[None, :]
            valid_place = there[:, None] & valid[None, :]
            if END == 2:
                tl.store(last + place, value, mask=valid_place)
                e = tl.exp(-2.0 * value * value)
                value = (1.0 - e) / (1.0 + e)
            tl.store(out_ptr + place, value, mask=valid_place)


@triton.jit
def _norm_network_backward_kernel(
    grad_ptr,  # [n_rows, n_out]
    parameters_ptr,  # see NormNetwork
    saved_ptr,  # see above
    scratch_ptr,  # [n_rows, n_hidden] scratch
    scratch_out_ptr,  # [n_rows, n_out] scratch, for tanh_square
    out_ptr,  # [n_rows, n_in]
    n_rows,
    n_in,
    n_first,
    n_hidden,
    n_out,
    EPS: tl.constexpr,
    N_LAYERS: tl.constexpr,
    END: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HIDDEN: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    dtype = grad_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    there = row < n_rows
    column = tl.arange(0, BLOCK_HIDDEN)
    inside = column < n_hidden
    both = there[:, None] & inside[None, :]
    none = tl.zeros((BLOCK_ROWS,), dtype)
    layer_size = n_hidden * n_hidden + 3 * n_hidden
    # of the last hidden layer's gain
    gain = parameters_ptr + n_hidden * n_first + n_hidden + (N_LAYERS - 1) * layer_size
    saved = saved_ptr + (N_LAYERS - 1) * n_hidden * n_rows.to(tl.int64)
    if END == 1:
        g = tl.load(grad_ptr + row[:, None] * (n_hidden + 1) + column[None, :], mask=both, other=0.0)
    else:
        given = grad_ptr
        if END == 2:
            pre = saved + n_hidden * n_rows.to(tl.int64)
            for start in range(0, n_out, BLOCK_OUT):
                to = start + tl.arange(0, BLOCK_OUT)
                mask = there[:, None] & (to < n_out)[None, :]
                place = row[:, None] * n_out + to[None, :]
                value = tl.load(pre + place, mask=mask, other=0.0)
                e = tl.exp(-2.0 * value * value)
                # 2 y (1 - tanh(y^2)^2)
                slope = 8.0 * value * e / ((1.0 + e) * (1.0 + e))
                tl.store(scratch_out_ptr + place, slope * tl.load(grad_ptr + place, mask=mask, other=0.0),
                         mask=mask)  # fmt: skip
            tl.debug_barrier()
            given = scratch_out_ptr
        g = tl.zeros((BLOCK_ROWS, BLOCK_HIDDEN), dtype)
        g = _times(g, given, n_out, row, there, gain + 2 * n_hidden, n_hidden, 1, n_out, column, inside, none,
                   none, gain, gain, False, BLOCK_K, PRECISION)  # fmt: skip
    for number in tl.static_range(N_LAYERS):
        z = tl.load(saved + row[:, None] * n_hidden + column[None, :], mask=both, other=0.0)
        mean, rstd = _statistics(z, inside, n_hidden, EPS)
        scale = tl.load(gain + column, mask=inside, other=0.0)
        shift = tl.load(gain + n_hidden + column, mask=inside, other=0.0)
        normal = tl.where(inside[None, :], (z - mean[:, None]) * rstd[:, None], z * 0)
        y = normal * scale[None, :] + shift[None, :]
        gate = 1.0 / (1.0 + tl.exp(-y))
        g = g * gate * (1.0 + y * (1.0 - gate)) * scale[None, :]
        count = n_hidden.to(dtype)
        average = tl.sum(tl.where(inside[None, :], g, g * 0), 1) / count
        along = tl.sum(g * normal, 1) / count
        g = (g - average[:, None] - normal * along[:, None]) * rstd[:, None]
        tl.debug_barrier()
        tl.store(scratch_ptr + row[:, None] * n_hidden + column[None, :], g, mask=both)
        tl.debug_barrier()
        if number < N_LAYERS - 1:
            matrix = gain - n_hidden - n_hidden * n_hidden
            g = tl.zeros((BLOCK_ROWS, BLOCK_HIDDEN), dtype)
            g = _times(g, scratch_ptr, n_hidden, row, there, matrix, n_hidden, 1, n_hidden, column, inside,
                       none, none, gain, gain, False, BLOCK_K, PRECISION)  # fmt: skip
            gain -= layer_size
            saved -= n_hidden * n_rows.to(tl.int64)
    for start in range(0, n_in, BLOCK_OUT):
        to = start + tl.arange(0, BLOCK_OUT)
        valid = to < n_in
        d_x = tl.zeros((BLOCK_ROWS, BLOCK_OUT), dtype)
        d_x = _times(d_x, scratch_ptr, n_hidden, row, there, parameters_ptr, n_first, 1, n_hidden, to, valid,
                     none, none, gain, gain, False, BLOCK_K, PRECISION)  # fmt: skip
        tl.store(out_ptr + row[:, None] * n_in + to[None, :], d_x, mask=there[:, None] & valid[None, :])


def block_sizes(n_hidden: int, table: dict) -> tuple[int, int, int]:
    """Rows of a program, its columns, and its warps: wide layers get more of these, or they spill."""
    hidden = max(16, triton.next_power_of_2(n_hidden))
    wide = max(1, hidden // 64)
    return max(16, table["rows"] // wide), hidden, min(16, table["num_warps"] * wide)


def _options(network: NormNetwork, x: Tensor) -> dict:
    """Constants and compiler options of both kernels."""
    table = tuned("norm_network", x.device, x.dtype)
    rows, hidden, num_warps = block_sizes(network.n_hidden, table)
    return {
        "EPS": network.eps,
        "N_LAYERS": network.n_layers,
        "END": ENDS.index(network.end),
        "BLOCK_ROWS": rows,
        "BLOCK_HIDDEN": hidden,
        "BLOCK_K": table["in"],
        "BLOCK_OUT": table["out"],
        "PRECISION": table["precision"],
        **compiler_options(num_warps, table["num_stages"], x),
    }


def launch_norm_network(
    x: Tensor, parameters: Tensor, offsets: Tensor | None, index: Tensor | None, network: NormNetwork
) -> tuple[Tensor, Tensor]:
    """``[n_rows, n_out]``, and what the derivatives need; contiguous arguments."""
    n_rows = len(x)
    more = network.n_out if network.end == "tanh_square" else 0
    saved = x.new_empty(n_rows * (network.n_layers * network.n_hidden + more))
    out = x.new_empty((n_rows, network.n_out))
    if n_rows:
        options = _options(network, x)
        _norm_network_kernel[(triton.cdiv(n_rows, options["BLOCK_ROWS"]),)](
            x_ptr=x,
            parameters_ptr=parameters,
            offsets_ptr=offsets,
            index_ptr=index,
            saved_ptr=saved,
            out_ptr=out,
            n_rows=n_rows,
            n_in=network.n_in,
            n_first=network.n_in + network.n_skipped,
            n_hidden=network.n_hidden,
            n_out=network.n_out,
            N_INDICES=0 if index is None else index.shape[1],
            **options,
        )
    return out, saved


def launch_norm_network_backward(
    grad: Tensor, parameters: Tensor, saved: Tensor, network: NormNetwork
) -> Tensor:
    """``[n_rows, n_in]`` derivatives in x; contiguous arguments."""
    n_rows = len(grad)
    out = grad.new_empty((n_rows, network.n_in))
    if n_rows:
        options = _options(network, grad)
        _norm_network_backward_kernel[(triton.cdiv(n_rows, options["BLOCK_ROWS"]),)](
            grad_ptr=grad,
            parameters_ptr=parameters,
            saved_ptr=saved,
            scratch_ptr=grad.new_empty((n_rows, network.n_hidden)),
            scratch_out_ptr=torch.empty_like(grad) if network.end == "tanh_square" else None,
            out_ptr=out,
            n_rows=n_rows,
            n_in=network.n_in,
            n_first=network.n_in + network.n_skipped,
            n_hidden=network.n_hidden,
            n_out=network.n_out,
            **options,
        )
    return out
