"""
Cells of slabs, and what their corrections are multiplied by, a system per lane.

Grid: blocks of systems. No atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuned import compiler_options

_BLOCK = 32


@triton.jit
def _vector(rows_ptr, system, row, there):
    """Row of ``[n, 3, 3]``."""
    place = rows_ptr + system * 9 + row % 3 * 3
    x = tl.load(place, mask=there, other=1.0)
    y = tl.load(place + 1, mask=there, other=1.0)
    return x, y, tl.load(place + 2, mask=there, other=1.0)


@triton.jit
def _cross(ax, ay, az, bx, by, bz):
    return ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx


@triton.jit
def _store(out_ptr, system, row, there, x, y, z):
    place = out_ptr + system * 9 + row % 3 * 3
    tl.store(place, x, mask=there)
    tl.store(place + 1, y, mask=there)
    tl.store(place + 2, z, mask=there)


@triton.jit
def _slab_cell_kernel(
    cell_ptr,  # [n, 3, 3]
    axis_ptr,  # [n] int64
    factor_ptr,  # [n]
    grad_ptr,  # [n, 3, 3] or None
    out_ptr,  # [n, 3, 3] cells, or derivatives in them
    n,
    DERIVATIVE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    system = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = system < n
    axis = tl.load(axis_ptr + system, mask=there, other=0)
    factor = tl.load(factor_ptr + system, mask=there, other=0.0)
    is_slab = factor != 0
    ax, ay, az = _vector(cell_ptr, system, axis + 1, there)
    bx, by, bz = _vector(cell_ptr, system, axis + 2, there)
    ux, uy, uz = _cross(ax, ay, az, bx, by, bz)
    size = tl.sqrt(ux * ux + uy * uy + uz * uz)
    size = tl.where(is_slab, size, size * 0 + 1)
    ux, uy, uz = ux / size, uy / size, uz / size
    if DERIVATIVE:
        gx, gy, gz = _vector(grad_ptr, system, axis, there)
        along = gx * ux + gy * uy + gz * uz
        scale = factor / size
        dx, dy, dz = scale * (gx - along * ux), scale * (gy - along * uy), scale * (gz - along * uz)
        px, py, pz = _cross(bx, by, bz, dx, dy, dz)
        qx, qy, qz = _cross(dx, dy, dz, ax, ay, az)
        hx, hy, hz = _vector(grad_ptr, system, axis + 1, there)
        kx, ky, kz = _vector(grad_ptr, system, axis + 2, there)
        none = gx * 0
        _store(out_ptr, system, axis, there, tl.where(is_slab, none, gx), tl.where(is_slab, none, gy),
               tl.where(is_slab, none, gz))  # fmt: skip
        _store(out_ptr, system, axis + 1, there, hx + px, hy + py, hz + pz)
        _store(out_ptr, system, axis + 2, there, kx + qx, ky + qy, kz + qz)
    else:
        cx, cy, cz = _vector(cell_ptr, system, axis, there)
        _store(out_ptr, system, axis, there, tl.where(is_slab, factor * ux, cx),
               tl.where(is_slab, factor * uy, cy), tl.where(is_slab, factor * uz, cz))  # fmt: skip
        _store(out_ptr, system, axis + 1, there, ax, ay, az)
        _store(out_ptr, system, axis + 2, there, bx, by, bz)


@triton.jit
def _slab_strengths_kernel(
    inverse_ptr,  # [n, 3, 3]
    volume_ptr,  # [n]
    axis_ptr,  # [n] int64
    weight_ptr,  # [n]
    grad_ptr,  # [n, 8] or None
    out_ptr,  # [n, 8], or [n, 9] derivatives in the inverse
    d_volume_ptr,  # [n] or None
    n,
    DERIVATIVE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    system = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = system < n
    axis = tl.load(axis_ptr + system, mask=there, other=0)
    place = inverse_ptr + system * 9 + axis
    x = tl.load(place, mask=there, other=1.0)
    y = tl.load(place + 3, mask=there, other=1.0)
    z = tl.load(place + 6, mask=there, other=1.0)
    volume = tl.load(volume_ptr + system, mask=there, other=1.0)
    strength = tl.load(weight_ptr + system, mask=there, other=0.0) / volume
    square = 1.0 / (x * x + y * y + z * z)
    if DERIVATIVE:
        g = grad_ptr + system * 8
        one = tl.load(g, mask=there, other=0.0)
        height = tl.load(g + 1, mask=there, other=0.0)
        xx = tl.load(g + 2, mask=there, other=0.0)
        xy = tl.load(g + 3, mask=there, other=0.0)
        xz = tl.load(g + 4, mask=there, other=0.0)
        yy = tl.load(g + 5, mask=there, other=0.0)
        yz = tl.load(g + 6, mask=there, other=0.0)
        zz = tl.load(g + 7, mask=there, other=0.0)
        along = height / 12.0 + xx * x * x + xy * x * y + xz * x * z + yy * y * y + yz * y * z + zz * z * z
        d_strength = one + square * along
        tl.store(d_volume_ptr + system, -d_strength * strength / volume, mask=there)
        scale = strength * square
        back = 2.0 * square * along
        dx = scale * (2.0 * xx * x + xy * y + xz * z - back * x)
        dy = scale * (xy * x + 2.0 * yy * y + yz * z - back * y)
        dz = scale * (xz * x + yz * y + 2.0 * zz * z - back * z)
        for column in tl.static_range(3):
            here = axis == column
            out = out_ptr + system * 9 + column
            tl.store(out, tl.where(here, dx, dx * 0), mask=there)
            tl.store(out + 3, tl.where(here, dy, dy * 0), mask=there)
            tl.store(out + 6, tl.where(here, dz, dz * 0), mask=there)
    else:
        out = out_ptr + system * 8
        scale = strength * square
        tl.store(out, strength, mask=there)
        tl.store(out + 1, scale / 12.0, mask=there)
        tl.store(out + 2, scale * x * x, mask=there)
        tl.store(out + 3, scale * x * y, mask=there)
        tl.store(out + 4, scale * x * z, mask=there)
        tl.store(out + 5, scale * y * y, mask=there)
        tl.store(out + 6, scale * y * z, mask=there)
        tl.store(out + 7, scale * z * z, mask=there)


def launch_slab_cell(cell: Tensor, axis: Tensor, factor: Tensor, grad: Tensor | None = None) -> Tensor:
    """``[n, 3, 3]`` cells, or derivatives in them; contiguous arguments."""
    out = torch.empty_like(cell)
    if len(cell):
        _slab_cell_kernel[(triton.cdiv(len(cell), _BLOCK),)](
            cell_ptr=cell,
            axis_ptr=axis,
            factor_ptr=factor,
            grad_ptr=grad,
            out_ptr=out,
            n=len(cell),
            DERIVATIVE=grad is not None,
            BLOCK=_BLOCK,
            **compiler_options(1, 1, cell),
        )
    return out


def launch_slab_strengths(
    inverse: Tensor, volume: Tensor, axis: Tensor, weight: Tensor, grad: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """``[n, 8]``, or derivatives in inverse and volume; contiguous arguments."""
    n = len(inverse)
    out = inverse.new_empty((n, 8)) if grad is None else torch.empty_like(inverse)
    d_volume = None if grad is None else torch.empty_like(volume)
    if n:
        _slab_strengths_kernel[(triton.cdiv(n, _BLOCK),)](
            inverse_ptr=inverse,
            volume_ptr=volume,
            axis_ptr=axis,
            weight_ptr=weight,
            grad_ptr=grad,
            out_ptr=out,
            d_volume_ptr=d_volume,
            n=n,
            DERIVATIVE=grad is not None,
            BLOCK=_BLOCK,
            **compiler_options(1, 1, inverse),
        )
    return out, d_volume
