"""
Minima of nonlinear energy functionals of the charges, at given totals, with derivatives of any order.

At the minimum the energy's first derivatives need none of the state (Hellmann and Feynman); those of the
state need one solve with the Hessian, which is symmetric and positive there. Populations as variables of an
energy: Thomas et al., arXiv:2406.10915.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .eager import runs_eagerly
from .implicit import Root, RootOptions, partial_gradients
from .options import (
    check_callable,
    check_columns,
    check_returned,
    check_solver,
    check_state,
    check_whole,
    read_batch,
)
from .solvers.gmres import Batch, Map
from .solvers.newton_cg import conjugate_gradient_solve, newton_cg
from .totals import GivenTotals

Functional = Callable[..., Tensor]
# a gradient at evenly spread charges below this, root mean square, V, counts as this large
_SMALLEST = 0.1


@dataclass(frozen=True)
class FunctionalSolution:
    """
    The state at the minimum of an energy functional.

    Attributes:
        state: As the first guess.
        energy: ``[n_systems]`` eV.
        chemical_potential: V, dE/dQ, of the shape of the totals; None without a constraint.
        residual: ``[n_systems]`` norm of the projected gradient relative to that at evenly spread charges, or
            to 0.1 V (root mean square) where that is less.
        iterations: ``[n_systems]`` int64 Newton steps.
        status: ``[n_systems]`` int64, see `Status`; INDEFINITE where the functional is not convex there.
        evaluations: Of the functional, for the whole batch.
        hessian_products: Of its Hessian, for the whole batch.
    """

    state: Tensor
    energy: Tensor
    chemical_potential: Tensor | None
    residual: Tensor
    iterations: Tensor
    status: Tensor
    evaluations: int
    hessian_products: int


class _Minimum(torch.autograd.Function):
    """
    The functional at its minimum: no derivative through the state, whose own is 0.

    Second derivatives do go through the state, and through the multipliers.
    """

    @staticmethod
    def forward(functional, groups, state, multipliers, totals, *parameters):
        return functional(state, *parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.functional, ctx.groups, state, multipliers, _, *parameters = inputs
        ctx.save_for_backward(state, multipliers, *parameters)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor):
        (grad,) = grad_outputs
        state, multipliers, *parameters = ctx.saved_tensors
        functional, groups = ctx.functional, ctx.groups

        def value(*parameters: Tensor) -> Tensor:
            return (functional(state, *parameters) * grad).sum()

        grads = partial_gradients(value, parameters, ctx.needs_input_grad[5:])
        d_totals = None
        if groups is not None and ctx.needs_input_grad[4]:
            d_totals = multipliers * (grad if multipliers.ndim == 1 else grad[:, None])
        return None, None, None, None, d_totals, *grads


@runs_eagerly
def minimize_functional(
    functional: Functional,
    state: Tensor,
    parameters: Sequence[Tensor] = (),
    *,
    batch_idx: Tensor | None = None,
    n_systems: int | None = None,
    total_charge: Tensor | float | None = None,
    charge_columns: Sequence[int] = (0,),
    precondition: Callable[[Tensor], Tensor] | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 50,
    krylov: int = 200,
    on_failure: Literal["raise", "warn", "ignore"] = "raise",
) -> FunctionalSolution:
    """
    Minimise ``functional(s, *parameters)``, for a ragged batch of systems that do not interact.

    Newton's method by projected conjugate gradients on Hessian-vector products, with a line search: no
    matrix, no step size. Differentiable any number of times in ``parameters`` and ``total_charge``:
    everything that the functional depends on and whose derivatives are wanted has to be passed there. The
    energy's first derivatives cost no solve, those of a loss of them or of the state one.

    Args:
        functional: ``(state, *parameters) -> energies [n_systems]`` eV, differentiable twice in the state,
            three times if second derivatives of the solution are wanted.
        state: ``[n_rows, ...]`` first guess, float32 or float64, for instance the last step's; not
            differentiated.
        parameters: Tensors.
        batch_idx: ``[n_rows]`` int64 system of each row; None for one system.
        n_systems: How many; counted if None.
        total_charge: e, of all systems or ``[n_systems]``, or ``[n_systems, n_columns]`` (`spin_charges`);
            None lets charges follow the energy alone (add ``-mu Q`` to it for a given potential).
        charge_columns: Which numbers of a row, flattened, hold charges: one per column of ``total_charge``.
        precondition: Symmetric and positive, near the Hessian's inverse; shape of the state.
        tolerance: See `FunctionalSolution`.
        max_iterations: Newton steps.
        krylov: Most conjugate gradient steps of one, and of the adjoint.
        on_failure: What to do when a system does not converge; the others are right in any case.

    Returns:
        The solution.

    Raises:
        ConvergenceError: names the systems, why (no minimum: the functional is not convex where it ends), and
            what to do.
        ValueError: for shapes that do not fit, or options out of range.
        TypeError: for a state that is not float32 or float64, or parameters that are not a sequence.
    """
    check_state(state, parameters)
    check_solver(tolerance, max_iterations, on_failure)
    check_whole("krylov", krylov, 1)
    if precondition is not None:
        check_callable("precondition", precondition, "(state)", 1)
    columns = check_columns(charge_columns)
    batch_idx, n_systems = read_batch(state, batch_idx, n_systems)
    dtype, device = state.dtype, state.device
    shape, size = state.shape, math.prod(state.shape[1:])
    batch = Batch(batch_idx.repeat_interleave(size), n_systems)
    groups, totals = None, state.new_zeros(n_systems)
    if total_charge is not None:
        groups = GivenTotals(batch_idx, n_systems, columns, size)
        totals = groups.totals(total_charge, state)
    check_callable("functional", functional, "(state, *parameters)", 1 + len(parameters))

    def energies(s: Tensor, *parameters: Tensor) -> Tensor:
        values = functional(s, *parameters)
        if not isinstance(values, Tensor) or not values.is_floating_point():
            got = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise TypeError(f"functional must return a tensor of energies, got {got}")
        if values.shape != (n_systems,):
            raise ValueError(
                f"functional must return energies [{n_systems}], one per system, got {list(values.shape)}"
            )
        return values

    def project(x: Tensor) -> Tensor:
        return x if groups is None else groups.project(x)

    def place(x: Tensor, totals: Tensor) -> Tensor:
        """The state that an unconstrained x stands for."""
        return (x if groups is None else groups.project(x) + groups.even(totals).to(x.dtype)).view(shape)

    def slope_of(values: Tensor, s: Tensor, create: bool) -> Tensor:
        if not values.requires_grad and state.numel():
            raise ValueError(
                "functional must be differentiable in the state: build its energies from the state by torch "
                "operations, without detach, item, numpy or torch.no_grad"
            )
        total = values.sum() + 0 * s.sum()  # also of no rows
        return torch.autograd.grad(total, s, create_graph=create)[0]

    def gradient(s: Tensor, parameters: Sequence[Tensor], create: bool) -> Tensor:
        with torch.enable_grad():
            at = s if s.requires_grad else s.detach().requires_grad_()
            return slope_of(energies(at, *parameters), at, create)

    def residual(x: Tensor, totals: Tensor, *parameters: Tensor) -> Tensor:
        """Symmetric in x: on the constraint the projected gradient, across it x itself."""
        s = place(x, totals)
        inside = project(gradient(s, parameters, True).flatten())
        return inside + (x - project(x))

    floor = 1e-5 if dtype == torch.float32 else 1e-12
    options = RootOptions(
        "energy functional", max(tolerance, floor), krylov, on_failure, conjugate_gradient_solve
    )
    found: dict[str, Any] = {}

    def solve(arguments: Sequence[Tensor]) -> Tensor:
        totals, *constants = [t.detach() for t in arguments]

        def model(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Map]:
            with torch.enable_grad():
                s = place(x.to(dtype), totals).detach().requires_grad_()
                values = energies(s, *constants)
                slope = slope_of(values, s, True)

            def apply(v: Tensor) -> Tensor:
                direction = project(v).to(dtype).view(shape)
                if not slope.requires_grad:  # linear in the state
                    return torch.zeros_like(v)
                (product,) = torch.autograd.grad(
                    slope, s, direction, retain_graph=True, materialize_grads=True
                )
                return project(product.flatten().double())

            whole = slope.detach().flatten().double()
            return values.detach().double(), project(whole), batch.norm(whole), apply

        def value(x: Tensor) -> Tensor:
            with torch.no_grad():
                return energies(place(x.to(dtype), totals), *constants).double()

        def preconditioned(v: Tensor) -> Tensor:
            if precondition is None:
                return v
            out = precondition(project(v).to(dtype).view(shape))
            check_returned("precondition", out, shape, state)
            return project(out.flatten().double())

        start = project(state.detach().flatten().double())
        unit = batch.norm(torch.ones_like(start)).clamp(min=1.0)
        scale = torch.nan_to_num(batch.norm(model(torch.zeros_like(start))[1]), posinf=0.0)
        scale = torch.maximum(scale, _SMALLEST * unit)
        generator = torch.Generator().manual_seed(0)
        probe = project(torch.randn(len(start), generator=generator, dtype=torch.float64).to(device))
        result, products = newton_cg(
            model,
            value,
            start,
            batch,
            scale,
            options.tolerance,
            max_iterations,
            krylov,
            preconditioned,
            probe,
            dtype,
        )
        found.update(result=result, evaluations=result.evaluations + 1, products=products)
        options.report("energy functional", result)
        return result.x.to(dtype)

    x = Root.apply(residual, solve, batch, options, totals, *parameters)
    solved = place(x, totals)
    result = found["result"]
    multipliers = totals
    if groups is not None:
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters))
        multipliers = groups.mean(gradient(solved, parameters, wanted)).view(totals.shape)
        multipliers = multipliers if wanted else multipliers.detach()
    energy = _Minimum.apply(energies, groups, solved, multipliers, totals, *parameters)
    return FunctionalSolution(
        solved,
        energy,
        None if groups is None else multipliers,
        result.residual,
        result.iterations,
        result.status,
        found["evaluations"],
        found["products"],
    )
