"""Inverses and determinants of 3 x 3 matrices, and their derivative. Grid: blocks of matrices. No atomics."""

import triton
import triton.language as tl
from torch import Tensor

from ..tuned import compiler_options

_BLOCK = 32


@triton.jit
def _cell_inverse_kernel(
    cell_ptr,  # [n, 3, 3]
    out_ptr,  # [n, 10] inverse, row by row, and determinant
    n,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    cell = cell_ptr + place * 9
    ax = tl.load(cell, mask=inside, other=1.0)
    ay = tl.load(cell + 1, mask=inside, other=0.0)
    az = tl.load(cell + 2, mask=inside, other=0.0)
    bx = tl.load(cell + 3, mask=inside, other=0.0)
    by = tl.load(cell + 4, mask=inside, other=1.0)
    bz = tl.load(cell + 5, mask=inside, other=0.0)
    cx = tl.load(cell + 6, mask=inside, other=0.0)
    cy = tl.load(cell + 7, mask=inside, other=0.0)
    cz = tl.load(cell + 8, mask=inside, other=1.0)
    # columns of the inverse are b x c, c x a, a x b over the determinant
    ux = by * cz - bz * cy
    uy = bz * cx - bx * cz
    uz = bx * cy - by * cx
    volume = ax * ux + ay * uy + az * uz
    out = out_ptr + place * 10
    tl.store(out, ux / volume, mask=inside)
    tl.store(out + 3, uy / volume, mask=inside)
    tl.store(out + 6, uz / volume, mask=inside)
    tl.store(out + 1, (cy * az - cz * ay) / volume, mask=inside)
    tl.store(out + 4, (cz * ax - cx * az) / volume, mask=inside)
    tl.store(out + 7, (cx * ay - cy * ax) / volume, mask=inside)
    tl.store(out + 2, (ay * bz - az * by) / volume, mask=inside)
    tl.store(out + 5, (az * bx - ax * bz) / volume, mask=inside)
    tl.store(out + 8, (ax * by - ay * bx) / volume, mask=inside)
    tl.store(out + 9, volume, mask=inside)


@triton.jit
def _cell_inverse_backward_kernel(
    inverse_ptr,  # [n, 10]
    grad_ptr,  # [n, 10]
    out_ptr,  # [n, 3, 3]
    n,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < n
    inverse = inverse_ptr + place * 10
    grad = grad_ptr + place * 10
    scale = tl.load(grad + 9, mask=inside, other=0.0) * tl.load(inverse + 9, mask=inside, other=0.0)
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            # -(I^T G I^T)_ij + g V I^T_ij
            total = scale * tl.load(inverse + 3 * j + i, mask=inside, other=0.0)
            for k in tl.static_range(3):
                for l in tl.static_range(3):
                    left = tl.load(inverse + 3 * k + i, mask=inside, other=0.0)
                    right = tl.load(inverse + 3 * j + l, mask=inside, other=0.0)
                    total -= left * tl.load(grad + 3 * k + l, mask=inside, other=0.0) * right
            tl.store(out_ptr + place * 9 + 3 * i + j, total, mask=inside)


def launch_cell_inverse(cell: Tensor) -> Tensor:
    """``[n, 10]``; contiguous argument."""
    out = cell.new_empty((len(cell), 10))
    if len(cell):
        _cell_inverse_kernel[(triton.cdiv(len(cell), _BLOCK),)](
            cell_ptr=cell, out_ptr=out, n=len(cell), BLOCK=_BLOCK, **compiler_options(1, 1, cell)
        )
    return out


def launch_cell_inverse_backward(inverse: Tensor, grad: Tensor) -> Tensor:
    """``[n, 3, 3]``; contiguous arguments."""
    out = grad.new_empty((len(grad), 3, 3))
    if len(grad):
        _cell_inverse_backward_kernel[(triton.cdiv(len(grad), _BLOCK),)](
            inverse_ptr=inverse,
            grad_ptr=grad,
            out_ptr=out,
            n=len(grad),
            BLOCK=_BLOCK,
            **compiler_options(1, 1, grad),
        )
    return out
