"""
Fixed points of a map of the state, with derivatives of any order that do not unroll the iterations.

The state solves ``F(s, theta) = s``. With a potential mu it solves ``F(s, mu, theta) = s``. Either mu is
given (an electrode, a Fermi level), or it is an unknown that fixes the charges, ``sum_i s_i0 = Q`` in every
system, with one mu per constrained column (the total charge, or each spin's). Derivatives come from the
transposed linear system at the solution (implicit function theorem), whose solution is again a root and is
differentiated in the same way. Of the iterations only the last Krylov space is kept; it preconditions those
solves.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from ..decisions import needed
from ..electrostatics.checks import to_tensor
from ..segments import Segments
from ..waiting import together
from .convergence import ROUNDING, make_criterion
from .eager import runs_eagerly
from .implicit import GeneralEquations, Root, RootOptions
from .options import (
    check_callable,
    check_columns,
    check_numbers,
    check_solver,
    check_state,
    check_whole,
    read_batch,
)
from .problem import FixedPointProblem, Update
from .solution import Status, shown, summarize
from .solvers.anderson import anderson
from .solvers.gmres import KrylovInverse, RootResult, gmres
from .solvers.memory import SolverMemory
from .solvers.newton import bracket_potential, newton
from .solvers.source_fit import FittedStart
from .totals import GivenTotals

SolverName = Literal["auto", "anderson", "newton"]
# largest relative second difference of a map that counts as affine: rounding
_AFFINE = {torch.float32: 1e-4, torch.float64: 1e-9}
# relative step of finite differences: the square root of the rounding
_STEP = {torch.float32: 3e-4, torch.float64: 3e-8}
# the smallest tolerance
_LEAST = {torch.float32: 2e-6, torch.float64: 1e-13}


@dataclass(frozen=True, repr=False)
class FixedPointSolution:
    """
    A self-consistent state.

    Attributes:
        state: Same shape and dtype as the first guess.
        chemical_potential: V, in the shape of the totals, or as given; None without one.
        residual: ``[n_systems]`` norm of ``F(s) - s``, relative to the scale that `fixed_point` documents.
        iterations: ``[n_systems]`` int64.
        status: ``[n_systems]`` int64, see `Status`.
        evaluations: Number of evaluations of the map, for the whole batch.
        affine: Whether the map was recognised as affine and solved as one linear system.
        memory: For the next solve, if this one was given one; else None.

    Example:
        >>> import torch, scfmlip
        >>> first = torch.zeros(2, 1, dtype=torch.float64)
        >>> solution = scfmlip.fixed_point(lambda s: 1.0 - 0.5 * s, first)  # a linear response
        >>> solution.state.flatten()
        tensor([0.6667, 0.6667], dtype=torch.float64)
        >>> solution.affine, solution.status  # status 0 is converged, see `Status`
        (True, tensor([0]))
    """

    state: Tensor
    chemical_potential: Tensor | None
    residual: Tensor
    iterations: Tensor
    status: Tensor
    evaluations: int
    affine: bool
    memory: SolverMemory | None = None

    def __repr__(self) -> str:
        more = [f"{self.evaluations} evaluations"] + ["affine"] * self.affine
        if self.chemical_potential is not None:
            more.append(f"chemical potential {shown(self.chemical_potential, 'V')}")
        return summarize("FixedPointSolution", self.status, self.iterations, self.state, *more)


def _potentials(value: Tensor | float, n_systems: int, totals: Tensor | None, like: Tensor) -> Tensor:
    """Given potentials unchanged, or first guesses in the shape of the totals."""
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
@together()
def fixed_point(
    update: Update,
    state: Tensor,
    parameters: Sequence[Tensor] = (),
    *,
    batch_idx: Tensor | Segments | None = None,
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
    memory: SolverMemory | None = None,
    source: Tensor | None = None,
    on_failure: Literal["raise", "warn", "ignore"] = "raise",
) -> FixedPointSolution:
    """
    Solve ``update(s, *parameters) = s`` for a ragged batch of systems that do not interact.

    Differentiable any number of times in ``parameters``. Pass everything there that the map depends on and
    whose derivatives are wanted; anything that ``update`` captures is treated as constant.

    Args:
        update: ``(state, *parameters) -> state``; with ``total_charge`` or ``chemical_potential``
            ``(state, potential [n_systems] | [n_systems, n_columns], *parameters) -> state``. It is called
            with and without recording gradients, and must be twice differentiable if second derivatives are
            wanted.
        state: ``[n_rows, ...]`` first guess, float32 or float64.
        parameters: Tensors that the map depends on.
        batch_idx: ``[n_rows]`` int64 system of each row, or `Segments`; None for one system.
        n_systems: Number of systems; counted from ``batch_idx`` if None.
        total_charge: e, one number for all systems, ``[n_systems]``, or ``[n_systems, n_columns]``
            (`spin_charges`). Adds one unknown chemical potential per total, which makes the charges add up.
        chemical_potential: V. With ``total_charge`` it is the first guess (0 if None). Otherwise it is the
            given potential (a Fermi level), in which the solution is differentiable.
        charge_columns: Which numbers of a flattened row hold charges, one per column of ``total_charge``.
        solver: "anderson" mixes; "newton" solves linear systems by GMRES. "auto" first checks whether the map
            is affine. If so, one linear solve is enough; else it takes Anderson without a constraint and
            Newton with one.
        tolerance: Norm of ``F(s) - s`` of a system, relative to a scale: the norm of F at the first guess
            (including the error of the totals there), but at most the norm of ``F(s)`` itself. Where this
            would accept more than 1e-4 e (root mean square), the scale is at most the norm of F of zeros.
            Both norms count as at least 1 e, the first one as at least 1e-3. With 0, the solve is as
            accurate as the dtype allows. Rounding of a large state is accepted, up to 1e-3 in float32 and
            1e-9 in float64. Totals are right to rounding at any tolerance.
        max_iterations: Most evaluations for Anderson's mixing, most Newton steps, and largest Krylov space.
        mixing: Fraction of the residual that Anderson's mixing adds.
        history: Number of steps that Anderson's mixing keeps.
        approximation: A cheaper affine map close to ``update``, with the same arguments. It is solved first,
            to one percent; its solution is the starting point, and its Krylov space preconditions Newton's
            method, which is then used.
        memory: Of the last solve of nearly the same equations, or an empty `SolverMemory`: GMRES is
            preconditioned by what was found there, and ``solution.memory`` is for the next solve.
        source: ``[n_rows, ...]`` numbers that the solution follows, such as the map at zero potential. With
            ``memory``, the solve starts from the combination of earlier solutions whose sources combine to
            this one, where that is nearer than ``state``.
        on_failure: What to do if a system does not converge. The other systems are right in any case.

    Returns:
        The solution.

    Raises:
        ConvergenceError: names the systems, why, and what to do.
        ValueError: for shapes that do not match, NaN, options out of range, or a charge without rows.
        TypeError: for arguments of the wrong type, and an update that does not take ``(state, ...)`` or does
            not return the state's dtype.

    Example:
        >>> import torch, scfmlip
        >>> strength = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        >>> first = torch.zeros(3, 1, dtype=torch.float64)
        >>> solution = scfmlip.fixed_point(lambda s, a: torch.cos(a * s), first, (strength,))
        >>> round(float(solution.state[0]), 4)  # x = cos(x / 2)
        0.9004
        >>> (slope,) = torch.autograd.grad(solution.state.sum(), strength)  # through the solution
    """
    check_state(state, parameters)
    check_solver(tolerance, max_iterations, on_failure)
    check_whole("history", history, 1)
    _check_method(solver, mixing, total_charge is not None)
    problem = _read_problem(
        update, state, batch_idx, n_systems, total_charge, chemical_potential, charge_columns
    )
    takes = "(state, *parameters)" if problem.potential is None else "(state, potential, *parameters)"
    count = len(parameters) + (1 if problem.potential is None else 2)
    check_callable("update", update, takes, count)
    if approximation is not None:
        check_callable("approximation", approximation, takes, count)
    search = FixedPointSearch(
        problem,
        solver,
        max(tolerance, _LEAST[state.dtype]),
        max_iterations,
        mixing,
        history,
        approximation,
        memory,
        _read_source(source, problem),
    )
    options = RootOptions(
        "fixed point",
        search.tolerance,
        max_iterations,
        on_failure,
        partial(gmres, rounding=ROUNDING[state.dtype]),
        lambda: search.result.inverse,
    )

    def solve(arguments: Sequence[Tensor]) -> Tensor:
        result = search.run([t.detach() for t in arguments])
        options.report("fixed point", result)
        return result.x.to(state.dtype)

    equations = GeneralEquations(problem.residual, solve, problem.batch, options)
    x = Root.apply(equations, *problem.given, *parameters)
    totals, rows, result = problem.totals, problem.rows, search.result
    return FixedPointSolution(
        x[: state.numel()].view(state.shape),
        problem.potential if totals is None else rows.sum_gradient(x[state.numel() :].view(totals.shape)),
        result.residual,
        result.iterations,
        result.status,
        search.evaluations,
        search.affine,
        search.memory,
    )


def _read_source(source: Tensor | None, problem: FixedPointProblem) -> Tensor | None:
    """``[n_rows, n]`` float64: the source, and what is given to the system of each row."""
    if source is None:
        return None
    rows = problem.rows
    if not torch.is_tensor(source) or not source.is_floating_point():
        raise TypeError(f"source must be a tensor of floating-point numbers, got {source!r}")
    if source.ndim == 0 or len(source) != rows.n_rows or source.device != problem.like.device:
        raise ValueError(
            f"source must have shape [{rows.n_rows}, ...] on {problem.like.device}, got {list(source.shape)} "
            f"on {source.device}"
        )
    parts = [source.detach().flatten(1) if source.ndim > 1 else source.detach()[:, None]]
    for given in problem.given:
        parts.append(rows.expand(given.detach().view(rows.n_segments, -1)))
    if problem.totals is not None:
        parts[1] = parts[1] / rows.expand(rows.counts.clamp(min=1))[:, None]
    return torch.cat([part.double() for part in parts], 1)


def _check_method(solver: str, mixing: float, constrained: bool) -> None:
    if solver not in ("auto", "anderson", "newton"):
        raise ValueError(f"solver must be 'auto', 'anderson' or 'newton', got {solver!r}")
    if solver == "anderson" and constrained:
        raise ValueError("Anderson's mixing has no constraint: use solver='newton' with total_charge")
    if isinstance(mixing, bool) or not isinstance(mixing, numbers.Real) or not 0 < mixing < math.inf:
        raise ValueError(f"mixing must be a positive number, got {mixing!r}")


def _read_problem(
    update: Update,
    state: Tensor,
    batch_idx: Tensor | Segments | None,
    n_systems: int | None,
    total_charge: Tensor | float | None,
    chemical_potential: Tensor | float | None,
    charge_columns: Sequence[int],
) -> FixedPointProblem:
    """The user's arguments as a problem."""
    columns = check_columns(charge_columns)
    rows = read_batch(state, batch_idx, n_systems)
    groups, totals, potential = None, None, None
    if total_charge is not None:
        groups = GivenTotals(rows, columns, math.prod(state.shape[1:]))
        totals = groups.totals(total_charge, state)
    if chemical_potential is not None or total_charge is not None:
        guess = 0.0 if chemical_potential is None else chemical_potential
        potential = _potentials(guess, rows.n_segments, totals, state)
    return FixedPointProblem(update, state, rows, groups, totals, potential)


class FixedPointSearch:
    """
    The search for a fixed point: one linear solve if the map is affine, else mixing or Newton's method.

    Args:
        problem: The equations.
        solver: "auto", "anderson" or "newton".
        tolerance: As in `fixed_point`, but not below the accuracy of the dtype.
        max_iterations, mixing, history, approximation, memory: As in `fixed_point`.
        source: ``[n_rows, n]`` float64, on which the solution depends.

    Attributes:
        result: The root and how it was found, after `run`.
        affine: Whether the map is affine.
        evaluations: Number of evaluations of the map so far.
        memory: For the next search, after `run`; None if none was given.
    """

    result: RootResult

    def __init__(
        self,
        problem: FixedPointProblem,
        solver: SolverName,
        tolerance: float,
        max_iterations: int,
        mixing: float,
        history: int,
        approximation: Update | None,
        memory: SolverMemory | None = None,
        source: Tensor | None = None,
    ) -> None:
        self.problem, self.solver, self.tolerance = problem, solver, tolerance
        self.max_iterations, self.mixing, self.history = max_iterations, mixing, history
        self.approximation, self.memory, self.source = approximation, memory, source
        self.affine, self.evaluations = False, 0

    def run(self, arguments: Sequence[Tensor]) -> RootResult:
        """
        Find the root.

        Args:
            arguments: Arguments of `FixedPointProblem.residual`, detached from any graph.
        """
        self.arguments, self.affine = arguments, False
        fitted = self._fitted()
        start = self.problem.first
        if fitted is not None and fitted.combined is not None:
            start = self._feasible(torch.cat((fitted.rows.flatten(), fitted.levels.flatten())))
        value = self._function(start)
        self._set_criterion(start, value)
        known = None
        if self.memory is not None and self.solver != "anderson":
            known = self.memory.inverse(self.problem.batch)
        result = self._search(start, value, known)
        if known is not None and bool((result.status != Status.CONVERGED).any()):
            # what was remembered may be what misled it
            known = None
            result = self._search(start, value, None)
        if self.memory is not None:
            size = math.prod(self.problem.like.shape[1:])
            self.memory = self.memory.after(result, known, self.affine, size)
            if fitted is not None and self.memory.fit is not None:
                fit = self.memory.fit.after(fitted, *self._parts(result.x))
                self.memory = replace(self.memory, fit=fit)
        self.result = result
        return result

    def _fitted(self) -> FittedStart | None:
        """Where to start after earlier solves; None if nothing is kept of them."""
        fit = None if self.memory is None else self.memory.fit
        if fit is None or self.source is None:
            return None
        return fit.start(self.source, *self._parts(self.problem.first), self.problem.rows)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Unknowns as ``[n_rows, n]`` and ``[n_systems, n]``."""
        problem = self.problem
        rows, levels = x.split((problem.n_charges, len(x) - problem.n_charges))
        n_levels = 0 if problem.groups is None else len(problem.groups.columns)
        rows = rows.view(problem.rows.n_rows, math.prod(problem.like.shape[1:]))
        return rows, levels.view(problem.rows.n_segments, n_levels)

    def _search(self, start: Tensor, value: Tensor, inverse: KrylovInverse | None) -> RootResult:
        """The root, from a start where the residual is ``value``, with an approximate inverse or without."""
        near = None
        if inverse is not None and self.memory is not None:
            self.affine = self.memory.affine
        elif self.approximation is not None:
            start, value, inverse = self._start_nearby(start, value)
        else:
            near = self._probe(start, value)
        if self.affine and self.solver != "anderson":
            known = {"image": near} if inverse is None else {"inverse": inverse}
            result = self._root(start, 3, True, value=value, **known)
            # the map may be linear along one direction only, where charges saturate: then continue below
            self.affine = not needed((result.status == Status.ITERATIONS).any())
            if self.affine:
                return result
        return self._solve_nonlinear(start, value, near, inverse)

    def _function(self, x: Tensor, update: Update | None = None) -> Tensor:
        """The residual at ``x [n]``, float64."""
        self.evaluations += 1
        dtype = self.problem.like.dtype
        with torch.no_grad():
            return self.problem.residual(x.to(dtype), *self.arguments, update=update).double()

    def _feasible(self, x: Tensor) -> Tensor:
        return self.problem.feasible(x, self.arguments)

    def _set_criterion(self, start: Tensor, value: Tensor) -> None:
        problem = self.problem
        kept = start if problem.is_state is None else problem.is_state * start
        nothing = torch.zeros_like(start)
        self.criterion = make_criterion(
            problem.batch,
            self.tolerance,
            problem.like.dtype,
            problem.is_state,
            value + kept,
            lambda: self._function(nothing),
            None if problem.groups is None else self._feasible(nothing),
        )

    def _root(self, start: Tensor, iterations: int, affine: bool, **known: Any) -> RootResult:
        """Run Newton's method."""
        return newton(
            known.pop("function", self._function),
            start,
            known.pop("criterion", self.criterion),
            iterations,
            krylov=self.max_iterations,
            affine=affine,
            feasible=self._feasible,
            **known,
        )

    def _start_nearby(self, start: Tensor, value: Tensor) -> tuple[Tensor, Tensor, KrylovInverse | None]:
        """The approximation's root if it is a better start, and the approximate inverse from its solve."""
        batch = self.problem.batch
        rough = replace(self.criterion, tolerance=1e-2)
        before = self.evaluations  # the approximation's do not count

        def roughly(x: Tensor) -> Tensor:
            return self._function(x, self.approximation)

        guess = self._root(start, 1, True, function=roughly, criterion=rough)
        self.evaluations = before
        there = self._function(guess.x)
        better = batch.expand(batch.norm(there) < batch.norm(value))
        return torch.where(better, guess.x, start), torch.where(better, there, value), guess.inverse

    def _probe(self, start: Tensor, value: Tensor) -> Tensor:
        """Change of the map along its first step; a step twice as long tells whether the map is affine."""
        batch, dtype = self.problem.batch, self.problem.like.dtype
        near, far = self._function(start + value) - value, self._function(start + 2 * value) - value
        bend = batch.norm(far - 2 * near) / batch.norm(far).clamp(min=1e-300)
        still = self.criterion.judge(start, value).converged
        self.affine = not needed(~((bend < _AFFINE[dtype]) | still).all())
        return near

    def _with_response(self, x: Tensor) -> tuple[Tensor, bool]:
        """The unknowns with potentials at which charges respond, and whether a search was needed."""
        charges, potentials = x.split((self.problem.n_charges, len(x) - self.problem.n_charges))
        mu, count = bracket_potential(
            lambda mu: self.problem.missing(charges, mu, self.arguments), potentials
        )
        self.evaluations += count
        return torch.cat((charges, mu)), count > 2

    def _solve_nonlinear(
        self, start: Tensor, value: Tensor, near: Tensor | None, inverse: KrylovInverse | None
    ) -> RootResult:
        constrained = self.problem.groups is not None
        if constrained:
            start, moved = self._with_response(start)
            value = self._function(start) if moved else value
        if self.solver == "newton" or constrained or near is None:
            step = _STEP[self.problem.like.dtype]
            return self._root(start, self.max_iterations, False, step=step, value=value, inverse=inverse)
        known = (value, near)
        return anderson(
            self._function, start, self.criterion, self.max_iterations, self.mixing, self.history, known
        )
