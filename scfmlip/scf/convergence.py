"""
The convergence criterion: one definition for every solver.

A system has converged if the norm of its residual is at most ``tolerance * scale``. The scale belongs to the
problem, not to the path to its solution: a wild first guess, or a state or potential that diverges, must not
enlarge it. For fixed points see `Criterion`; for energies it is the gradient at evenly spread charges.

A residual of up to ``ROUNDING`` times the norm of the state is accepted as rounding, because no state of this
size can be distinguished from a solution by it. The limit is ``EXCUSED * scale``: a state that has to grow
until rounding hides its residual is not a solution. For a potential the rounding is proportional to its size,
and the limit is much lower, ``EXCUSED_BY_POTENTIAL``: if charges do not respond to a potential, it grows
without bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..decisions import needed
from ..segments import Segments
from .solution import Status

# relative error of one evaluation of the equations
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-14}
# largest residual accepted as rounding, relative to the scale
EXCUSED = {torch.float32: 1e-3, torch.float64: 1e-9}
EXCUSED_BY_POTENTIAL = {torch.float32: 1e-5, torch.float64: 1e-12}
# a state with a smaller root mean square, e, counts as this large
SMALLEST = 1e-3
# larger residuals (root mean square, e) pass only relative to the update of a zero state
BELIEVED = 1e-4


class Verdict(NamedTuple):
    """
    The residual of every system's equations, and whether it has converged.

    Attributes:
        norm: ``[n_systems]`` float64 norm of the residual.
        residual: ``[n_systems]`` float64, relative to the scale.
        converged: ``[n_systems]`` bool.
        rounded: ``[n_systems]`` bool: the residual is at the level of rounding, converged or not.
    """

    norm: Tensor
    residual: Tensor
    converged: Tensor
    rounded: Tensor


def judged(norm: Tensor, scale: Tensor, size: Tensor, tolerance: float, dtype: torch.dtype) -> Verdict:
    """
    Judge a residual.

    Args:
        norm: ``[n_systems]`` norm of the residual.
        scale: ``[n_systems]`` scale of the problem.
        size: ``[n_systems]`` norm of the terms that cancel to the residual, in the same unit.
        tolerance: Tolerance relative to the scale.
        dtype: dtype in which the equations are evaluated.
    """
    residual = norm / scale
    rounded = norm <= ROUNDING[dtype] * size
    return Verdict(
        norm, residual, (residual <= tolerance) | (rounded & (residual <= EXCUSED[dtype])), rounded
    )


@dataclass(frozen=True)
class Criterion:
    """
    The convergence criterion of a fixed point. The residual r consists of ``F(s) - s`` and the error of the
    totals; the scale is ``|F(s)|``, but at most the problem's own. Totals must be right to rounding at any
    tolerance.

    Attributes:
        batch: The systems.
        tolerance: Relative tolerance.
        dtype: dtype in which the map is evaluated.
        own: ``[n_systems]`` the problem's own scale, from `make_criterion`.
        unit: ``[n_systems]`` norm of a state of ones.
        state: ``[n]`` 1 for unknowns of the state, 0 for potentials; None if all are of the state.
    """

    batch: Segments
    tolerance: float
    dtype: torch.dtype
    own: Tensor
    unit: Tensor
    state: Tensor | None

    @property
    def rounding(self) -> float:
        """Relative error of one evaluation."""
        return ROUNDING[self.dtype]

    def size(self, x: Tensor) -> Tensor:
        """``[n_systems]`` norm of the state in x."""
        return self.batch.norm(x if self.state is None else self.state * x)

    def judge(self, x: Tensor, rest: Tensor) -> Verdict:
        """Judge the residual ``rest = F(x) - x [n]`` at ``x [n]``."""
        # one sum, because each costs time over several processes
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
        # totals must be right to the rounding of their sum
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
    Make the criterion of a problem.

    Args:
        batch: The systems.
        tolerance: Relative tolerance.
        dtype: dtype in which the map is evaluated.
        state: See `Criterion`.
        first: ``[n]`` F at the first guess, and the error of the totals there.
        nothing: Returns F of a zero state at zero potential, ``[n]``; called if the first guess gives no
            trustworthy scale.
        evenly: ``[n]`` the totals spread evenly, a lower bound of any solution's norm; None without totals.
    """
    ones = torch.ones_like(first) if state is None else state
    # one sum, because each costs time over several processes
    norms = batch.norm(torch.stack((ones, first) if evenly is None else (ones, first, evenly)))
    unit, own = norms[0].clamp(min=1.0), norms[1]
    criterion = Criterion(batch, tolerance, dtype, unit, unit, state)
    large = tolerance * own > BELIEVED * unit
    if needed(large.any()):
        known = torch.nan_to_num(criterion.size(nothing()), nan=torch.inf)
        own = torch.where(large, torch.minimum(own, torch.maximum(known, unit)), own)
    if evenly is not None:
        own = torch.maximum(own, norms[2])
    return replace(criterion, own=torch.maximum(own, SMALLEST * unit))


def strange(values: Tensor) -> Tensor:
    """Where values are NaN or infinite: in two launches, `torch.isfinite` takes four."""
    return (values - values) != 0


def ended(status: Tensor, verdict: Verdict) -> Tensor:
    """``status``, updated for systems that converged, met NaN, or stopped at the rounding of their dtype."""
    open_ = status == Status.ITERATIONS
    status = torch.where(open_ & verdict.converged, int(Status.CONVERGED), status)
    return torch.where(open_ & strange(verdict.residual), int(Status.NOT_FINITE), status)


def given_up(status: Tensor, verdict: Verdict) -> Tensor:
    """``status``, updated for systems that only another dtype could improve."""
    lost = (status == Status.ITERATIONS) & verdict.rounded
    return torch.where(lost, int(Status.STAGNATED), status)
