"""
Latent Ewald summation: charges that are never labelled, in several channels.

E = E_SR + sum over channels of the Coulomb energy without self-interaction. Nothing constrains the charges.
Cheng, npj Comput. Mater. 11, 80 (2025).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..readouts import MultipoleReadout
from . import register
from .base import ChargeRule, RuleContext, RuleOutput, System, make_coulomb


@dataclass(frozen=True)
class LatentConfig:
    """
    Options.

    Attributes:
        channels: Independent charge densities.
        hidden: Width of the gated layer of the last readout.
        sigma: Gaussian width of the charges in LES's convention, angstrom (1 there): exp(-sigma^2 k^2 / 2) of
            a pair, so that each Gaussian has the width sigma / sqrt(2). None takes the density's width.
    """

    channels: int = 1
    hidden: int = 16
    sigma: float | None = None


@register("latent")
class Latent(ChargeRule):
    """Latent charges (and dipoles, with density.l_max = 1)."""

    Config = LatentConfig

    def __init__(self, config: LatentConfig, context: RuleContext) -> None:
        super().__init__(config, context)
        width = context.density.sigma if config.sigma is None else config.sigma / 2**0.5
        self.coulomb = make_coulomb(context.density, sigma=width, self_interaction=False)
        self.readout = MultipoleReadout(
            context.feature_irreps,
            len(context.elements),
            n_channels=config.channels,
            l_max=context.density.l_max,
            hidden=config.hidden,
        )

    def forward(self, system: System) -> RuleOutput:
        """Latent multipoles and their energy; the sum of the channels is reported as the density."""
        rows = self.readout(system.features, system.node_attrs)
        geometry = system.prepare(self.coulomb)
        energy = geometry.energy(rows).sum(1)
        return RuleOutput(energy, None, rows.sum(1), geometry, extra={"latent_charges": rows[..., 0]})
