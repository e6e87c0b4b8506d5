"""Local charges: multipoles read off the features, E = E_SR + E_coulomb[p] (LC-MACE, arXiv:2603.14700)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config import LARGEST, check_numbers
from ..readouts import MultipoleReadout
from .base import ChargeRule, RuleContext, RuleDensity, RuleEnergies, RuleOutput, System, make_coulomb
from .fixed import spread_charge
from .registry import register


@dataclass(frozen=True)
class LocalConfig:
    """
    Options of the rule "local".

    Attributes:
        hidden: Width of the gated layer of the last readout; 0 for a linear one, as in the reference.
    """

    hidden: int = 16

    def __post_init__(self) -> None:
        check_numbers("rule", self, "hidden", least=0, most=LARGEST)


@register("local")
class Local(ChargeRule):
    """Multipoles from the surroundings of each atom; with the constraint "charge" they are shifted evenly."""

    Config = LocalConfig
    constraints = ("none", "charge")
    highest_multipole = 2

    def __init__(self, config: LocalConfig, context: RuleContext) -> None:
        super().__init__(config, context)
        self.coulomb = make_coulomb(context.density)
        self.readout = MultipoleReadout(
            context.feature_irreps,
            len(context.elements),
            l_max=context.density.l_max,
            hidden=config.hidden,
        )

    def forward(self, system: System) -> RuleOutput:
        """Predicted multipoles and their Coulomb energy."""
        rows = self.readout(system.features, system.node_attrs)[:, 0]
        if self.context.constraint == "charge":
            rows = torch.cat((spread_charge(rows[:, 0], system)[:, None], rows[:, 1:]), 1)
        geometry = system.prepare(self.coulomb)
        energies = RuleEnergies(system.coulomb_energy(geometry, rows))
        return RuleOutput(energies, RuleDensity(rows, geometry))
