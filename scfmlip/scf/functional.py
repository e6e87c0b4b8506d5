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

from ..segments import Segments
from .eager import runs_eagerly
from .implicit import Minimised, Minimum, Root, RootOptions
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
from .solvers.newton_cg import conjugate_gradient_solve, newton_cg
from .totals import GivenTotals

Functional = Callable[..., Tensor]
# a gradient at evenly spread charges below this, root mean square, V, counts as this large
_SMALLEST = 0.1
# the smallest tolerance
_LEAST = {torch.float32: 1e-5, torch.float64: 1e-12}


@dataclass(frozen=True, repr=False)
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

    def __repr__(self) -> str:
        more = f"energy {shown(self.energy, 'eV')}", f"{self.hessian_products} products with the Hessian"
        return summarize("FunctionalSolution", self.status, self.iterations, self.state, *more)


@runs_eagerly
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
        batch_idx: ``[n_rows]`` int64 system of each row, or `Segments`; None for one system.
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

    x = Root.apply(problem.residual, solve, problem.batch, options, totals, *parameters)
    solved = problem.place(x, totals)
    multipliers = totals
    if groups is not None:
        wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *parameters))
        multipliers = groups.mean(problem.gradient(solved, parameters, wanted)).view(totals.shape)
        multipliers = multipliers if wanted else multipliers.detach()
    energy = Minimum.apply(Minimised(problem.energies, 1), multipliers, totals, solved, *parameters)
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
    """The minimum, and how many products with the Hessian it took."""
    batch, first = problem.batch, problem.like

    def model(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Map]:
        return problem.expand(x, totals, parameters)

    start = problem.project(first.flatten().double())
    unit = batch.norm(torch.ones_like(start)).clamp(min=1.0)
    # relative to the gradient where charges are spread evenly
    scale = torch.nan_to_num(batch.norm(model(torch.zeros_like(start))[1]), posinf=0.0)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(len(start), generator=generator, dtype=torch.float64).to(first.device)
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
        problem.project(probe),
        first.dtype,
    )
