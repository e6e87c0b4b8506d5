"""
Bessel functions with a polynomial cutoff, the derivative of a weighted sum of them, and that along lengths.

Formulas in `formulas`. Grid: blocks of lengths; a program owns all functions of its block. What a model holds
in tensors of one number, the cutoff and its power, is read on the device. No atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..sines import cosine_sine
from ..tuned import compiler_options

_ELEMENTS = 1024


@triton.jit
def _power(u, n):
    """The power of u to a small integer."""
    found = tl.full(u.shape, 1, u.dtype)
    for _ in range(n):
        found = found * u
    return found


@triton.jit
def _radial_basis_kernel(
    x_ptr,  # [n] lengths in the waves, x_stride apart
    y_ptr,  # [n] lengths in the cutoff, y_stride apart
    frequencies_ptr,  # [n_basis] 1/length
    scale_ptr,  # [1]
    reach_ptr,  # [1] cutoff
    p_ptr,  # [1] int32 or int64 power
    grad_ptr,  # [n, n_basis (+ 1)], for derivatives, or None
    along_x_ptr,  # [n] for the derivative along x, or None
    along_y_ptr,  # [n] for the derivative along y, or None
    out_ptr,  # [n, n_basis (+ 1)] values or derivatives along, or [2, n] derivatives in x and y
    n,
    n_basis,
    x_stride,
    y_stride,
    SEPARATE: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    ALONG: tl.constexpr,
    BLOCK: tl.constexpr,
    BASIS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n
    function = tl.arange(0, BASIS)
    x = tl.load(x_ptr + row * x_stride, mask=inside, other=1.0)
    y = tl.load(y_ptr + row * y_stride, mask=inside, other=1.0)
    w = tl.load(frequencies_ptr + function, mask=function < n_basis, other=0.0)
    scale = tl.load(scale_ptr)
    reach = tl.load(reach_ptr)
    n_powers = tl.load(p_ptr).to(tl.int32)
    p = n_powers.to(x.dtype)
    u = y / reach
    below = _power(u, n_powers - 1)
    inner = 1.0 - u * below * (0.5 * (p + 1.0) * (p + 2.0) - u * (p * (p + 2.0) - 0.5 * p * (p + 1.0) * u))
    near = y < reach
    cut = tl.where(near, inner, y * 0.0)
    cos, sin = cosine_sine(w[None, :] * x[:, None])
    over = scale / x
    waves = over[:, None] * sin
    keep = inside[:, None] & (function < n_basis)[None, :]
    width = n_basis + (1 if SEPARATE else 0)
    place = row[:, None] * width + function[None, :]
    slope = -0.5 * p * (p + 1.0) * (p + 2.0) * below * (1.0 - u) * (1.0 - u) / reach
    slope = tl.where(near, slope, y * 0.0)
    if ALONG:
        changed = waves * 0.0
        if along_x_ptr is not None:
            along_x = tl.load(along_x_ptr + row, mask=inside, other=0.0)
            changed = (over[:, None] * w[None, :] * cos - waves * (1.0 / x)[:, None]) * along_x[:, None]
        change = y * 0.0
        if along_y_ptr is not None:
            change = slope * tl.load(along_y_ptr + row, mask=inside, other=0.0)
        if SEPARATE:
            tl.store(out_ptr + place, changed, mask=keep)
            tl.store(out_ptr + row * width + n_basis, change, mask=inside)
        else:
            tl.store(out_ptr + place, changed * cut[:, None] + waves * change[:, None], mask=keep)
    elif DERIVATIVE:
        grad = tl.load(grad_ptr + place, mask=keep, other=0.0)
        if SEPARATE:
            along_y = tl.load(grad_ptr + row * width + n_basis, mask=inside, other=0.0)
            own = grad
        else:
            along_y = tl.sum(grad * waves, 1)
            own = grad * cut[:, None]
        along_x = own * (over[:, None] * w[None, :] * cos - waves * (1.0 / x)[:, None])
        tl.store(out_ptr + row, tl.sum(along_x, 1), mask=inside)
        tl.store(out_ptr + n + row, along_y * slope, mask=inside)
    elif SEPARATE:
        tl.store(out_ptr + place, waves, mask=keep)
        tl.store(out_ptr + row * width + n_basis, cut, mask=inside)
    else:
        tl.store(out_ptr + place, waves * cut[:, None], mask=keep)


def _launch(
    out: Tensor,
    tensors: tuple[Tensor, ...],
    grad: Tensor | None,
    separate: bool,
    along: tuple[Tensor | None, ...] | None = None,
) -> Tensor:
    x, y, frequencies, scale, reach, p = tensors
    n, n_basis = len(x), len(frequencies)
    if n:
        basis = triton.next_power_of_2(n_basis)
        block = max(1, min(128, _ELEMENTS // basis))
        _radial_basis_kernel[(triton.cdiv(n, block),)](
            x_ptr=x,
            y_ptr=y,
            frequencies_ptr=frequencies,
            scale_ptr=scale,
            reach_ptr=reach,
            p_ptr=p,
            grad_ptr=grad,
            along_x_ptr=None if along is None else along[0],
            along_y_ptr=None if along is None else along[1],
            out_ptr=out,
            n=n,
            n_basis=n_basis,
            x_stride=x.stride(0),
            y_stride=y.stride(0),
            SEPARATE=separate,
            DERIVATIVE=grad is not None,
            ALONG=along is not None,
            BLOCK=block,
            BASIS=basis,
            **compiler_options(4, 1, x),
        )
    return out


def launch_radial_basis(tensors: tuple[Tensor, ...], separate: bool) -> Tensor:
    """``[n, n_basis (+ 1)]``; tensors in the order of the operator, lengths anyhow apart."""
    x, _, frequencies, *_ = tensors
    return _launch(x.new_empty((len(x), len(frequencies) + int(separate))), tensors, None, separate)


def launch_gradients(tensors: tuple[Tensor, ...], grad: Tensor, separate: bool) -> tuple[Tensor, Tensor]:
    """Derivatives in x and y, ``[n, 1]`` each."""
    out = _launch(
        torch.empty((2, len(grad), 1), dtype=grad.dtype, device=grad.device), tensors, grad, separate
    )
    return out[0], out[1]


def launch_tangent(tensors: tuple[Tensor, ...], along: tuple[Tensor | None, ...], separate: bool) -> Tensor:
    """``[n, n_basis (+ 1)]`` derivatives along x and y; contiguous tensors."""
    x, _, frequencies, *_ = tensors
    out = x.new_empty((len(x), len(frequencies) + int(separate)))
    return _launch(out, tensors, None, separate, along)
