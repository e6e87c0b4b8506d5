"""
Charge equilibration for molecular dynamics at a fixed, small cost per step.

Auxiliary charges n are integrated time-reversibly along with the atoms and stay near the minimum. A fixed
number of conjugate gradient steps from them, with the energy below, replaces a converged solve. Let r be the
gradient at the state q that the steps reach, and M a positive approximation of the inverse Hessian. Then
    E = E(q) - 1/2 r.M r
is a shadow of the energy at the minimum, with an error of O(r^2). The forces are its derivatives at fixed q
and M. They differ from those at the minimum only by the part of r that M does not remove, so the dynamics
conserves an energy. Niklasson, Phys. Rev. Lett. 100, 123004 (2008); Niklasson et al., J. Chem. Phys. 130,
214109 (2009); shadow functionals of charge equilibration, Niklasson, J. Chem. Phys. 154, 054101 (2021).
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
from ..solvers.preconditioners import check_preconditioner, make_factor, make_preconditioner

# damping of the auxiliary motion: order, kappa, alpha, c_0 .. c_order from Niklasson et al. 2009, table 1
_DISSIPATION = {
    3: (1.69, 0.150, (-2, 3, 0, -1)),
    4: (1.75, 0.057, (-3, 6, -2, -2, 1)),
    5: (1.82, 0.018, (-6, 14, -8, -3, 4, -1)),
    6: (1.84, 0.0055, (-14, 36, -27, -2, 12, -6, 1)),
    7: (1.86, 0.0016, (-36, 99, -88, 11, 32, -25, 8, -1)),
}


class ExtendedLagrangian:
    """
    Auxiliary states that follow the atoms; every step's `shadow_equilibration` starts from them.

    ``n(t + 1) = 2 n(t) - n(t - 1) + kappa (s(t) - n(t)) + alpha sum_k c_k n(t - k)`` is time-reversible
    except for the weak damping alpha, so errors do not accumulate to a drift. The time step must be constant.
    For a restart, only ``states`` needs to be saved.

    Args:
        order: Order of the damping, 3 to 7; a higher order damps less.

    Attributes:
        states: The last auxiliary states, oldest first.

    Example:
        >>> import torch
        >>> from scfmlip.scf import ExtendedLagrangian
        >>> dynamics = ExtendedLagrangian()
        >>> dynamics.guess() is None  # so the first step needs a converged solve
        True
        >>> dynamics.add(torch.tensor([[-0.8], [0.4], [0.4]]))  # its charges
        >>> dynamics.guess().flatten()  # auxiliary charges of the next step
        tensor([-0.8000,  0.4000,  0.4000], dtype=torch.float64)
    """

    def __init__(self, order: int = 5) -> None:
        if order not in _DISSIPATION:
            raise ValueError(f"order must be one of {sorted(_DISSIPATION)}, got {order!r}")
        self.order = order
        self.states: list[Tensor] = []

    def add(self, state: Tensor) -> None:
        """Add the state of a step; the first must be converged. Another shape clears the history."""
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
        """The auxiliary state of the next step; None before the first step, which needs a converged solve."""
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

    With ``d = -M r`` and ``s = q + d``, its derivatives are those of ``source.s + 1/2 s.A s - 1/2 d.A d``,
    and its value is that plus ``gain = 1/2 r.M r``.
    """
    whole = problem.prepare(positions, cell, widths, external_field, external_potential)
    bare = problem.prepare(positions, cell, widths)
    local = electronegativity * state + 0.5 * hardness * (state**2 - step**2)
    energy = whole.energy(state, local.double().sum(1)) - bare.energy(step)
    return energy.to(state.dtype) + gain


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
    Charges after a fixed number of steps from the auxiliary charges, with the energy that belongs to them.

    The cost is ``iterations + 1`` products with the Coulomb operator; it does not depend on a tolerance, and
    there is no adjoint. Use it for molecular dynamics: it is differentiable once. Train with
    `charge_equilibration`.

    Args:
        geometry: From `Coulomb.prepare`.
        electronegativity: ``[n_atoms]`` or ``[n_atoms, dim]`` V (and V/angstrom).
        hardness: ``[n_atoms]`` or ``[n_atoms, dim]`` V/e (and V/(e angstrom^2)), positive.
        total_charge: e, one number or ``[n_systems]`` or ``[n_fragments]``.
        auxiliary: ``[n_atoms, dim]`` from `ExtendedLagrangian.guess`.
        iterations: Conjugate gradient steps, at least 0; each system stops at rounding.
        fragments: See `charge_equilibration`.
        width_index: See `charge_equilibration`.
        widths: See `charge_equilibration`.
        pairs: See `charge_equilibration`.
        preconditioner: See `charge_equilibration`; it is also M.

    Returns:
        The solution. ``residual`` is the relative residual before the last correction. ``status`` is
        CONVERGED if it is below 0.1, else ITERATIONS: the auxiliary state has then lost the minimum, and
        this step should be converged instead.

    Raises:
        ValueError: for wrong shapes, NaN, or a negative number of iterations.
        TypeError: for another dtype.

    Example:
        >>> import torch, scfmlip
        >>> from scfmlip.scf import ExtendedLagrangian, shadow_equilibration
        >>> water = torch.tensor([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]).double()
        >>> chi, hardness = torch.tensor([8.5, 4.5, 4.5]).double(), torch.tensor([2.0, 3.0, 3.0]).double()
        >>> coulomb, dynamics = scfmlip.Coulomb(l_max=0, sigma=0.7), ExtendedLagrangian()
        >>> first = scfmlip.charge_equilibration(coulomb.prepare(water, None, False), chi, hardness)
        >>> dynamics.add(first.state)
        >>> geometry = coulomb.prepare(1.01 * water, None, False)  # the next step of a trajectory
        >>> step = shadow_equilibration(geometry, chi, hardness, auxiliary=dynamics.guess())
        >>> [round(q, 3) for q in step.charges.tolist()]
        [-0.791, 0.396, 0.395]
        >>> dynamics.add(step.state)
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

        factor = make_factor(preconditioner, problem, positions, cell, stiff, own)
        precondition = make_preconditioner(preconditioner, problem, stiff, own, factor)
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
