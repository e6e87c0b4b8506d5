"""The mesh for a tolerance."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from ..units import COULOMB_CONSTANT
from .cutoff import truncation_error

# orders of splines to choose from, and what an atom costs with them in units of what 100 mesh points cost:
# spread and gathered once with dipoles and forces, float64, on one core
_COSTS = {6: 0.2, 8: 0.21, 10: 0.3, 12: 0.46}
# by how much the estimate may be exceeded, by the height of the cell in widths: single waves stand out in
# small cells. Measured over random pairs in random cells, orders 6 to 12 and tolerances 1e-2 to 1e-8: at most
# 1.4 and 3.5 times the estimate for charges; for dipoles, whose directions the estimate aligns, 0.45 and 0.95
# times. In cells of less than two widths few waves carry all, and the estimate misses as the inverse area
_SAFETY = ((4.5, 1.5), (0.0, 4.0))
_DIPOLES = 0.5


class MeshResolution(NamedTuple):
    """
    Order of the splines and spacing of a mesh.

    Attributes:
        order: Order of the B-splines, even; they are ``order - 2`` times differentiable.
        spacing: Largest distance of mesh points along each lattice vector, angstrom.
        single: Whether float32 sums are accurate enough for float32 positions.
        least: Error, eV, of rounding results to float32 if that exceeds the tolerance, else 0.
    """

    order: int
    spacing: float
    single: bool
    least: float

    def shape(self, cell: torch.Tensor, smooth) -> tuple[int, int, int]:
        """Mesh points along the vectors of a cell ``[3, 3]``, rounded up by ``smooth`` for fast FFTs."""
        lengths = cell.norm(dim=1).tolist()
        a, b, c = (smooth(max(self.order, math.ceil(v / self.spacing - 1e-9))) for v in lengths)
        return a, b, c


@lru_cache(maxsize=1)
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights between -1 and 1."""
    return np.polynomial.legendre.leggauss(48)


@lru_cache(maxsize=4096)
def mesh_error(sigma_squared: float, order: int, spacing: float, l_max: int) -> float:
    """
    Upper bound of the error, eV, of a mesh for the interaction of one pair of unit multipoles.

    On a mesh of spacing h a wave k cannot be told from ``k + 2 pi / h``; the splines hold the second back by
    ``a = (x / (1 - x))^order`` with ``x = h k / 2 pi``, on either side of the interaction:
    ``(k_e / 2 pi^2) int (2 sum_axes a) exp(-s^2 k^2) / k^2 d^3k``, all phases aligned, times ``(1 + s k)``
    and ``(1 + 2 pi s (1 - x) / h)`` for dipoles of 1 e times s, a third of their squares for quadrupoles of
    1 e times s^2; and the waves that the mesh does not hold, see `truncation_error`. The same for every shape
    of cell: x depends on the spacing along lattice vectors alone.

    Args:
        sigma_squared: s^2, half the sum of the squared widths, angstrom^2.
        order: Order of the splines.
        spacing: h, angstrom.
        l_max: Highest multipole.
    """
    s = math.sqrt(sigma_squared)
    nodes, weights = _quadrature()
    mu, mu_weights = 0.5 * (nodes + 1), 0.5 * weights  # one half of the sphere
    k = 7.0 / s * 0.5 * (nodes + 1)
    k_weights = 7.0 / s * 0.5 * weights
    x = spacing * k[:, None] * mu / (2 * math.pi)
    inside = x < 0.5
    x = np.minimum(x, 0.5)
    alias = np.where(inside, (x / (1 - x)) ** order, 0.0)
    if l_max > 0:
        for wave in (s * k[:, None], 2 * math.pi * s * (1 - x) / spacing):
            highest = np.maximum(1, wave)
            alias = alias * (highest if l_max == 1 else np.maximum(highest, wave**2 / 3))
        alias = _DIPOLES * alias
    integrand = np.exp(-sigma_squared * k**2) * (6 * alias * mu_weights).sum(1)
    aliased = 2 * COULOMB_CONSTANT / math.pi * float((integrand * k_weights).sum())
    return aliased + truncation_error(sigma_squared, math.pi / spacing, l_max)


@lru_cache(maxsize=1024)
def largest_spacing(sigma_squared: float, order: int, tolerance: float, l_max: int) -> float:
    """The widest spacing, angstrom, whose `mesh_error` is below ``tolerance``, eV."""
    s = math.sqrt(sigma_squared)
    low, high = 0.01 * s, 4.0 * s
    for _ in range(20):  # to 1e-5 of it
        middle = math.sqrt(low * high)
        if mesh_error(sigma_squared, order, middle, l_max) > tolerance:
            high = middle
        else:
            low = middle
    return low


def single_limit(sigma_squared: float) -> float:
    """The least error, eV, of float32 sums over a mesh: rounding of a unit charge's potential at itself."""
    return 4 * float(torch.finfo(torch.float32).eps) * COULOMB_CONSTANT / math.sqrt(sigma_squared)


def few_waves(widths: float) -> float:
    """By how much single waves stand out more in cells less than two widths high than in those."""
    return max(1.0, (2.0 / widths) ** 2)


def cell_sizes(cells: torch.Tensor) -> tuple[float, float]:
    """Volume of all cells ``[n, 3, 3]``, angstrom^3, and the smallest of their heights, angstrom."""
    volume = torch.linalg.det(cells).abs().sum()
    return float(volume), float(1 / torch.linalg.inv(cells).norm(dim=-2).max())


def choose_mesh(
    sigma_squared: float, tolerance: float, l_max: int, n_atoms: int, volume: float, height: float
) -> MeshResolution:
    """
    The cheapest mesh for a tolerance.

    Args:
        sigma_squared: Half the sum of the squared widths of the narrowest pair, angstrom^2.
        tolerance: eV, for a pair of unit charges, or of dipoles of 1 e times the width.
        l_max: Highest multipole.
        n_atoms: Number of atoms in all systems.
        volume: Volume of all cells, angstrom^3.
        height: Smallest distance between two opposite faces of any cell, angstrom.
    """
    widths = height / math.sqrt(sigma_squared)
    safety = next(factor for least, factor in _SAFETY if widths >= least) * few_waves(widths)

    def cost(order: int) -> float:
        spacing = largest_spacing(sigma_squared, order, tolerance / safety, l_max)
        return n_atoms * 100 * _COSTS[order] + volume / spacing**3

    order = min(_COSTS, key=cost)
    spacing = largest_spacing(sigma_squared, order, tolerance / safety, l_max)
    single = single_limit(sigma_squared)
    least = 0.0 if tolerance >= single / 16 else single / 16
    return MeshResolution(order, spacing, tolerance >= single, least)


def mesh_cost(mesh: MeshResolution, n_atoms: int, volume: float) -> float:
    """What a mesh costs, in mesh points: ``n_atoms`` spread and gathered, and ``volume`` angstrom^3 of it."""
    return n_atoms * 100 * _COSTS[mesh.order] + volume / mesh.spacing**3


def check_single(mesh: MeshResolution, dtype: torch.dtype) -> None:
    """Refuse float32 if rounding of the results alone exceeds the tolerance."""
    if dtype == torch.float32 and mesh.least:
        raise ValueError(
            f"float32 cannot reach this tolerance: set a tolerance of at least {mesh.least:.1e} eV, or use "
            "float64 positions"
        )
