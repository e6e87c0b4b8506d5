"""
Singular vectors of small matrices by one-sided Jacobi rotations (Hestenes, J. SIAM 6, 51 (1958)).

Grid: (matrices). One program rotates the columns of its matrix against each other, until all are orthogonal:
they are then left singular vectors times singular values, and the identity, rotated along, holds the right
singular vectors. Half of the columns stand opposite to the other half; all pairs that do are rotated at once,
and then the columns move on by one place, as in a round-robin tournament (Brent and Luk, SIAM J. Sci. Stat.
Comput. 6, 69 (1985)). No atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuned import compiler_options

# most rows or columns: two matrices of this size fill the registers of one program
MAX_SIZE = 64
_SWEEPS = 30


@triton.jit
def _moved_on(top, bottom, column, HALF: tl.constexpr):
    """The columns of both halves, one place on: the first of the top stays, the others go round."""
    first = column == 0
    down = tl.gather(top, tl.maximum(column - 1, 0), 1)
    up = tl.gather(bottom, column * 0, 1)
    back = tl.gather(bottom, tl.minimum(column + 1, HALF - 1), 1)
    new_top = tl.where(first, top, tl.where(column == 1, up, down))
    return new_top, tl.where(column == HALF - 1, top, back)


@triton.jit
def _singular_vectors_kernel(
    matrix_ptr,  # [n, n_rows, n_columns]
    left_ptr,  # [n, n_rows, 2 HALF], out: left singular vectors times singular values
    right_ptr,  # [n, n_columns, 2 HALF], out: right singular vectors
    n_rows,
    n_columns,
    ROWS: tl.constexpr,
    HALF: tl.constexpr,
    SWEEPS: tl.constexpr,
):
    matrix = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, ROWS)[:, None]
    right_row = tl.arange(0, 2 * HALF)[:, None]
    half = tl.arange(0, HALF)[None, :]
    column = row * 0 + half
    right_column = right_row * 0 + half
    place = matrix_ptr + matrix * n_rows * n_columns + row * n_columns + half
    inside = row < n_rows
    a = tl.load(place, mask=inside & (half < n_columns), other=0.0)
    b = tl.load(place + HALF, mask=inside & (half + HALF < n_columns), other=0.0)
    # squares neither overflow nor vanish
    scale = tl.maximum(tl.max(tl.max(tl.abs(a), 1), 0), tl.max(tl.max(tl.abs(b), 1), 0))
    one = scale * 0 + 1
    scale = tl.where(scale > 0, scale, one)
    a, b = a / scale, b / scale
    u = tl.where(right_row == half, one, one * 0)
    v = tl.where(right_row == half + HALF, one, one * 0)
    # columns that are smaller than rounding have no direction
    least = 1e-32 * (tl.sum(tl.sum(a * a, 1), 0) + tl.sum(tl.sum(b * b, 1), 0))
    off = one
    sweep = 0
    while (off > 1e-15) & (sweep < SWEEPS):
        off = one * 0
        for _ in range(2 * HALF - 1):
            alpha = tl.sum(a * a, 0)
            beta = tl.sum(b * b, 0)
            gamma = tl.sum(a * b, 0)
            turns = gamma != 0
            # what the columns have in common, of columns that have a direction
            common = (
                tl.abs(gamma)
                / tl.sqrt(tl.where(turns, alpha, alpha * 0 + 1))
                / tl.sqrt(tl.where(turns, beta, beta * 0 + 1))
            )
            off = tl.maximum(off, tl.max(tl.where(tl.minimum(alpha, beta) > least, common, gamma * 0), 0))
            zeta = (beta - alpha) / (2 * tl.where(turns, gamma, gamma * 0 + 1))
            size = tl.minimum(tl.abs(zeta), 1e100)
            tangent = 1 / (size + tl.sqrt(1 + size * size))
            tangent = tl.where(turns, tl.where(zeta < 0, -tangent, tangent), gamma * 0)
            cosine = 1 / tl.sqrt(1 + tangent * tangent)
            sine = (cosine * tangent)[None, :]
            cosine = cosine[None, :]
            a, b = cosine * a - sine * b, sine * a + cosine * b
            u, v = cosine * u - sine * v, sine * u + cosine * v
            a, b = _moved_on(a, b, column, HALF)
            u, v = _moved_on(u, v, right_column, HALF)
        sweep += 1
    out = left_ptr + matrix * n_rows * 2 * HALF + row * 2 * HALF + half
    tl.store(out, scale * a, mask=inside)
    tl.store(out + HALF, scale * b, mask=inside)
    out = right_ptr + matrix * n_columns * 2 * HALF + right_row * 2 * HALF + half
    tl.store(out, u, mask=right_row < n_columns)
    tl.store(out + HALF, v, mask=right_row < n_columns)


def warps_for(half: int) -> int:
    """Warps of a program with ``half`` columns on either side."""
    return 1 if half <= 4 else 4 if half <= 16 else 8


def launch_pseudo_inverse(matrix: Tensor, rtol: float) -> Tensor:
    """
    ``[n, n_columns, n_rows]``, from singular vectors.

    Args:
        matrix: ``[n, n_rows, n_columns]`` float64, contiguous, up to `MAX_SIZE` rows and columns, not empty.
        rtol: Smallest singular value that is inverted, relative to the largest.
    """
    n, n_rows, n_columns = matrix.shape
    half = max(2, triton.next_power_of_2(n_columns) // 2)
    left, right = (matrix.new_empty((n, rows, 2 * half)) for rows in (n_rows, n_columns))
    if n:
        _singular_vectors_kernel[(n,)](
            matrix_ptr=matrix,
            left_ptr=left,
            right_ptr=right,
            n_rows=n_rows,
            n_columns=n_columns,
            ROWS=max(2, triton.next_power_of_2(n_rows)),
            HALF=half,
            SWEEPS=_SWEEPS,
            **compiler_options(warps_for(half), 1, matrix),
        )
    squares = (left * left).sum(1, keepdim=True)
    kept = squares > rtol**2 * squares.amax(2, keepdim=True)
    return torch.where(kept, right / torch.where(kept, squares, 1.0), 0.0) @ left.mT
