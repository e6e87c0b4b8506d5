"""
Steps along conjugate directions (Hestenes and Stiefel, J. Res. NBS 49, 409 (1952)) for a ragged batch.

Grid: (systems, parts of a system). Each of the two halves of a step takes two launches. In the first, every
program adds up the dot products of its part of a system. In the second, every program adds up the parts'
sums, always in the same order, decides for its system, and updates its part of the vectors; the first part
writes down the decision. No atomics: what a launch reads of a system, it does not write.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..tuned import compiler_options
from .layout import STUCK_BELOW

# rows that a program handles at a time, parts of a system at most, and programs that are enough
BLOCK, MOST_PARTS, _ENOUGH = 512, 64, 2048
WARPS = 4


@triton.jit
def _part(ptr_ptr):
    """The system of this program, its first row, and the row after its last."""
    system = tl.program_id(0).to(tl.int64)
    first = tl.load(ptr_ptr + system)
    end = tl.load(ptr_ptr + system + 1)
    size = tl.cdiv(end - first, tl.num_programs(1))
    begin = first + tl.program_id(1) * size
    return system, begin, tl.minimum(begin + size, end)


@triton.jit
def _sum_of_parts(parts_ptr, system, k, K: tl.constexpr, PARTS: tl.constexpr):
    """One of the K sums of a system, over its parts."""
    n_parts = tl.num_programs(1)
    part = tl.arange(0, PARTS)
    sums = tl.load(parts_ptr + (system * n_parts + part) * K + k, mask=part < n_parts, other=0.0)
    return tl.sum(sums, 0)


@triton.jit
def _is_finite(x):
    return (x == x) & (tl.abs(x) < float("inf"))


@triton.jit
def _look_kernel(
    direction_ptr,  # [n_rows]
    image_ptr,  # [n_rows]
    ones_ptr,  # [n_rows] or None
    ptr_ptr,  # [n_systems + 1] int64
    parts_ptr,  # [n_systems, n_parts, 3], out: p.A p, p.p, and the sum of the image's charges
    BLOCK: tl.constexpr,
):
    system, begin, end = _part(ptr_ptr)
    curvature = tl.zeros((BLOCK,), tl.float64)
    square = tl.zeros((BLOCK,), tl.float64)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(begin, end, BLOCK):
        row = start + tl.arange(0, BLOCK)
        inside = row < end
        image = tl.load(image_ptr + row, mask=inside, other=0.0)
        direction = tl.load(direction_ptr + row, mask=inside, other=0.0)
        curvature += image * direction
        square += direction * direction
        if ones_ptr is not None:
            total += image * tl.load(ones_ptr + row, mask=inside, other=0.0)
    out = parts_ptr + (system * tl.num_programs(1) + tl.program_id(1)) * 3
    tl.store(out, tl.sum(curvature, 0))
    tl.store(out + 1, tl.sum(square, 0))
    tl.store(out + 2, tl.sum(total, 0))


@triton.jit
def _move_kernel(
    direction_ptr,  # [n_rows]
    image_ptr,  # [n_rows]
    point_ptr,  # [n_rows]
    slope_ptr,  # [n_rows]
    gradient_ptr,  # [n_rows]
    ones_ptr,  # [n_rows] or None
    ptr_ptr,  # [n_systems + 1] int64
    parts_ptr,  # [n_systems, n_parts, 3]
    progress_ptr,  # [8, n_systems], see `Progress`
    scales_ptr,  # [9, n_systems], see `Scales`
    new_point_ptr,  # [n_rows], out
    new_slope_ptr,  # [n_rows], out
    new_gradient_ptr,  # [n_rows], out
    met_ptr,  # [3, n_systems], out, see `Met`
    kept_ptr,  # [2, n_rows], out: direction and image with a curvature of 1; None if they are not kept
    n_rows,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    system, begin, end = _part(ptr_ptr)
    n_systems = tl.num_programs(0)
    curvature = _sum_of_parts(parts_ptr, system, 0, 3, PARTS)
    square = _sum_of_parts(parts_ptr, system, 1, 3, PARTS)
    flat = curvature <= tl.load(scales_ptr + 8 * n_systems + system) * square
    rz = tl.load(progress_ptr + system)
    status = tl.load(progress_ptr + 6 * n_systems + system)
    # comparisons with NaN are false; the numbers are those of `status`
    status = tl.where((status == 1) & flat, 2.0, status)
    status = tl.where((status == 1) & ~_is_finite(curvature), 3.0, status)
    moving = status == 1
    safe = tl.where(moving, curvature, 1.0)
    length = rz / safe
    if ones_ptr is not None:
        mean = _sum_of_parts(parts_ptr, system, 2, 3, PARTS) / tl.load(scales_ptr + 2 * n_systems + system)
    if tl.program_id(1) == 0:
        tl.store(met_ptr + system, status)
        tl.store(met_ptr + n_systems + system, moving.to(tl.float64))
        tl.store(met_ptr + 2 * n_systems + system, curvature)
    for start in range(begin, end, BLOCK):
        row = start + tl.arange(0, BLOCK)
        inside = row < end
        direction = tl.load(direction_ptr + row, mask=inside, other=0.0)
        image = tl.load(image_ptr + row, mask=inside, other=0.0)
        turned = image
        if ones_ptr is not None:
            # the slope's mean may be far larger: taken off again, its rounding would remain
            turned -= mean * tl.load(ones_ptr + row, mask=inside, other=0.0)
        point = tl.load(point_ptr + row, mask=inside, other=0.0)
        slope = tl.load(slope_ptr + row, mask=inside, other=0.0)
        gradient = tl.load(gradient_ptr + row, mask=inside, other=0.0)
        tl.store(new_point_ptr + row, tl.where(moving, point + length * direction, point), mask=inside)
        tl.store(new_slope_ptr + row, tl.where(moving, slope + length * image, slope), mask=inside)
        tl.store(new_gradient_ptr + row, tl.where(moving, gradient + length * turned, gradient), mask=inside)
        if kept_ptr is not None:
            scale = 1 / tl.sqrt(safe)
            tl.store(kept_ptr + row, tl.where(moving, scale * direction, 0.0), mask=inside)
            tl.store(kept_ptr + n_rows + row, tl.where(moving, scale * turned, 0.0), mask=inside)


@triton.jit
def _gradient_sums_kernel(
    preconditioned_ptr,  # [n_rows]
    gradient_ptr,  # [n_rows]
    slope_ptr,  # [n_rows]
    ones_ptr,  # [n_rows] or None
    along_ptr,  # [n_rows] or None
    ptr_ptr,  # [n_systems + 1] int64
    parts_ptr,  # [n_systems, n_parts, 5], out: g.z, g.g, s.s, sum of z's charges, along.g
    BLOCK: tl.constexpr,
):
    system, begin, end = _part(ptr_ptr)
    rz = tl.zeros((BLOCK,), tl.float64)
    gg = tl.zeros((BLOCK,), tl.float64)
    ss = tl.zeros((BLOCK,), tl.float64)
    excess = tl.zeros((BLOCK,), tl.float64)
    overlap = tl.zeros((BLOCK,), tl.float64)
    for start in range(begin, end, BLOCK):
        row = start + tl.arange(0, BLOCK)
        inside = row < end
        z = tl.load(preconditioned_ptr + row, mask=inside, other=0.0)
        g = tl.load(gradient_ptr + row, mask=inside, other=0.0)
        s = tl.load(slope_ptr + row, mask=inside, other=0.0)
        rz += g * z
        gg += g * g
        ss += s * s
        if along_ptr is not None:
            excess += z * tl.load(ones_ptr + row, mask=inside, other=0.0)
            overlap += g * tl.load(along_ptr + row, mask=inside, other=0.0)
    out = parts_ptr + (system * tl.num_programs(1) + tl.program_id(1)) * 5
    tl.store(out, tl.sum(rz, 0))
    tl.store(out + 1, tl.sum(gg, 0))
    tl.store(out + 2, tl.sum(ss, 0))
    tl.store(out + 3, tl.sum(excess, 0))
    tl.store(out + 4, tl.sum(overlap, 0))


@triton.jit
def _turn_kernel(
    preconditioned_ptr,  # [n_rows]
    direction_ptr,  # [n_rows]
    along_ptr,  # [n_rows] or None
    ptr_ptr,  # [n_systems + 1] int64
    parts_ptr,  # [n_systems, n_parts, 5]
    progress_ptr,  # [8, n_systems], see `Progress`
    met_ptr,  # [3, n_systems], see `Met`
    scales_ptr,  # [9, n_systems], see `Scales`
    new_direction_ptr,  # [n_rows], out
    new_progress_ptr,  # [8, n_systems], out
    STUCK_BELOW: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    system, begin, end = _part(ptr_ptr)
    n_systems = tl.num_programs(0)
    rz = _sum_of_parts(parts_ptr, system, 0, 5, PARTS)
    if along_ptr is not None:
        # M 1 adds charge: what of it takes off the excess
        weight = tl.load(scales_ptr + 3 * n_systems + system)
        excess = _sum_of_parts(parts_ptr, system, 3, 5, PARTS) / weight
        rz = rz - excess * _sum_of_parts(parts_ptr, system, 4, 5, PARTS)
    old_rz = tl.load(progress_ptr + system)
    moving = tl.load(met_ptr + n_systems + system) > 0
    some = old_rz != 0
    beta = tl.where(moving & some, rz / tl.where(some, old_rz, 1.0), 0.0)
    for start in range(begin, end, BLOCK):
        row = start + tl.arange(0, BLOCK)
        inside = row < end
        z = tl.load(preconditioned_ptr + row, mask=inside, other=0.0)
        if along_ptr is not None:
            z -= excess * tl.load(along_ptr + row, mask=inside, other=0.0)
        direction = tl.load(direction_ptr + row, mask=inside, other=0.0)
        tl.store(new_direction_ptr + row, tl.where(moving, beta * direction - z, direction), mask=inside)
    if tl.program_id(1) == 0:
        norm = tl.sqrt(_sum_of_parts(parts_ptr, system, 1, 5, PARTS))
        size = tl.load(scales_ptr + n_systems + system)
        size += tl.sqrt(_sum_of_parts(parts_ptr, system, 2, 5, PARTS))
        scale = tl.load(scales_ptr + system)
        tolerance = tl.load(scales_ptr + 4 * n_systems + system)
        rounding = tl.load(scales_ptr + 5 * n_systems + system)
        excused = tl.load(scales_ptr + 6 * n_systems + system)
        patience = tl.load(scales_ptr + 7 * n_systems + system)
        residual = norm / scale
        rounded = (norm <= rounding * size).to(tl.float64)
        converged = ((residual <= tolerance) | ((rounded > 0) & (residual <= excused))).to(tl.float64)
        residual = tl.where(moving, residual, tl.load(progress_ptr + n_systems + system))
        converged = tl.where(moving, converged, tl.load(progress_ptr + 2 * n_systems + system))
        rounded = tl.where(moving, rounded, tl.load(progress_ptr + 3 * n_systems + system))
        best = tl.load(progress_ptr + 4 * n_systems + system)
        since = tl.load(progress_ptr + 5 * n_systems + system)
        better = residual < best
        since = tl.where(better, 0.0, since + 1)
        best = tl.where(better, residual, best)
        # accept rounding where the residual no longer improves
        stuck = (since > patience) & ((best < STUCK_BELOW) | (rounded > 0))
        passed = (residual <= tolerance) | (stuck & (converged > 0))
        status = tl.load(met_ptr + system)
        goes_on = status == 1
        status = tl.where(goes_on & passed, 0.0, status)
        status = tl.where(goes_on & ~_is_finite(residual), 3.0, status)
        status = tl.where((status == 1) & stuck, 4.0, status)
        iterations = tl.load(progress_ptr + 7 * n_systems + system) + moving.to(tl.float64)
        out = new_progress_ptr + system
        tl.store(out, tl.where(moving, rz, old_rz))
        tl.store(out + n_systems, residual)
        tl.store(out + 2 * n_systems, converged)
        tl.store(out + 3 * n_systems, rounded)
        tl.store(out + 4 * n_systems, best)
        tl.store(out + 5 * n_systems, since)
        tl.store(out + 6 * n_systems, status)
        tl.store(out + 7 * n_systems, iterations)


def parts_of(n_rows: int, n_systems: int) -> int:
    """Parts of a system: two blocks of rows of an average one, and no more programs than are enough."""
    wanted = triton.cdiv(2 * n_rows, BLOCK * n_systems)
    return max(1, min(wanted, MOST_PARTS, _ENOUGH // n_systems))


def launch_conjugate_move(
    direction: Tensor,
    image: Tensor,
    point: Tensor,
    slope: Tensor,
    gradient: Tensor,
    ones: Tensor,
    ptr: Tensor,
    progress: Tensor,
    scales: Tensor,
    constrained: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Allocate and launch; arguments as `conjugate_move`, contiguous."""
    n_rows, n_systems = len(point), len(ptr) - 1
    moved = tuple(point.new_empty(n_rows) for _ in range(3))
    met, kept = progress.new_empty((3, n_systems)), point.new_empty((2, n_rows if keep else 0))
    if n_systems:
        n_parts = parts_of(n_rows, n_systems)
        grid, options = (n_systems, n_parts), compiler_options(WARPS, 1, point)
        parts = point.new_empty((n_systems, n_parts, 3))
        ones_ptr = ones if constrained else None
        _look_kernel[grid](
            direction_ptr=direction,
            image_ptr=image,
            ones_ptr=ones_ptr,
            ptr_ptr=ptr,
            parts_ptr=parts,
            BLOCK=BLOCK,
            **options,
        )
        _move_kernel[grid](
            direction_ptr=direction,
            image_ptr=image,
            point_ptr=point,
            slope_ptr=slope,
            gradient_ptr=gradient,
            ones_ptr=ones_ptr,
            ptr_ptr=ptr,
            parts_ptr=parts,
            progress_ptr=progress,
            scales_ptr=scales,
            new_point_ptr=moved[0],
            new_slope_ptr=moved[1],
            new_gradient_ptr=moved[2],
            met_ptr=met,
            kept_ptr=kept if keep else None,
            n_rows=n_rows,
            PARTS=triton.next_power_of_2(n_parts),
            BLOCK=BLOCK,
            **options,
        )
    return *moved, met, kept


def launch_conjugate_turn(
    preconditioned: Tensor,
    gradient: Tensor,
    slope: Tensor,
    direction: Tensor,
    ones: Tensor,
    along: Tensor,
    ptr: Tensor,
    progress: Tensor,
    met: Tensor,
    scales: Tensor,
    constrained: bool,
) -> tuple[Tensor, Tensor]:
    """Allocate and launch; arguments as `conjugate_turn`, contiguous."""
    n_systems = len(ptr) - 1
    turned, now = direction.new_empty(direction.shape), progress.new_empty(progress.shape)
    if n_systems:
        n_parts = parts_of(len(direction), n_systems)
        grid, options = (n_systems, n_parts), compiler_options(WARPS, 1, direction)
        parts = direction.new_empty((n_systems, n_parts, 5))
        ones_ptr, along_ptr = (ones, along) if constrained else (None, None)
        _gradient_sums_kernel[grid](
            preconditioned_ptr=preconditioned,
            gradient_ptr=gradient,
            slope_ptr=slope,
            ones_ptr=ones_ptr,
            along_ptr=along_ptr,
            ptr_ptr=ptr,
            parts_ptr=parts,
            BLOCK=BLOCK,
            **options,
        )
        _turn_kernel[grid](
            preconditioned_ptr=preconditioned,
            direction_ptr=direction,
            along_ptr=along_ptr,
            ptr_ptr=ptr,
            parts_ptr=parts,
            progress_ptr=progress,
            met_ptr=met,
            scales_ptr=scales,
            new_direction_ptr=turned,
            new_progress_ptr=now,
            STUCK_BELOW=STUCK_BELOW,
            PARTS=triton.next_power_of_2(n_parts),
            BLOCK=BLOCK,
            **options,
        )
    return turned, now
