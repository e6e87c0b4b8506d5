"""Interaction of a Gaussian multipole with Gaussians on its own atom."""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from scfmlip_kernels.constants import constant

from ..units import FIELD_CONSTANT
from .boundary import Quirks
from .density import GaussianMultipoles, self_interaction, symmetric_matrices
from .forms import by_form
from .tensors import upper_triangles

_erf = np.vectorize(math.erf)


@lru_cache(maxsize=256)
def _trapezoid(l: int, source: float, receiver: float) -> float:
    """
    U_l by graph_longrange's integration: 10,000 points from 1e-4 to ten widths.

    ``1 / (eps0 (2 l + 1)) int r^(l+2) C_s e^(-r^2 / 2 s^2) (F_inner(r) + F_outer(r)) dr`` with the radial
    potential of the other Gaussian. Agrees with the closed form to about 1e-9.
    """
    r = np.linspace(0.0001, 10 * max(source, receiver), 10000)
    x = r / (math.sqrt(2) * receiver)
    gauss = np.exp(-(x**2))
    # lower incomplete gamma functions of 3/2 and 5/2 at x^2
    gamma = 0.5 * math.sqrt(math.pi) * _erf(x) - x * gauss
    if l == 1:
        gamma = 1.5 * gamma - x**3 * gauss
    inner = 2 ** (l + 0.5) * receiver ** (2 * l + 3) * gamma * r ** (-(l + 1.0))
    outer = receiver**2 * r**l * gauss

    def norm(sigma: float) -> float:
        power = 2 ** ((2 * l + 1) / 2) * math.gamma((2 * l + 3) / 2) * sigma ** (2 * l + 3)
        return math.sqrt(4 * math.pi / (2 * l + 1)) * power

    integrand = r ** (l + 2.0) * np.exp(-0.5 * r**2 / source**2) * (inner + outer)
    value = np.trapezoid(integrand, x=r)
    return float(FIELD_CONSTANT / (2 * l + 1) * value / (norm(source) * norm(receiver)))


def self_field(
    moments: Tensor,
    source: GaussianMultipoles,
    widths: tuple[float, ...],
    rank: int,
    quirks: Quirks,
    sign: float = 1.0,
) -> Tensor:
    """
    Potential and gradient of each atom's own density at its own position, averaged over Gaussians.

    Args:
        moments: ``[n_atoms, n_channels, n_widths, M]``, from `GaussianMultipoles.to_moments`.
        source: Their basis.
        widths: Widths of the receiving Gaussians, angstrom.
        rank: 0 for the potential, 1 to add its gradient, 2 its second derivatives; their trace, which no
            quadrupole feels, is left out.
        quirks: Deviations of a reference code.
        sign: -1 for what has to be added where it is left out.

    Returns:
        ``[n_atoms, n_channels, len(widths), 1 | 4 | 10]``, V, V/angstrom and V/angstrom^2.
    """
    numerical = quirks.numerical_self_interaction
    key = ("self field", source, widths, rank, numerical, sign)
    return by_form(moments, 2, key, lambda rows: _self_field(rows, source, widths, rank, numerical, sign))


def _self_field(
    moments: Tensor,
    source: GaussianMultipoles,
    widths: tuple[float, ...],
    rank: int,
    numerical: bool,
    sign: float,
) -> Tensor:
    def unit(s: float, w: float) -> tuple[float, ...]:
        return tuple(_trapezoid(l, s, w) for l in (0, 1)) if numerical else self_interaction(s, w)

    # of each source width, receiving width and l
    values = tuple(tuple(tuple(sign * u for u in unit(s, w)) for w in widths) for s in source.widths)
    table = constant(values, moments.dtype, moments.device)
    parts = [torch.einsum("...a,aw->...w", moments[..., 0], table[..., 0])[..., None]]
    if rank > 0 and source.l_max > 0:
        parts.append(torch.einsum("...ai,aw->...wi", moments[..., 1:4], table[..., 1]))
    if rank > 1 and source.l_max > 1:
        second = 6 * upper_triangles(symmetric_matrices(moments[..., 4:]))
        parts.append(torch.einsum("...ai,aw->...wi", second, table[..., 2]))
    field = torch.cat(parts, -1)
    missing = (1, 4, 10)[rank] - field.shape[-1]
    return torch.nn.functional.pad(field, (0, missing)) if missing else field
