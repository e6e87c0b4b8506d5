"""
Second derivatives of networks of normalised layers: derivatives of their derivatives in x, for training.

Grid: blocks of rows. What is differentiated is a walk from the last layer to the first, so a program goes
through the layers in their order, with the same products as the values; `plain.second_plain` has the
formulas. It leaves what gradients of the parameters are products of, as first derivatives do. No atomics.
"""

# @triton.jit bodies and launches do not type-check
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from .description import NormNetwork
from .kernel import launch_options, launch_sizes, normalise, statistics, times
from .matrices import matrices_gradient


@triton.jit
def _norm_network_second_kernel(
    v_ptr,  # [n_rows, n_in] what the derivatives in x are multiplied by
    grad_ptr,  # [n_rows, n_out]
    parameters_ptr,  # see NormNetwork
    saved_ptr,  # see above
    kept_ptr,  # [N_LAYERS, n_rows, n_hidden] derivatives in the layers' features
    of_grad_ptr,  # [n_rows, n_out]
    of_saved_ptr,  # like saved
    of_kept_ptr,  # [N_LAYERS, n_rows, n_hidden] derivatives in what was kept
    before_ptr,  # [N_LAYERS, n_rows, n_hidden] derivatives before the normalisations, made again
    weighted_ptr,  # [n_rows, n_out] derivatives before the end, for tanh_square
    sums_ptr,  # [n_programs, N_LAYERS, 3, n_hidden] of biases, gains and shifts
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
    layer_rows = n_hidden * n_rows.to(tl.int64)
    place = row[:, None] * n_hidden + column[None, :]
    matrix = parameters_ptr
    sums = sums_ptr + tl.program_id(0).to(tl.int64) * N_LAYERS * 3 * n_hidden + column
    count = n_hidden.to(dtype)
    for layer in tl.static_range(N_LAYERS):
        width = n_hidden
        t = tl.zeros((BLOCK_ROWS, BLOCK_HIDDEN), dtype)
        if layer == 0:
            width = n_first
            t = times(t, v_ptr, n_in, row, there, matrix, 1, n_first, n_in, column, inside, none, none,
                       matrix, matrix, False, BLOCK_K, PRECISION)  # fmt: skip
        else:
            t = times(t, of_kept_ptr - layer_rows, n_hidden, row, there, matrix, 1, width, width, column,
                       inside, none, none, matrix, matrix, False, BLOCK_K, PRECISION)  # fmt: skip
        gain = matrix + n_hidden * width + n_hidden
        scale = tl.load(gain + column, mask=inside, other=0.0)[None, :]
        shift = tl.load(gain + n_hidden + column, mask=inside, other=0.0)[None, :]
        z = tl.load(saved_ptr + place, mask=both, other=0.0)
        mean, rstd = statistics(z, inside, n_hidden, EPS)
        normal = tl.where(inside[None, :], (z - mean[:, None]) * rstd[:, None], z * 0)
        y = normal * scale + shift
        gate = 1.0 / (1.0 + tl.exp(-y))
        slope = gate * (1.0 + y * (1.0 - gate))
        g = tl.load(kept_ptr + place, mask=both, other=0.0)
        q = g * slope * scale
        along_q = tl.sum(q * normal, 1) / count
        before = normalise(q, normal, rstd, n_hidden)
        tl.store(before_ptr + place, before, mask=both)
        lost = tl.sum(t * before, 1) / count * rstd
        along_t = tl.sum(t * normal, 1) / count
        of_normal = -rstd[:, None] * (t * along_q[:, None] + q * along_t[:, None])
        k = normalise(t, normal, rstd, n_hidden)
        of_y = k * scale * g * gate * (1.0 - gate) * (2.0 + y * (1.0 - 2.0 * gate))
        tl.store(sums, column * (count * 0), mask=inside)
        tl.store(sums + n_hidden, tl.sum(k * g * slope + of_y * normal, 0), mask=inside)
        tl.store(sums + 2 * n_hidden, tl.sum(of_y, 0), mask=inside)
        tl.store(of_kept_ptr + place, k * scale * slope, mask=both)
        of_z = normalise(of_normal + of_y * scale, normal, rstd, n_hidden)
        tl.store(of_saved_ptr + place, of_z - lost[:, None] * normal, mask=both)
        tl.debug_barrier()
        saved_ptr += layer_rows
        kept_ptr += layer_rows
        before_ptr += layer_rows
        of_kept_ptr += layer_rows
        of_saved_ptr += layer_rows
        sums += 3 * n_hidden
        matrix = gain + 2 * n_hidden
    last = of_kept_ptr - layer_rows
    if END == 1:
        values = tl.load(last + place, mask=both, other=0.0)
        out = of_grad_ptr + row * (n_hidden + 1)
        tl.store(out[:, None] + column[None, :], values, mask=both)
        tl.store(out + n_hidden, none, mask=there)
    else:
        for start in range(0, n_out, BLOCK_OUT):
            to = start + tl.arange(0, BLOCK_OUT)
            valid = to < n_out
            mask = there[:, None] & valid[None, :]
            out_place = row[:, None] * n_out + to[None, :]
            value = tl.zeros((BLOCK_ROWS, BLOCK_OUT), dtype)
            value = times(value, last, n_hidden, row, there, matrix, 1, n_hidden, n_hidden, to, valid,
                           none, none, matrix, matrix, False, BLOCK_K, PRECISION)  # fmt: skip
            if END == 2:
                o = tl.load(saved_ptr + out_place, mask=mask, other=0.0)
                of_end = tl.load(grad_ptr + out_place, mask=mask, other=0.0)
                e = tl.exp(-2.0 * o * o)
                # what the square of the end's tanh leaves of 1
                rest = 4.0 * e / ((1.0 + e) * (1.0 + e))
                bend = rest * (2.0 - 8.0 * o * o * (1.0 - e) / (1.0 + e))
                tl.store(of_saved_ptr + out_place, of_end * bend * value, mask=mask)
                tl.store(weighted_ptr + out_place, of_end * 2.0 * o * rest, mask=mask)
                value = value * 2.0 * o * rest
            tl.store(of_grad_ptr + out_place, value, mask=mask)


def launch_norm_network_second(
    v: Tensor, grad: Tensor, parameters: Tensor, saved: Tensor, kept: Tensor, network: NormNetwork
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of the derivatives in x; see `plain.second_plain`. Contiguous arguments."""
    n_rows = len(grad)
    options = launch_options(network, grad, training=True)
    programs = triton.cdiv(n_rows, options["BLOCK_ROWS"])
    of_grad, of_saved = torch.empty_like(grad), torch.empty_like(saved)
    of_kept, before = torch.empty_like(kept), torch.empty_like(kept)
    weighted = torch.empty_like(grad) if network.n_kept_out else grad
    sums = grad.new_empty((programs, network.n_layers, 3, network.n_hidden))
    if n_rows:
        _norm_network_second_kernel[(programs,)](
            v_ptr=v,
            grad_ptr=grad,
            parameters_ptr=parameters,
            saved_ptr=saved,
            kept_ptr=kept,
            of_grad_ptr=of_grad,
            of_saved_ptr=of_saved,
            of_kept_ptr=of_kept,
            before_ptr=before,
            weighted_ptr=weighted if network.n_kept_out else None,
            sums_ptr=sums,
            **launch_sizes(network, n_rows),
            **options,
        )
    return of_grad, matrices_gradient(before, v, of_kept, weighted, sums, False, network), of_saved
