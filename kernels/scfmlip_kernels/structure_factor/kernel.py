"""
Structure factors S(n) = sum_i sum_A c_iA (-i)^|A| n^A exp(-2 pi i n.u_i), multipoles of any rank.

Grid: (point tiles, channels, splits of the atoms). One program owns BLOCK_ROWS rows (h, k) times
2 BLOCK_L indices +l, -l of one system and walks over its share of that system's atoms. The phase of a
point is the product of a row phase and a phase of l. So a block of atoms costs
(BLOCK_ROWS + BLOCK_L) * BLOCK_ATOMS sines instead of 2 BLOCK_ROWS * BLOCK_L * BLOCK_ATOMS, phases are not
stored, and the sum over atoms is a matrix product. Points +l and -l share one cosine and one sine.

No atomics: each split writes its own partial sums, which the launcher adds in a fixed order. float32
sums run over FLUSH blocks of atoms and are then added in float64; float64 sums run to the end of the share.
Phases of float32 are 32-bit fixed-point turns, whose integer arithmetic wraps exactly, so they stay exact in
any cell.

Essmann et al., J. Chem. Phys. 103, 8577 (1995), eq. 2.10, with the half space n, -n folded.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..lattice.device import monomial_index, to_turns, wave
from ..lattice.monomials import monomial_count, rank_of_count
from ..lattice.tiles import channel_parts, check_places, lattice_launch, splits_for
from ..tuned import compiler_options


@triton.jit
def _turned(re, im, term, quarters: tl.constexpr):
    """Add ``(-i)^quarters`` times a real term."""
    if quarters % 4 == 0:
        re += term
    elif quarters % 4 == 1:
        im -= term
    elif quarters % 4 == 2:
        re -= term
    else:
        im += term
    return re, im


@triton.jit
def _power(h, a: tl.constexpr, k, b: tl.constexpr, dtype: tl.constexpr):
    """h^a k^b of integers."""
    power = tl.full(h.shape, 1, dtype)
    for _ in tl.static_range(a):
        power = power * h.to(dtype)
    for _ in tl.static_range(b):
        power = power * k.to(dtype)
    return power


@triton.jit
def _amplitude(moments_ptr, n_atoms, inside, h, k, c: tl.constexpr, RANK: tl.constexpr):
    """Amplitude sum_ab m_abc (-i)^(a+b+c) h^a k^b at rows and atoms, real and imaginary part."""
    dtype = moments_ptr.dtype.scalar.element_ty
    re = tl.zeros((h.shape[0], inside.shape[0]), dtype)
    im = tl.zeros((h.shape[0], inside.shape[0]), dtype)
    for b in tl.static_range(RANK + 1 - c):
        if dtype == tl.float64 and RANK > 2:
            # k^b comes last: all products h^a k^b, which are kept for the whole walk, take too many registers
            even = tl.zeros_like(re)
            odd = tl.zeros_like(re)
            for a in tl.static_range(RANK + 1 - c - b):
                m = tl.load(moments_ptr + monomial_index(a, b, c) * n_atoms, mask=inside, other=0.0)
                even, odd = _turned(even, odd, _power(h, a, k, 0, dtype)[:, None] * m[None, :], a)
            power = _power(h, 0, k, b, dtype)[:, None]
            re, im = _turned(re, im, power * even, b + c)
            re, im = _turned(re, im, power * odd, b + c + 3)
        else:
            for a in tl.static_range(RANK + 1 - c - b):
                m = tl.load(moments_ptr + monomial_index(a, b, c) * n_atoms, mask=inside, other=0.0)
                power = _power(h, a, k, b, dtype)
                re, im = _turned(re, im, power[:, None] * m[None, :], a + b + c)
    return re, im


@triton.jit
def _sums(
    turns_ptr,
    moments_ptr,  # of the channel
    n_atoms,
    begin,
    end,
    h,  # [BLOCK_ROWS]
    k,  # [BLOCK_ROWS]
    l,  # [BLOCK_L]
    RANK: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_ATOMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums over atoms at +l and at -l, real and imaginary parts; ``[BLOCK_ROWS, BLOCK_L]`` each."""
    dtype = moments_ptr.dtype.element_ty
    l_value = l.to(dtype)[None, :]
    # sums against cos l and sin l of the amplitudes even and odd in l
    even_cos_re = tl.zeros((BLOCK_ROWS, BLOCK_L), dtype)
    even_cos_im = tl.zeros((BLOCK_ROWS, BLOCK_L), dtype)
    even_sin_re = tl.zeros((BLOCK_ROWS, BLOCK_L), dtype)
    even_sin_im = tl.zeros((BLOCK_ROWS, BLOCK_L), dtype)
    odd_cos_re = tl.zeros((BLOCK_ROWS, BLOCK_L), dtype)
    odd_cos_im = tl.zeros((BLOCK_ROWS, BLOCK_L), dtype)
    odd_sin_re = tl.zeros((BLOCK_ROWS, BLOCK_L), dtype)
    odd_sin_im = tl.zeros((BLOCK_ROWS, BLOCK_L), dtype)
    for block in range(begin, end, BLOCK_ATOMS):
        atom = block + tl.arange(0, BLOCK_ATOMS)
        inside = atom < end
        u = tl.load(turns_ptr + atom, mask=inside, other=0)
        v = tl.load(turns_ptr + n_atoms + atom, mask=inside, other=0)
        w = tl.load(turns_ptr + 2 * n_atoms + atom, mask=inside, other=0)
        row_cos, row_sin = wave(h[:, None] * u[None, :] + k[:, None] * v[None, :], dtype)
        l_cos, l_sin = wave(w[:, None] * l[None, :], dtype)
        for c in tl.static_range(RANK + 1):
            amp_re, amp_im = _amplitude(moments_ptr + atom, n_atoms, inside, h, k, c, RANK)
            x_re = amp_re * row_cos + amp_im * row_sin
            x_im = amp_im * row_cos - amp_re * row_sin
            if c % 2 == 0:
                even_cos_re = tl.dot(x_re, l_cos, even_cos_re, input_precision=PRECISION, out_dtype=dtype)
                even_cos_im = tl.dot(x_im, l_cos, even_cos_im, input_precision=PRECISION, out_dtype=dtype)
                even_sin_re = tl.dot(x_re, l_sin, even_sin_re, input_precision=PRECISION, out_dtype=dtype)
                even_sin_im = tl.dot(x_im, l_sin, even_sin_im, input_precision=PRECISION, out_dtype=dtype)
            else:
                odd_cos_re = tl.dot(x_re, l_cos, odd_cos_re, input_precision=PRECISION, out_dtype=dtype)
                odd_cos_im = tl.dot(x_im, l_cos, odd_cos_im, input_precision=PRECISION, out_dtype=dtype)
                odd_sin_re = tl.dot(x_re, l_sin, odd_sin_re, input_precision=PRECISION, out_dtype=dtype)
                odd_sin_im = tl.dot(x_im, l_sin, odd_sin_im, input_precision=PRECISION, out_dtype=dtype)
            # multiply the table of l by l for the next power
            l_cos = l_cos * l_value
            l_sin = l_sin * l_value
    # (E + O)(cos - i sin) at +l, (E - O)(cos + i sin) at -l
    plus_re = even_cos_re + even_sin_im + odd_cos_re + odd_sin_im
    plus_im = even_cos_im - even_sin_re + odd_cos_im - odd_sin_re
    minus_re = even_cos_re - even_sin_im - odd_cos_re + odd_sin_im
    minus_im = even_cos_im + even_sin_re - odd_cos_im - odd_sin_re
    return plus_re, plus_im, minus_re, minus_im


@triton.jit
def _structure_factor_kernel(
    turns_ptr,  # [3, n_atoms] int32 fixed point, or float64
    moments_ptr,  # [n_channels, N_MONOMIALS, n_atoms]
    row_tiles_ptr,  # [n_row_tiles, 8] int32, see lattice.tiles
    point_tiles_ptr,  # [n_tiles, 4] int32, see lattice.tiles
    out_ptr,  # [n_splits, n_points, n_channels, 2] float64
    n_atoms,
    n_points,
    RANK: tl.constexpr,
    N_MONOMIALS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_ATOMS: tl.constexpr,
    FLUSH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    dtype = moments_ptr.dtype.element_ty
    tile = tl.program_id(0).to(tl.int64) * 4 + point_tiles_ptr
    row_tile = tl.load(tile).to(tl.int64) * 8 + row_tiles_ptr
    l_first = tl.load(tile + 1)
    first_atom = tl.load(tile + 2)
    last_atom = tl.load(tile + 3)
    row_first = tl.load(row_tile)
    h_first = tl.load(row_tile + 1)
    n_k = tl.load(row_tile + 2)
    n_l = tl.load(row_tile + 3)
    n_rows = tl.load(row_tile + 4)
    first_point = tl.load(row_tile + 5).to(tl.int64)
    channel = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)
    share = tl.cdiv(last_atom - first_atom, tl.num_programs(2))
    begin = first_atom + split * share
    end = tl.minimum(begin + share, last_atom)

    row = row_first + tl.arange(0, BLOCK_ROWS)
    h = h_first + row // (2 * n_k + 1)
    k = row % (2 * n_k + 1) - n_k
    l = l_first + tl.arange(0, BLOCK_L)
    moments = moments_ptr + channel * N_MONOMIALS * n_atoms
    if dtype == tl.float64:
        # one sum to the end: sums of parts would take registers of their own
        plus_re, plus_im, minus_re, minus_im = _sums(
            turns_ptr,
            moments,
            n_atoms,
            begin,
            end,
            h,
            k,
            l,
            RANK,
            BLOCK_ROWS,
            BLOCK_L,
            BLOCK_ATOMS,
            PRECISION,
        )
    else:
        plus_re = tl.zeros((BLOCK_ROWS, BLOCK_L), tl.float64)
        plus_im = tl.zeros((BLOCK_ROWS, BLOCK_L), tl.float64)
        minus_re = tl.zeros((BLOCK_ROWS, BLOCK_L), tl.float64)
        minus_im = tl.zeros((BLOCK_ROWS, BLOCK_L), tl.float64)
        for segment in range(begin, end, BLOCK_ATOMS * FLUSH):
            stop = tl.minimum(segment + BLOCK_ATOMS * FLUSH, end)
            p_re, p_im, m_re, m_im = _sums(
                turns_ptr,
                moments,
                n_atoms,
                segment,
                stop,
                h,
                k,
                l,
                RANK,
                BLOCK_ROWS,
                BLOCK_L,
                BLOCK_ATOMS,
                PRECISION,
            )
            plus_re += p_re.to(tl.float64)
            plus_im += p_im.to(tl.float64)
            minus_re += m_re.to(tl.float64)
            minus_im += m_im.to(tl.float64)

    point = first_point + row.to(tl.int64)[:, None] * (2 * n_l + 1) + n_l
    keep = (row < n_rows)[:, None] & (l <= n_l)[None, :]
    out = out_ptr + (split.to(tl.int64) * n_points * tl.num_programs(1) + channel) * 2
    stride = 2 * tl.num_programs(1)
    plus = out + (point + l[None, :]) * stride
    tl.store(plus, plus_re, mask=keep)
    tl.store(plus + 1, plus_im, mask=keep)
    keep = keep & (l > 0)[None, :]
    minus = out + (point - l[None, :]) * stride
    tl.store(minus, minus_re, mask=keep)
    tl.store(minus + 1, minus_im, mask=keep)


def launch_structure_factor(
    frac: Tensor, moments: Tensor, row_tiles: Tensor, point_tiles: Tensor, n_points: int
) -> Tensor:
    """
    Allocate, launch and add the splits.

    ``frac`` and ``moments`` as in `structure_factor`, contiguous. Returns ``[n_points, n_channels, 2]``
    float64; points outside every tile are 0.
    """
    n_atoms, n_channels, n_monomials = moments.shape
    check_places("structure_factor", n_atoms, max(3, n_monomials))
    parts = channel_parts(moments)
    if len(parts) > 1:
        return torch.cat(
            [launch_structure_factor(frac, part, row_tiles, point_tiles, n_points) for part in parts], 1
        )
    options = lattice_launch(moments.device, moments.dtype)
    n_tiles = point_tiles.shape[0]
    # small systems have few tiles: then a split of few atoms still fills the device
    n_splits = splits_for(n_tiles * n_channels, n_atoms, max(64, options.atoms), moments)
    out = frac.new_zeros((n_splits, n_points, n_channels, 2))
    if n_tiles and n_atoms and n_channels:
        _structure_factor_kernel[(n_tiles, n_channels, n_splits)](
            turns_ptr=to_turns(frac, moments.dtype),
            moments_ptr=moments.permute(1, 2, 0).contiguous(),
            row_tiles_ptr=row_tiles,
            point_tiles_ptr=point_tiles,
            out_ptr=out,
            n_atoms=n_atoms,
            n_points=n_points,
            RANK=rank_of_count(n_monomials),
            N_MONOMIALS=monomial_count(rank_of_count(n_monomials)),
            BLOCK_ROWS=options.rows,
            BLOCK_L=options.l,
            BLOCK_ATOMS=options.atoms,
            FLUSH=options.flush,
            PRECISION=options.precision,
            **compiler_options(options.num_warps, options.num_stages, frac),
        )
    return out[0] if n_splits == 1 else torch.sum(out, 0)
