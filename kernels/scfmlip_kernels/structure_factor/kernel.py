"""
Structure factors S(n) = sum_i sum_A c_iA (-i)^|A| n^A exp(-2 pi i n.u_i), multipoles of any rank.

Grid: (point tiles, channels, splits of the atoms). One program owns BLOCK_ROWS rows (h, k) times
2 BLOCK_L indices +l, -l of one system and walks over its share of that system's atoms. The phase of a
point is the product of a row phase and a phase of l. So a block of atoms costs
(BLOCK_ROWS + BLOCK_L) * BLOCK_ATOMS sines instead of 2 BLOCK_ROWS * BLOCK_L * BLOCK_ATOMS, phases are not
stored, and the sum over atoms is a matrix product. Points +l and -l share one cosine and one sine.

No atomics: each split writes its own partial sums, which the launcher adds in a fixed order. float32
sums run over FLUSH blocks of atoms and are then added in float64. Phases of float32 are 32-bit
fixed-point turns, whose integer arithmetic wraps exactly, so they stay exact in any cell.

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
    l_value = l.to(dtype)[None, :]

    plus_re = tl.zeros((BLOCK_ROWS, BLOCK_L), tl.float64)
    plus_im = tl.zeros((BLOCK_ROWS, BLOCK_L), tl.float64)
    minus_re = tl.zeros((BLOCK_ROWS, BLOCK_L), tl.float64)
    minus_im = tl.zeros((BLOCK_ROWS, BLOCK_L), tl.float64)
    for segment in range(begin, end, BLOCK_ATOMS * FLUSH):
        # sums against cos l and sin l of the amplitudes even and odd in l
        even_cos_re = tl.zeros((BLOCK_ROWS, BLOCK_L), dtype)
        even_cos_im = tl.zeros((BLOCK_ROWS, BLOCK_L), dtype)
        even_sin_re = tl.zeros((BLOCK_ROWS, BLOCK_L), dtype)
        even_sin_im = tl.zeros((BLOCK_ROWS, BLOCK_L), dtype)
        odd_cos_re = tl.zeros((BLOCK_ROWS, BLOCK_L), dtype)
        odd_cos_im = tl.zeros((BLOCK_ROWS, BLOCK_L), dtype)
        odd_sin_re = tl.zeros((BLOCK_ROWS, BLOCK_L), dtype)
        odd_sin_im = tl.zeros((BLOCK_ROWS, BLOCK_L), dtype)
        for block in range(segment, tl.minimum(segment + BLOCK_ATOMS * FLUSH, end), BLOCK_ATOMS):
            atom = block + tl.arange(0, BLOCK_ATOMS)
            inside = atom < end
            u = tl.load(turns_ptr + atom, mask=inside, other=0)
            v = tl.load(turns_ptr + n_atoms + atom, mask=inside, other=0)
            w = tl.load(turns_ptr + 2 * n_atoms + atom, mask=inside, other=0)
            row_cos, row_sin = wave(h[:, None] * u[None, :] + k[:, None] * v[None, :], dtype)
            l_cos, l_sin = wave(w[:, None] * l[None, :], dtype)
            channel_moments = moments_ptr + channel * N_MONOMIALS * n_atoms + atom
            for c in tl.static_range(RANK + 1):
                # amplitude sum_ab c_ab (-i)^(a+b+c) h^a k^b, real and imaginary part
                amp_re = tl.zeros((BLOCK_ROWS, BLOCK_ATOMS), dtype)
                amp_im = tl.zeros((BLOCK_ROWS, BLOCK_ATOMS), dtype)
                for b in tl.static_range(RANK + 1 - c):
                    for a in tl.static_range(RANK + 1 - c - b):
                        place = monomial_index(a, b, c)
                        m = tl.load(channel_moments + place * n_atoms, mask=inside, other=0.0)
                        power = tl.full((BLOCK_ROWS,), 1, dtype)
                        for _ in tl.static_range(a):
                            power = power * h.to(dtype)
                        for _ in tl.static_range(b):
                            power = power * k.to(dtype)
                        term = power[:, None] * m[None, :]
                        if (a + b + c) % 4 == 0:
                            amp_re += term
                        elif (a + b + c) % 4 == 1:
                            amp_im -= term
                        elif (a + b + c) % 4 == 2:
                            amp_re -= term
                        else:
                            amp_im += term
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
        plus_re += (even_cos_re + even_sin_im + odd_cos_re + odd_sin_im).to(tl.float64)
        plus_im += (even_cos_im - even_sin_re + odd_cos_im - odd_sin_re).to(tl.float64)
        minus_re += (even_cos_re - even_sin_im - odd_cos_re + odd_sin_im).to(tl.float64)
        minus_im += (even_cos_im + even_sin_re - odd_cos_im - odd_sin_re).to(tl.float64)

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
