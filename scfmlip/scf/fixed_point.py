"""
Fixed points of a map of the state, with derivatives of any order that do not unroll the iterations.

The state solves ``F(s, theta) = s``; with a constraint, ``F(s, mu, theta) = s`` and ``sum_i s_i0 = Q`` in
every system, mu the chemical potential. Derivatives come from the transposed linear system at the solution
(implicit function theorem), itself a root whose derivatives are taken the same way. Memory does not depend
on the number of iterations.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .equilibration import partial_gradients
from .krylov import Batch, RootResult, anderson, gmres, newton
from .solution import ConvergenceError, explain

SolverName = Literal["auto", "anderson", "newton"]
Update = Callable[..., Tensor]
# relative change of the second difference of an affine map, by rounding
_AFFINE = {torch.float32: 1e-4, torch.float64: 1e-9}


@dataclass(frozen=True)
class FixedPointSolution:
    """
    A self-consistent state.

    Attributes:
        state: As the first guess.
        chemical_potential: ``[n_systems]`` V where there is a constraint, else None.
        residual: ``[n_systems]`` norm of ``F(s) - s`` relative to that of ``F`` at the first guess.
        iterations: ``[n_systems]`` int64.
        status: ``[n_systems]`` int64, see `Status`.
        evaluations: How often the map was evaluated, for the whole batch.
        affine: Whether the map was found to be affine, and solved as one linear system.
    """

    state: Tensor
    chemical_potential: Tensor | None
    residual: Tensor
    iterations: Tensor
    status: Tensor
    evaluations: int
    affine: bool


class _Root(torch.autograd.Function):
    """x with ``residual(x, *parameters) = 0``; ``solve`` finds it, given the function of x alone."""

    @staticmethod
    def forward(residual, solve, batch, options, *parameters):
        return solve(parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.residual, _, ctx.batch, ctx.options, *parameters = inputs
        ctx.save_for_backward(output, *parameters)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor):
        (grad,) = grad_outputs
        x, *parameters = ctx.saved_tensors
        residual, batch, options = ctx.residual, ctx.batch, ctx.options

        def adjoint_residual(w: Tensor, grad: Tensor, x: Tensor, *parameters: Tensor) -> Tensor:
            with torch.enable_grad():
                at = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
                value = residual(at, *parameters)
                create = torch.is_grad_enabled() and any(
                    t.requires_grad for t in (w, grad, x, *parameters) if torch.is_tensor(t)
                )
                (product,) = torch.autograd.grad(value, at, w, create_graph=create, materialize_grads=True)
            return product - grad

        def solve(arguments: Sequence[Tensor]) -> Tensor:
            right, *rest = arguments
            rest = [t.detach() for t in rest]

            def apply(w: Tensor) -> Tensor:
                return adjoint_residual(w.to(right.dtype), torch.zeros_like(right), *rest).double()

            result = gmres(apply, right.double(), batch, options.tolerance, options.krylov)
            options.report("fixed point, adjoint", result)
            return result.x.to(right.dtype)

        w = _Root.apply(adjoint_residual, solve, batch, options, grad, x, *parameters)

        def form(*parameters: Tensor) -> Tensor:
            return -(w * residual(x, *parameters)).sum()

        return None, None, None, None, *partial_gradients(form, parameters, ctx.needs_input_grad[4:])


@dataclass(frozen=True)
class _Options:
    tolerance: float
    krylov: int
    on_failure: str

    def report(self, name: str, result: RootResult) -> None:
        """Raise or warn about systems that did not converge."""
        if self.on_failure == "ignore":
            return
        message = explain(name, result.status, result.residual, result.iterations)
        if message is None:
            return
        if self.on_failure == "raise":
            raise ConvergenceError(message, result.status)
        warnings.warn(message, stacklevel=4)


def fixed_point(
    update: Update,
    state: Tensor,
    parameters: Sequence[Tensor] = (),
    *,
    batch_idx: Tensor | None = None,
    n_systems: int | None = None,
    total_charge: Tensor | float | None = None,
    chemical_potential: Tensor | float = 0.0,
    solver: SolverName = "auto",
    tolerance: float = 1e-6,
    max_iterations: int = 100,
    mixing: float = 0.5,
    history: int = 8,
    on_failure: Literal["raise", "warn", "ignore"] = "raise",
) -> FixedPointSolution:
    """
    Solve ``update(s, *parameters) = s``, for a ragged batch of systems that do not interact.

    Differentiable any number of times in ``parameters``: everything that the map depends on and whose
    derivatives are wanted has to be passed there. What it captures otherwise counts as constant.

    Args:
        update: ``(state, *parameters) -> state``; with ``total_charge``
            ``(state, chemical_potential [n_systems], *parameters) -> state``. Called with and without
            recording gradients; differentiable twice if second derivatives are wanted.
        state: ``[n_rows, ...]`` first guess, float32 or float64; column 0 holds charges.
        parameters: Tensors.
        batch_idx: ``[n_rows]`` int64 system of each row; None for one system.
        n_systems: How many; counted if None.
        total_charge: e, of all systems or ``[n_systems]``: adds the chemical potential as an unknown that
            makes the charges add up.
        chemical_potential: V, its first guess.
        solver: "anderson" mixes, "newton" solves linear systems by GMRES. "auto" looks whether the map is
            affine, and then takes one linear solve; else Anderson without and Newton with a constraint.
        tolerance: Norm of ``F(s) - s`` of a system relative to that of ``F`` at the first guess.
        max_iterations: Evaluations of Anderson's mixing, Newton steps, and the largest Krylov space.
        mixing: Anderson's share of the residual.
        history: Steps that Anderson's mixing remembers.
        on_failure: What to do when a system does not converge; the others are right in any case.

    Returns:
        The solution.

    Raises:
        ConvergenceError: names the systems, why, and what to do.
        ValueError: for shapes that do not fit.
    """
    if solver not in ("auto", "anderson", "newton"):
        raise ValueError(f"solver must be 'auto', 'anderson' or 'newton', got {solver!r}")
    constrained = total_charge is not None
    if solver == "anderson" and constrained:
        raise ValueError("Anderson's mixing has no constraint: use solver='newton' with total_charge")
    rows, dtype, device = state.shape[0], state.dtype, state.device
    if batch_idx is None:
        batch_idx = torch.zeros(rows, dtype=torch.int64, device=device)
    if batch_idx.shape != (rows,):
        raise ValueError(f"batch_idx must have shape [{rows}], got {list(batch_idx.shape)}")
    if n_systems is None:
        n_systems = int(batch_idx.max()) + 1 if rows else 0
    shape, size = state.shape, state.numel() // max(rows, 1)
    index = batch_idx.repeat_interleave(size)
    totals = None
    if constrained:
        index = torch.cat((index, torch.arange(n_systems, device=device)))
        totals = torch.as_tensor(total_charge, dtype=dtype, device=device).expand(n_systems)
    batch = Batch(index, n_systems)
    first = state.detach().flatten()
    if constrained:
        mu = torch.as_tensor(chemical_potential, dtype=dtype, device=device).detach()
        first = torch.cat((first, mu.expand(n_systems)))

    def residual(x: Tensor, *parameters: Tensor) -> Tensor:
        s = x[: rows * size].view(shape)
        if not constrained:
            return (update(s, *parameters) - s).flatten()
        total, *rest = parameters
        new = update(s, x[rows * size :], *rest)
        if new.shape != shape:
            raise ValueError(
                f"update must return the shape of the state {list(shape)}, got {list(new.shape)}"
            )
        charges = s.reshape(rows, size)[:, 0]
        sums = charges.new_zeros(n_systems).index_add(0, batch_idx, charges)
        return torch.cat(((new - s).flatten(), total - sums))

    arguments = (totals, *parameters) if totals is not None else tuple(parameters)
    options = _Options(max(tolerance, 2e-6 if dtype == torch.float32 else 1e-13), max_iterations, on_failure)
    found: dict[str, Any] = {}

    def solve(arguments: Sequence[Tensor]) -> Tensor:
        constants = [t.detach() for t in arguments]

        def function(x: Tensor) -> Tensor:
            with torch.no_grad():
                return residual(x.to(dtype), *constants).double()

        start = first.double()
        value = function(start)
        scale = batch.norm(value + start)
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        # two more evaluations along the first step tell whether the map is affine
        near, far = function(start + value) - value, function(start + 2 * value) - value
        bend = batch.norm(far - 2 * near) / batch.norm(far).clamp(min=1e-300)
        still = batch.norm(value) / scale <= options.tolerance
        affine = bool(((bend < _AFFINE[dtype]) | still).all())
        tolerance = options.tolerance
        if solver == "newton" or (solver == "auto" and (affine or constrained)):
            result = newton(function, start, batch, scale, tolerance, max_iterations, max_iterations, affine)
        else:
            result = anderson(
                lambda x: function(x) + x, start, batch, scale, tolerance, max_iterations, mixing, history
            )
        found.update(result=result, affine=affine, evaluations=result.evaluations + 3)
        options.report("fixed point", result)
        return result.x.to(dtype)

    x = _Root.apply(residual, solve, batch, options, *arguments)
    result = found["result"]
    return FixedPointSolution(
        x[: rows * size].view(shape),
        x[rows * size :] if constrained else None,
        result.residual,
        result.iterations,
        result.status,
        found["evaluations"],
        found["affine"],
    )
