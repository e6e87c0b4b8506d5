"""Fixed formal charges of elements: E = E_SR + E_coulomb[q_Z] (Baldwin et al., arXiv:2603.14700)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import check_numbers, per_element
from .base import ChargeRule, RuleContext, RuleDensity, RuleEnergies, RuleOutput, System, make_coulomb
from .registry import register


@dataclass(frozen=True)
class FixedConfig:
    """
    Options of the rule "fixed".

    Attributes:
        charges: Formal charge of each element, e, by symbol or number.
    """

    charges: Mapping[str, float]

    def __post_init__(self) -> None:
        check_numbers("rule", self, "charges")


class FormalCharges(torch.nn.Module):
    """
    Formal charges of the elements. With the constraint "charge", all atoms share the missing charge evenly.

    Args:
        charges: e, by symbol or number.
        context: Context of the rule.

    Raises:
        ValueError: for an element without a charge.
    """

    def __init__(self, charges: Mapping[str, float], context: RuleContext) -> None:
        super().__init__()
        values = per_element("rule.charges", charges, context.elements)
        self.register_buffer("charges", torch.tensor(values))

    def forward(self, system: System, constraint: str) -> Tensor:
        """Charges ``[n_atoms]``, e."""
        assert isinstance(self.charges, Tensor)
        q = system.node_attrs @ self.charges
        return spread_charge(q, system) if constraint == "charge" else q


def spread_charge(q: Tensor, system: System) -> Tensor:
    """Shift charges evenly so that each system has its total charge."""
    assert system.total_charge is not None
    counts = system.segments.counts.to(q.dtype)
    return q + system.expand((system.total_charge - system.sum(q)) / counts)


@register("fixed")
class Fixed(ChargeRule):
    """Formal charges plus the short-range network."""

    Config = FixedConfig
    constraints = ("none", "charge")

    def __init__(self, config: FixedConfig, context: RuleContext) -> None:
        super().__init__(config, context)
        self.formal = FormalCharges(config.charges, context)
        self.coulomb = make_coulomb(context.density, l_max=0)

    def forward(self, system: System) -> RuleOutput:
        """Coulomb energy of the formal charges."""
        rows = self.formal(system, self.context.constraint)[:, None]
        geometry = system.prepare(self.coulomb)
        energies = RuleEnergies(system.coulomb_energy(geometry, rows))
        return RuleOutput(energies, RuleDensity(rows, geometry))
