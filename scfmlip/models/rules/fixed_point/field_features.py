"""The potential at atoms, as input of the response of the rule `fixed_point`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ....electrostatics import Geometry
from ....electrostatics.density import GaussianMultipoles, self_interaction
from ....electrostatics.external import Embedding
from ...config import DensityConfig
from ..options import FixedPointConfig


@dataclass(frozen=True)
class FieldFeatures:
    """
    Projections of the potential on Gaussians at each atom: potentials of every width, then gradients.

    Attributes:
        widths: Widths of the Gaussians, angstrom.
        l_max: 1 to include gradients, 2 to include second derivatives too.
        norms: Divisors of the projections for each l and width, l first.
        conjugate: Whether the Gaussians are the density's own, normalised as its multipoles.
        self_interaction: Whether an atom sees its own potential.
    """

    widths: tuple[float, ...]
    l_max: int
    norms: tuple[float, ...]
    conjugate: bool
    self_interaction: bool

    @classmethod
    def of_rule(cls, config: FixedPointConfig, density: DensityConfig) -> FieldFeatures:
        """The field features that a rule's options define."""
        if config.response == "passive":
            return cls((density.sigma,), density.l_max, (1.0,) * (density.l_max + 1), True, True)
        widths, l_max = tuple(config.field_feature_widths), config.field_feature_max_l
        norms = config.field_feature_norms or (1.0,) * (len(widths) * (l_max + 1))
        return cls(widths, l_max, tuple(norms), False, config.field_self_interaction)

    def columns(self) -> Tensor:
        """``[n_field]`` divisor of each projection."""
        n, norms = len(self.widths), torch.tensor(self.norms)
        orders = torch.arange(self.l_max + 1).repeat_interleave(n)
        return norms.repeat_interleave(2 * orders + 1)

    def project(self, geometry: Geometry, rows: Tensor) -> Tensor:
        """``[n_atoms, n_field]`` projections for the density ``rows``, not divided by the norms."""
        if self.conjugate:
            return geometry.potential(rows, self_interaction=True)
        return geometry.features(rows, self.widths, self.l_max, self_interaction=self.self_interaction)

    def outside(self, embedding: Embedding) -> Tensor:
        """The projections for charges outside the model."""
        return embedding.potential() if self.conjugate else embedding.features(self.widths, self.l_max)

    def constant(self, potential: Tensor, like: Tensor) -> Tensor:
        """The projections of a potential ``[n_atoms]`` V that is uniform around each atom."""
        n = len(self.widths)
        value = potential if self.conjugate else math.sqrt(4 * math.pi) * potential
        return torch.cat((value[:, None].expand(-1, n), torch.zeros_like(like[:, n:])), 1)

    def own(self, sigma: float) -> Tensor:
        """
        The projections of unit multipoles of width ``sigma`` at themselves, divided by the norms.

        Returns:
            ``[l_max + 1, n_widths]`` V per unit: e, e angstrom, e angstrom^2.
        """
        basis = GaussianMultipoles(self.l_max, self.widths, "receiver")
        own = torch.tensor([self_interaction(sigma, w) for w in self.widths]).T[: self.l_max + 1]
        scales = torch.stack([basis.scales(l, own) for l in range(self.l_max + 1)])
        return own * scales / torch.tensor(self.norms).view(-1, len(self.widths))


def quadratic_terms(change: Tensor, field: Tensor, n_widths: int) -> Tensor:
    """
    The terms of an energy that is quadratic in the change of an atom's multipoles and in the field there.

    Args:
        change: ``[n_atoms, 1 | 4 | 9]`` change of charge, dipole, and quadrupole; the latter has no term.
        field: ``[n_atoms, n_field]``, potentials and optionally gradients of every width.
        n_widths: Number of widths.

    Returns:
        ``[n_atoms, n_terms]``: charge times potentials, square of the charge, square of the dipole, dipole
        times gradients, as far as they exist.
    """
    terms = [change[:, :1] * field[:, :n_widths], change[:, :1] ** 2]
    if change.shape[1] > 1:
        dipoles = change[:, 1:4]
        terms.append((dipoles**2).sum(1, keepdim=True))
        if field.shape[1] > n_widths:
            gradients = field[:, n_widths:].unflatten(1, (n_widths, 3))
            terms.append((dipoles[:, None] * gradients).sum(2))
    return torch.cat(terms, 1)
