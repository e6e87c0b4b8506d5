"""
Roots as functions of the equations' parameters, differentiable to any order (implicit function theorem).

At ``r(x, theta) = 0``, ``dx = -(dr/dx)^-1 dr/dtheta``. One transposed linear solve gives the derivative of
any function of x; its solution is again a root and is differentiated in the same way. Memory does not depend
on how the root was found.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..decisions import needed
from ..segments import Segments
from ..waiting import current, joins
from .convergence import EXCUSED, ROUNDING
from .solution import Status, report
from .solvers.gmres import KrylovInverse, Map, RootResult, gmres

LinearSolver = Callable[..., RootResult]


@dataclass(frozen=True)
class RootOptions:
    """
    How linear systems at the root are solved, and what happens if a solve fails.

    Attributes:
        name: Name of the problem, for messages.
        tolerance: Relative residual.
        krylov: Largest Krylov space.
        on_failure: "raise", "warn" or "ignore".
        linear: `gmres`, or a solver for symmetric positive systems.
        inverse: Approximate inverse of the equations' matrix, known once they are solved.
        transposed: Whether the current system is the transposed (adjoint) one.
    """

    name: str
    tolerance: float
    krylov: int
    on_failure: str
    linear: LinearSolver = gmres
    inverse: Callable[[], KrylovInverse | None] = lambda: None
    transposed: bool = False

    def adjoint(self) -> RootOptions:
        """The options of the adjoint system."""
        return replace(self, transposed=not self.transposed)

    def report(self, name: str, result: RootResult) -> None:
        """Raise an error or warn about systems that did not converge."""
        report(name, result.status, result.residual, result.iterations, self.on_failure)


class Equations(ABC):
    """
    Equations whose root is differentiated by `Root`.

    With r the residual and theta the parameters, a gradient g of the root x enters the parameters as
    ``-d(w.r)/dtheta`` at the w with ``(dr/dx)^T w = g``.
    """

    @abstractmethod
    def solve(self, parameters: Sequence[Tensor]) -> Tensor:
        """The root at these parameters, outside any graph."""

    @abstractmethod
    def adjoint(self, grad: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """The w with ``(dr/dx)^T w = grad`` at the root x; differentiable."""

    @abstractmethod
    def weighted(self, w: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """``w.r(x, *parameters)``, a number; terms without parameters may be left out."""


class Root(torch.autograd.Function):
    """The root of `Equations` as a function of their parameters: ``Root.apply(equations, *parameters)``."""

    @staticmethod
    def forward(equations, *parameters):
        return equations.solve(parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.pending = current()
        ctx.equations, *parameters = inputs
        ctx.save_for_backward(output, *parameters)
        ctx.set_materialize_grads(False)

    @staticmethod
    @joins
    def backward(ctx: Any, *grad_outputs: Tensor):
        (grad,) = grad_outputs
        x, *parameters = ctx.saved_tensors
        if grad is None:
            return (None,) * (1 + len(parameters))
        equations: Equations = ctx.equations
        w = equations.adjoint(grad, x, parameters)

        def form(*parameters: Tensor) -> Tensor:
            return -equations.weighted(w, x, parameters)

        return None, *partial_gradients(form, parameters, ctx.needs_input_grad[1:])


class GeneralEquations(Equations):
    """
    Equations ``residual(x, *parameters) = 0`` of any kind.

    Their adjoint is the root of linear equations. Krylov methods solve these with products of the transposed
    derivative.

    Args:
        residual: ``(x [n], *parameters) -> [n]``.
        find: Finds the root for given parameters.
        batch: The system of each equation.
        options: How linear systems at the root are solved.
    """

    def __init__(
        self,
        residual: Callable[..., Tensor],
        find: Callable[[Sequence[Tensor]], Tensor],
        batch: Segments,
        options: RootOptions,
    ) -> None:
        self.residual, self.find, self.batch, self.options = residual, find, batch, options

    def solve(self, parameters: Sequence[Tensor]) -> Tensor:
        """See `Equations`."""
        return self.find(parameters)

    def weighted(self, w: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """See `Equations`."""
        return (w * self.residual(x, *parameters)).sum()

    def adjoint(self, grad: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """See `Equations`."""
        options = self.options.adjoint()
        equations = GeneralEquations(self._adjoint_residual, self._find_adjoint, self.batch, options)
        return Root.apply(equations, grad, x, *parameters)

    def _adjoint_residual(self, w: Tensor, grad: Tensor, x: Tensor, *parameters: Tensor) -> Tensor:
        with torch.enable_grad():
            at = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
            value = self.residual(at, *parameters)
            create = torch.is_grad_enabled() and any(
                t.requires_grad for t in (w, grad, x, *parameters) if torch.is_tensor(t)
            )
            (product,) = torch.autograd.grad(value, at, w, create_graph=create, materialize_grads=True)
        return product - grad

    def _find_adjoint(self, arguments: Sequence[Tensor]) -> Tensor:
        right, x, *rest = (t.detach() for t in arguments)
        with torch.enable_grad():  # one graph of the equations serves all products with the transpose
            at = x.requires_grad_()
            value = self.residual(at, *rest)

        def apply(w: Tensor) -> Tensor:
            (product,) = torch.autograd.grad(
                value, at, w.to(right.dtype), retain_graph=True, materialize_grads=True
            )
            return product.double()

        options = self.options.adjoint()
        result = _solve_and_check(apply, right, self.batch, options)
        options.report(f"{options.name}, adjoint", result)
        return result.x.to(right.dtype)


def _solve_and_check(apply: Map, right: Tensor, batch: Segments, options: RootOptions) -> RootResult:
    """
    A linear solve, with a second solve for the remaining residual if it is too large.

    In float32, rounded products leave a larger residual than the solver's recursion reports if x is much
    larger than the right-hand side. A large approximate inverse makes this worse, so the second solve does
    without it.
    """
    dtype, right, inverse = right.dtype, right.double(), options.inverse()
    known = {} if inverse is None else {"inverse": inverse, "transposed": options.transposed}
    if not known and dtype == torch.float64:
        return options.linear(apply, right, batch, options.tolerance, options.krylov)
    result = options.linear(apply, right, batch, options.tolerance, options.krylov, **known)
    scale = batch.norm(right)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    left = right - apply(result.x)
    residual = batch.norm(left) / scale
    again = residual > 2 * options.tolerance
    if needed(again.any()):
        wanted = (options.tolerance / residual).clamp(max=1e-2)
        rest = options.linear(
            apply, torch.where(batch.expand(again), left, 0.0), batch, wanted, options.krylov
        )
        x = result.x + rest.x
        fresh = batch.norm(right - apply(x)) / scale
        better = fresh < residual
        result = result._replace(
            x=torch.where(batch.expand(better), x, result.x),
            iterations=result.iterations + torch.where(again, rest.iterations, 0),
        )
        residual = torch.where(better, fresh, residual)
    # accept if at round-off for a solution this large; otherwise report stagnation
    accepted, rounding = EXCUSED[dtype], ROUNDING[dtype]
    rounded = (residual * scale <= rounding * batch.norm(result.x)) & (residual <= accepted)
    close = (result.status == Status.ITERATIONS) & (rounded | (residual <= 2 * options.tolerance))
    lost = (result.status == Status.CONVERGED) & (residual > max(accepted, 2 * options.tolerance))
    status = torch.where(close, int(Status.CONVERGED), result.status)
    return result._replace(residual=residual, status=torch.where(lost, int(Status.STAGNATED), status))


@dataclass(frozen=True)
class Minimised:
    """
    A function at its minimum in some of its arguments.

    Attributes:
        value: ``(*held, *arguments) -> [n_systems]``.
        held: Number of leading arguments in which it is at its minimum, or which are constants.
        system: ``[n_totals]`` system of each total; None for one total (or one row of totals) per system.
        dynamics: Name of the function, if it has first derivatives only; else None.
    """

    value: Callable[..., Tensor]
    held: int
    system: Tensor | None = None
    dynamics: str | None = None


class Minimum(torch.autograd.Function):
    """
    The value at a minimum. First derivatives do not go through the arguments in which it is minimal, where
    the derivative is 0 (Hellmann-Feynman); the derivative in the totals is the multiplier. Second derivatives
    go through both.
    """

    @staticmethod
    def forward(minimised, multipliers, totals, *arguments):
        return minimised.value(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.minimised, multipliers, _, *arguments = inputs
        ctx.save_for_backward(multipliers, *arguments)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor):
        minimised, (grad,) = ctx.minimised, grad_outputs
        if minimised.dynamics is not None and torch.is_grad_enabled():
            raise NotImplementedError(
                f"{minimised.dynamics} is for dynamics: its energy has no second derivatives. Call "
                "torch.autograd.grad without create_graph, and train with charge_equilibration"
            )
        multipliers, *arguments = ctx.saved_tensors
        held, free = arguments[: minimised.held], arguments[minimised.held :]

        def value(*free: Tensor) -> Tensor:
            return (minimised.value(*held, *free) * grad).sum()

        grads = partial_gradients(value, free, ctx.needs_input_grad[3 + minimised.held :])
        d_totals = None
        if ctx.needs_input_grad[2]:
            each = grad if minimised.system is None else grad[minimised.system]
            d_totals = multipliers * each.view(-1, *(1,) * (multipliers.ndim - 1))
        return None, None, d_totals, *(None,) * minimised.held, *grads


def partial_gradients(
    function: Callable[..., Tensor], arguments: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """
    Derivatives of a scalar function in its arguments only, not through captured tensors.

    They are themselves differentiable while gradients are recorded (for a second backward pass).
    """
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        live = [
            None if t is None else (t.view_as(t) if create and t.requires_grad else t.detach())
            for t in arguments
        ]
        for t, need in zip(live, needed, strict=True):
            if need and t is not None and not t.requires_grad:
                t.requires_grad_()
        wanted = [t for t, need in zip(live, needed, strict=True) if need and t is not None]
        if not wanted:
            return [None] * len(arguments)
        value = function(*live)
        grads = iter(torch.autograd.grad(value, wanted, create_graph=create, allow_unused=True))
    return [next(grads) if need and t is not None else None for t, need in zip(live, needed, strict=True)]
