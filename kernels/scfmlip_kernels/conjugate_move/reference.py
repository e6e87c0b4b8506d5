"""Plain PyTorch definition; the CPU path, and the tests' source of truth."""

import torch
from torch import Tensor

from ..segments import segment_sum
from .layout import (
    CONVERGED,
    INDEFINITE,
    ITERATIONS,
    NOT_FINITE,
    STAGNATED,
    STUCK_BELOW,
    Met,
    Progress,
    Scales,
)


def _systems(ptr: Tensor, n_rows: int) -> Tensor:
    """``[n_rows]`` system of each row."""
    return torch.arange(len(ptr) - 1, device=ptr.device).repeat_interleave(ptr.diff(), output_size=n_rows)


def conjugate_move_reference(
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
    """As `conjugate_move`."""
    system = _systems(ptr, len(point))
    now, fixed = Progress(*progress), Scales(*scales)
    rows = torch.stack((direction * image, direction * direction, ones * image), 1)
    curvature, square, total = segment_sum(rows, ptr, system).unbind(1)
    flat = curvature <= fixed.flat * square
    status = torch.where((now.status == ITERATIONS) & flat, INDEFINITE, now.status)
    status = torch.where((status == ITERATIONS) & ~torch.isfinite(curvature), NOT_FINITE, status)
    moving = status == ITERATIONS
    turned = image - (total / fixed.charges)[system] * ones if constrained else image
    safe = torch.where(moving, curvature, 1.0)
    length = torch.where(moving, now.rz / safe, 0.0)[system]
    where = moving[system]
    rows = ((point, direction), (slope, image), (gradient, turned))
    moved = [torch.where(where, old + length * step, old) for old, step in rows]
    kept = point.new_empty((2, 0))
    if keep:
        kept = torch.where(where, safe.rsqrt()[system] * torch.stack((direction, turned)), 0.0)
    met = torch.stack(Met(status.double(), moving.double(), curvature))
    return moved[0], moved[1], moved[2], met, kept


def conjugate_turn_reference(
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
    """As `conjugate_turn`."""
    system = _systems(ptr, len(gradient))
    old, here, fixed = Progress(*progress), Met(*met), Scales(*scales)
    moving = here.moving > 0
    z = preconditioned
    rows = torch.stack((gradient * z, gradient * gradient, slope * slope, ones * z, along * gradient), 1)
    rz, gg, ss, excess, overlap = segment_sum(rows, ptr, system).unbind(1)
    if constrained:
        excess = excess / fixed.weight
        z = z - excess[system] * along
        rz = rz - excess * overlap
    residual = gg.sqrt() / fixed.scale
    rounded = gg.sqrt() <= fixed.rounding * (fixed.size + ss.sqrt())
    converged = (residual <= fixed.tolerance) | (rounded & (residual <= fixed.excused))
    residual = torch.where(moving, residual, old.residual)
    rounded = torch.where(moving, rounded, old.rounded > 0)
    converged = torch.where(moving, converged, old.converged > 0)
    better = residual < old.best
    since = torch.where(better, 0.0, old.since + 1)
    best = torch.where(better, residual, old.best)
    # accept rounding where the residual no longer improves
    stuck = (since > fixed.patience) & ((best < STUCK_BELOW) | rounded)
    passed = (residual <= fixed.tolerance) | (stuck & converged)
    goes_on = here.status == ITERATIONS
    status = torch.where(goes_on & passed, CONVERGED, here.status)
    status = torch.where(goes_on & ~torch.isfinite(residual), NOT_FINITE, status)
    status = torch.where((status == ITERATIONS) & stuck, STAGNATED, status)
    some = old.rz != 0
    beta = torch.where(moving & some, rz / torch.where(some, old.rz, 1.0), 0.0)
    turned = torch.where(moving[system], beta[system] * direction - z, direction)
    now = Progress(
        torch.where(moving, rz, old.rz),
        residual,
        converged.double(),
        rounded.double(),
        best,
        since,
        status,
        old.iterations + here.moving,
    )
    return turned, torch.stack(now)
