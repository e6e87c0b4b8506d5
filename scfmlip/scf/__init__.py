"""Self-consistency: charge equilibration, fixed points, and their derivatives."""

from .constraints import redistribute_charge, spin_charges
from .equilibration import charge_equilibration
from .extrapolation import StateExtrapolator
from .fixed_point import FixedPointSolution, fixed_point
from .functional import FunctionalSolution, minimize_functional
from .shadow import ExtendedLagrangian, shadow_equilibration
from .solution import ChargeSolution, ConvergenceError, Status

__all__ = [
    "ChargeSolution",
    "ConvergenceError",
    "ExtendedLagrangian",
    "FixedPointSolution",
    "FunctionalSolution",
    "StateExtrapolator",
    "Status",
    "charge_equilibration",
    "fixed_point",
    "minimize_functional",
    "redistribute_charge",
    "shadow_equilibration",
    "spin_charges",
]
