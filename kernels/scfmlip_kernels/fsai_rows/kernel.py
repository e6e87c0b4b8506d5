"""
Rows of the factorised sparse approximate inverse (Kolotilina and Yeremin, SIAM J. Matrix Anal. Appl. 14, 45
(1993)): one small symmetric system for each atom.

Grid: (atoms). A program makes the matrix of its atom and the atom's neighbours in registers, eliminates the
neighbours one after another without pivoting, as for positive matrices, and substitutes backwards. The rows
of the eliminated neighbours stay in place for that. Padding and unused neighbours are rows of the identity.
No atomics.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..tuned import compiler_options

# most neighbours of an atom: their matrix fills the registers of one program
MAX_NEIGHBOURS = 63


@triton.jit
def _entries(vectors_ptr, neighbours_ptr, used_ptr, width_ptr, atom, m, j):
    """Place, width, number and presence of the entries j: the neighbours, and the atom itself at m."""
    known = j < m
    place = atom * m + j
    x = tl.load(vectors_ptr + place * 3, mask=known, other=0.0)
    y = tl.load(vectors_ptr + place * 3 + 1, mask=known, other=0.0)
    z = tl.load(vectors_ptr + place * 3 + 2, mask=known, other=0.0)
    used = (tl.load(used_ptr + place, mask=known, other=0) != 0) | (j == m)
    number = tl.load(neighbours_ptr + place, mask=known, other=0)
    number = tl.where(known, number, atom)
    return x, y, z, tl.load(width_ptr + number), number, used


@triton.jit
def _fsai_rows_kernel(
    vectors_ptr,  # [n, m, 3]
    neighbours_ptr,  # [n, m] int64
    used_ptr,  # [n, m] uint8
    width_ptr,  # [n]
    diagonal_ptr,  # [n]
    out_ptr,  # [n, m + 1]
    coulomb,
    m,
    SIZE: tl.constexpr,
):
    atom = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, SIZE)[:, None]
    j = tl.arange(0, SIZE)[None, :]
    x, y, z, w, _, row_used = _entries(vectors_ptr, neighbours_ptr, used_ptr, width_ptr, atom, m, i)
    u, v, t, s, number, used = _entries(vectors_ptr, neighbours_ptr, used_ptr, width_ptr, atom, m, j)
    own = tl.load(diagonal_ptr + number)
    r = tl.sqrt((x - u) * (x - u) + (y - v) * (y - v) + (z - t) * (z - t))
    gamma = tl.sqrt(w * w + s * s)
    near = r <= 1e-9
    safe = tl.where(near, 1.0, r)
    # the numbers are the roots of 2 / pi and of 1 / 2
    pair = coulomb * tl.where(near, 0.7978845608 / gamma, tl.math.erf(0.7071067812 * safe / gamma) / safe)
    a = tl.where(row_used & used & (i != j), pair, 0.0)
    a = tl.where(i == j, tl.where(used, own, 1.0), a)
    for k in range(m):
        row = tl.sum(tl.where(i == k, a, 0.0), 0)[None, :]
        column = tl.sum(tl.where(j == k, a, 0.0), 1)[:, None]
        pivot = tl.sum(tl.where(j == k, row, 0.0), 1)[:, None]
        a = tl.where((i > k) & (j > k), a - column * row / pivot, a)
    last = tl.sum(tl.sum(tl.where((i == m) & (j == m), a, 0.0), 0), 0)
    found = tl.where(j == m, 1.0 / last, 0.0)
    for step in range(m):
        k = m - 1 - step
        row = tl.sum(tl.where(i == k, a, 0.0), 0)[None, :]
        pivot = tl.sum(tl.where(j == k, row, 0.0), 1)[:, None]
        sum_behind = tl.sum(tl.where(j > k, row * found, 0.0), 1)[:, None]
        found = tl.where(j == k, -sum_behind / pivot, found)
    # a neighbourhood that is not positive definite falls back to its diagonal
    strange = tl.where((found == found) & (tl.abs(found) < float("inf")), 0, 1)
    good = (last > 0) & (tl.sum(tl.sum(strange, 1), 0) == 0)
    mine = tl.load(diagonal_ptr + atom)
    alone = 1.0 / tl.maximum(tl.abs(mine), 1e-6)
    scaled = tl.where(good, found * tl.sqrt(tl.where(good, last, 1.0)), tl.where(j == m, tl.sqrt(alone), 0.0))
    tl.store(out_ptr + atom * (m + 1) + j, tl.where(used, scaled, 0.0), mask=j <= m)


def warps_for(size: int) -> int:
    """Warps of a program whose matrix has this many rows."""
    return 1 if size <= 16 else 4 if size <= 32 else 8


def launch_fsai_rows(
    vectors: Tensor, neighbours: Tensor, used: Tensor, widths: Tensor, diagonal: Tensor, coulomb: float
) -> Tensor:
    """Allocate and launch; arguments as `fsai_rows`, contiguous, ``used`` uint8."""
    n, m = neighbours.shape
    out = vectors.new_empty((n, m + 1))
    size = max(16, triton.next_power_of_2(m + 1))
    if n:
        _fsai_rows_kernel[(n,)](
            vectors_ptr=vectors,
            neighbours_ptr=neighbours,
            used_ptr=used,
            width_ptr=widths,
            diagonal_ptr=diagonal,
            out_ptr=out,
            coulomb=coulomb,
            m=m,
            SIZE=size,
            **compiler_options(warps_for(size), 1, vectors),
        )
    return out
