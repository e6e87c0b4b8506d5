"""
Fixed points of a map of the state, with derivatives of any order that do not unroll the iterations.

The state solves ``F(s, theta) = s``. With a potential mu it solves ``F(s, mu, theta) = s``: mu is either
given (an electrode, a Fermi level) or an unknown that makes the charges add up, ``sum_i s_i0 = Q`` in every
system, one mu for each constrained column (the total charge, or each spin's). Derivatives come from the
transposed linear system at the solution (implicit function theorem), itself a root whose derivatives are
taken the same way. Of the iterations only the last Krylov space is kept, which tells those solves roughly
what the inverse is.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..electrostatics.checks import to_tensor
from .convergence import ROUNDING, make_criterion
from .eager import runs_eagerly
from .implicit import Root, RootOptions
from .options import (
    check_callable,
    check_columns,
    check_numbers,
    check_returned,
    check_solver,
    check_state,
    check_whole,
    read_batch,
)
from .solution import Status
from .solvers.anderson import anderson
from .solvers.gmres import Batch, gmres
from .solvers.newton import bracket_potential, newton
from .totals import GivenTotals

SolverName = Literal["auto", "anderson", "newton"]
Update = Callable[..., Tensor]
# relative change of the second difference of an affine map, by rounding
_AFFINE = {torch.float32: 1e-4, torch.float64: 1e-9}
# relative step of differences: the root of the rounding
_STEP = {torch.float32: 3e-4, torch.float64: 3e-8}


@dataclass(frozen=True)
class FixedPointSolution:
    """
    A self-consistent state.

    Attributes:
        state: As the first guess.
        chemical_potential: V, found or given, of the shape of the totals or as given; None without one.
        residual: ``[n_systems]`` norm of ``F(s) - s``, relative as `fixed_point` has its tolerance.
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


def _potentials(value: Tensor | float, n_systems: int, totals: Tensor | None, like: Tensor) -> Tensor:
    """Given potentials as they are, or first guesses of the shape of the totals."""
    what = "a number, or one for each system (V)"
    potential = to_tensor("chemical_potential", value, what, dtype=like.dtype, device=like.device)
    check_numbers("chemical_potential", potential)
    shape = (n_systems,) if totals is None else totals.shape
    wide = [n_systems, "n_columns"] if totals is None else list(shape)
    if potential.ndim == 1 and len(shape) == 2 and potential.shape[0] in (1, n_systems):
        potential = potential[:, None]
    if totals is None and potential.ndim == 2 and potential.shape[0] in (1, n_systems):
        return potential.expand(n_systems, -1)
    if potential.ndim > len(shape) or any(
        n not in (1, want) for n, want in zip(reversed(potential.shape), reversed(shape), strict=False)
    ):
        raise ValueError(
            f"chemical_potential must be a number or have shape {[n_systems]} or {wide}, got "
            f"{list(potential.shape)}"
        )
    return potential.expand(shape)


@runs_eagerly
def fixed_point(
    update: Update,
    state: Tensor,
    parameters: Sequence[Tensor] = (),
    *,
    batch_idx: Tensor | None = None,
    n_systems: int | None = None,
    total_charge: Tensor | float | None = None,
    chemical_potential: Tensor | float | None = None,
    charge_columns: Sequence[int] = (0,),
    solver: SolverName = "auto",
    tolerance: float = 1e-6,
    max_iterations: int = 100,
    mixing: float = 0.5,
    history: int = 8,
    approximation: Update | None = None,
    on_failure: Literal["raise", "warn", "ignore"] = "raise",
) -> FixedPointSolution:
    """
    Solve ``update(s, *parameters) = s``, for a ragged batch of systems that do not interact.

    Differentiable any number of times in ``parameters``: everything that the map depends on and whose
    derivatives are wanted has to be passed there. What it captures otherwise counts as constant.

    Args:
        update: ``(state, *parameters) -> state``; with ``total_charge`` or ``chemical_potential``
            ``(state, potential [n_systems] | [n_systems, n_columns], *parameters) -> state``. Called with and
            without recording gradients; differentiable twice if second derivatives are wanted.
        state: ``[n_rows, ...]`` first guess, float32 or float64.
        parameters: Tensors.
        batch_idx: ``[n_rows]`` int64 system of each row; None for one system.
        n_systems: How many; counted if None.
        total_charge: e, of all systems or ``[n_systems]``, or ``[n_systems, n_columns]`` (`spin_charges`):
            adds a chemical potential for each total as an unknown that makes the charges add up.
        chemical_potential: V. With ``total_charge`` its first guess (0 if None), else the given potential (a
            Fermi level), in which the solution is differentiable.
        charge_columns: Which numbers of a row, flattened, hold charges: one per column of ``total_charge``.
        solver: "anderson" mixes, "newton" solves linear systems by GMRES. "auto" looks whether the map is
            affine, and then takes one linear solve; else Anderson without and Newton with a constraint.
        tolerance: Norm of ``F(s) - s`` of a system relative to that of F at the first guess, what the totals
            lack there included, but to no more than that of ``F(s)`` itself; and where more than 1e-4 e
            (root mean square) would pass, to no more than that of F of zeros. Both count as 1 e at least,
            the first as 1e-3. 0 asks for what the dtype has. Rounding of a large state excuses more, up to
            1e-3 in float32 and 1e-9 in float64. Totals are kept to rounding at any tolerance.
        max_iterations: Evaluations of Anderson's mixing, Newton steps, and the largest Krylov space.
        mixing: Anderson's share of the residual.
        history: Steps that Anderson's mixing remembers.
        approximation: A cheaper affine map near ``update``, with its arguments: solved first, to one percent,
            to start from there with what its Krylov space says of the inverse. Newton's method then.
        on_failure: What to do when a system does not converge; the others are right in any case.

    Returns:
        The solution.

    Raises:
        ConvergenceError: names the systems, why, and what to do.
        ValueError: for shapes that do not fit, NaN, options out of range, a charge without rows.
        TypeError: for arguments of another kind, and an update that does not take ``(state, ...)`` or does
            not return its dtype.
    """
    check_state(state, parameters)
    check_solver(tolerance, max_iterations, on_failure)
    check_whole("history", history, 1)
    columns = check_columns(charge_columns)
    if solver not in ("auto", "anderson", "newton"):
        raise ValueError(f"solver must be 'auto', 'anderson' or 'newton', got {solver!r}")
    constrained = total_charge is not None
    if solver == "anderson" and constrained:
        raise ValueError("Anderson's mixing has no constraint: use solver='newton' with total_charge")
    if isinstance(mixing, bool) or not isinstance(mixing, numbers.Real) or not 0 < mixing < math.inf:
        raise ValueError(f"mixing must be a positive number, got {mixing!r}")
    batch_idx, n_systems = read_batch(state, batch_idx, n_systems)
    rows, dtype, device = state.shape[0], state.dtype, state.device
    shape, size = state.shape, math.prod(state.shape[1:])
    index, first = batch_idx.repeat_interleave(size), state.detach().flatten().double()
    groups, totals, potential, is_state = None, None, None, None
    if constrained:
        groups = GivenTotals(batch_idx, n_systems, columns, size)
        totals = groups.totals(total_charge, state)
    if chemical_potential is not None or constrained:
        guess = 0.0 if chemical_potential is None else chemical_potential
        potential = _potentials(guess, n_systems, totals, state)
    if groups is not None and totals is not None and potential is not None:
        systems = torch.arange(n_systems, device=device).repeat_interleave(len(groups.columns))
        is_state = torch.cat((torch.ones_like(first), torch.zeros_like(systems, dtype=first.dtype)))
        index = torch.cat((index, systems))
        first = torch.cat((first, potential.detach().flatten().double()))
    batch = Batch(index, n_systems)
    takes = "(state, *parameters)" if potential is None else "(state, potential, *parameters)"
    count = len(parameters) + (1 if potential is None else 2)
    check_callable("update", update, takes, count)
    if approximation is not None:
        check_callable("approximation", approximation, takes, count)

    def new_state(
        s: Tensor, potential: Tensor | None, *parameters: Tensor, update: Update = update
    ) -> Tensor:
        # its own copy: an update that writes into its state would make every state a solution
        s = s.clone()
        new = update(s, *parameters) if potential is None else update(s, potential, *parameters)
        check_returned("update (and approximation)", new, shape, state)
        return new

    def residual(x: Tensor, *parameters: Tensor, update: Update = update) -> Tensor:
        s = x[: rows * size].view(shape)
        if groups is None:
            given, rest = (None, parameters) if potential is None else (parameters[0], parameters[1:])
            return (new_state(s, given, *rest, update=update) - s).flatten()
        wanted, *rest = parameters
        mu = x[rows * size :].view(wanted.shape)
        new = new_state(s, mu, *rest, update=update)
        return torch.cat(((new - s).flatten(), groups.missing(s, wanted).flatten()))

    arguments = tuple(parameters)
    if totals is not None or potential is not None:
        arguments = (totals if totals is not None else potential, *parameters)
    found: dict[str, Any] = {}

    options = RootOptions(
        "fixed point",
        max(tolerance, 2e-6 if dtype == torch.float32 else 1e-13),
        max_iterations,
        on_failure,
        partial(gmres, rounding=ROUNDING[dtype]),
        lambda: found["result"].inverse,
    )

    def with_response(x: Tensor, constants: Sequence[Tensor], groups: GivenTotals) -> tuple[Tensor, int]:
        """The state with potentials at which charges respond (Newton needs it); evaluations spent."""
        wanted, *rest = constants
        charges, potentials = x.split((rows * size, wanted.numel()))

        def missing(mu: Tensor) -> Tensor:
            with torch.no_grad():
                new = new_state(charges.to(dtype).view(shape), mu.view(wanted.shape).to(dtype), *rest)
            return groups.missing(new, wanted).flatten().double()

        mu, count = bracket_potential(missing, potentials)
        return torch.cat((charges, mu)), count

    def solve(arguments: Sequence[Tensor]) -> Tensor:
        constants = [t.detach() for t in arguments]

        def function(x: Tensor, update: Update = update) -> Tensor:
            with torch.no_grad():
                return residual(x.to(dtype), *constants, update=update).double()

        def feasible(x: Tensor) -> Tensor:
            if groups is None:
                return x
            charges, potentials = x.split((rows * size, len(x) - rows * size))
            return torch.cat((groups.feasible(charges, constants[0].double()), potentials))

        start, value = first, function(first)
        criterion, spent = make_criterion(
            batch,
            options.tolerance,
            dtype,
            is_state,
            value + (start if is_state is None else is_state * start),
            lambda: function(torch.zeros_like(start)),
            None if groups is None else feasible(torch.zeros_like(start)),
        )
        spent += 1
        root = partial(newton, krylov=max_iterations, feasible=feasible)
        result, affine, inverse, near = None, False, None, None
        if approximation is not None:
            roughly = partial(function, update=approximation)
            rough = replace(criterion, tolerance=1e-2)
            guess = root(roughly, start, rough, max_iterations=1, affine=True)
            there, inverse = function(guess.x), guess.inverse
            spent += 1
            better = batch.expand(batch.norm(there) < batch.norm(value))
            start, value = torch.where(better, guess.x, start), torch.where(better, there, value)
        else:
            # two more evaluations along the first step tell whether the map is affine
            near, far = function(start + value) - value, function(start + 2 * value) - value
            bend = batch.norm(far - 2 * near) / batch.norm(far).clamp(min=1e-300)
            still = criterion.judge(start, value).converged
            affine = bool(((bend < _AFFINE[dtype]) | still).all())
            spent += 2
        if affine and solver != "anderson":
            # linear along one direction only, where charges saturate: then it goes on below
            result = root(function, start, criterion, max_iterations=3, affine=True, value=value, image=near)
            spent += result.evaluations
            affine = bool((result.status != Status.ITERATIONS).all())
        if result is None or not affine:
            if groups is not None:
                start, count = with_response(start, constants, groups)
                spent += count
                if count > 2:  # it has moved
                    value = function(start)
                    spent += 1
            if solver == "newton" or constrained or approximation is not None:
                result = root(
                    function,
                    start,
                    criterion,
                    max_iterations=max_iterations,
                    affine=False,
                    step=_STEP[dtype],
                    value=value,
                    inverse=inverse,
                )
            else:
                assert near is not None
                result = anderson(
                    function,
                    start,
                    criterion,
                    max_iterations,
                    mixing,
                    history,
                    (value, near),
                )
            spent += result.evaluations
        assert result is not None
        found.update(result=result, affine=affine, evaluations=spent)
        options.report("fixed point", result)
        return result.x.to(dtype)

    x = Root.apply(residual, solve, batch, options, *arguments)
    result = found["result"]
    # a name of its own: `residual`, which the graph of x holds, must not hold x
    multipliers = potential if totals is None else x[rows * size :].view(totals.shape)
    return FixedPointSolution(
        x[: rows * size].view(shape),
        multipliers,
        result.residual,
        result.iterations,
        result.status,
        found["evaluations"],
        found["affine"],
    )
