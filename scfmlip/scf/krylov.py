"""
Solvers of ragged batches of nonlinear and linear equations, one system beside another.

Unknowns are one vector; `Batch` knows which system each number belongs to. Every dot product is one number
per system, in float64, so that systems converge, stop and fail by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scfmlip_kernels import segment_sum

from .solution import Status

Map = Callable[[Tensor], Tensor]


class Batch:
    """
    Which system each unknown belongs to.

    Args:
        index: ``[n]`` int64 system of each unknown.
        n_systems: How many.
    """

    def __init__(self, index: Tensor, n_systems: int) -> None:
        self.index, self.n_systems = index, n_systems
        self.order = torch.argsort(index, stable=True)
        self.sorted = index[self.order]
        counts = torch.bincount(index, minlength=n_systems)
        self.ptr = torch.cat((counts.new_zeros(1), counts.cumsum(0)))

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """``[..., n]`` and ``[..., n]`` -> ``[..., n_systems]`` float64."""
        product = (a * b)[..., self.order].double()
        if product.ndim == 1:
            return segment_sum(product, self.ptr, self.sorted)
        return segment_sum(product.T.contiguous(), self.ptr, self.sorted).T

    def norm(self, a: Tensor) -> Tensor:
        """``[n]`` -> ``[n_systems]``."""
        return self.dot(a, a).sqrt()

    def expand(self, values: Tensor) -> Tensor:
        """``[..., n_systems]`` -> ``[..., n]``."""
        return values[..., self.index]


class RootResult(NamedTuple):
    """
    A root of every system's equations.

    Attributes:
        x: ``[n]`` float64.
        residual: ``[n_systems]`` norm of the equations, relative.
        iterations, status: ``[n_systems]`` int64.
        evaluations: Of the function, for the whole batch.
    """

    x: Tensor
    residual: Tensor
    iterations: Tensor
    status: Tensor
    evaluations: int


def gmres(
    apply: Map,
    right: Tensor,
    batch: Batch,
    tolerance: float,
    max_iterations: int,
    image: Tensor | None = None,
    rounding: float = 1e-14,
) -> RootResult:
    """
    ``A x = right`` for any matrix, without restarts (Saad and Schultz, SIAM J. Sci. Stat. Comput. 7, 856).

    Args:
        apply: A, ``[n]`` -> ``[n]``.
        right: ``[n]`` float64.
        batch: The systems.
        tolerance: Of the residual relative to the norm of ``right``.
        max_iterations: Largest Krylov space.
        image: ``A right`` where it is known.
        rounding: Relative error of ``apply``: a Krylov space to which it adds less is closed.
    """
    scale = batch.norm(right)
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    basis = [right / batch.expand(safe)]
    rows: list[Tensor] = []
    residual = torch.where(scale > 0, torch.ones_like(scale), torch.zeros_like(scale))
    iterations = torch.zeros_like(scale, dtype=torch.int64)
    open_ = torch.ones_like(scale, dtype=torch.bool)
    weights = torch.zeros((batch.n_systems, 0), dtype=torch.float64, device=right.device)
    step = 0
    for step in range(1, max_iterations + 1):
        active = (residual > tolerance) & open_
        if not bool(active.any()):
            step -= 1
            break
        iterations = iterations + active
        known = step == 1 and image is not None
        w = image / batch.expand(safe) if known and image is not None else apply(basis[-1])
        stack, size = torch.stack(basis), batch.norm(w)
        column = torch.zeros((batch.n_systems, step + 1), dtype=torch.float64, device=right.device)
        for _ in range(2):  # twice: once loses orthogonality
            overlap = batch.dot(stack, w.expand_as(stack))
            w = w - (batch.expand(overlap) * stack).sum(0)
            column[:, :step] += overlap.T
        length = batch.norm(w)
        column[:, step] = length
        fresh = length > rounding * size
        open_ = open_ & fresh
        basis.append(torch.where(batch.expand(fresh), w / batch.expand(torch.where(fresh, length, 1.0)), 0.0))
        rows.append(column)
        hessenberg = torch.zeros((batch.n_systems, step + 1, step), dtype=torch.float64, device=right.device)
        for j, values in enumerate(rows):
            hessenberg[:, : values.shape[1], j] = values
        first = torch.zeros((batch.n_systems, step + 1, 1), dtype=torch.float64, device=right.device)
        first[:, 0, 0] = torch.where(scale > 0, 1.0, 0.0)
        if not bool(torch.isfinite(hessenberg).all()):
            bad = ~torch.isfinite(hessenberg).flatten(1).all(1)
            status = torch.where(bad, int(Status.NOT_FINITE), int(Status.ITERATIONS))
            return RootResult(torch.zeros_like(right), residual, iterations, status, step)
        weights = (torch.linalg.pinv(hessenberg, rtol=1e-13) @ first)[..., 0]
        residual = (first - hessenberg @ weights[..., None]).flatten(1).norm(dim=1)
    x = torch.zeros_like(right)
    for j in range(weights.shape[1]):
        x = x + batch.expand(weights[:, j] * scale) * basis[j]
    status = torch.where(residual <= tolerance, int(Status.CONVERGED), int(Status.ITERATIONS))
    return RootResult(x, residual, iterations, status, step - (image is not None and step > 0))


def anderson(
    update: Map,
    start: Tensor,
    batch: Batch,
    scale: Tensor,
    tolerance: float,
    max_iterations: int,
    mixing: float,
    history: int,
    known: tuple[Tensor, Tensor] | None = None,
) -> RootResult:
    """
    Fixed point of ``update`` by Anderson mixing (J. ACM 12, 547 (1965)), safeguarded.

    A step that makes a system's residual more than twice its smallest so far goes back to the best state and
    forgets that system's history.

    Args:
        update: ``[n]`` -> ``[n]``.
        start: ``[n]`` float64.
        batch: The systems.
        scale: ``[n_systems]`` what residuals are relative to.
        tolerance: Of the residual.
        max_iterations: Evaluations.
        mixing: Share of the residual that is added to the extrapolated state.
        history: Steps that are remembered.
        known: ``f = update(x) - x`` at the start, and what f becomes at ``start + f``, less that.
    """
    x, best_x = start, start
    states: list[Tensor] = []
    changes: list[Tensor] = []
    old_x = old_f = None
    best = torch.full_like(scale, torch.inf)
    status = torch.full_like(scale, int(Status.ITERATIONS), dtype=torch.int64)
    iterations = torch.zeros_like(status)
    residual = best
    evaluations = 0
    if known is not None:
        states, changes = [known[0]], [known[1]]
    for step_number in range(max_iterations):
        if known is not None and step_number == 0:
            f = known[0]
        else:
            f = update(x) - x
            evaluations += 1
        active = status == Status.ITERATIONS
        iterations = iterations + active
        residual = torch.where(active, batch.norm(f) / scale, residual)
        finite = torch.isfinite(residual)
        status = torch.where(active & finite & (residual <= tolerance), int(Status.CONVERGED), status)
        worse = active & (~finite | (residual > 2 * best)) & torch.isfinite(best)
        status = torch.where(active & ~finite & ~torch.isfinite(best), int(Status.NOT_FINITE), status)
        better = active & finite & (residual < best)
        best_x = torch.where(batch.expand(better), x, best_x)
        best = torch.where(better, residual, best)
        active = status == Status.ITERATIONS
        if not bool(active.any()):
            break
        moving = batch.expand(active)
        if old_x is not None and old_f is not None:
            states.append(torch.nan_to_num(x - old_x))
            changes.append(torch.nan_to_num(f - old_f))
            states, changes = states[-history:], changes[-history:]
        if bool(worse.any()):
            forget = batch.expand(worse)
            states = [torch.where(forget, 0.0, s) for s in states]
            changes = [torch.where(forget, 0.0, c) for c in changes]
        step = mixing * torch.nan_to_num(f)
        if states:
            df, dx = torch.stack(changes), torch.stack(states)
            gram = torch.stack([batch.dot(df, c.expand_as(df)) for c in changes], -1).movedim(1, 0)
            size = gram.diagonal(dim1=1, dim2=2).amax(1)
            ridge = 1e-14 * size + torch.where(size > 0, 0.0, 1.0)
            eye = torch.eye(len(changes), dtype=torch.float64, device=x.device)
            right = batch.dot(df, torch.nan_to_num(f).expand_as(df)).T
            gamma = torch.linalg.solve(gram + ridge[:, None, None] * eye, right[..., None])[..., 0]
            spread = batch.expand(gamma.T)
            step = step - (spread * (dx + mixing * df)).sum(0)
        old_x, old_f = x, f
        # back to the best state, with a small step, where things got worse
        x = torch.where(moving, torch.where(batch.expand(worse), best_x + 0.1 * (best_x - x), x + step), x)
        if bool(worse.any()):
            x = torch.where(batch.expand(worse), best_x, x)
            old_f = torch.where(batch.expand(worse), 0.0, f)
            old_x = torch.where(batch.expand(worse), best_x, old_x)
    done = status == Status.CONVERGED
    x = torch.where(batch.expand(done), x, best_x)
    residual = torch.where(done, residual, torch.where(torch.isfinite(best), best, residual))
    return RootResult(x, residual, iterations, status, evaluations)


def newton(
    function: Map,
    start: Tensor,
    batch: Batch,
    scale: Tensor,
    tolerance: float,
    max_iterations: int,
    krylov: int,
    affine: bool,
    step: float = 3e-8,
    rounding: float = 1e-14,
    known: tuple[Tensor, Tensor] | None = None,
) -> RootResult:
    """
    Root of ``function`` by Newton's method, each step solved by GMRES from differences of the function.

    Args:
        function: ``[n]`` -> ``[n]``.
        start: ``[n]`` float64.
        batch: The systems.
        scale: ``[n_systems]`` what residuals are relative to.
        tolerance: Of the residual.
        max_iterations: Newton steps.
        krylov: Largest Krylov space of a step.
        affine: The function is: differences are exact, and one step is enough.
        step: Of differences otherwise, relative to the state.
        rounding: Relative error of the function.
        known: The function at the start, f, and what it becomes at ``start + f``, less that: an affine
            function's derivative along f.
    """
    x = start
    value, evaluations = (function(x), 1) if known is None else (known[0], 0)
    residual = batch.norm(value) / scale
    iterations = torch.zeros_like(residual, dtype=torch.int64)
    status = torch.full_like(iterations, int(Status.ITERATIONS))

    def done(x: Tensor, residual: Tensor) -> Tensor:
        # or as near as a state this large can be told from a root
        return (residual <= tolerance) | (residual * scale <= rounding * batch.norm(x))

    for _ in range(max_iterations):
        status = torch.where((status == Status.ITERATIONS) & done(x, residual), int(Status.CONVERGED), status)
        status = torch.where(torch.isfinite(residual), status, int(Status.NOT_FINITE))
        active = status == Status.ITERATIONS
        if not bool(active.any()):
            break
        moving = batch.expand(active)

        def derivative(v: Tensor, x: Tensor = x, value: Tensor = value) -> Tensor:
            length = batch.norm(v)
            if affine:
                # steps as large as what they are added to, so that rounding is small beside them
                size = batch.norm(x) + batch.norm(value)
                size = batch.expand(torch.where((length > 0) & (size > 0), size / length, 1.0))
                return (function(x + size * v) - value) / size
            size = batch.expand(step * (1 + batch.norm(x)) / torch.where(length > 0, length, 1.0))
            return (function(x + size * v) - value) / size

        right = torch.where(moving, -value, 0.0)
        # far from the root a rough step does
        forcing = 1e-2 if bool((residual[active] > 1e-2).any()) else 1e-3
        image = None
        if affine and known is not None:
            image, known = torch.where(moving, -known[1], 0.0), None
        forcing = 0.3 * tolerance if affine else forcing
        inner = gmres(derivative, right, batch, forcing, krylov, image, rounding)
        evaluations += inner.evaluations
        iterations = iterations + torch.where(active, inner.iterations, 0)
        length = torch.ones_like(residual)
        trial, fresh, norm = x, value, residual
        for _ in range(6):
            trial = torch.where(moving, x + batch.expand(length) * inner.x, x)
            fresh = function(trial)
            evaluations += 1
            norm = batch.norm(fresh) / scale
            short = (
                active
                & (~torch.isfinite(norm) | (norm > (1 - 1e-4 * length) * residual))
                & (norm > tolerance)
            )
            if affine or not bool(short.any()):
                break
            length = torch.where(short, 0.5 * length, length)
        x, value = trial, fresh
        residual = torch.where(active, norm, residual)
    status = torch.where((status == Status.ITERATIONS) & done(x, residual), int(Status.CONVERGED), status)
    return RootResult(x, residual, iterations, status, evaluations)


def bracket_potential(missing: Map, start: Tensor) -> tuple[Tensor, int]:
    """
    A first guess of chemical potentials at which charges respond.

    Where the response is so small that Newton's step would be longer than 1 V (saturated, or positive and
    negative parts that cancel), its sign means nothing: look on both sides at growing distance, up to 64 V,
    for the place where the missing charge changes its sign, and halve that interval. Elsewhere nothing
    changes.

    Args:
        missing: ``[n]`` V -> ``[n]`` e, each potential with its own charge.
        start: ``[n]`` V float64.

    Returns:
        The guess, and how often ``missing`` was evaluated.
    """
    here = missing(start)
    response = (missing(start + 0.05) - here) / 0.05
    evaluations = 2
    searching = here.abs() > response.abs()
    if not bool(searching.any()):
        return start, evaluations
    found = ~searching
    low = high = start
    last = {1: (start, here), -1: (start, here)}
    value_low = here
    distance = 1.0
    while distance <= 64 and not bool(found.all()):
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
        if not bool((searching & found & ((high - low).abs() > 0.5)).any()):
            break
        middle = 0.5 * (low + high)
        value = missing(middle)
        evaluations += 1
        below = value.sign() == value_low.sign()
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(searching & found, 0.5 * (low + high), start), evaluations
