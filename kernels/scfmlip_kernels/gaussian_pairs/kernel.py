"""
Derivatives of erf(r / sqrt(2) S) / (r + softening), summed over all pairs of a system.

Grid: (blocks of targets, channels x widths, splits of the sources). One program owns BLOCK targets of one
system and walks over its share of the system's sources; the sums over each block of sources are added in
float64. It needs no atomics and no neighbour list: each split writes its own sums, which the launcher adds.

With F_n = ((1/r) d/dr)^n f and sources of charge q and dipole d at distance vector r,
    rank 0    q F0 - (d.r) F1
    rank 1    q r_a F1 - d_a F1 - (d.r) r_a F2
    rank 2    q (D_ab F1 + r_a r_b F2) - (d_a r_b + d_b r_a + D_ab d.r) F2 - (d.r) r_a r_b F3
where D is Kronecker's delta. F_n are Boys functions (Helgaker, Jorgensen, Olsen, Molecular
Electronic-Structure Theory, 2000, section 9.8): upward recursion from erf for large arguments, a series
and downward recursion for small ones, so that nothing cancels at short distance.
"""

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..constants import constant
from ..lattice.monomials import monomial_count, rank_of_count
from ..lattice.tiles import channel_parts, check_places, splits_for
from ..tuned import compiler_options, tuned
from .generate import SIZES, pairs_kernel

MAX_SOURCE_RANK = 1
# fewest sources for which another program is worth the sum over splits
_SOURCES_OF_A_SPLIT = 64
MAX_RANK = 2
# highest degree of a pair that a kernel is generated for: second derivatives of quadrupoles
MAX_ORDER = 6


@triton.jit
def _boys(x, decay, N: tl.constexpr, ORDER: tl.constexpr, TERMS: tl.constexpr):
    """F_N(x): upward recursion from F_0 above 2, the series of F_ORDER and downward below."""
    safe = tl.maximum(x, 2.0)
    root = tl.sqrt(safe)
    up = 0.886226925452758 * tl.erf(root) / root
    large_decay = tl.exp(-safe)
    for n in tl.static_range(N):
        up = ((2 * n + 1) * up - large_decay) / (2.0 * safe)
    small = tl.minimum(x, 2.0)
    term = tl.full(x.shape, 1.0 / (2 * ORDER + 1), x.dtype)
    down = term
    for k in tl.static_range(1, TERMS):
        term = term * small * (2.0 / (2 * ORDER + 2 * k + 1))
        down = down + term
    down = down * decay
    for n in tl.static_range(ORDER - N):
        down = (2.0 * small * down + decay) / (2 * (ORDER - n) - 1)
    return tl.where(x < 2.0, down, up)


@triton.jit(do_not_specialize=SIZES)
def _gaussian_pairs_kernel(
    positions_ptr,  # [n_atoms, 3]
    moments_ptr,  # [n_atoms, n_channels, n_widths, N_MOMENTS], any strides
    constants_ptr,  # [n_widths + 1]: alpha = 1 / (sqrt(2) S) of each width, then the softening
    tiles_ptr,  # [n_tiles, 3] int32: first target, first and last atom of the system
    out_ptr,  # [n_splits, n_atoms, n_channels, n_widths, N_OUT] float64, or the moments' dtype
    n_atoms,
    n_widths,
    group_size,
    stride_moments_atom,
    stride_moments_channel,
    stride_moments_width,
    stride_moments_monomial,
    N_MOMENTS: tl.constexpr,
    RANK: tl.constexpr,
    N_OUT: tl.constexpr,
    TERMS: tl.constexpr,
    SOFTENED: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_SOURCES: tl.constexpr,
):
    tile = tiles_ptr + tl.program_id(0).to(tl.int64) * 3
    first = tl.load(tile)
    begin = tl.load(tile + 1)
    end = tl.load(tile + 2)
    column = tl.program_id(1).to(tl.int64)
    alpha = tl.load(constants_ptr + column % n_widths)
    softening = tl.load(constants_ptr + n_widths)
    ORDER: tl.constexpr = RANK + (N_MOMENTS > 1)

    i = first + tl.arange(0, BLOCK)
    inside = i < end
    xi = tl.load(positions_ptr + 3 * i, mask=inside, other=0.0)
    yi = tl.load(positions_ptr + 3 * i + 1, mask=inside, other=0.0)
    zi = tl.load(positions_ptr + 3 * i + 2, mask=inside, other=0.0)
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
    sources_ptr = moments_ptr + (column // n_widths) * stride_moments_channel
    sources_ptr += (column % n_widths) * stride_moments_width
    split = tl.program_id(2)
    for block in range(begin + split * BLOCK_SOURCES, end, tl.num_programs(2) * BLOCK_SOURCES):
        j = block + tl.arange(0, BLOCK_SOURCES)
        valid = j < end
        xj = tl.load(positions_ptr + 3 * j, mask=valid, other=0.0)
        yj = tl.load(positions_ptr + 3 * j + 1, mask=valid, other=0.0)
        zj = tl.load(positions_ptr + 3 * j + 2, mask=valid, other=0.0)
        source = sources_ptr + j.to(tl.int64) * stride_moments_atom
        q = tl.load(source, mask=valid, other=0.0)[None, :]
        x = xi[:, None] - xj[None, :]
        y = yi[:, None] - yj[None, :]
        z = zi[:, None] - zj[None, :]
        other = (i // group_size)[:, None] != (j // group_size)[None, :]
        keep = other & valid[None, :]
        r2 = tl.where(keep, x * x + y * y + z * z, 1.0)
        u = alpha * alpha * r2
        decay = tl.exp(-u)
        prefactor = 1.1283791670955126 * alpha
        if SOFTENED:
            r = tl.sqrt(r2)
            e = tl.erf(alpha * r)
            g = prefactor * decay
            s = 1.0 / (r + softening)
            f0 = e * s
            d1 = g * s - e * s * s
            f1 = d1 / r
            d2 = -2.0 * alpha * alpha * r * g * s - 2.0 * g * s * s + 2.0 * e * s * s * s
            f2 = (d2 - f1) / r2
            d3 = (4.0 * alpha * alpha * r2 - 2.0) * alpha * alpha * g * s
            d3 += 6.0 * alpha * alpha * r * g * s * s + 6.0 * g * s * s * s
            d3 -= 6.0 * e * s * s * s * s
            f3 = (d3 - 3.0 * d2 / r + 3.0 * f1 / r) / (r2 * r)
        else:
            step = -2.0 * alpha * alpha
            f0 = prefactor * _boys(u, decay, 0, ORDER, TERMS)
            f1 = f0
            f2 = f0
            f3 = f0
            if ORDER >= 1:
                f1 = prefactor * step * _boys(u, decay, 1, ORDER, TERMS)
            if ORDER >= 2:
                f2 = prefactor * step * step * _boys(u, decay, 2, ORDER, TERMS)
            if ORDER >= 3:
                f3 = prefactor * step * step * step * _boys(u, decay, 3, ORDER, TERMS)
        f0 = tl.where(keep, f0, 0.0)
        f1 = tl.where(keep, f1, 0.0)
        f2 = tl.where(keep, f2, 0.0)
        f3 = tl.where(keep, f3, 0.0)
        if N_MOMENTS > 1:
            dx = tl.load(source + stride_moments_monomial, mask=valid, other=0.0)[None, :]
            dy = tl.load(source + 2 * stride_moments_monomial, mask=valid, other=0.0)[None, :]
            dz = tl.load(source + 3 * stride_moments_monomial, mask=valid, other=0.0)[None, :]
            dr = dx * x + dy * y + dz * z
            v += tl.sum(q * f0 - dr * f1, 1).to(tl.float64)
            if RANK >= 1:
                radial = q * f1 - dr * f2
                vx += tl.sum(x * radial - dx * f1, 1).to(tl.float64)
                vy += tl.sum(y * radial - dy * f1, 1).to(tl.float64)
                vz += tl.sum(z * radial - dz * f1, 1).to(tl.float64)
            if RANK >= 2:
                radial = q * f1 - dr * f2
                second = q * f2 - dr * f3
                vxx += tl.sum(x * x * second - 2.0 * dx * x * f2 + radial, 1).to(tl.float64)
                vyy += tl.sum(y * y * second - 2.0 * dy * y * f2 + radial, 1).to(tl.float64)
                vzz += tl.sum(z * z * second - 2.0 * dz * z * f2 + radial, 1).to(tl.float64)
                vxy += tl.sum(x * y * second - (dx * y + dy * x) * f2, 1).to(tl.float64)
                vxz += tl.sum(x * z * second - (dx * z + dz * x) * f2, 1).to(tl.float64)
                vyz += tl.sum(y * z * second - (dy * z + dz * y) * f2, 1).to(tl.float64)
        else:
            v += tl.sum(q * f0, 1).to(tl.float64)
            if RANK >= 1:
                vx += tl.sum(q * x * f1, 1).to(tl.float64)
                vy += tl.sum(q * y * f1, 1).to(tl.float64)
                vz += tl.sum(q * z * f1, 1).to(tl.float64)
            if RANK >= 2:
                vxx += tl.sum(q * (x * x * f2 + f1), 1).to(tl.float64)
                vyy += tl.sum(q * (y * y * f2 + f1), 1).to(tl.float64)
                vzz += tl.sum(q * (z * z * f2 + f1), 1).to(tl.float64)
                vxy += tl.sum(q * x * y * f2, 1).to(tl.float64)
                vxz += tl.sum(q * x * z * f2, 1).to(tl.float64)
                vyz += tl.sum(q * y * z * f2, 1).to(tl.float64)
    place = (split.to(tl.int64) * n_atoms + i.to(tl.int64)) * tl.num_programs(1) + column
    out = out_ptr + place * N_OUT
    tl.store(out, v, mask=inside)
    if RANK >= 1:
        tl.store(out + 1, vx, mask=inside)
        tl.store(out + 2, vy, mask=inside)
        tl.store(out + 3, vz, mask=inside)
    if RANK >= 2:
        tl.store(out + 4, vxx, mask=inside)
        tl.store(out + 5, vxy, mask=inside)
        tl.store(out + 6, vxz, mask=inside)
        tl.store(out + 7, vyy, mask=inside)
        tl.store(out + 8, vyz, mask=inside)
        tl.store(out + 9, vzz, mask=inside)


def pair_tiles(atom_ptr: Tensor, device: torch.device, group_size: int = 1) -> Tensor:
    """
    ``[n_tiles, 3]`` int32: first target, first and last atom of its system.

    Making them is a copy that a GPU's host waits for; whoever sums often makes them once.

    Args:
        atom_ptr: As in `gaussian_pairs`.
        device: Of the positions.
        group_size: Each atom stands for so many, one behind the other.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import pair_tiles
        >>> pair_tiles(torch.tensor([0, 2, 2, 5]), torch.device("cpu")).tolist()
        [[0, 0, 2], [2, 2, 5]]
    """
    block = tuned("pairs", device, torch.float32)["block"]
    ptr = [group_size * first for first in atom_ptr.tolist()]
    rows = tuple((i, begin, end) for begin, end in itertools.pairwise(ptr) for i in range(begin, end, block))
    return constant(rows, torch.int32, device).reshape(-1, 3)


def pairs_options(
    device: torch.device, dtype: torch.dtype, generated: bool, amd: bool | None = None
) -> dict[str, int]:
    """
    Launch parameters; the tiles use float32's block size.

    Args:
        device: Where it runs.
        dtype: Of the moments.
        generated: Whether the kernel of high ranks is meant: its threads own one pair.
        amd: Whether AMD's GPUs are meant, whose warps have 64 threads; None for those of this PyTorch.
    """
    own = tuned("pairs", device, dtype)
    block = tuned("pairs", device, torch.float32)["block"]
    if not generated:
        return {key: own[key] for key in ("sources", "num_warps", "num_stages")} | {"block": block}
    amd = torch.version.hip is not None if amd is None else amd
    warps = own["high_warps"] // 2 if amd else own["high_warps"]
    return {"block": block, "sources": own["high_sources"], "num_warps": warps, "num_stages": 1}


def launch_gaussian_pairs(
    positions: Tensor,
    moments: Tensor,
    widths: Tensor,
    atom_ptr: Tensor,
    rank: int,
    softening: float,
    group_size: int,
    tiles: Tensor | None,
) -> Tensor:
    """
    Allocate and launch.

    Arguments as in `gaussian_pairs`, contiguous positions, of ranks the kernel covers. The widths are read on
    the host: their constants are made once for all launches.
    """
    n_atoms, n_channels, n_widths, n_moments = moments.shape
    n_out = monomial_count(rank)
    check_places("gaussian_pairs", n_atoms, n_out)
    parts = channel_parts(moments, n_widths)
    tiles = pair_tiles(atom_ptr, positions.device) if tiles is None else tiles
    if len(parts) > 1:
        rest = (widths, atom_ptr, rank, softening, group_size, tiles)
        return torch.cat([launch_gaussian_pairs(positions, part, *rest) for part in parts], 1)
    n_programs, largest = tiles.shape[0] * n_channels * n_widths, int(atom_ptr.diff().max()) if n_atoms else 0
    n_splits = splits_for(n_programs, largest, _SOURCES_OF_A_SPLIT, positions)
    dtype = moments.dtype if n_splits == 1 else torch.float64
    out = moments.new_empty((n_splits, n_atoms, n_channels, n_widths, n_out), dtype=dtype)
    if tiles.shape[0] and n_channels and n_widths:
        generated = not _by_hand(moments, rank)
        options = pairs_options(positions.device, moments.dtype, generated)
        common = {
            "positions_ptr": positions,
            "moments_ptr": moments,
            "constants_ptr": _constants(widths, softening, moments),
            "tiles_ptr": tiles,
            "out_ptr": out,
            "n_atoms": n_atoms,
            "n_widths": n_widths,
            "group_size": group_size,
            **dict(zip(SIZES[3:], moments.stride(), strict=True)),
            "TERMS": 14 if moments.dtype == torch.float32 else 26,
            "BLOCK": options["block"],
            "BLOCK_SOURCES": options["sources"],
            **compiler_options(options["num_warps"], options["num_stages"], moments),
        }
        grid = (tiles.shape[0], n_channels * n_widths, n_splits)
        if generated:
            double = moments.dtype == torch.float64
            pairs_kernel(rank_of_count(n_moments), rank, double)[grid](**common)
        else:
            _gaussian_pairs_kernel[grid](
                **common, N_MOMENTS=n_moments, RANK=rank, N_OUT=n_out, SOFTENED=softening != 0.0
            )
    return out[0] if n_splits == 1 else out.sum(0).to(moments.dtype)


def _constants(widths: Tensor, softening: float, like: Tensor) -> Tensor:
    """``[n_widths + 1]`` inverse widths and the softening, made once for a model."""
    alphas = tuple(1 / (2**0.5 * width) for width in widths.tolist())
    return constant((*alphas, softening), like.dtype, like.device)


def _by_hand(moments: Tensor, rank: int) -> bool:
    return rank_of_count(moments.shape[-1]) <= MAX_SOURCE_RANK and rank <= MAX_RANK


def kernel_holds(moments: Tensor, rank: int, softening: float = 0.0) -> bool:
    """Whether a kernel covers these ranks; others run as chunks of plain PyTorch."""
    if _by_hand(moments, rank):
        return True
    return softening == 0.0 and rank_of_count(moments.shape[-1]) + rank <= MAX_ORDER
