"""Self-consistency: charge equilibration, fixed points, and their derivatives."""

from ..electrostatics.range_split import NeighbourPairs, neighbour_pairs, smooth_width
from .constraints import redistribute_charge, spin_charges
from .dynamics.extrapolation import StateExtrapolator
from .dynamics.shadow import ExtendedLagrangian, shadow_equilibration
from .equilibration import charge_equilibration
from .fixed_point import FixedPointSolution, fixed_point
from .functional import FunctionalSolution, minimize_functional
from .solution import ChargeSolution, ConvergenceError, Status
from .solvers.memory import SolverMemory

__all__ = [
    "ChargeSolution",
    "ConvergenceError",
    "ExtendedLagrangian",
    "FixedPointSolution",
    "FunctionalSolution",
    "NeighbourPairs",
    "SolverMemory",
    "StateExtrapolator",
    "Status",
    "charge_equilibration",
    "fixed_point",
    "minimize_functional",
    "neighbour_pairs",
    "redistribute_charge",
    "shadow_equilibration",
    "smooth_width",
    "spin_charges",
]
