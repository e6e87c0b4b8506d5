"""Self-consistency: charge equilibration, fixed points, and their derivatives."""

from .constraints import redistribute_charge, spin_charges
from .equilibration import charge_equilibration
from .extrapolation import StateExtrapolator
from .fixed_point import FixedPointSolution, fixed_point
from .functional import FunctionalSolution, minimize_functional
from .shadow import ExtendedLagrangian, shadow_equilibration
from .short_range import NeighbourPairs, neighbour_pairs, smooth_width
from .solution import ChargeSolution, ConvergenceError, Status

__all__ = [
    "ChargeSolution",
    "ConvergenceError",
    "ExtendedLagrangian",
    "FixedPointSolution",
    "FunctionalSolution",
    "NeighbourPairs",
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
