"""
Charge densities made of Gaussian multipoles.

rho(r) = sum_i sum_lm p_ilm phi_lm(r - r_i) with phi_lm = C_l r^l Y_lm exp(-r^2 / 2 sigma^2). In the
"multipoles" normalisation a coefficient is the multipole moment: l = 0 is a unit Gaussian charge, l = 1 a
unit Gaussian dipole, -d . grad of the unit Gaussian, l = 2 a traceless quadrupole, 1/3 sum Theta_ab d_a d_b
of it with Theta_ab = int rho (3 r_a r_b - delta_ab r^2) / 2 (Buckingham, Adv. Chem. Phys. 12, 107 (1967)).
"receiver" normalises the radial part instead, 1 / C_l = int r^(l+2) exp(-r^2 / 2 sigma^2) dr, as MACE-POLAR's
field features do. Conventions of Baldwin et al., arXiv:2603.14700, as graph_longrange implements them.

The five numbers of l = 2 are real spherical components, m = -2 to 2 about z, sorted by m and the same in both
orders of dipoles: ``[xy, yz, zz, xz, xx-yy]``, which are ``int rho [s xy, s yz, (3 z^2 - r^2) / 2, s xz,
s (x^2 - y^2) / 2]`` with s = sqrt(3) (Stone, The Theory of Intermolecular Forces, 2013, appendix B).
`quadrupole_tensors` makes Theta of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scfmlip_kernels.constants import constant

from ..types import CARTESIAN_FROM_E3NN, E3NN_FROM_CARTESIAN, MultipoleOrder, Normalization
from ..units import COULOMB_CONSTANT
from .forms import by_form
from .tensors import from_upper_triangles, upper_triangles

# l = 3 needs the octupole's place in `to_moments`; everything below it takes any rank.
L_MAX = 2
# Cartesian moments [xx, xy, xz, yy, yz, zz], 1/3 Theta with both xy and yx in one, of unit l = 2 components
_S, _T = math.sqrt(3), math.sqrt(12)
_CARTESIAN_QUADRUPOLES = (
    (0.0, 0.0, -1 / 6, 0.0, 1 / _T),
    (1 / _S, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 1 / _S, 0.0),
    (0.0, 0.0, -1 / 6, 0.0, -1 / _T),
    (0.0, 1 / _S, 0.0, 0.0, 0.0),
    (0.0, 0.0, 1 / 3, 0.0, 0.0),
)
# angstrom; numbers outside this range are a mistake or in another unit
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
    Convert one number or several, of any type that ``float`` accepts, to Gaussian widths, angstrom.

    Raises:
        TypeError: for anything else, including strings.
        ValueError: for widths out of range.
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
    A basis of Gaussian multipoles: the order and meaning of the coefficients in a row.

    Rows hold l = 0 of every width, then l = 1 of every width, three numbers each, then l = 2, five each.

    Attributes:
        l_max: Highest multipole, 0, 1 or 2.
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
            raise ValueError(f"l_max must be 0, 1 or 2, got {self.l_max!r}")
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

    def columns(self, device: torch.device | None = None) -> Tensor:
        """``[n_widths, (l_max + 1)^2]`` int64, where a row holds the multipoles of each width."""
        width = torch.arange(self.n_widths, device=device)[:, None]
        parts = [torch.arange(2 * l + 1, device=device) for l in range(self.l_max + 1)]
        blocks = [l**2 * self.n_widths + len(part) * width + part for l, part in enumerate(parts)]
        return torch.cat(blocks, 1)

    @property
    def n_moments(self) -> int:
        """Cartesian moments of one width: 1, 4 or 10."""
        return (1, 4, 10)[self.l_max]

    def _split(self, rows: Tensor) -> list[Tensor]:
        """``[..., n_widths, 2 l + 1]`` of each l."""
        sizes = [(2 * l + 1) * self.n_widths for l in range(self.l_max + 1)]
        return [part.unflatten(-1, (self.n_widths, -1)) for part in rows.split(sizes, -1)]

    def scales(self, l: int, like: Tensor) -> Tensor:
        """``[n_widths]`` moments of unit coefficients of order l, of the kind of ``like``."""
        ratios = [_receiver_ratio(l, w) if self.normalization == "receiver" else 1.0 for w in self.widths]
        return constant(tuple(ratios), like.dtype, like.device)

    def to_moments(self, rows: Tensor) -> Tensor:
        """
        Convert rows to Cartesian moments, one set per width.

        Args:
            rows: ``[..., dim]`` coefficients of this basis.

        Returns:
            ``[..., n_widths, 1 | 4 | 10]`` rows ``[q, d_x, d_y, d_z, c_xx, c_xy, c_xz, c_yy, c_yz, c_zz]``,
            the density ``sum_B (-1)^|B| c_B d^B`` of unit Gaussians: e, e angstrom, e angstrom^2.
        """
        if self.l_max == 0 and self.normalization == "multipoles":
            return rows.unflatten(-1, (self.n_widths, 1))
        return by_form(rows, 1, ("to_moments", self), self._to_moments)

    def _to_moments(self, rows: Tensor) -> Tensor:
        parts = self._split(rows)
        if self.normalization == "receiver":
            parts = [part * self.scales(l, rows)[:, None] for l, part in enumerate(parts)]
        if self.l_max > 0 and self.order == "e3nn":
            parts[1] = parts[1].index_select(-1, constant(CARTESIAN_FROM_E3NN, torch.int64, rows.device))
        if self.l_max > 1:
            parts[2] = parts[2] @ _cartesian_quadrupoles(rows).T
        return parts[0] if self.l_max == 0 else torch.cat(parts, -1)

    def project(self, field: Tensor) -> Tensor:
        """
        Overlaps of the basis functions with a potential: the adjoint of `to_moments`.

        Args:
            field: ``[..., n_widths, 1 | 4 | 10]``, potential and its Cartesian derivatives up to order l_max,
                averaged over a unit Gaussian of each width.

        Returns:
            ``[..., dim]`` in the order and normalisation of this basis.
        """
        return by_form(field, 2, ("project", self), self._project)

    def _project(self, field: Tensor) -> Tensor:
        parts = [field[..., :1], field[..., 1:4], field[..., 4:]][: self.l_max + 1]
        if self.l_max > 1:
            parts[2] = parts[2] @ _cartesian_quadrupoles(field)
        if self.normalization == "receiver":
            parts = [part * self.scales(l, field)[:, None] for l, part in enumerate(parts)]
        if self.l_max > 0 and self.order == "e3nn":
            parts[1] = parts[1].index_select(-1, constant(E3NN_FROM_CARTESIAN, torch.int64, field.device))
        return torch.cat([part.flatten(-2) for part in parts], -1)


def _cartesian_quadrupoles(like: Tensor) -> Tensor:
    return constant(_CARTESIAN_QUADRUPOLES, like.dtype, like.device)


def quadrupole_tensors(components: Tensor) -> Tensor:
    """
    Traceless tensors Theta of quadrupole components, see the module.

    Args:
        components: ``[..., 5]`` e angstrom^2, ``[xy, yz, zz, xz, xx-yy]``.

    Returns:
        ``[..., 3, 3]`` e angstrom^2.

    Raises:
        ValueError: for another shape.

    Example:
        >>> import torch
        >>> theta = quadrupole_tensors(torch.tensor([0.0, 0.0, 2.0, 0.0, 0.0]))
        >>> theta.diagonal().tolist()
        [-1.0, -1.0, 2.0]
    """
    if components.ndim == 0 or components.shape[-1] != 5:
        raise ValueError(f"components must be [..., 5], got {list(components.shape)}")
    moments = 3 * components @ _cartesian_quadrupoles(components).T
    return symmetric_matrices(moments)


def quadrupole_components(tensors: Tensor) -> Tensor:
    """
    Components of quadrupole tensors: the inverse of `quadrupole_tensors`; a trace is left out.

    Args:
        tensors: ``[..., 3, 3]`` e angstrom^2, symmetric, Theta_ab = int rho (3 r_a r_b - delta_ab r^2) / 2.

    Returns:
        ``[..., 5]`` e angstrom^2, ``[xy, yz, zz, xz, xx-yy]``.

    Raises:
        ValueError: for another shape.

    Example:
        >>> import torch
        >>> quadrupole_components(torch.diag(torch.tensor([-1.0, -1.0, 2.0]))).tolist()
        [0.0, 0.0, 2.0, 0.0, 0.0]
    """
    if tensors.ndim < 2 or tensors.shape[-2:] != (3, 3):
        raise ValueError(f"tensors must be [..., 3, 3], got {list(tensors.shape)}")
    x, y, z = ((tensors[..., i, :] + tensors[..., :, i]) / 2 for i in range(3))
    scale = 2 / math.sqrt(3)
    trace = x[..., 0] + y[..., 1] + z[..., 2]
    return torch.stack(
        (
            scale * x[..., 1],
            scale * y[..., 2],
            z[..., 2] - trace / 3,
            scale * x[..., 2],
            (x[..., 0] - y[..., 1]) / math.sqrt(3),
        ),
        -1,
    )


def symmetric_matrices(moments: Tensor) -> Tensor:
    """``[..., 3, 3]`` with ``r.M r = sum_B c_B r^B`` of coefficients ``[..., 6]``, xx, xy, xz, yy, yz, zz."""
    return from_upper_triangles(
        moments * constant((1.0, 0.5, 0.5, 1.0, 0.5, 1.0), moments.dtype, moments.device)
    )


def symmetric_coefficients(matrices: Tensor) -> Tensor:
    """``[..., 6]`` coefficients of matrices ``[..., 3, 3]``: the inverse of `symmetric_matrices`."""
    return upper_triangles(matrices) * constant(
        (1.0, 2.0, 2.0, 1.0, 2.0, 1.0), matrices.dtype, matrices.device
    )


def self_interaction(sigma: float, other: float) -> tuple[float, float, float]:
    """
    Interaction of a unit Gaussian multipole with another at the same place, for l = 0, 1, 2.

    ``U_0 = k_e sqrt(2 / pi) / S``, ``U_1 = U_0 / (3 S^2)`` and ``U_2 = U_0 / (15 S^4)`` with
    ``S^2 = sigma^2 + other^2``, in eV/e^2, eV/(e angstrom)^2 and eV/(e angstrom^2)^2: from
    ``erf(r / sqrt(2) S) / r = sqrt(2 / pi) / S (1 - r^2 / 6 S^2 + r^4 / 40 S^4 - ...)``.
    """
    s = math.hypot(sigma, other)
    u0 = COULOMB_CONSTANT * math.sqrt(2 / math.pi) / s
    return u0, u0 / (3 * s**2), u0 / (15 * s**4)
