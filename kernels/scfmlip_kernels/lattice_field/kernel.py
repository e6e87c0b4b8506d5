"""
Fields V_A(u) = Re sum_n P(n) (i n)^A exp(2 pi i n.u) at the atoms, |A| <= RANK.

Grid: (blocks of atoms, channels, splits of the rows). One program owns BLOCK_ATOMS atoms of one system
and walks over its share of that system's rows (h, k). For each row the sum over l is a matrix product of the
coefficients with powers of l times cos and sin of l (points +l and -l are combined). The result is multiplied
by the row's phase and its powers of h and k, and summed in float64. Phases are computed where they are
used: (BLOCK_ROWS + BLOCK_L) * BLOCK_ATOMS sines for BLOCK_ROWS * 2 BLOCK_L * BLOCK_ATOMS pairs.

No atomics: each split writes its own partial sums, which the launcher adds in a fixed order.

The adjoint of the structure factor; Essmann et al., J. Chem. Phys. 103, 8577 (1995), eq. 2.10.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..lattice.device import monomial_index, to_turns, wave
from ..lattice.monomials import monomial_count
from ..lattice.tiles import channel_parts, check_places, lattice_launch, splits_for
from ..tuned import compiler_options


@triton.jit
def _lattice_field_kernel(
    turns_ptr,  # [3, n_atoms] int32 fixed point, or float64
    p_ptr,  # [n_channels, 2, n_points] coefficients, real and imaginary parts
    row_tiles_ptr,  # [n_row_tiles, 8] int32, see lattice.tiles
    atom_tiles_ptr,  # [n_tiles, 4] int32, see lattice.tiles
    out_ptr,  # [n_splits, n_atoms, n_channels, N_MONOMIALS] float64
    n_atoms,
    n_points,
    RANK: tl.constexpr,
    N_MONOMIALS: tl.constexpr,
    PADDED_MONOMIALS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_ATOMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    dtype = p_ptr.dtype.element_ty
    tile = tl.program_id(0).to(tl.int64) * 4 + atom_tiles_ptr
    first_atom = tl.load(tile)
    last_atom = tl.load(tile + 1)
    first_row_tile = tl.load(tile + 2)
    last_row_tile = tl.load(tile + 3)
    channel = tl.program_id(1).to(tl.int64)
    split = tl.program_id(2)

    atom = first_atom + tl.arange(0, BLOCK_ATOMS)
    inside = atom < last_atom
    u = tl.load(turns_ptr + atom, mask=inside, other=0)
    v = tl.load(turns_ptr + n_atoms + atom, mask=inside, other=0)
    w = tl.load(turns_ptr + 2 * n_atoms + atom, mask=inside, other=0)
    monomial = tl.arange(0, PADDED_MONOMIALS)
    total = tl.zeros((BLOCK_ATOMS, PADDED_MONOMIALS), tl.float64)
    p_re_ptr = p_ptr + channel * 2 * n_points
    p_im_ptr = p_re_ptr + n_points

    for row_tile in range(first_row_tile + split, last_row_tile, tl.num_programs(2)):
        entry = row_tiles_ptr + row_tile * 8
        row_first = tl.load(entry)
        h_first = tl.load(entry + 1)
        n_k = tl.load(entry + 2)
        n_l = tl.load(entry + 3)
        n_rows = tl.load(entry + 4)
        first_point = tl.load(entry + 5).to(tl.int64)
        l_stop = tl.load(entry + 6)
        row = row_first + tl.arange(0, BLOCK_ROWS)
        h = h_first + row // (2 * n_k + 1)
        k = row % (2 * n_k + 1) - n_k
        point = first_point + row.to(tl.int64)[:, None] * (2 * n_l + 1) + n_l
        row_cos, row_sin = wave(h[:, None] * u[None, :] + k[:, None] * v[None, :], dtype)
        for c in tl.static_range(RANK + 1):
            # t = sum_l l^c P(l) e^{i l w}
            t_re = tl.zeros((BLOCK_ROWS, BLOCK_ATOMS), dtype)
            t_im = tl.zeros((BLOCK_ROWS, BLOCK_ATOMS), dtype)
            for l_first in range(0, l_stop, BLOCK_L):
                l = l_first + tl.arange(0, BLOCK_L)
                keep = (row < n_rows)[:, None] & (l <= n_l)[None, :]
                both = keep & (l > 0)[None, :]
                plus = point + l[None, :]
                minus = point - l[None, :]
                plus_re = tl.load(p_re_ptr + plus, mask=keep, other=0.0)
                plus_im = tl.load(p_im_ptr + plus, mask=keep, other=0.0)
                minus_re = tl.load(p_re_ptr + minus, mask=both, other=0.0)
                minus_im = tl.load(p_im_ptr + minus, mask=both, other=0.0)
                if c % 2 == 1:
                    minus_re = -minus_re
                    minus_im = -minus_im
                l_cos, l_sin = wave(l[:, None] * w[None, :], dtype)
                for _ in tl.static_range(c):
                    l_cos = l_cos * l.to(dtype)[:, None]
                    l_sin = l_sin * l.to(dtype)[:, None]
                t_re = tl.dot(plus_re + minus_re, l_cos, t_re, input_precision=PRECISION, out_dtype=dtype)
                t_re = tl.dot(minus_im - plus_im, l_sin, t_re, input_precision=PRECISION, out_dtype=dtype)
                t_im = tl.dot(plus_im + minus_im, l_cos, t_im, input_precision=PRECISION, out_dtype=dtype)
                t_im = tl.dot(plus_re - minus_re, l_sin, t_im, input_precision=PRECISION, out_dtype=dtype)
            x_re = t_re * row_cos - t_im * row_sin
            x_im = t_re * row_sin + t_im * row_cos
            for b in tl.static_range(RANK + 1 - c):
                for a in tl.static_range(RANK + 1 - c - b):
                    power = tl.full((BLOCK_ROWS,), 1, dtype)
                    for _ in tl.static_range(a):
                        power = power * h.to(dtype)
                    for _ in tl.static_range(b):
                        power = power * k.to(dtype)
                    if (a + b + c) % 2 == 0:
                        value = tl.sum(x_re * power[:, None], 0)
                    else:
                        value = tl.sum(x_im * power[:, None], 0)
                    if (a + b + c) % 4 == 1 or (a + b + c) % 4 == 2:
                        value = -value
                    here = monomial == monomial_index(a, b, c)
                    total += tl.where(here[None, :], value.to(tl.float64)[:, None], 0.0)

    place = (split.to(tl.int64) * n_atoms + atom.to(tl.int64)) * tl.num_programs(1) + channel
    out = out_ptr + place[:, None] * N_MONOMIALS + monomial[None, :]
    tl.store(out, total, mask=inside[:, None] & (monomial < N_MONOMIALS)[None, :])


def launch_lattice_field(
    frac: Tensor,
    coefficients: Tensor,
    row_tiles: Tensor,
    atom_tiles: Tensor,
    rank: int,
    dtype: torch.dtype,
) -> Tensor:
    """
    Allocate, launch and add the splits.

    ``frac`` and ``coefficients`` as in `lattice_field`, contiguous. Returns
    ``[n_atoms, n_channels, n_monomials]`` of ``dtype``.
    """
    n_atoms, n_channels, n_points = frac.shape[0], coefficients.shape[1], coefficients.shape[0]
    n_monomials = monomial_count(rank)
    check_places("lattice_field", n_atoms, 3)
    parts = channel_parts(coefficients)
    if len(parts) > 1:
        return torch.cat(
            [launch_lattice_field(frac, part, row_tiles, atom_tiles, rank, dtype) for part in parts], 1
        )
    p = coefficients.permute(1, 2, 0).to(dtype).contiguous()
    options = lattice_launch(p.device, p.dtype)
    n_tiles = atom_tiles.shape[0]
    n_splits = splits_for(n_tiles * n_channels, row_tiles.shape[0], 1, p)
    out = frac.new_empty((n_splits, n_atoms, n_channels, n_monomials))  # every atom is in a tile
    if n_tiles and n_channels:
        _lattice_field_kernel[(n_tiles, n_channels, n_splits)](
            turns_ptr=to_turns(frac, dtype),
            p_ptr=p,
            row_tiles_ptr=row_tiles,
            atom_tiles_ptr=atom_tiles,
            out_ptr=out,
            n_atoms=n_atoms,
            n_points=n_points,
            RANK=rank,
            N_MONOMIALS=n_monomials,
            PADDED_MONOMIALS=triton.next_power_of_2(n_monomials),
            BLOCK_ROWS=options.rows,
            BLOCK_L=options.l,
            BLOCK_ATOMS=options.atoms,
            PRECISION=options.precision,
            **compiler_options(options.num_warps, options.num_stages, frac),
        )
    return (out[0] if n_splits == 1 else torch.sum(out, 0)).to(dtype)
