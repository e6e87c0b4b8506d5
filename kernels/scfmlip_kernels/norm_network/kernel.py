"""
Networks of normalised layers, all layers of a block of rows in one program.

Grid: blocks of rows. A layer is a matrix product of what the program has written to memory before, read in
blocks of BLOCK_K columns, which stay in the cache; rows are normalised in registers. What layers give before
their normalisation is kept for the derivatives, which walk back through them the same way. Gradients of
parameters are products of what the derivatives leave, one launch for each kind of matrix
(`matrices_gradient`); each program adds its rows' parts of biases, gains and shifts. No atomics.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuned import compiler_options, tuned
from .description import ENDS, NormNetwork
from .matrices import matrices_gradient
from .plain import offsets_gradient, saved_size


@triton.jit
def statistics(z, inside, n, EPS: tl.constexpr):
    """Mean and inverse deviation of each row."""
    count = n.to(z.dtype)
    mean = tl.sum(tl.where(inside[None, :], z, z * 0), 1) / count
    off = tl.where(inside[None, :], z - mean[:, None], z * 0)
    return mean, 1.0 / tl.sqrt(tl.sum(off * off, 1) / count + EPS)


@triton.jit
def normalise(g, normal, rstd, n):
    """Derivatives before the normalisation of rows; both arguments are 0 in columns that are not there."""
    count = n.to(g.dtype)
    average = tl.sum(g, 1) / count
    along = tl.sum(g * normal, 1) / count
    return (g - average[:, None] - normal * along[:, None]) * rstd[:, None]


@triton.jit
def times(total, rows_ptr, stride, row, there, matrix_ptr, k_stride, column_stride, n_k, column, inside,
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
            z = times(z, x_ptr, n_in, row, there, matrix, 1, n_first, n_in, column, inside, mean, rstd,
                       gain, gain, False, BLOCK_K, PRECISION)  # fmt: skip
        else:
            z = times(z, saved, n_hidden, row, there, matrix, 1, width, width, column, inside, mean, rstd,
                       gain, gain + n_hidden, True, BLOCK_K, PRECISION)  # fmt: skip
            saved += n_hidden * n_rows.to(tl.int64)
        mean, rstd = statistics(z, inside, n_hidden, EPS)
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
            value = times(value, saved, n_hidden, row, there, matrix, 1, n_hidden, n_hidden, to, valid,
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
    more_ptr,  # like saved: what else depends on it, or None
    scratch_ptr,  # [n_rows, n_hidden] scratch; with sums [N_LAYERS, ...] derivatives before normalisations
    scratch_out_ptr,  # [n_rows, n_out] scratch, for tanh_square
    kept_ptr,  # [N_LAYERS, n_rows, n_hidden] derivatives in the layers' features, or None
    features_ptr,  # [N_LAYERS, n_rows, n_hidden] the layers' features, or None
    sums_ptr,  # [n_programs, N_LAYERS, 3, n_hidden] of biases, gains and shifts, or None
    out_ptr,  # [n_rows, n_in] or None
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
    layer_rows = n_hidden * n_rows.to(tl.int64)
    layer_place = (N_LAYERS - 1) * layer_rows
    saved = saved_ptr + layer_place
    scratch = scratch_ptr
    if sums_ptr is not None:
        scratch += layer_place
        sums = sums_ptr + ((tl.program_id(0).to(tl.int64) + 1) * N_LAYERS - 1) * 3 * n_hidden + column
    if END == 1:
        g = tl.load(grad_ptr + row[:, None] * (n_hidden + 1) + column[None, :], mask=both, other=0.0)
    else:
        given = grad_ptr
        if END == 2:
            pre = saved + layer_rows
            for start in range(0, n_out, BLOCK_OUT):
                to = start + tl.arange(0, BLOCK_OUT)
                mask = there[:, None] & (to < n_out)[None, :]
                place = row[:, None] * n_out + to[None, :]
                value = tl.load(pre + place, mask=mask, other=0.0)
                e = tl.exp(-2.0 * value * value)
                # 2 y (1 - tanh(y^2)^2)
                slope = 8.0 * value * e / ((1.0 + e) * (1.0 + e))
                of_value = slope * tl.load(grad_ptr + place, mask=mask, other=0.0)
                if more_ptr is not None:
                    of_value += tl.load(more_ptr + N_LAYERS * layer_rows + place, mask=mask, other=0.0)
                tl.store(scratch_out_ptr + place, of_value, mask=mask)
            tl.debug_barrier()
            given = scratch_out_ptr
        g = tl.zeros((BLOCK_ROWS, BLOCK_HIDDEN), dtype)
        g = times(g, given, n_out, row, there, gain + 2 * n_hidden, n_hidden, 1, n_out, column, inside, none,
                   none, gain, gain, False, BLOCK_K, PRECISION)  # fmt: skip
    place = row[:, None] * n_hidden + column[None, :]
    for number in tl.static_range(N_LAYERS):
        z = tl.load(saved + place, mask=both, other=0.0)
        mean, rstd = statistics(z, inside, n_hidden, EPS)
        scale = tl.load(gain + column, mask=inside, other=0.0)
        shift = tl.load(gain + n_hidden + column, mask=inside, other=0.0)
        normal = tl.where(inside[None, :], (z - mean[:, None]) * rstd[:, None], z * 0)
        y = normal * scale[None, :] + shift[None, :]
        gate = 1.0 / (1.0 + tl.exp(-y))
        if kept_ptr is not None:
            tl.store(kept_ptr + layer_place + place, g, mask=both)
        if features_ptr is not None:
            tl.store(features_ptr + layer_place + place, y * gate, mask=both)
        g = g * gate * (1.0 + y * (1.0 - gate))
        if sums_ptr is not None:
            tl.store(sums + n_hidden, tl.sum(g * normal, 0), mask=inside)
            tl.store(sums + 2 * n_hidden, tl.sum(g, 0), mask=inside)
        g = normalise(g * scale[None, :], normal, rstd, n_hidden)
        if more_ptr is not None:
            g += tl.load(more_ptr + layer_place + place, mask=both, other=0.0)
        if sums_ptr is not None:
            tl.store(sums, tl.sum(g, 0), mask=inside)
        tl.debug_barrier()
        tl.store(scratch + place, g, mask=both)
        tl.debug_barrier()
        if number < N_LAYERS - 1:
            matrix = gain - n_hidden - n_hidden * n_hidden
            g = tl.zeros((BLOCK_ROWS, BLOCK_HIDDEN), dtype)
            g = times(g, scratch, n_hidden, row, there, matrix, n_hidden, 1, n_hidden, column, inside,
                       none, none, gain, gain, False, BLOCK_K, PRECISION)  # fmt: skip
            gain -= layer_size
            saved -= layer_rows
            layer_place -= layer_rows
            if sums_ptr is not None:
                scratch -= layer_rows
                sums -= 3 * n_hidden
    if out_ptr is not None:
        for start in range(0, n_in, BLOCK_OUT):
            to = start + tl.arange(0, BLOCK_OUT)
            valid = to < n_in
            d_x = tl.zeros((BLOCK_ROWS, BLOCK_OUT), dtype)
            d_x = times(d_x, scratch, n_hidden, row, there, parameters_ptr, n_first, 1, n_hidden, to, valid,
                         none, none, gain, gain, False, BLOCK_K, PRECISION)  # fmt: skip
            tl.store(out_ptr + row[:, None] * n_in + to[None, :], d_x, mask=there[:, None] & valid[None, :])


def block_sizes(n_hidden: int, table: dict, training: bool = False) -> tuple[int, int, int]:
    """Rows, columns and warps of a program: more warps for wide layers and for training, or they spill."""
    hidden = max(16, triton.next_power_of_2(n_hidden))
    wide = max(1, hidden // 64)
    return max(16, table["rows"] // wide), hidden, min(16, table["num_warps"] * wide * (1 + training))


def launch_options(network: NormNetwork, x: Tensor, training: bool = False) -> dict:
    """Constants and compiler options of every kernel."""
    table = tuned("norm_network", x.device, x.dtype)
    rows, hidden, num_warps = block_sizes(network.n_hidden, table, training)
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


def launch_sizes(network: NormNetwork, n_rows: int) -> dict[str, int]:
    """Sizes, as arguments of every kernel."""
    return {
        "n_rows": n_rows,
        "n_in": network.n_in,
        "n_first": network.n_in + network.n_skipped,
        "n_hidden": network.n_hidden,
        "n_out": network.n_out,
    }


def launch_norm_network(
    x: Tensor, parameters: Tensor, offsets: Tensor | None, index: Tensor | None, network: NormNetwork
) -> tuple[Tensor, Tensor]:
    """``[n_rows, n_out]``, and what the derivatives need; contiguous arguments."""
    n_rows = len(x)
    saved = x.new_empty(saved_size(n_rows, network))
    out = x.new_empty((n_rows, network.n_out))
    if n_rows:
        options = launch_options(network, x)
        _norm_network_kernel[(triton.cdiv(n_rows, options["BLOCK_ROWS"]),)](
            x_ptr=x,
            parameters_ptr=parameters,
            offsets_ptr=offsets,
            index_ptr=index,
            saved_ptr=saved,
            out_ptr=out,
            N_INDICES=0 if index is None else index.shape[1],
            **launch_sizes(network, n_rows),
            **options,
        )
    return out, saved


def launch_norm_network_backward(
    grad: Tensor, parameters: Tensor, saved: Tensor, keep: bool, network: NormNetwork
) -> tuple[Tensor, Tensor]:
    """Derivatives in x ``[n_rows, n_in]``, and in the layers' features if kept; contiguous arguments."""
    n_rows = len(grad)
    out = grad.new_empty((n_rows, network.n_in))
    kept = grad.new_empty((network.n_layers, n_rows, network.n_hidden) if keep else 0)
    if n_rows:
        options = launch_options(network, grad, keep)
        _norm_network_backward_kernel[(triton.cdiv(n_rows, options["BLOCK_ROWS"]),)](
            grad_ptr=grad,
            parameters_ptr=parameters,
            saved_ptr=saved,
            more_ptr=None,
            scratch_ptr=grad.new_empty((n_rows, network.n_hidden)),
            scratch_out_ptr=torch.empty_like(grad) if network.n_kept_out else None,
            kept_ptr=kept if keep else None,
            features_ptr=None,
            sums_ptr=None,
            out_ptr=out,
            **launch_sizes(network, n_rows),
            **options,
        )
    return out, kept


def launch_norm_network_gradients(
    grad: Tensor,
    more: Tensor | None,
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    saved: Tensor,
    network: NormNetwork,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Derivatives in x, parameters and offsets that are wanted; see `plain.gradients_plain`."""
    x, parameters, offsets, index = tensors
    n_rows = len(x)
    options = launch_options(network, x, training=True)
    programs = triton.cdiv(n_rows, options["BLOCK_ROWS"])
    shape = (network.n_layers, n_rows, network.n_hidden)
    before, features = x.new_empty(shape), x.new_empty(shape) if wanted[1] else None
    sums = x.new_empty((programs, network.n_layers, 3, network.n_hidden))
    last = torch.empty_like(grad) if network.n_kept_out else grad
    d_x = x.new_empty(x.shape) if wanted[0] else None
    if n_rows:
        _norm_network_backward_kernel[(programs,)](
            grad_ptr=grad,
            parameters_ptr=parameters,
            saved_ptr=saved,
            more_ptr=more,
            scratch_ptr=before,
            scratch_out_ptr=last if network.n_kept_out else None,
            kept_ptr=None,
            features_ptr=features,
            sums_ptr=sums,
            out_ptr=d_x,
            **launch_sizes(network, n_rows),
            **options,
        )
    d_parameters = d_offsets = None
    if features is not None:
        d_parameters = matrices_gradient(before, x, features, last, sums, True, network)
    if wanted[2] and offsets is not None and index is not None:
        d_offsets = offsets_gradient(before[0], index, len(offsets))
    return d_x, d_parameters, d_offsets
