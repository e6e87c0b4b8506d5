"""
Quadratic polynomials of a position and their derivatives, and the adjoint: moments of point multipoles.

``V(r) = c_0 + a.r + r.B r / 2`` with ``c = [c_0, a_x, a_y, a_z, B_xx, B_xy, B_xz, B_yy, B_yz, B_zz]``. Grid:
blocks of (atom, channel) pairs. No atomics; float64.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..lattice.monomials import monomial_count
from ..tuned import compiler_options

_BLOCK = 128


@triton.jit
def _polynomial_field_kernel(
    r_ptr,  # [n_atoms, 3]
    c_ptr,  # [n_atoms, n_channels, 10]
    out_ptr,  # [n_atoms, n_channels, N_MONOMIALS]
    n_results,
    n_channels,
    N_MONOMIALS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n_results
    atom = place // n_channels
    x = tl.load(r_ptr + atom * 3, mask=inside, other=0.0)
    y = tl.load(r_ptr + atom * 3 + 1, mask=inside, other=0.0)
    z = tl.load(r_ptr + atom * 3 + 2, mask=inside, other=0.0)
    c = c_ptr + place * 10
    xx = tl.load(c + 4, mask=inside, other=0.0)
    xy = tl.load(c + 5, mask=inside, other=0.0)
    xz = tl.load(c + 6, mask=inside, other=0.0)
    yy = tl.load(c + 7, mask=inside, other=0.0)
    yz = tl.load(c + 8, mask=inside, other=0.0)
    zz = tl.load(c + 9, mask=inside, other=0.0)
    a_x = tl.load(c + 1, mask=inside, other=0.0)
    a_y = tl.load(c + 2, mask=inside, other=0.0)
    a_z = tl.load(c + 3, mask=inside, other=0.0)
    b_x = xx * x + xy * y + xz * z
    b_y = xy * x + yy * y + yz * z
    b_z = xz * x + yz * y + zz * z
    value = tl.load(c, mask=inside, other=0.0)
    value += (a_x + 0.5 * b_x) * x + (a_y + 0.5 * b_y) * y + (a_z + 0.5 * b_z) * z
    out = out_ptr + place * N_MONOMIALS
    tl.store(out, value, mask=inside)
    if N_MONOMIALS > 1:
        tl.store(out + 1, a_x + b_x, mask=inside)
        tl.store(out + 2, a_y + b_y, mask=inside)
        tl.store(out + 3, a_z + b_z, mask=inside)
    if N_MONOMIALS > 4:
        tl.store(out + 4, xx, mask=inside)
        tl.store(out + 5, xy, mask=inside)
        tl.store(out + 6, xz, mask=inside)
        tl.store(out + 7, yy, mask=inside)
        tl.store(out + 8, yz, mask=inside)
        tl.store(out + 9, zz, mask=inside)
    for column in tl.static_range(10, N_MONOMIALS):
        tl.store(out + column, x * 0.0, mask=inside)


@triton.jit
def _polynomial_moments_kernel(
    r_ptr,  # [n_atoms, 3]
    p_ptr,  # [n_atoms, n_channels, N_MONOMIALS]
    out_ptr,  # [n_atoms, n_channels, 10]
    n_results,
    n_channels,
    N_MONOMIALS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n_results
    atom = place // n_channels
    x = tl.load(r_ptr + atom * 3, mask=inside, other=0.0)
    y = tl.load(r_ptr + atom * 3 + 1, mask=inside, other=0.0)
    z = tl.load(r_ptr + atom * 3 + 2, mask=inside, other=0.0)
    p = p_ptr + place * N_MONOMIALS
    q = tl.load(p, mask=inside, other=0.0)
    d_x = x * 0.0
    d_y = x * 0.0
    d_z = x * 0.0
    if N_MONOMIALS > 1:
        d_x = tl.load(p + 1, mask=inside, other=0.0)
        d_y = tl.load(p + 2, mask=inside, other=0.0)
        d_z = tl.load(p + 3, mask=inside, other=0.0)
    out = out_ptr + place * 10
    tl.store(out, q, mask=inside)
    tl.store(out + 1, q * x + d_x, mask=inside)
    tl.store(out + 2, q * y + d_y, mask=inside)
    tl.store(out + 3, q * z + d_z, mask=inside)
    xx = (0.5 * q * x + d_x) * x
    xy = q * x * y + d_x * y + d_y * x
    xz = q * x * z + d_x * z + d_z * x
    yy = (0.5 * q * y + d_y) * y
    yz = q * y * z + d_y * z + d_z * y
    zz = (0.5 * q * z + d_z) * z
    if N_MONOMIALS > 4:
        xx += tl.load(p + 4, mask=inside, other=0.0)
        xy += tl.load(p + 5, mask=inside, other=0.0)
        xz += tl.load(p + 6, mask=inside, other=0.0)
        yy += tl.load(p + 7, mask=inside, other=0.0)
        yz += tl.load(p + 8, mask=inside, other=0.0)
        zz += tl.load(p + 9, mask=inside, other=0.0)
    tl.store(out + 4, xx, mask=inside)
    tl.store(out + 5, xy, mask=inside)
    tl.store(out + 6, xz, mask=inside)
    tl.store(out + 7, yy, mask=inside)
    tl.store(out + 8, yz, mask=inside)
    tl.store(out + 9, zz, mask=inside)


def launch_polynomial_field(r: Tensor, c: Tensor, rank: int) -> Tensor:
    """``[n_atoms, n_channels, n_monomials]``; contiguous arguments."""
    out = c.new_empty((*c.shape[:2], monomial_count(rank)))
    n_results = c.shape[0] * c.shape[1]
    if n_results:
        _polynomial_field_kernel[(triton.cdiv(n_results, _BLOCK),)](
            r_ptr=r,
            c_ptr=c,
            out_ptr=out,
            n_results=n_results,
            n_channels=c.shape[1],
            N_MONOMIALS=out.shape[2],
            BLOCK=_BLOCK,
            **compiler_options(4, 1, c),
        )
    return out


def launch_polynomial_moments(r: Tensor, p: Tensor) -> Tensor:
    """``[n_atoms, n_channels, 10]``; contiguous arguments."""
    out = torch.empty((*p.shape[:2], 10), dtype=p.dtype, device=p.device)
    n_results = p.shape[0] * p.shape[1]
    if n_results:
        _polynomial_moments_kernel[(triton.cdiv(n_results, _BLOCK),)](
            r_ptr=r,
            p_ptr=p,
            out_ptr=out,
            n_results=n_results,
            n_channels=p.shape[1],
            N_MONOMIALS=p.shape[2],
            BLOCK=_BLOCK,
            **compiler_options(4, 1, p),
        )
    return out
