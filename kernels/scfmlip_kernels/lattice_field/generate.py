"""
The lattice field's kernel of one rank, as text: sums of each power of l stay in registers of their own.

One walk over l serves all powers of a program. Coefficients of ``+l`` and ``-l`` are joined into four
matrices, multiplied by l from power to power; cosines and sines of l are made once.
"""

from functools import lru_cache
from typing import Any

from ..codegen import SourceWriter, kernel_of
from ..lattice.device import wave
from ..lattice.monomials import monomials
from ..layouts import made_once

_HEAD = """
def _lattice_field_kernel(
    turns_ptr,  # [3, n_atoms] int32 fixed point, or float64
    p_ptr,  # [n_channels, 2, n_points] coefficients, real and imaginary parts
    row_tiles_ptr,  # [n_row_tiles, 8] int32, see lattice.tiles
    atom_tiles_ptr,  # [n_tiles, 4] int32, see lattice.tiles
    out_ptr,  # [n_splits, n_atoms, n_channels, n_monomials] float64
    n_atoms,
    n_points,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_ATOMS: tl.constexpr,
    PRECISION: tl.constexpr,
    PARTS: tl.constexpr,
):
    dtype = p_ptr.dtype.element_ty
    tile = tl.program_id(0).to(tl.int64) * 4 + atom_tiles_ptr
    first_atom = tl.load(tile)
    last_atom = tl.load(tile + 1)
    first_row_tile = tl.load(tile + 2)
    last_row_tile = tl.load(tile + 3)
    channel = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2) % PARTS
    split = tl.program_id(2) // PARTS
    n_splits = tl.num_programs(2) // PARTS
    atom = first_atom + tl.arange(0, BLOCK_ATOMS)
    inside = atom < last_atom
    u = tl.load(turns_ptr + atom, mask=inside, other=0)
    v = tl.load(turns_ptr + n_atoms + atom, mask=inside, other=0)
    w = tl.load(turns_ptr + 2 * n_atoms + atom, mask=inside, other=0)
"""

_TILE = """
    for row_tile in range(first_row_tile + split, last_row_tile, n_splits):
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
        # counted from the box's first point, in 32 bits like the tables
        point = row[:, None] * (2 * n_l + 1) + n_l
        p_re_ptr = p_ptr + channel * 2 * n_points + first_point
        p_im_ptr = p_re_ptr + n_points
"""

_LOADS = """
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
            sum_re = made_once(plus_re + minus_re)
            sum_im = made_once(plus_im + minus_im)
            off_re = made_once(plus_re - minus_re)
            off_im = made_once(minus_im - plus_im)
            l_cos, l_sin = wave(l[:, None] * w[None, :], dtype)
"""

_POWER = """
            l_real = l.to(dtype)[None, :]
            sum_re = sum_re * l_real
            sum_im = sum_im * -l_real
            off_re = off_re * l_real
            off_im = off_im * -l_real
"""


def _add_walk(text: SourceWriter, powers: range, depth: int) -> None:
    """Sums over l of some powers of it."""
    for c in powers:
        for part in ("re", "im"):
            text.add(depth + 2, f"t_{part}_{c} = tl.zeros((BLOCK_ROWS, BLOCK_ATOMS), dtype)")
    text.add_block(_LOADS, depth)
    for c in range(powers.stop):
        if c:
            text.add_block(_POWER, depth)
        if c not in powers:
            continue
        # Re and Im of sum_l l^c P(l) e^{i l w}; -l has the sign of its power, as the imaginary parts have
        even = c % 2 == 0
        terms = (
            ("re", "sum_re" if even else "off_re", "cos"),
            ("re", "off_im" if even else "sum_im", "sin"),
            ("im", "sum_im" if even else "off_im", "cos"),
            ("im", "off_re" if even else "sum_re", "sin"),
        )
        for part, left, right in terms:
            t = f"t_{part}_{c}"
            product = f"tl.dot({left}, l_{right}, {t}, input_precision=PRECISION, out_dtype=dtype)"
            text.add(depth + 3, f"{t} = {product}")
    text.add(depth + 2, "row_cos, row_sin = wave(h[:, None] * u[None, :] + k[:, None] * v[None, :], dtype)")
    text.add(depth + 2, "h_real = h.to(dtype)[:, None]")
    text.add(depth + 2, "k_real = k.to(dtype)[:, None]")


def _add_power(text: SourceWriter, c: int, order: list, depth: int) -> None:
    """All monomials with the c-th power of l."""
    text.add(depth + 2, f"x_re = t_re_{c} * row_cos - t_im_{c} * row_sin")
    text.add(depth + 2, f"x_im = t_re_{c} * row_sin + t_im_{c} * row_cos")
    for n, (a, b, power) in enumerate(order):
        if power == c:
            degree = a + b + c
            value = " * ".join([f"x_{'im' if degree % 2 else 're'}", *["h_real"] * a, *["k_real"] * b])
            sign = "-" if degree % 4 in (1, 2) else "+"
            text.add(depth + 2, f"total_{n} {sign}= tl.sum({value}, 0).to(tl.float64)")


def _add_part(text: SourceWriter, powers: range, order: list, depth: int) -> None:
    """Everything with some powers of l: one walk over the rows."""
    mine = [n for n, exponents in enumerate(order) if exponents[2] in powers]
    for n in mine:
        text.add(depth + 1, f"total_{n} = tl.zeros((BLOCK_ATOMS,), tl.float64)")
    text.add_block(_TILE, depth)
    _add_walk(text, powers, depth)
    for c in powers:
        _add_power(text, c, order, depth)
    place = "(split.to(tl.int64) * n_atoms + atom.to(tl.int64)) * tl.num_programs(1) + channel"
    text.add(depth + 1, f"place = {place}")
    for n in mine:
        text.add(depth + 1, f"tl.store(out_ptr + place * {len(order)} + {n}, total_{n}, mask=inside)")


def parts(rank: int) -> tuple[range, ...]:
    """
    Powers of l that one program sums. Those of high ranks are shared out: their results fill the registers.

    Of the 20 results of rank 3, 10 have no power of l, and 10 have one to three.
    """
    return (range(rank + 1),) if rank < 3 else (range(1), range(1, rank + 1))


def _source(rank: int) -> str:
    text, order = SourceWriter(), list(monomials(rank))
    text.add_block(_HEAD)
    several = parts(rank)
    for number, powers in enumerate(several):
        if len(several) > 1:
            text.add(1, f"if part == {number}:")
        _add_part(text, powers, order, int(len(several) > 1))
    return text.source()


@lru_cache(maxsize=64)
def lattice_field_kernel(rank: int) -> Any:
    """The kernel for derivatives up to a rank."""
    return kernel_of(_source(rank), "lattice_field", (), ("wave", wave), ("made_once", made_once))
