"""Shared by the two lattice-sum operators: the Miller grid, monomials, and the CPU's basis tables."""

from .grid import LatticeGrid, build_lattice_grid, grid_at_points
from .monomials import monomial_count, monomials, shifted_monomials

__all__ = [
    "LatticeGrid",
    "build_lattice_grid",
    "grid_at_points",
    "monomial_count",
    "monomials",
    "shifted_monomials",
]
