"""
Sums over listed pairs of derivatives of [erf(r / sqrt(2) S) - erf(r / sqrt(2) T)] / r.

Grid: (blocks of targets, channels x widths). One program owns BLOCK targets, one to a lane, and walks their
lists in step; a lane whose list has ended waits. Sums in float64, no atomics. Terms and Boys functions as in
`gaussian_pairs.kernel`, of the difference of two Gaussian interactions.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..gaussian_pairs.kernel import _boys
from ..lattice.monomials import monomial_count, rank_of_count
from ..tuned import compiler_options, tuned

MAX_SOURCE_RANK = 1
MAX_RANK = 2


@triton.jit
def _radial(r2, alpha, N: tl.constexpr, ORDER: tl.constexpr, TERMS: tl.constexpr):
    """``((1/r) d/dr)^N erf(alpha r) / r``; 0 for alpha = 0."""
    u = alpha * alpha * r2
    value = 1.1283791670955126 * alpha * _boys(u, tl.exp(-u), N, ORDER, TERMS)
    for _ in tl.static_range(N):
        value = value * (-2.0 * alpha * alpha)
    return value


@triton.jit
def _difference(r2, inner, outer, N: tl.constexpr, ORDER: tl.constexpr, TERMS: tl.constexpr):
    return _radial(r2, inner, N, ORDER, TERMS) - _radial(r2, outer, N, ORDER, TERMS)


@triton.jit
def _listed_pairs_kernel(
    targets_ptr,  # [3, n_targets]
    sources_ptr,  # [3, n_sources]
    moments_ptr,  # [n_channels, n_widths, N_MOMENTS, n_sources]
    alphas_ptr,  # [n_widths, 2]: 1 / (sqrt(2) S) and 1 / (sqrt(2) T)
    first_ptr,  # [n_targets + 1] int64: first pair of each target
    near_ptr,  # [n_pairs] int64: source of each pair
    out_ptr,  # [n_channels, n_widths, N_OUT, n_targets] float64
    n_targets,
    n_sources,
    n_widths,
    N_MOMENTS: tl.constexpr,
    RANK: tl.constexpr,
    N_OUT: tl.constexpr,
    TERMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.program_id(1).to(tl.int64)
    inner = tl.load(alphas_ptr + 2 * (column % n_widths))
    outer = tl.load(alphas_ptr + 2 * (column % n_widths) + 1)
    ORDER: tl.constexpr = RANK + (N_MOMENTS > 1)

    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n_targets
    xi = tl.load(targets_ptr + i, mask=inside, other=0.0)
    yi = tl.load(targets_ptr + n_targets + i, mask=inside, other=0.0)
    zi = tl.load(targets_ptr + 2 * n_targets + i, mask=inside, other=0.0)
    first = tl.load(first_ptr + i, mask=inside, other=0)
    count = tl.load(first_ptr + i + 1, mask=inside, other=0) - first
    v = tl.zeros((BLOCK,), tl.float64)
    vx = tl.zeros((BLOCK,), tl.float64)
    vy = tl.zeros((BLOCK,), tl.float64)
    vz = tl.zeros((BLOCK,), tl.float64)
    vxx = tl.zeros((BLOCK,), tl.float64)
    vxy = tl.zeros((BLOCK,), tl.float64)
    vxz = tl.zeros((BLOCK,), tl.float64)
    vyy = tl.zeros((BLOCK,), tl.float64)
    vyz = tl.zeros((BLOCK,), tl.float64)
    vzz = tl.zeros((BLOCK,), tl.float64)
    rows_ptr = moments_ptr + column * N_MOMENTS * n_sources
    for k in range(0, tl.max(count, 0)):
        keep = k < count
        j = tl.load(near_ptr + first + k, mask=keep, other=0)
        x = xi - tl.load(sources_ptr + j, mask=keep, other=0.0)
        y = yi - tl.load(sources_ptr + n_sources + j, mask=keep, other=0.0)
        z = zi - tl.load(sources_ptr + 2 * n_sources + j, mask=keep, other=0.0)
        q = tl.load(rows_ptr + j, mask=keep, other=0.0)
        r2 = tl.where(keep, x * x + y * y + z * z, 1.0)
        f0 = _difference(r2, inner, outer, 0, ORDER, TERMS)
        f1 = f0
        f2 = f0
        f3 = f0
        if ORDER >= 1:
            f1 = _difference(r2, inner, outer, 1, ORDER, TERMS)
        if ORDER >= 2:
            f2 = _difference(r2, inner, outer, 2, ORDER, TERMS)
        if ORDER >= 3:
            f3 = _difference(r2, inner, outer, 3, ORDER, TERMS)
        dx = q
        dy = q
        dz = q
        value = q * f0
        # of the charge and of the dipole along r: what stands before r, and before r r
        radial = q * f1
        second = q * f2
        if N_MOMENTS > 1:
            dx = tl.load(rows_ptr + n_sources + j, mask=keep, other=0.0)
            dy = tl.load(rows_ptr + 2 * n_sources + j, mask=keep, other=0.0)
            dz = tl.load(rows_ptr + 3 * n_sources + j, mask=keep, other=0.0)
            dr = dx * x + dy * y + dz * z
            value -= dr * f1
            radial -= dr * f2
            second -= dr * f3
        v += value.to(tl.float64)
        if RANK >= 1:
            gx = x * radial
            gy = y * radial
            gz = z * radial
            if N_MOMENTS > 1:
                gx -= dx * f1
                gy -= dy * f1
                gz -= dz * f1
            vx += gx.to(tl.float64)
            vy += gy.to(tl.float64)
            vz += gz.to(tl.float64)
        if RANK >= 2:
            # lanes without a pair have f of r = 1, but no moments
            hxx = x * x * second + radial
            hyy = y * y * second + radial
            hzz = z * z * second + radial
            hxy = x * y * second
            hxz = x * z * second
            hyz = y * z * second
            if N_MOMENTS > 1:
                hxx -= 2.0 * dx * x * f2
                hyy -= 2.0 * dy * y * f2
                hzz -= 2.0 * dz * z * f2
                hxy -= (dx * y + dy * x) * f2
                hxz -= (dx * z + dz * x) * f2
                hyz -= (dy * z + dz * y) * f2
            vxx += hxx.to(tl.float64)
            vyy += hyy.to(tl.float64)
            vzz += hzz.to(tl.float64)
            vxy += hxy.to(tl.float64)
            vxz += hxz.to(tl.float64)
            vyz += hyz.to(tl.float64)
    out = out_ptr + column * N_OUT * n_targets + i
    tl.store(out, v, mask=inside)
    if RANK >= 1:
        tl.store(out + n_targets, vx, mask=inside)
        tl.store(out + 2 * n_targets, vy, mask=inside)
        tl.store(out + 3 * n_targets, vz, mask=inside)
    if RANK >= 2:
        tl.store(out + 4 * n_targets, vxx, mask=inside)
        tl.store(out + 5 * n_targets, vxy, mask=inside)
        tl.store(out + 6 * n_targets, vxz, mask=inside)
        tl.store(out + 7 * n_targets, vyy, mask=inside)
        tl.store(out + 8 * n_targets, vyz, mask=inside)
        tl.store(out + 9 * n_targets, vzz, mask=inside)


def launch_listed_pairs(
    targets: Tensor,
    sources: Tensor,
    moments: Tensor,
    widths: Tensor,
    target_ptr: Tensor,
    near: Tensor,
    rank: int,
) -> Tensor:
    """Allocate and launch; arguments as in `listed_pairs`, contiguous, of ranks the kernel holds."""
    n_targets, (n_sources, n_channels, n_widths, n_moments) = len(targets), moments.shape
    n_out = monomial_count(rank)
    out = targets.new_zeros((n_channels, n_widths, n_out, n_targets), dtype=torch.float64)
    options = tuned("listed_pairs", moments.device, moments.dtype)
    if n_targets and n_channels and n_widths and len(near):
        alphas = 1 / (2**0.5 * widths.double())
        _listed_pairs_kernel[(triton.cdiv(n_targets, options["block"]), n_channels * n_widths)](
            targets_ptr=targets.T.contiguous(),
            sources_ptr=sources.T.contiguous(),
            moments_ptr=moments.permute(1, 2, 3, 0).contiguous(),
            alphas_ptr=alphas.to(targets.device, moments.dtype),
            first_ptr=target_ptr,
            near_ptr=near,
            out_ptr=out,
            n_targets=n_targets,
            n_sources=n_sources,
            n_widths=n_widths,
            N_MOMENTS=n_moments,
            RANK=rank,
            N_OUT=n_out,
            TERMS=14 if moments.dtype == torch.float32 else 26,
            BLOCK=options["block"],
            **compiler_options(options["num_warps"], options["num_stages"], moments),
        )
    return out.permute(3, 0, 1, 2).to(moments.dtype).contiguous()


def kernel_holds(moments: Tensor, rank: int) -> bool:
    """Whether the kernel covers these ranks; others run in chunks of PyTorch."""
    return rank_of_count(moments.shape[-1]) <= MAX_SOURCE_RANK and rank <= MAX_RANK
