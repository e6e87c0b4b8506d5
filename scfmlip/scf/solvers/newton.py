"""Newton's method for a ragged batch of systems, and a search for its starting potentials."""

from __future__ import annotations

import torch
from torch import Tensor

from ...decisions import each_needed, needed
from ...segments import Segments
from ..convergence import Criterion, ended, given_up
from ..solution import Status
from .gmres import KrylovInverse, Map, RootResult, gmres


def _differences(function: Map, batch: Segments, x: Tensor, value: Tensor, affine: bool, step: float) -> Map:
    """Products of the function's derivative at x, where it is ``value``, with vectors."""
    here, there = batch.norm(torch.stack((x, value)))

    def derivative(v: Tensor) -> Tensor:
        length = batch.norm(v)
        if affine:
            # difference steps as large as the state, so that rounding is small relative to them
            size = here + there
            size = batch.expand(torch.where((length > 0) & (size > 0), size / length, 1.0))
            return (function(x + size * v) - value) / size
        size = batch.expand(step * (1 + here) / torch.where(length > 0, length, 1.0))
        return (function(x + size * v) - value) / size

    return derivative


def newton(
    function: Map,
    start: Tensor,
    criterion: Criterion,
    max_iterations: int,
    krylov: int,
    affine: bool,
    step: float = 3e-8,
    value: Tensor | None = None,
    image: Tensor | None = None,
    inverse: KrylovInverse | None = None,
    feasible: Map | None = None,
) -> RootResult:
    """
    Root of ``function`` by Newton's method; GMRES on finite differences solves each step.

    The Krylov space of the first step preconditions later ones until a step makes little progress:
    differences carry rounding, which a product of many such inverses amplifies. The accuracy of each step
    follows the progress of the last one (Eisenstat and Walker, SIAM J. Sci. Comput. 17, 16, choice 2), and
    does not exceed what the root needs.

    Args:
        function: ``[n]`` -> ``[n]``.
        start: ``[n]`` float64.
        criterion: The convergence criterion.
        max_iterations: Most Newton steps.
        krylov: Largest Krylov space of a step.
        affine: Whether the function is affine: differences are then exact, and one step is enough.
        step: Step of finite differences otherwise, relative to the state.
        value: The function at the start, f, if it is known.
        image: Change of the function from the start to ``start + f``: for an affine function, its derivative
            along f.
        inverse: Approximate inverse of the derivative.
        feasible: ``[n]`` -> ``[n]``: projection that every step must satisfy whatever the tolerance.
    """
    batch, tolerance = criterion.batch, criterion.tolerance
    x = start
    value, evaluations = (function(x), 1) if value is None else (value, 0)
    verdict = criterion.judge(x, value)
    iterations = torch.zeros_like(verdict.norm, dtype=torch.int64)
    status = torch.full_like(iterations, int(Status.ITERATIONS))
    last, newest = None, inverse
    status = ended(status, verdict)
    going = needed((status == Status.ITERATIONS).any())
    for _ in range(max_iterations):
        if not going:
            break
        active = status == Status.ITERATIONS
        moving = batch.expand(active)

        derivative = _differences(function, batch, x, value, affine, step)
        right = torch.where(moving, -value, 0.0)
        seen, image = None if image is None else torch.where(moving, -image, 0.0), None
        norm = verdict.norm
        if affine:
            forcing = (0.3 * tolerance / verdict.residual).clamp(max=0.1)
        else:
            progress = torch.ones_like(norm) if last is None else norm / last
            forcing = torch.maximum(0.9 * progress**2, 0.5 * tolerance / verdict.residual).clamp(max=0.1)
        inner = gmres(derivative, right, batch, forcing, krylov, seen, criterion.rounding, inverse)
        if last is None and inverse is None:
            inverse = inner.inverse
        newest, last = inner.inverse, norm
        evaluations += inner.evaluations
        iterations = iterations + torch.where(active, inner.iterations, 0)
        length = torch.ones_like(norm)
        trial, fresh, after, stuck = x, value, status, False
        for _ in range(6):
            trial = x + batch.expand(length) * inner.x
            trial = torch.where(moving, trial if feasible is None else feasible(trial), x)
            fresh = function(trial)
            evaluations += 1
            verdict = criterion.judge(trial, fresh)
            open_ = active & ~verdict.converged
            short = open_ & ~(verdict.norm <= (1 - 1e-4 * length) * norm)
            after = ended(status, verdict)
            slow = open_ & ~(verdict.norm < 0.5 * norm)
            # all that the host has to know of this step, at once
            longer, going, stuck = each_needed(short.any(), (after == Status.ITERATIONS).any(), slow.any())
            if affine or not longer:
                break
            length = torch.where(short, 0.5 * length, length)
        x, value, status = trial, fresh, after
        if stuck:
            inverse = None
    status = given_up(status, verdict)
    return RootResult(x, verdict.residual, iterations, status, evaluations, newest)


def bracket_potential(missing: Map, start: Tensor) -> tuple[Tensor, int]:
    """
    First guesses of chemical potentials at which charges respond.

    If Newton's step is longer than 1 V and leaves more than half of the charge missing, the response tells
    nothing, not even by its sign: it is saturated, or positive and negative parts cancel. Then search both
    sides at growing distances, up to 64 V, for a sign change of the missing charge, and bisect that interval.
    If the step is short, the start is kept.

    Args:
        missing: ``[n]`` V -> ``[n]`` e, the missing charge at each potential.
        start: ``[n]`` V float64.

    Returns:
        The guess, and the number of evaluations of ``missing``.
    """
    here = missing(start)
    response = (missing(start + 0.05) - here) / 0.05
    evaluations = 2
    searching = here.abs() > response.abs()
    if not needed(searching.any()):
        return start, evaluations
    far = start - torch.nan_to_num(here / response).clamp(-64, 64)
    left = missing(torch.where(searching, far, start))
    evaluations += 1
    hit = searching & (left.abs() < 0.5 * here.abs())
    start, searching = torch.where(hit, far, start), searching & ~hit
    if not needed(searching.any()):
        return start, evaluations
    found = ~searching
    low = high = start
    last = {1: (start, here), -1: (start, here)}
    value_low = here
    distance = 1.0
    while distance <= 64 and needed(~found.all()):
        for sign in (1, -1):
            x = start + sign * distance
            value = missing(x)
            evaluations += 1
            before, value_before = last[sign]
            crossing = ~found & torch.isfinite(value) & (value.sign() != value_before.sign())
            low, high = torch.where(crossing, before, low), torch.where(crossing, x, high)
            value_low = torch.where(crossing, value_before, value_low)
            found = found | crossing
            last[sign] = (x, value)
        distance *= 2
    for _ in range(6):
        if not needed((searching & found & ((high - low).abs() > 0.5)).any()):
            break
        middle = 0.5 * (low + high)
        value = missing(middle)
        evaluations += 1
        below = value.sign() == value_low.sign()
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(searching & found, 0.5 * (low + high), start), evaluations
