"""Self-consistency: charge equilibration, fixed points, and their derivatives."""

from .equilibration import charge_equilibration
from .solution import ChargeSolution, ConvergenceError, Status

__all__ = ["ChargeSolution", "ConvergenceError", "Status", "charge_equilibration"]
