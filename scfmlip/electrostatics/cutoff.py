"""The wave-vector cutoff for a tolerance."""

import math
from collections.abc import Sequence

from ..units import COULOMB_CONSTANT

# Cutoffs are refused if the truncated tail of a unit charge exceeds this, eV.
WORST_TAIL = 0.1


def truncation_error(sigma_squared: float, cutoff: float, l_max: int) -> float:
    """
    Upper bound of the energy, eV, of wave vectors beyond ``cutoff`` for one pair of unit multipoles.

    ``(2 k_e / pi) int_kc^inf (1 + [l_max > 0] s^2 k^2 + [l_max > 1] s^4 k^4 / 9) exp(-s^2 k^2) dk`` with
    all phases aligned: charges of 1 e, dipoles of 1 e times s and quadrupoles of 1 e times s^2, where
    ``2 s^2`` is the sum of the squared widths of the two. The integral is the sum over wave vectors of a
    large cell; in smaller cells single shells of wave vectors dominate. Measured errors in cubes (charges)
    exceed it by up to 1.5x for edges above 8 widths s, 3.5x from 4 to 8, 5.5x from 3 to 4, and 11x below.

    Args:
        sigma_squared: s^2, angstrom^2.
        cutoff: k_c, 1/angstrom.
        l_max: Highest multipole.
    """
    s = math.sqrt(sigma_squared)
    x = s * cutoff
    tail = 0.5 * math.sqrt(math.pi) * math.erfc(x)
    if l_max > 0:
        tail += 0.5 * x * math.exp(-x * x) + 0.25 * math.sqrt(math.pi) * math.erfc(x)
    if l_max > 1:
        rest = (0.5 * x**3 + 0.75 * x) * math.exp(-x * x) + 0.375 * math.sqrt(math.pi) * math.erfc(x)
        tail += rest / 9
    return 2 * COULOMB_CONSTANT / math.pi * tail / s


def cutoff_for_tolerance(sigma_squared: float, tolerance: float, l_max: int) -> float:
    """The smallest cutoff, 1/angstrom, whose `truncation_error` is below ``tolerance``, eV."""
    low, high = 0.0, 1.0 / math.sqrt(sigma_squared)
    while truncation_error(sigma_squared, high, l_max) > tolerance:
        high *= 2
    for _ in range(60):
        middle = 0.5 * (low + high)
        if truncation_error(sigma_squared, middle, l_max) > tolerance:
            low = middle
        else:
            high = middle
    return high


def check_cutoff(sigma_squared: float, cutoff: float, l_max: int) -> None:
    """Raise ``ValueError`` if a cutoff is too small to resolve the Gaussians."""
    error = truncation_error(sigma_squared, cutoff, l_max)
    if error > WORST_TAIL:
        enough = cutoff_for_tolerance(sigma_squared, 1e-6, l_max)
        raise ValueError(
            f"kspace_cutoff={cutoff:g} 1/angstrom is too small for a Gaussian width of "
            f"{math.sqrt(sigma_squared):g} angstrom: the truncated tail is up to {error:.2g} eV per pair "
            f"of unit charges. Use at least {enough:.3f} 1/angstrom, a larger width, or leave "
            "kspace_cutoff=None and set the tolerance"
        )


def reference_cutoff(widths: Sequence[float], l_max: int, factor: float = 1.5) -> float:
    """The cutoff of MACE-POLAR and graph_longrange: ``factor * 2.25 (l_max + 1)^0.3 / min(widths)``."""
    return factor * 0.75 * 3.0 * (l_max + 1) ** 0.3 / min(widths)
