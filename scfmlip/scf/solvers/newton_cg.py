"""
Truncated Newton minimisation for a ragged batch, and conjugate gradients on its quadratic models.

Nocedal and Wright, Numerical Optimization, 2006, algorithm 7.1: conjugate gradients on the Newton equations
stop early, or when they meet negative curvature, so every direction is a descent direction. A backtracking
line search follows. Every system of the batch has its own steps, step lengths and end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from ...decisions import needed
from ...segments import Segments
from ..convergence import Verdict, ended, judged
from ..solution import Status
from .gmres import Map, RootResult
from .looks import Looks
from .recursion import ConjugateDirections, GivenSum
from .steps import LaunchedSteps, Limits


@lru_cache(maxsize=16)
def generic_direction(size: int, device: torch.device) -> Tensor:
    """``[size]`` float64, the same every time; do not write into it."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False):
        return torch.randn(size, generator=generator, dtype=torch.float64, device="cpu").to(device)


# value [n_systems], projected gradient [n], norm of the full gradient [n_systems], and a function for
# products of the Hessian with [n]
Model = Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Map]]


_FLAT = 1e-14  # curvature that is none, relative to the square of the direction's norm


def _quadratic(
    apply: Map,
    right: Tensor,
    batch: Segments,
    target: Tensor,
    max_iterations: int,
    precondition: Map,
    active: Tensor,
    looks: Looks,
    given: GivenSum | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """
    Conjugate gradients on ``A x = right`` until residuals are below ``target [n_systems]``.

    With ``given``, x is to satisfy that constraint, as ``right`` does, and residuals are along it.

    Returns:
        x, residual norms, iterations, whether negative curvature was met (x is then the last iterate before
        it, or the preconditioned ``right`` if it was met at once), and the number of products.
    """
    start = torch.zeros_like(right)
    walk = ConjugateDirections(batch, apply, precondition, start, -right, given=given, inside=True)
    norm = walk.norms[0]
    going = active & (norm > target)
    if LaunchedSteps.fit(walk):
        return _launched(walk, norm, going, target, max_iterations, looks)
    negative = torch.zeros_like(active)
    iterations = torch.zeros_like(norm, dtype=torch.int64)
    products = 0
    for step in range(max_iterations):
        if looks.ended(step, going, norm, target):
            break
        walk.look()
        products += 1
        p = walk.direction
        flat = going & ~(walk.curvature > _FLAT * walk.length**2)  # includes NaN
        negative = negative | flat
        if step == 0:
            walk.x = torch.where(batch.expand(flat), p, walk.x)
        going = going & ~flat
        iterations = iterations + going
        walk.move(going)
        norm = torch.where(going, walk.norms[0], norm)
        going = going & (norm > target)
        walk.turn(going)
    return walk.x, norm, iterations, negative, products


def _launched(
    walk: ConjugateDirections, norm: Tensor, going: Tensor, target: Tensor, max_iterations: int, looks: Looks
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """The rest of `_quadratic`, in few launches."""
    status = torch.where(going, int(Status.ITERATIONS), int(Status.CONVERGED))
    steps = LaunchedSteps(
        walk, Verdict(norm, norm, ~going, ~going), status, Limits(1.0, 0.0, target, flat=_FLAT)
    )
    products = 0
    for step in range(max_iterations):
        if looks.ended(step, steps.active, steps.residual, target):
            break
        steps.take()
        products += 1
        if step == 0:
            flat = walk.batch.expand(_without_minimum(steps))
            walk.x = torch.where(flat, walk.direction, walk.x)  # they did not turn
    return walk.x, steps.residual, steps.now.iterations.long(), _without_minimum(steps), products


def _without_minimum(steps: LaunchedSteps) -> Tensor:
    """``[n_systems]`` bool: whose last direction had no positive curvature; NaN is none."""
    status = steps.now.status
    strange = (status == int(Status.NOT_FINITE)) & torch.isfinite(steps.residual)
    return (status == int(Status.INDEFINITE)) | strange


def conjugate_gradient_solve(
    apply: Map, right: Tensor, batch: Segments, tolerance: float, max_iterations: int
) -> RootResult:
    """Solve ``A x = right`` for a symmetric positive matrix; arguments and result as in `gmres`."""
    scale = batch.norm(right)
    active = torch.ones_like(scale, dtype=torch.bool)
    x, norm, iterations, negative, products = _quadratic(
        apply, right, batch, tolerance * scale, max_iterations, lambda v: v, active, Looks(0)
    )
    residual = norm / torch.where(scale > 0, scale, 1.0)
    status = torch.where(norm <= tolerance * scale, int(Status.CONVERGED), int(Status.ITERATIONS))
    status = torch.where(negative, int(Status.INDEFINITE), status)
    status = torch.where(torch.isfinite(residual), status, int(Status.NOT_FINITE))
    return RootResult(x, residual, iterations, status, products)


def _search_line(
    value: Callable[[Tensor], Tensor],
    x: Tensor,
    step: Tensor,
    energy: Tensor,
    slope: Tensor,
    active: Tensor,
    batch: Segments,
    slack: float,
) -> tuple[Tensor, Tensor, int]:
    """Step lengths with sufficient decrease, which systems have one, and the number of evaluations."""
    length, accepted = torch.ones_like(energy), ~active
    best, evaluations = x, 0
    for _ in range(25):
        trial = torch.where(batch.expand(accepted), best, x + batch.expand(length) * step)
        at = value(trial)
        evaluations += 1
        # near the end energies differ by rounding only: accept the step
        most = energy + 1e-4 * length * slope + slack * (energy.abs() + 1)
        good = active & ~accepted & torch.isfinite(at) & (at <= most)
        best = torch.where(batch.expand(good), trial, best)
        accepted = accepted | good
        if not needed(~accepted.all()):
            break
        length = torch.where(accepted, length, 0.4 * length)
    return best, accepted, evaluations


def newton_cg(
    model: Model,
    value: Callable[[Tensor], Tensor],
    start: Tensor,
    batch: Segments,
    scale: Tensor,
    tolerance: float,
    max_iterations: int,
    krylov: int,
    precondition: Map,
    probe: Tensor,
    dtype: torch.dtype,
    given: GivenSum | None = None,
) -> tuple[RootResult, int]:
    """
    Minimise ``value`` from ``start``.

    Args:
        model: ``[n]`` float64 -> values ``[n_systems]``, projected gradient ``[n]``, norm of the full
            gradient ``[n_systems]``, and a function for products with the Hessian.
        value: ``[n]`` -> ``[n_systems]``.
        start: ``[n]`` float64.
        batch: The systems.
        scale: ``[n_systems]`` scale of the gradient's norm.
        tolerance: Largest norm of the gradient relative to the scale.
        max_iterations: Most Newton steps.
        krylov: Most conjugate gradient steps per Newton step.
        precondition: Symmetric positive approximation of the Hessian's inverse.
        probe: ``[n]`` a generic direction, along which the curvature is checked at the end.
        dtype: dtype in which the functional is evaluated.
        given: A constraint that products with the Hessian and the preconditioner do not conserve; None where
            they do.

    Returns:
        The minima, and the number of products with the Hessian.
    """
    slack = 1e-6 if dtype == torch.float32 else 1e-13

    def judge(gradient: Tensor, size: Tensor) -> Verdict:
        return judged(batch.norm(gradient), scale, size, tolerance, dtype)

    x = start
    energy, gradient, size, apply = model(x)
    evaluations, products = 1, 0
    verdict = judge(gradient, size)
    status = torch.full_like(energy, int(Status.ITERATIONS), dtype=torch.int64)
    iterations = torch.zeros_like(status)
    curved = torch.zeros_like(status, dtype=torch.bool)
    everything = torch.ones_like(curved)
    for _ in range(max_iterations + 1):
        lost = (status == Status.ITERATIONS) & ~torch.isfinite(energy)
        status = ended(torch.where(lost, int(Status.NOT_FINITE), status), verdict)
        active = status == Status.ITERATIONS
        if not needed((active & (iterations < max_iterations)).any()):
            break
        right = torch.where(batch.expand(active), -gradient, 0.0)
        norm = torch.where(active, verdict.norm, 0.0)
        # rough steps first, quadratic convergence at the end
        target = torch.maximum(norm * verdict.residual.sqrt().clamp(max=0.1), 0.3 * tolerance * scale)
        step, _, _, negative, count = _quadratic(
            apply, right, batch, target, krylov, precondition, active, Looks(), given
        )
        products += count
        curved = torch.where(active, negative, curved)
        iterations = iterations + active
        slope = batch.dot(gradient, step)
        best_x, accepted, count = _search_line(value, x, step, energy, slope, active, batch, slack)
        evaluations += count
        x = torch.where(batch.expand(active), best_x, x)
        status = torch.where(active & ~accepted, int(Status.STAGNATED), status)
        energy, gradient, size, apply = model(x)
        evaluations += 1
        fresh = judge(gradient, size)
        verdict = Verdict(*(torch.where(active, new, old) for new, old in zip(fresh, verdict, strict=True)))
    # at a minimum the curvature is positive in all directions; a generic direction detects if it is not
    converged = status == Status.CONVERGED
    if needed(converged.any()):
        right = torch.where(batch.expand(converged), probe, 0.0)
        target = 1e-3 * batch.norm(right)
        *_, negative, count = _quadratic(
            apply, right, batch, target, min(krylov, 30), precondition, everything, Looks(), given
        )
        products += count
        status = torch.where(converged & negative, int(Status.INDEFINITE), status)
    lost = ((status == Status.ITERATIONS) | (status == Status.STAGNATED)) & curved
    status = torch.where(lost, int(Status.INDEFINITE), status)
    return RootResult(x, verdict.residual, iterations, status, evaluations), products
