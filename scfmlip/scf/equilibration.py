"""
Charge equilibration: charges and induced dipoles at the minimum of a quadratic functional.

Rappe and Goddard, J. Phys. Chem. 95, 3358 (1991); with Gaussian charges, Ghasemi et al., Phys. Rev. B 92,
045131 (2015). Derivatives come from the adjoint system, which has the same matrix: a gradient of the state
needs one more solve. First derivatives of the energy need none, because the state is a minimum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..decisions import needed
from ..electrostatics import Geometry
from ..electrostatics.kspace import KSpace
from ..electrostatics.range_split import NeighbourPairs
from ..waiting import together
from .arguments import Given, read_arguments
from .eager import runs_eagerly
from .implicit import Equations, Minimised, Minimum, Root
from .options import check_guess, check_solver
from .quadratic import Interaction, QuadraticProblem
from .solution import ChargeSolution, Status, report
from .solvers.conjugate_gradients import LinearResult, conjugate_gradients
from .solvers.dense import DenseSolver
from .solvers.memory import SolverMemory
from .solvers.one_launch import SmallSolver, solves_small
from .solvers.one_message import OneMessage
from .solvers.preconditioners import (
    atom_widths,
    check_preconditioner,
    make_factor,
    make_preconditioner,
)
from .solvers.source_fit import FittedStart
from .splitting import Interaction as InteractionName

Method = Literal["auto", "cg", "dense"]
PreconditionerName = Literal["auto", "none", "jacobi", "fsai"]
# "auto" factorises systems of up to this many degrees of freedom (measured on 2 cores)
DENSE_UP_TO = 500
# directions that a solve hands on
_KEPT = 24
# V/e, of an atom: what a charge counts for beside a potential where sources are compared
_STIFF = 10.0


Solver = Callable[[Tensor, Tensor, Tensor | None], LinearResult]


class _Options(NamedTuple):
    """How the linear system is solved, and what happens if that fails."""

    method: str
    preconditioner: str
    tolerance: float
    max_iterations: int
    on_failure: str


def _make_solver(
    problem: QuadraticProblem,
    options: _Options,
    positions: Tensor,
    cell: Tensor | None,
    hardness: Tensor,
    widths: Tensor | None,
    memory: SolverMemory | None,
) -> Solver:
    """Make the solver at one geometry, ``(source, totals, initial) -> result``."""
    interaction = problem.prepare(positions, cell, widths)
    dtype, dim = positions.dtype, hardness.shape[1]

    def apply(state: Tensor) -> Tensor:
        return problem.apply(interaction, hardness, state.to(dtype)).double()

    shared = problem.segments.shared
    if shared and options.method == "dense":
        raise ValueError(
            "several processes share this system, of which none has the whole matrix: method='cg'"
        )
    if (
        options.method == "auto"
        and not shared
        and options.preconditioner == "auto"
        and solves_small(problem, positions, dim)
    ):
        small = SmallSolver(problem, interaction, hardness, apply, options.tolerance, options.max_iterations)
        return small.solve
    largest = int(problem.plan.atom_ptr.diff().max()) * dim if len(positions) else 0
    if options.method == "dense" or (options.method == "auto" and not shared and largest <= DENSE_UP_TO):
        matrices = _whole_matrices(problem, interaction, hardness)
        dense = DenseSolver(problem, apply, dim, dtype, matrices)
        return lambda source, totals, initial: dense.solve(source, totals, options.tolerance)
    return _Iteration(problem, options, interaction, apply, positions, cell, hardness, widths, memory)


class _Iteration:
    """Conjugate gradients at one geometry, ``(source, totals, initial) -> result``."""

    def __init__(
        self,
        problem: QuadraticProblem,
        options: _Options,
        interaction: Interaction,
        apply: Callable[[Tensor], Tensor],
        positions: Tensor,
        cell: Tensor | None,
        hardness: Tensor,
        widths: Tensor | None,
        memory: SolverMemory | None,
    ) -> None:
        self.problem, self.options, self.apply, self.hardness = problem, options, apply, hardness
        self.interaction, self.geometry = interaction, (positions, cell, widths)
        self.memory, self.dtype = memory, positions.dtype
        self.batch = problem.segments.repeated(hardness.shape[1])
        self._afresh = False
        self._precondition(memory)

    def _precondition(self, memory: SolverMemory | None) -> None:
        """Precondition afresh, or with what earlier solves have found as well."""
        problem, hardness, (positions, cell, widths) = self.problem, self.hardness, self.geometry
        self.together = self.inverse = factor = None
        name = self.options.preconditioner
        if memory is not None and name in ("auto", "fsai"):
            factor = memory.sparse_factor(len(positions), positions.device)
        if factor is None:
            factor = make_factor(name, problem, positions, cell, hardness, widths)
        self.factor = factor
        self.precondition = make_preconditioner(name, problem, hardness, widths, factor)
        if problem.segments.shared:
            if problem.groups.whole:
                given = (problem, self.interaction, hardness, self.precondition, self.dtype)
                self.together = OneMessage(*given)
            return
        self.inverse = None if memory is None else memory.conjugate(self.batch)
        if self.inverse is None:
            return
        plain, shape = self.precondition, self.hardness.shape
        both = self.inverse.around(lambda v: plain(v.view(shape)).flatten())
        self.precondition = lambda values: both(values.flatten()).view(shape)

    def _iterate(
        self, source: Tensor, totals: Tensor, initial: Tensor | None, tolerance: float, max_iterations: int
    ) -> LinearResult:
        if self.together is not None:
            return self.together.solve(source, totals, initial, tolerance, max_iterations)
        given = (self.problem, self.apply, source, totals, initial, self.precondition)
        keep = 0 if self.memory is None or self.problem.segments.shared else _KEPT
        return conjugate_gradients(*given, tolerance, max_iterations, self.dtype, keep=keep)

    def _soft(self) -> bool:
        """Whether some hardness is not positive."""
        if self.together is not None:
            return self.together.soft
        return needed(self.problem.segments.sum((self.hardness <= 0).double().sum(1)).any())

    def __call__(self, source: Tensor, totals: Tensor, initial: Tensor | None) -> LinearResult:
        options = self.options
        result = self._iterate(source, totals, initial, options.tolerance, options.max_iterations)
        handed_on = self.memory is not None and self.memory.symmetric and not self._afresh
        if handed_on and bool((result.status != Status.CONVERGED).any()):
            # what was remembered may be what misled it
            self._afresh = True
            self._precondition(None)
            result = self._iterate(source, totals, initial, options.tolerance, options.max_iterations)
        if not self._soft():
            return result
        # if the hardness is not positive, a generic direction tells whether this is a minimum
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(source.shape, generator=generator, dtype=source.dtype).to(source.device)
        other = self._iterate(probe, torch.zeros_like(totals), None, 1e-3, min(options.max_iterations, 30))
        saddle = (result.status == Status.CONVERGED) & (other.status == Status.INDEFINITE)
        return result._replace(status=torch.where(saddle, int(Status.INDEFINITE), result.status))

    def remembered(self, memory: SolverMemory, result: LinearResult) -> SolverMemory:
        """For the next solve."""
        count = int(result.iterations.max()) if len(result.iterations) else 0
        return memory.after_conjugate(result.directions, self.inverse, self.factor, count, self.batch)


def _whole_matrices(
    problem: QuadraticProblem, interaction: Interaction, hardness: Tensor
) -> list[Tensor] | None:
    """``J + K`` of every system if all are crystals with Cartesian rows, else None."""
    plan, kspace, source = problem.plan, interaction.geometry.kspace, problem.coulomb.source
    split = interaction.geometry.near is not None
    if plan.open is not None or plan.corrected or split or not isinstance(kspace, KSpace):
        return None
    if hardness.shape[1] > 4 or source.order != "cartesian" or source.normalization != "multipoles":
        return None
    matrices = kspace.matrices(atom_widths(problem, hardness), hardness.shape[1])
    if interaction.short is not None:
        matrices = [wide + rest for wide, rest in zip(matrices, interaction.short.matrices(), strict=True)]
    counts = (plan.atom_ptr.diff() * hardness.shape[1]).tolist()
    stiff = hardness.detach().double().flatten().split(counts)
    return [m + torch.diag(j) for m, j in zip(matrices, stiff, strict=True)]


class _Equilibration(Equations):
    """
    ``A s + b = E mu``, ``E^T s = Q``, with ``x = (s, mu)``; at constant potential ``A s + b = 0``, ``x = s``.

    The parameters are b, Q and what A depends on. The matrix is symmetric if the second equation is written
    ``Q - E^T s = 0``, so the adjoint is the same system with other sources: ``A w - g_s = E nu``,
    ``E^T w = -g_mu``. It has the same solver, and its own adjoint as well.
    """

    def __init__(
        self,
        problem: QuadraticProblem,
        options: _Options,
        initial: Tensor | None = None,
        name: str = "charge equilibration",
        solver: Solver | None = None,
        memory: SolverMemory | None = None,
    ) -> None:
        self.problem, self.options, self.initial, self.name = problem, options, initial, name
        self.solver, self.memory = solver, memory
        self.result: LinearResult | None = None
        self.start: FittedStart | None = None

    def solve(self, parameters: Sequence[Tensor]) -> Tensor:
        source, totals, *matrix = parameters
        if self.solver is None:
            positions, cell, hardness, widths = matrix
            fixed = (positions, cell, hardness, widths, self.memory)
            self.solver = _make_solver(self.problem, self.options, *fixed)
        right = source.double(), totals.double()
        self.start = self._fitted(*right)
        self.result = self.solver(*right, self.initial if self.start is None else self.start.rows)
        self._report(self.result)
        x = self.result.state.flatten()
        if self.problem.constrained:
            x = torch.cat((x, self.result.multiplier.to(x.dtype)))
        return x.to(source.dtype)

    def _fitted(self, source: Tensor, totals: Tensor) -> FittedStart | None:
        """Where to start after earlier solves; None for solvers that need no start, or if nobody asked."""
        fit = None if self.memory is None else self.memory.fit
        if fit is None or not isinstance(self.solver, _Iteration):
            return None
        problem, groups = self.problem, self.problem.groups.segments
        given = source
        if problem.constrained:
            # the charge of an atom's share, as a potential
            each = groups.expand(totals / groups.counts.clamp(min=1))
            given = torch.cat((source, _STIFF * each[:, None]), 1)
        initial = torch.zeros_like(source) if self.initial is None else self.initial.double()
        return fit.start(given, initial, None, problem.segments)

    def adjoint(self, grad: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        source, totals, *matrix = parameters
        d_state, d_multiplier = self.split(grad, source)
        name = self.name.removesuffix(", adjoint") + ", adjoint"
        equations = _Equilibration(self.problem, self.options, None, name, self.solver)
        right = torch.zeros_like(totals) if d_multiplier is None else -d_multiplier
        return Root.apply(equations, -d_state, right, *matrix)

    def weighted(self, w: Tensor, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        source, totals, positions, cell, hardness, widths = parameters
        (w_state, w_multiplier), (state, _) = self.split(w, source), self.split(x, source)
        value = (w_state * source).sum()
        if any(t is not None and t.requires_grad for t in (positions, cell, hardness, widths)):
            image = self.problem.apply(self.problem.prepare(positions, cell, widths), hardness, state)
            value = value + (w_state * image).sum()
        return value if w_multiplier is None else value + (w_multiplier * totals).sum()

    @staticmethod
    def split(x: Tensor, source: Tensor) -> tuple[Tensor, Tensor | None]:
        """States ``[n_atoms, dim]`` and the multipliers ``[n_groups]``, or None at constant potential."""
        size = source.numel()
        return x[:size].view(source.shape), None if len(x) == size else x[size:]

    def remembered(self) -> SolverMemory | None:
        """For the next solve, after `solve`; None if nobody asked."""
        if self.memory is None or self.result is None or not isinstance(self.solver, _Iteration):
            return self.memory
        memory = self.solver.remembered(self.memory, self.result)
        if memory.fit is None or self.start is None:
            return memory
        return replace(memory, fit=memory.fit.after(self.start, self.result.state.double()))

    def _report(self, result: LinearResult) -> None:
        """Raise or warn about systems that did not converge."""
        report(self.name, result.status, result.residual, result.iterations, self.options.on_failure)


def _functional(
    problem: QuadraticProblem,
    state: Tensor,
    totals: Tensor,
    electronegativity: Tensor,
    hardness: Tensor,
    positions: Tensor,
    cell: Tensor | None,
    widths: Tensor | None,
    external_field: Tensor | None,
    external_potential: Tensor | None,
) -> Tensor:
    """``chi.s + 1/2 s.(J + K) s`` plus the energy in external fields, ``[n_systems]``."""
    interaction = problem.prepare(positions, cell, widths, external_field, external_potential)
    local = (electronegativity * state + 0.5 * hardness * state**2).double().sum(1)
    if not problem.constrained:
        local = local - (problem.groups.segments.expand(totals) * state[:, 0]).double()
    return interaction.energy(state, local).to(state.dtype)


def _equilibrate(given: Given, equations: _Equilibration, geometry: Geometry) -> tuple[Tensor, Tensor | None]:
    """State and multiplier; numbers of systems go in and out with whole gradients."""
    atoms = given.problem.segments
    totals, cell = atoms.share_gradient(given.totals), geometry.cell
    x = Root.apply(equations, given.source, totals, geometry.positions, cell, given.hardness, given.widths)
    state, multiplier = equations.split(x, given.source)
    return state, None if multiplier is None else atoms.sum_gradient(multiplier)


@runs_eagerly
@together()
def charge_equilibration(
    geometry: Geometry,
    electronegativity: Tensor,
    hardness: Tensor,
    total_charge: Tensor | float | None = 0.0,
    *,
    chemical_potential: Tensor | float | None = None,
    fragments: Tensor | None = None,
    width_index: Tensor | None = None,
    widths: Tensor | None = None,
    pairs: NeighbourPairs | None = None,
    initial: Tensor | None = None,
    method: Method = "auto",
    preconditioner: PreconditionerName = "auto",
    tolerance: float = 1e-6,
    max_iterations: int = 500,
    interaction: InteractionName = "auto",
    on_failure: Literal["raise", "warn", "ignore"] = "raise",
    memory: SolverMemory | None = None,
) -> ChargeSolution:
    """
    Minimise ``chi.s + 1/2 s.(J + K) s`` at given total charges or at a given potential.

    K is the geometry's Coulomb operator with self-interaction. The state s holds its multipoles: charges, and
    with ``l_max=1`` induced dipoles, whose electronegativity is minus a field that acts on them. External
    fields of the geometry act on s. The result is differentiable any number of times in positions, cell,
    external fields, electronegativity, hardness, widths and total charge. A gradient of the state needs one
    more solve with the same matrix; first derivatives of the energy need none.

    Args:
        geometry: From `Coulomb.prepare`.
        electronegativity: ``[n_atoms]`` or ``[n_atoms, dim]`` V (and V/angstrom), with dim components of the
            operator's multipoles of one width. ``[n_atoms]`` acts on charges only.
        hardness: ``[n_atoms]`` or ``[n_atoms, dim]`` V/e (and V/(e angstrom^2)), positive. ``[n_atoms]`` is
            for charges alone: atoms are then not polarizable, and dipoles and quadrupoles are 0.
        total_charge: e, one number for all systems, ``[n_systems]`` or ``[n_fragments]``.
        chemical_potential: V, one number for all systems, ``[n_systems]`` or ``[n_fragments]``: electrodes
            at constant potential instead of a given charge; pass ``total_charge=None``.
        fragments: ``[n_atoms]`` int64: groups that keep their own charge, numbered over the batch from 0.
        width_index: ``[n_atoms]`` int64: which of the operator's Gaussian widths an atom has. Needed if
            there is more than one.
        widths: ``[n_atoms]`` Gaussian widths of the atoms, angstrom. The operator's one width then only has
            to be smooth: the operator sums charges in that wide Gaussian, and neighbours add the rest
            (`range_split`). This needs far fewer wave vectors for narrow Gaussians or many atoms
            (`smooth_width`). Differentiable too, also without wave vectors.
        pairs: Neighbours for ``widths``. If None, matscipy finds them, for the smaller of the tolerances of
            the operator (V at an atom) and of this solve.
        initial: ``[n_atoms, dim]`` first guess, for instance the last step's state; not differentiated.
        method: "dense" factorises one matrix per system; "cg" iterates without a matrix; "auto" takes the
            faster one by size, and on a GPU solves systems of up to 2048 atoms in one launch, where
            that is faster.
        preconditioner: For "cg": "fsai" (factorised sparse approximate inverse), "jacobi", "none" or "auto".
        tolerance: For "cg": norm of the projected gradient relative to that of the electronegativity, or to
            that at evenly spread charges if it is larger and the solve starts there. A first guess that is
            worse than evenly spread charges is dropped. With 0, the solve is as accurate as the dtype allows.
        max_iterations: Most iterations of "cg".
        interaction: "auto" splits the operator's own narrow Gaussians in the same way as ``widths`` if that
            is cheaper, and finds the smooth operator and neighbours itself; this is for charges in crystals
            and slabs. "direct" never splits, "split" always does.
        on_failure: What to do if a system does not converge. The other systems are right in any case;
            ``status`` says which ones.
        memory: For "cg", of the last solve of nearly the same equations, or an empty `SolverMemory`: what was
            found there preconditions this solve and gives its start where that is nearer than ``initial``,
            and ``solution.memory`` is for the next one. Other methods hand it on as it is. Of processes that
            share a system each keeps its sparse factor and its rows of earlier solutions.

    Returns:
        The solution.

    Raises:
        ConvergenceError: names the systems, why (no minimum: the hardness is not positive), and what to do.
        ValueError: for wrong shapes, NaN, contradictory constraints, a charge without atoms, or ``widths`` in
            a slab with too little vacuum for the smooth operator.
        TypeError: for another dtype, or a value that is not a tensor.

    Example:
        >>> import torch, scfmlip
        >>> positions = torch.tensor([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]).double()
        >>> geometry = scfmlip.Coulomb(l_max=0, sigma=0.7).prepare(positions, None, False)
        >>> electronegativity = torch.tensor([8.5, 4.5, 4.5], dtype=torch.float64)  # of O, H, H
        >>> hardness = torch.tensor([2.0, 3.0, 3.0], dtype=torch.float64)
        >>> solution = scfmlip.charge_equilibration(geometry, electronegativity, hardness, 0.0)
        >>> [round(q, 3) for q in solution.state[:, 0].tolist()]
        [-0.796, 0.398, 0.398]
    """
    if method not in ("auto", "cg", "dense"):
        raise ValueError(f"method must be 'auto', 'cg' or 'dense', got {method!r}")
    check_solver(tolerance, max_iterations, on_failure)
    check_preconditioner(preconditioner)
    given = read_arguments(
        geometry,
        electronegativity,
        hardness,
        total_charge,
        chemical_potential,
        fragments,
        width_index,
        widths,
        pairs,
        tolerance,
        interaction,
        method == "auto" and preconditioner == "auto",
    )
    problem, positions, size = given.problem, geometry.positions, given.source.shape[1]
    groups = problem.groups
    if initial is not None:
        check_guess("initial", initial, (len(positions), size + given.padding))
        initial = initial[:, :size]
    guess = None if initial is None else initial.detach()
    options = _Options(method, preconditioner, tolerance, max_iterations, on_failure)
    equations = _Equilibration(problem, options, guess, memory=memory)
    state, multiplier = _equilibrate(given, equations, geometry)
    result = equations.result
    assert result is not None
    charge = groups.segments.sum(state[:, 0].double()).to(positions.dtype)
    # dE/dQ = mu, d(E - mu Q)/dmu = -Q
    energy = Minimum.apply(
        Minimised(functools.partial(_functional, problem), 2, groups.system),
        -charge if multiplier is None else multiplier,
        given.target,
        state,
        given.target,
        given.electronegativity,
        given.hardness,
        positions,
        geometry.cell,
        given.widths,
        geometry.external_field,
        geometry.external_potential,
    )
    if given.padding:
        state = torch.cat((state, state.new_zeros(len(state), given.padding)), 1)
    return ChargeSolution(
        state,
        given.target if multiplier is None else multiplier,
        energy,
        result.iterations,
        result.residual,
        result.status,
        equations.remembered(),
    )
