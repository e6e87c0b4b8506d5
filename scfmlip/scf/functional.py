"""
Minima of nonlinear energy functionals of the charges at given totals, with derivatives of any order.

At the minimum, first derivatives of the energy need no derivatives of the state (Hellmann-Feynman).
Derivatives of the state need one solve with the Hessian, which is symmetric and positive there. For
populations as variables of an energy see Thomas et al., arXiv:2406.10915.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..segments import Segments
from ..waiting import together
from .eager import runs_eagerly
from .implicit import GeneralEquations, Minimised, Minimum, Root, RootOptions
from .options import (
    check_callable,
    check_columns,
    check_solver,
    check_state,
    check_whole,
    read_batch,
)
from .problem import FunctionalProblem
from .solution import shown, summarize
from .solvers.gmres import Map, RootResult
from .solvers.newton_cg import conjugate_gradient_solve, generic_direction, newton_cg
from .totals import GivenTotals

Functional = Callable[..., Tensor]
# a gradient at evenly spread charges with a smaller root mean square, V, counts as this large
_SMALLEST = 0.1
# the smallest tolerance
_LEAST = {torch.float32: 1e-5, torch.float64: 1e-12}


@dataclass(frozen=True, repr=False)
class FunctionalSolution:
    """
    The state at the minimum of an energy functional.

    Attributes:
        state: Same shape and dtype as the first guess.
        energy: ``[n_systems]`` eV.
        chemical_potential: V, dE/dQ, in the shape of the totals; None without a constraint.
        residual: ``[n_systems]`` norm of the projected gradient relative to that at evenly spread charges, or
            to 0.1 V (root mean square) if that is larger.
        iterations: ``[n_systems]`` int64 Newton steps.
        status: ``[n_systems]`` int64, see `Status`; INDEFINITE if the functional is not convex there.
        evaluations: Number of evaluations of the functional, for the whole batch.
        hessian_products: Number of products with its Hessian, for the whole batch.

    Example:
        >>> import torch
        >>> from scfmlip.scf import minimize_functional
        >>> start = torch.zeros(2, 1, dtype=torch.float64)
        >>> solution = minimize_functional(lambda q: ((q - 1.0) ** 2).sum()[None], start, total_charge=1.0)
        >>> solution.state.flatten()  # e, adding up to 1
        tensor([0.5000, 0.5000], dtype=torch.float64)
        >>> solution.chemical_potential  # V, dE/dQ
        tensor([-1.], dtype=torch.float64)
    """

    state: Tensor
    energy: Tensor
    chemical_potential: Tensor | None
    residual: Tensor
    iterations: Tensor
    status: Tensor
    evaluations: int
    hessian_products: int

    def __repr__(self) -> str:
        more = f"energy {shown(self.energy, 'eV')}", f"{self.hessian_products} products with the Hessian"
        return summarize("FunctionalSolution", self.status, self.iterations, self.state, *more)


@runs_eagerly
@together()
def minimize_functional(
    functional: Functional,
    state: Tensor,
    parameters: Sequence[Tensor] = (),
    *,
    batch_idx: Tensor | Segments | None = None,
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
    Minimise ``functional(s, *parameters)`` for a ragged batch of systems that do not interact.

    Newton's method with projected conjugate gradients on Hessian-vector products and a line search: there is
    no matrix and no step size to choose. Differentiable any number of times in ``parameters`` and
    ``total_charge``. Pass everything there that the functional depends on and whose derivatives are wanted.
    First derivatives of the energy need no extra solve; derivatives of the state, or of a loss on forces,
    need one.

    Args:
        functional: ``(state, *parameters) -> energies [n_systems]`` eV, differentiable twice in the state,
            three times if second derivatives of the solution are wanted. Processes that share a system take
            equal parts of its derivatives.
        state: ``[n_rows, ...]`` first guess, float32 or float64, for instance the last step's; not
            differentiated.
        parameters: Tensors that the functional depends on.
        batch_idx: ``[n_rows]`` int64 system of each row, or `Segments`; None for one system.
        n_systems: Number of systems; counted from ``batch_idx`` if None.
        total_charge: e, one number for all systems, ``[n_systems]``, or ``[n_systems, n_columns]``
            (`spin_charges`). None sets no constraint (add ``-mu Q`` to the energy for a given potential).
        charge_columns: Which numbers of a flattened row hold charges, one per column of ``total_charge``.
        precondition: Function on states: a symmetric positive approximation of the Hessian's inverse.
        tolerance: Largest residual, see `FunctionalSolution`.
        max_iterations: Most Newton steps.
        krylov: Most conjugate gradient steps per Newton step, and for the adjoint.
        on_failure: What to do if a system does not converge. The other systems are right in any case.

    Returns:
        The solution.

    Raises:
        ConvergenceError: names the systems, why (for instance no minimum: the functional is not convex at the
            end), and what to do.
        ValueError: for shapes that do not match, or options out of range.
        TypeError: for a state that is not float32 or float64, or parameters that are not a sequence.

    Example:
        >>> import torch
        >>> from scfmlip.scf import minimize_functional
        >>> def energy(s, chi):  # one system: [1] eV
        ...     return ((s + chi) ** 2 + 0.1 * s**4).sum()[None]
        >>> chi = torch.tensor([[0.5], [-0.5]], dtype=torch.float64)
        >>> solution = minimize_functional(energy, torch.zeros_like(chi), (chi,), total_charge=0.0)
        >>> [round(q, 3) for q in solution.state[:, 0].tolist()]
        [-0.478, 0.478]
    """
    check_state(state, parameters)
    check_solver(tolerance, max_iterations, on_failure)
    check_whole("krylov", krylov, 1)
    if precondition is not None:
        check_callable("precondition", precondition, "(state)", 1)
    columns = check_columns(charge_columns)
    rows = read_batch(state, batch_idx, n_systems)
    groups, totals = None, state.new_zeros(rows.n_segments)
    if total_charge is not None:
        groups = GivenTotals(rows, columns, math.prod(state.shape[1:]))
        totals = groups.totals(total_charge, state)
    check_callable("functional", functional, "(state, *parameters)", 1 + len(parameters))
    problem = FunctionalProblem(functional, state, rows, groups, precondition)
    options = RootOptions(
        "energy functional",
        max(tolerance, _LEAST[state.dtype]),
        krylov,
        on_failure,
        conjugate_gradient_solve,
    )
    found: dict[str, Any] = {}

    def solve(arguments: Sequence[Tensor]) -> Tensor:
        totals, *constants = (t.detach() for t in arguments)
        result, products = _minimize(problem, totals, constants, options, max_iterations)
        found.update(result=result, products=products)
        options.report("energy functional", result)
        return result.x.to(state.dtype)

    equations = GeneralEquations(problem.residual, solve, problem.batch, options)
    x = Root.apply(equations, totals, *parameters)
    solved = problem.place(x, totals)
    multipliers = totals
    if groups is not None:
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters))
        multipliers = groups.mean(problem.gradient(solved, parameters, wanted)).view(totals.shape)
        multipliers = multipliers if wanted else multipliers.detach()
    # gradients of zeros would go back through what nobody needs, and start an adjoint solve
    slopes = multipliers if totals.requires_grad else multipliers.detach()
    energy = Minimum.apply(Minimised(problem.whole_energies, 1), slopes, totals, solved, *parameters)
    result = found["result"]
    return FunctionalSolution(
        solved,
        energy,
        None if groups is None else multipliers,
        result.residual,
        result.iterations,
        result.status,
        result.evaluations + 1,
        found["products"],
    )


def _minimize(
    problem: FunctionalProblem,
    totals: Tensor,
    parameters: Sequence[Tensor],
    options: RootOptions,
    max_iterations: int,
) -> tuple[RootResult, int]:
    """The minimum, and the number of products with the Hessian."""
    batch, first = problem.batch, problem.like

    def model(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Map]:
        return problem.expand(x, totals, parameters)

    start = problem.project(first.flatten().double())
    # norm of a state of ones
    unit = (problem.rows.counts * math.prod(first.shape[1:])).sqrt().clamp(min=1.0)
    # relative to the gradient at evenly spread charges
    scale = torch.nan_to_num(batch.norm(model(torch.zeros_like(start))[1]), posinf=0.0)
    return newton_cg(
        model,
        lambda x: problem.value(x, totals, parameters),
        start,
        batch,
        torch.maximum(scale, _SMALLEST * unit),
        options.tolerance,
        max_iterations,
        options.krylov,
        problem.preconditioned,
        problem.project(generic_direction(len(start), first.device)),
        first.dtype,
        problem.given,
    )
