"""
Projected, preconditioned conjugate gradients for a ragged batch of systems.

The projector enforces the constraint, so the system stays positive definite (Gould, Hribar and Nocedal, SIAM
J. Sci. Comput. 23, 1376 (2001)). All systems share one application of the operator per iteration and stop one
by one. Vectors and dot products are float64, whatever the dtype of the operator: in float32 the recursion
would drift off the constraint and diverge once it stagnates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...decisions import needed
from ..convergence import EXCUSED, ROUNDING, Verdict, judged
from ..quadratic import QuadraticProblem
from .gmres import Map
from .looks import Looks
from .recursion import ConjugateDirections, GivenSum
from .steps import PATIENCE, LaunchedSteps, Limits, PlainSteps

# smaller relative residuals are rounding
FLOOR = {torch.float32: 2e-6, torch.float64: 1e-14}


class LinearResult(NamedTuple):
    """
    The result of solving one linear system per system of the batch.

    Attributes:
        state: ``[n_atoms, dim]`` float64.
        multiplier: ``[n_groups]`` float64, chemical potential.
        iterations, status: ``[n_systems]`` int64.
        residual: ``[n_systems]`` float64, relative.
        gradient: ``[n_atoms, dim]`` float64 gradient of the functional at ``state``, without multipliers.
        directions: ``[k, n_atoms dim]`` float64 first directions, scaled to a curvature of 1, and their
            projected images; None if they were not asked for, or there was none.
    """

    state: Tensor
    multiplier: Tensor
    iterations: Tensor
    residual: Tensor
    status: Tensor
    gradient: Tensor
    directions: tuple[Tensor, Tensor] | None = None


def conjugate_gradients(
    problem: QuadraticProblem,
    apply: Callable[[Tensor], Tensor],
    source: Tensor,
    totals: Tensor,
    initial: Tensor | None,
    precondition: Callable[[Tensor], Tensor],
    tolerance: float,
    max_iterations: int,
    dtype: torch.dtype,
    choose: bool = True,
    keep: int = 0,
) -> LinearResult:
    """
    Minimise ``source.s + 1/2 s.A s`` at given totals.

    Residuals are relative to the projected source, or to the gradient at evenly spread charges if that is
    known and larger, see `scale_of`.

    Args:
        problem: Sizes and constraint.
        apply: A, applied to ``[n_atoms, dim]`` float64.
        source: ``[n_atoms, dim]`` float64.
        totals: ``[n_groups]`` float64.
        initial: First guess ``[n_atoms, dim]``, made feasible; zeros if None.
        precondition: A symmetric positive approximation of A's inverse.
        tolerance: Largest norm of the projected gradient, relative to that of the projected source.
        max_iterations: Most iterations of one system.
        dtype: dtype in which ``apply`` computes; it sets the smallest tolerance.
        choose: Start from evenly spread charges if the first guess is worse: its rounding would remain.
        keep: How many directions to keep for a `ConjugateInverse`.
    """
    tolerance = max(tolerance, FLOOR[dtype])

    shape = source.shape

    def flat(function: Callable[[Tensor], Tensor]) -> Map:
        return lambda v: function(v.view(shape)).flatten()

    def judge(walk: ConjugateDirections) -> Verdict:
        norm, size = walk.norms
        return judged(norm, scale, whole + size, tolerance, dtype)

    state, slope, scale = _start(problem, apply, source, totals, initial, choose, ROUNDING[dtype])
    batch, whole = problem.segments.repeated(shape[1]), norm_of(problem, source)
    given = given_sum(problem, precondition, source)
    step_back, project = precondition, None
    if given is None and problem.constrained:  # fragments
        step_back, project = preconditioned_projector(problem, precondition, source), flat(problem.project)
    walk = ConjugateDirections(
        batch, flat(apply), flat(step_back), state.flatten(), slope.flatten(), project, given, keep
    )
    steps, looks = PlainSteps(walk, judge, tolerance), Looks()
    if LaunchedSteps.fit(walk):
        limits = Limits(scale, whole, tolerance, ROUNDING[dtype], EXCUSED[dtype], PATIENCE)
        steps = LaunchedSteps(walk, steps.progress.verdict, steps.progress.status, limits)
    for step in range(max_iterations):
        if looks.ended(step, steps.active, steps.residual, tolerance):
            break
        steps.take()
    progress = steps.finished()
    slope = walk.slope.view(shape)
    return LinearResult(
        problem.feasible(walk.x.view(shape), totals),
        chemical_potential(problem, slope),
        progress.iterations,
        progress.verdict.residual,
        progress.given_up(),
        slope,
        walk.kept,
    )


def norm_of(problem: QuadraticProblem, values: Tensor) -> Tensor:
    """``[n_atoms, dim]`` -> ``[n_systems]``."""
    return problem.segments.sum((values * values).sum(1)).sqrt()


def _start(
    problem: QuadraticProblem,
    apply: Callable[[Tensor], Tensor],
    source: Tensor,
    totals: Tensor,
    initial: Tensor | None,
    choose: bool,
    rounding: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The first state that satisfies the totals, the gradient there, and the scale (`scale_of`)."""
    evenly = problem.feasible(torch.zeros_like(source), totals)
    state = evenly if initial is None else problem.feasible(initial.double(), totals)
    slope = source + apply(state)
    norm, own = norm_of(problem, problem.project(slope)), norm_of(problem, problem.project(source))
    even = norm_of(problem, state - evenly) == 0
    if choose and initial is not None:
        # without totals, the gradient at zero charges is the source itself
        bad = ~even & ~(norm <= 10 * own)
        if needed(bad.any()):
            state = torch.where(problem.segments.expand(bad.double())[:, None] > 0, evenly, state)
            slope = source + apply(state)
            norm, even = norm_of(problem, problem.project(slope)), even | bad
    return state, slope, scale_of(own, norm_of(problem, source), torch.where(even, norm, 0.0), rounding)


def scale_of(own: Tensor, whole: Tensor, even: Tensor, rounding: float) -> Tensor:
    """
    ``[n_systems]`` scale of the projected gradient of a quadratic functional.

    Args:
        own: ``[n_systems]`` norm of the projected source.
        whole: ``[n_systems]`` norm of the source; compared with it, the projected source may be rounding.
        even: ``[n_systems]`` norm of the projected gradient at evenly spread charges, 0 if it is unknown.
        rounding: Relative rounding.
    """
    scale = torch.maximum(torch.where(own > rounding * whole, own, 0.0), even)
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def chemical_potential(problem: QuadraticProblem, gradient: Tensor) -> Tensor:
    """The multiplier: mean over each group of the energy's derivative in a charge, ``[n_groups]``."""
    atoms = problem.groups.segments
    return atoms.sum(gradient[:, 0]) / atoms.counts


def given_sum(
    problem: QuadraticProblem, precondition: Callable[[Tensor], Tensor], like: Tensor
) -> GivenSum | None:
    """The constraint on whole systems' charges; None without one, and for fragments."""
    groups = problem.groups
    if not (problem.constrained and groups.whole):
        return None
    ones = torch.zeros_like(like)
    ones[:, 0] = 1
    along = precondition(ones)
    count, weight = groups.segments.sum(torch.stack((ones[:, 0], along[:, 0]), 1)).unbind(1)
    return GivenSum(ones.flatten(), count.clamp(min=1), along.flatten(), weight)


def preconditioned_projector(
    problem: QuadraticProblem, precondition: Callable[[Tensor], Tensor], like: Tensor
) -> Callable[[Tensor], Tensor]:
    """The constrained problem's preconditioner: ``M r`` minus the multiple of ``M 1`` that adds charge."""
    if not problem.constrained:
        return precondition
    groups = problem.groups
    if not groups.whole:  # the preconditioner couples fragments: project on both sides
        return lambda gradient: problem.project(precondition(problem.project(gradient)))
    ones = torch.zeros_like(like)
    ones[:, 0] = 1
    along = precondition(ones)
    weight = groups.segments.sum(along[:, 0])

    def apply(gradient: Tensor) -> Tensor:
        z = precondition(gradient)
        excess = groups.segments.sum(z[:, 0]) / weight
        return z - groups.segments.expand(excess)[:, None] * along

    return apply
