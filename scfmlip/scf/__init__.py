"""Self-consistency: charge equilibration, fixed points, and their derivatives."""

from .equilibration import charge_equilibration
from .extrapolation import StateExtrapolator
from .fixed_point import FixedPointSolution, fixed_point
from .solution import ChargeSolution, ConvergenceError, Status

__all__ = [
    "ChargeSolution",
    "ConvergenceError",
    "FixedPointSolution",
    "StateExtrapolator",
    "Status",
    "charge_equilibration",
    "fixed_point",
]
