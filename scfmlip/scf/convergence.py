"""
When a solve has converged: one definition for every solver.

A system has converged where the norm of what its equations leave is at most ``tolerance * scale``. The scale
is the problem's, not that of the way to its solution: a wild first guess, or a state or a potential that runs
away, must not make it larger. Fixed points: see `Criterion`; energies: the gradient at evenly spread charges.

Rounding excuses a residual of up to ``ROUNDING`` times the state's own norm, which no state of this size can
be told from a solution by, but none above ``EXCUSED * scale``: what has to grow until rounding hides the
residual solves nothing. A potential excuses as much as its size, but next to nothing beside the scale,
``EXCUSED_BY_POTENTIAL``: where charges do not answer it, it grows to any size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..segments import Segments
from .solution import Status

# relative error of an evaluation of the equations
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-14}
# what it may leave of a residual, relative to the scale
EXCUSED = {torch.float32: 1e-3, torch.float64: 1e-9}
EXCUSED_BY_POTENTIAL = {torch.float32: 1e-5, torch.float64: 1e-12}
# a state below this, root mean square, e, counts as this large
SMALLEST = 1e-3
# residuals above this, e likewise, pass only where the update of no state at all is a scale for them
BELIEVED = 1e-4


class Verdict(NamedTuple):
    """
    What is left of every system's equations.

    Attributes:
        norm: ``[n_systems]`` float64.
        residual: ``[n_systems]`` float64, relative to the scale.
        converged: ``[n_systems]`` bool.
        rounded: ``[n_systems]`` bool: rounding hides the rest, converged or not.
    """

    norm: Tensor
    residual: Tensor
    converged: Tensor
    rounded: Tensor


def judged(norm: Tensor, scale: Tensor, size: Tensor, tolerance: float, dtype: torch.dtype) -> Verdict:
    """
    What a residual is worth.

    Args:
        norm: ``[n_systems]`` of what the equations leave.
        scale: ``[n_systems]`` of the problem.
        size: ``[n_systems]`` norm of what it is the small rest of, in the same unit.
        tolerance: Relative to the scale.
        dtype: In which the equations are evaluated.
    """
    residual = norm / scale
    rounded = norm <= ROUNDING[dtype] * size
    return Verdict(
        norm, residual, (residual <= tolerance) | (rounded & (residual <= EXCUSED[dtype])), rounded
    )


@dataclass(frozen=True)
class Criterion:
    """
    When a fixed point is found: r is what ``F(s) - s`` and the totals leave, the scale ``|F(s)|``, no more
    than the problem's own. Totals have to be right to rounding whatever the tolerance.

    Attributes:
        batch: The systems.
        tolerance: Relative.
        dtype: In which the map is evaluated.
        own: ``[n_systems]`` the problem's own scale, of `make_criterion`.
        unit: ``[n_systems]`` norm of a state of ones.
        state: ``[n]`` 1 where an unknown belongs to the state and 0 where it is a potential; None for the
            state alone.
    """

    batch: Segments
    tolerance: float
    dtype: torch.dtype
    own: Tensor
    unit: Tensor
    state: Tensor | None

    @property
    def rounding(self) -> float:
        """Relative error of an evaluation."""
        return ROUNDING[self.dtype]

    def size(self, x: Tensor) -> Tensor:
        """``[n_systems]`` norm of the state in x."""
        return self.batch.norm(x if self.state is None else self.state * x)

    def judge(self, x: Tensor, rest: Tensor) -> Verdict:
        """Of ``rest = F(x) - x [n]`` at ``x [n]``."""
        # in one sum: over several processes each costs time
        if self.state is None:
            norm, size, image = self.batch.norm(torch.stack((rest, x, x + rest)))
            whole = missing = norm
        else:
            s = self.state
            norm, size, image, whole, missing = self.batch.norm(
                torch.stack((rest, s * x, s * (x + rest), x, (1 - s) * rest))
            )
        scale = torch.minimum(self.own, torch.maximum(image, self.unit))
        verdict = judged(norm, scale, size, self.tolerance, self.dtype)
        if self.state is None:
            return verdict
        far = norm <= self.rounding * whole
        converged = verdict.converged | (far & (verdict.residual <= EXCUSED_BY_POTENTIAL[self.dtype]))
        # totals are right to the rounding of their sum
        right = missing <= self.rounding * self.unit * (size + SMALLEST)
        return verdict._replace(converged=converged & right)


def make_criterion(
    batch: Segments,
    tolerance: float,
    dtype: torch.dtype,
    state: Tensor | None,
    first: Tensor,
    nothing: Callable[[], Tensor],
    evenly: Tensor | None,
) -> Criterion:
    """
    The criterion of a problem.

    Args:
        batch: As `Criterion`.
        tolerance: As that.
        dtype: As that.
        state: As that.
        first: ``[n]`` F at the first guess, and what the totals lack there.
        nothing: F of no state and no potential, ``[n]``: asked for where the first guess is not believed.
        evenly: ``[n]`` the totals spread evenly, than which no solution is smaller; None without totals.
    """
    ones = torch.ones_like(first) if state is None else state
    unit = batch.norm(ones).clamp(min=1.0)
    criterion = Criterion(batch, tolerance, dtype, unit, unit, state)
    own = batch.norm(first)
    large = tolerance * own > BELIEVED * unit
    if bool(large.any()):
        known = torch.nan_to_num(criterion.size(nothing()), nan=torch.inf)
        own = torch.where(large, torch.minimum(own, torch.maximum(known, unit)), own)
    if evenly is not None:
        own = torch.maximum(own, batch.norm(evenly))
    return replace(criterion, own=torch.maximum(own, SMALLEST * unit))


def ended(status: Tensor, verdict: Verdict) -> Tensor:
    """``status`` with systems that converged, met NaN, or end at the rounding of their dtype."""
    open_ = status == Status.ITERATIONS
    status = torch.where(open_ & verdict.converged, int(Status.CONVERGED), status)
    return torch.where(open_ & ~torch.isfinite(verdict.residual), int(Status.NOT_FINITE), status)


def given_up(status: Tensor, verdict: Verdict) -> Tensor:
    """``status`` of systems that need no more than another dtype."""
    lost = (status == Status.ITERATIONS) & verdict.rounded
    return torch.where(lost, int(Status.STAGNATED), status)
