"""
Charge equilibration for molecular dynamics at a fixed, small cost per step.

Auxiliary charges n move with the atoms by time-reversible integration and stay near the minimum; a fixed
number of conjugate gradient steps from them, and the energy below, take the place of a converged solve. With
the gradient r at the state q reached and a positive approximation M of the Hessian's inverse,
    E = E(q) - 1/2 r.M r
is a shadow of the energy at the minimum, wrong by O(r^2). Its derivatives at fixed q and M are what the atoms
feel: those at the minimum but for the part of r that M leaves, so that what integrates it keeps an energy.
Niklasson, Phys. Rev. Lett. 100, 123004 (2008); Niklasson et al., J. Chem. Phys. 130, 214109 (2009); shadow
functionals of charge equilibration, Niklasson, J. Chem. Phys. 154, 054101 (2021).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ...electrostatics import Geometry
from ...electrostatics.range_split import NeighbourPairs
from ..arguments import read_arguments
from ..eager import runs_eagerly
from ..equilibration import PreconditionerName
from ..implicit import Minimised, Minimum
from ..options import check_guess, check_whole
from ..quadratic import QuadraticProblem
from ..solution import ChargeSolution, Status
from ..solvers.conjugate_gradients import conjugate_gradients, preconditioned_projector
from ..solvers.preconditioners import check_preconditioner, make_preconditioner

# damping of the auxiliary motion: order, kappa, alpha, c_0 .. c_order of Niklasson et al. 2009, table 1
_DISSIPATION = {
    3: (1.69, 0.150, (-2, 3, 0, -1)),
    4: (1.75, 0.057, (-3, 6, -2, -2, 1)),
    5: (1.82, 0.018, (-6, 14, -8, -3, 4, -1)),
    6: (1.84, 0.0055, (-14, 36, -27, -2, 12, -6, 1)),
    7: (1.86, 0.0016, (-36, 99, -88, 11, 32, -25, 8, -1)),
}


class ExtendedLagrangian:
    """
    Auxiliary states that follow the atoms: the start of every step's `shadow_equilibration`.

    ``n(t + 1) = 2 n(t) - n(t - 1) + kappa (s(t) - n(t)) + alpha sum_k c_k n(t - k)``: time-reversible but for
    the weak damping alpha, so that errors do not add up to a drift. Steps must be of one length. Explicit
    state in, explicit state out; ``states`` is all there is to save for a restart.

    Args:
        order: Of the damping, 3 to 7: higher is weaker.

    Attributes:
        states: The last auxiliary states, oldest first.
    """

    def __init__(self, order: int = 5) -> None:
        if order not in _DISSIPATION:
            raise ValueError(f"order must be one of {sorted(_DISSIPATION)}, got {order!r}")
        self.order = order
        self.states: list[Tensor] = []

    def add(self, state: Tensor) -> None:
        """Take what a step found; the first one must be converged, another shape starts afresh."""
        state = state.detach().double()
        if not self.states or self.states[-1].shape != state.shape:
            self.states = [state] * (self.order + 1)
        kappa, alpha, weights = _DISSIPATION[self.order]
        newest = self.states[-1]
        fresh = 2 * newest - self.states[-2] + kappa * (state - newest)
        for weight, old in zip(weights, reversed(self.states), strict=True):
            fresh = fresh + alpha * weight * old
        self.states = [*self.states[1:], fresh]

    def guess(self) -> Tensor | None:
        """The auxiliary state of the coming step; None before the first, which needs a converged solve."""
        return self.states[-1] if self.states else None


def _value(
    problem: QuadraticProblem,
    gain: Tensor,
    state: Tensor,
    step: Tensor,
    electronegativity: Tensor,
    hardness: Tensor,
    positions: Tensor,
    cell: Tensor | None,
    widths: Tensor | None,
    external_field: Tensor | None,
    external_potential: Tensor | None,
) -> Tensor:
    """
    The shadow functional ``E(q) - 1/2 r.M r`` at fixed q and M, ``[n_systems]``.

    In ``d = -M r`` and ``s = q + d`` its derivatives are those of ``source.s + 1/2 s.A s - 1/2 d.A d``, its
    value is that and ``gain = 1/2 r.M r``.
    """
    whole = problem.prepare(positions, cell, widths, external_field, external_potential)
    bare = problem.prepare(positions, cell, widths)
    local = electronegativity * state + 0.5 * hardness * (state**2 - step**2)
    energy = problem.segments.sum(local.double().sum(1))
    return (energy + whole.energy(state) - bare.energy(step)).to(state.dtype) + gain


@runs_eagerly
def shadow_equilibration(
    geometry: Geometry,
    electronegativity: Tensor,
    hardness: Tensor,
    total_charge: Tensor | float = 0.0,
    *,
    auxiliary: Tensor,
    iterations: int = 1,
    fragments: Tensor | None = None,
    width_index: Tensor | None = None,
    widths: Tensor | None = None,
    pairs: NeighbourPairs | None = None,
    preconditioner: PreconditionerName = "auto",
) -> ChargeSolution:
    """
    Charges after a fixed number of steps from the auxiliary ones, and the energy whose forces belong to them.

    Costs ``iterations + 1`` products with the Coulomb operator and nothing that depends on a tolerance; no
    adjoint. For molecular dynamics: differentiable once. Train with `charge_equilibration`.

    Args:
        geometry: As `charge_equilibration`.
        electronegativity: As that.
        hardness: As that.
        total_charge: As that.
        auxiliary: ``[n_atoms, dim]`` from `ExtendedLagrangian.guess`.
        iterations: Conjugate gradient steps, at least 0; each system stops at rounding.
        fragments: As `charge_equilibration`.
        width_index: As that.
        widths: As that.
        pairs: As that.
        preconditioner: As that; it is also M.

    Returns:
        The solution; ``residual`` is relative, of the state before its last correction, and ``status``
        is CONVERGED where it is below 0.1, else ITERATIONS: the auxiliary state has lost the minimum,
        converge this step instead.

    Raises:
        ValueError: for wrong shapes, NaN, or a negative number of iterations.
        TypeError: for another dtype.
    """
    check_whole("iterations", iterations, 0)
    check_preconditioner(preconditioner)
    given = read_arguments(
        geometry,
        electronegativity,
        hardness,
        total_charge,
        None,
        fragments,
        width_index,
        widths,
        pairs,
        geometry.coulomb.tolerance,
        "auto",
    )
    problem, positions, dtype = given.problem, geometry.positions.detach(), geometry.positions.dtype
    size = given.source.shape[1]
    check_guess("auxiliary", auxiliary, (len(positions), size + given.padding))
    cell = None if geometry.cell is None else geometry.cell.detach()
    with torch.no_grad():
        stiff = given.hardness.detach()
        own = None if given.widths is None else given.widths.detach()
        fixed = problem.prepare(positions, cell, own)

        def apply(state: Tensor) -> Tensor:
            return problem.apply(fixed, stiff, state.to(dtype)).double()

        precondition = make_preconditioner(preconditioner, problem, positions, cell, stiff, own)
        source, totals = given.source.detach().double(), given.totals.detach().double()
        start = auxiliary[:, :size].detach()
        found = conjugate_gradients(
            problem, apply, source, totals, start, precondition, 1e-14, iterations, dtype, choose=False
        )
        slope = problem.project(found.gradient)
        step = -preconditioned_projector(problem, precondition, source)(slope)
        gain = -0.5 * problem.segments.sum((slope * step).sum(1)).to(dtype)
        state = problem.feasible(found.state + step, totals)
        failed = (found.status == Status.INDEFINITE) | (found.status == Status.NOT_FINITE)
        near = torch.where(found.residual < 0.1, int(Status.CONVERGED), int(Status.ITERATIONS))
        status = torch.where(failed, found.status, near)
    state, multiplier = state.to(dtype), found.multiplier.to(dtype)
    shadow = functools.partial(_value, problem, gain)
    energy = Minimum.apply(
        Minimised(shadow, 2, problem.groups.system, "shadow_equilibration"),
        multiplier,
        given.target,
        state,
        step.to(dtype),
        given.electronegativity,
        given.hardness,
        geometry.positions,
        geometry.cell,
        given.widths,
        geometry.external_field,
        geometry.external_potential,
    )
    if given.padding:
        state = torch.cat((state, state.new_zeros(len(state), given.padding)), 1)
    return ChargeSolution(state, multiplier, energy, found.iterations, found.residual, status)
