"""Charge densities of Gaussian multipoles and the Coulomb operator between them."""

from .boundary import Boundary
from .coulomb import Coulomb
from .density import GaussianMultipoles, quadrupole_components, quadrupole_tensors
from .geometry import Geometry
from .plan import CoulombPlan
from .points import PointValues

__all__ = [
    "Boundary",
    "Coulomb",
    "CoulombPlan",
    "GaussianMultipoles",
    "Geometry",
    "PointValues",
    "quadrupole_components",
    "quadrupole_tensors",
]
