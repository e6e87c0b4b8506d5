"""
Charge densities made of Gaussian multipoles.

rho(r) = sum_i sum_lm p_ilm phi_lm(r - r_i) with phi_lm = C_l r^l Y_lm exp(-r^2 / 2 sigma^2). In the
"multipoles" normalisation a coefficient is the multipole moment: l = 0 is a unit Gaussian charge, l = 1 a
unit Gaussian dipole, -d . grad of the unit Gaussian. "receiver" normalises the radial part instead,
1 / C_l = int r^(l+2) exp(-r^2 / 2 sigma^2) dr, as MACE-POLAR's field features do. Real spherical
harmonics are e3nn's; conventions of Baldwin et al., arXiv:2603.14700, as graph_longrange implements them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..types import CARTESIAN_FROM_E3NN, E3NN_FROM_CARTESIAN, MultipoleOrder, Normalization
from ..units import COULOMB_CONSTANT

# l = 2 needs the quadrupole's place in `to_cartesian`; everything below it takes any rank.
L_MAX = 1
# angstrom; beyond these a number is a mistake, or has another unit
_NARROWEST, _WIDEST = 1e-8, 1e4


def _receiver_ratio(l: int, sigma: float) -> float:
    """C_l of "receiver" over C_l of "multipoles"."""
    multipoles = (
        math.sqrt(4 * math.pi / (2 * l + 1))
        * 2 ** ((2 * l + 1) / 2)
        * math.gamma((2 * l + 3) / 2)
        * sigma ** (2 * l + 3)
    )
    return multipoles / (2 ** ((l + 1) / 2) * math.gamma((l + 3) / 2) * sigma ** (l + 3))


def to_widths(name: str, value: Any) -> tuple[float, ...]:
    """
    Gaussian widths, angstrom, from one number or several, of any kind that floats are made of.

    Raises:
        TypeError: for something else; text is not a sequence of digits.
        ValueError: for widths that no Gaussian of atoms has.
    """
    single = getattr(value, "ndim", 0) == 0 and not isinstance(value, Sequence)
    try:
        if isinstance(value, str | bytes | bool):
            raise TypeError
        values: Any = [value] if single else value
        widths = tuple(float(v) for v in values)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number or numbers, in angstrom, got {value!r}") from None
    if not widths or not all(_NARROWEST <= w <= _WIDEST for w in widths):
        raise ValueError(
            f"{name} is {value!r}: widths must be positive numbers in angstrom, {_NARROWEST:g} to {_WIDEST:g}"
        )
    return widths


@dataclass(frozen=True)
class GaussianMultipoles:
    """
    A basis of Gaussian multipoles: which coefficients a row holds, and what they mean.

    Rows hold l = 0 of every width, then l = 1 of every width, three numbers each.

    Attributes:
        l_max: Highest multipole, 0 or 1.
        widths: Gaussian widths sigma, angstrom, in the order of the row.
        normalization: "multipoles" or "receiver", see the module.
        order: Components of l = 1: "cartesian" (x, y, z) or "e3nn" (y, z, x).

    Raises:
        ValueError: for an l_max, width, normalisation or order that does not exist; names it.

    Example:
        >>> import torch, scfmlip
        >>> basis = scfmlip.GaussianMultipoles(l_max=1, widths=(0.5, 1.0))
        >>> basis.dim  # a charge and a dipole for each width
        8
        >>> basis.columns().tolist()  # columns of the first width, of the second
        [[0, 2, 3, 4], [1, 5, 6, 7]]
    """

    l_max: int
    widths: tuple[float, ...]
    normalization: Normalization = "multipoles"
    order: MultipoleOrder = "cartesian"

    def __post_init__(self) -> None:
        if isinstance(self.l_max, bool) or self.l_max not in range(L_MAX + 1):
            raise ValueError(f"l_max must be 0 or 1, got {self.l_max!r}")
        if not self.widths or not all(math.isfinite(w) and w > 0 for w in self.widths):
            raise ValueError(f"widths must be positive, finite numbers in angstrom, got {self.widths!r}")
        if self.normalization not in ("multipoles", "receiver"):
            raise ValueError(f"normalization must be 'multipoles' or 'receiver', got {self.normalization!r}")
        if self.order not in ("cartesian", "e3nn"):
            raise ValueError(f"order must be 'cartesian' or 'e3nn', got {self.order!r}")

    @property
    def n_widths(self) -> int:
        """Number of widths."""
        return len(self.widths)

    @property
    def dim(self) -> int:
        """Length of a row."""
        return self.n_widths * (self.l_max + 1) ** 2

    def columns(self) -> Tensor:
        """``[n_widths, (l_max + 1)^2]`` int64, where a row holds the multipoles of each width."""
        charges = torch.arange(self.n_widths)[:, None]
        dipoles = self.n_widths + 3 * charges + torch.arange(3)
        return torch.cat((charges, dipoles), 1) if self.l_max > 0 else charges

    def _scales(self, l: int, like: Tensor) -> Tensor:
        ratios = [_receiver_ratio(l, w) if self.normalization == "receiver" else 1.0 for w in self.widths]
        return torch.tensor(ratios, dtype=like.dtype, device=like.device)

    def to_moments(self, rows: Tensor) -> Tensor:
        """
        Cartesian moments, one set per width.

        Args:
            rows: ``[..., dim]`` coefficients of this basis.

        Returns:
            ``[..., n_widths, (l_max + 1)^2]`` rows ``[q, d_x, d_y, d_z]`` of unit-moment Gaussians, e
            and e angstrom.
        """
        charges = rows[..., : self.n_widths, None]
        if self.normalization == "receiver":
            charges = charges * self._scales(0, rows)[:, None]
        if self.l_max == 0:
            return charges
        dipoles = rows[..., self.n_widths :].unflatten(-1, (self.n_widths, 3))
        if self.order == "e3nn":
            dipoles = dipoles[..., list(CARTESIAN_FROM_E3NN)]
        if self.normalization == "receiver":
            dipoles = dipoles * self._scales(1, rows)[:, None]
        return torch.cat((charges, dipoles), -1)

    def project(self, field: Tensor) -> Tensor:
        """
        Overlaps of this basis' functions with a potential: the adjoint of `to_moments`.

        Args:
            field: ``[..., n_widths, (l_max + 1)^2]``, potential and its Cartesian gradient, averaged over
                a unit Gaussian of each width.

        Returns:
            ``[..., dim]`` in this basis' order and normalisation.
        """
        values = field[..., 0]
        if self.normalization == "receiver":
            values = values * self._scales(0, field)
        if self.l_max == 0:
            return values
        gradients = field[..., 1:]
        if self.normalization == "receiver":
            gradients = gradients * self._scales(1, field)[:, None]
        if self.order == "e3nn":
            gradients = gradients[..., list(E3NN_FROM_CARTESIAN)]
        return torch.cat((values, gradients.flatten(-2)), -1)


def self_interaction(sigma: float, other: float) -> tuple[float, float]:
    """
    Interaction of a unit Gaussian charge, and of a unit Gaussian dipole, with another at the same place.

    ``U_0 = k_e sqrt(2 / pi) / S`` and ``U_1 = k_e sqrt(2 / pi) / (3 S^3)`` with
    ``S^2 = sigma^2 + other^2``, in eV/e^2 and eV/(e angstrom)^2.
    """
    s = math.hypot(sigma, other)
    u0 = COULOMB_CONSTANT * math.sqrt(2 / math.pi) / s
    return u0, u0 / (3 * s**2)
