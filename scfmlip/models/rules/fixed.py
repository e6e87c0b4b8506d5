"""Fixed formal charges of elements: E = E_SR + E_coulomb[q_Z] (Baldwin et al., arXiv:2603.14700)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import per_element
from . import register
from .base import ChargeRule, RuleContext, RuleOutput, System, make_coulomb


@dataclass(frozen=True)
class FixedConfig:
    """
    Options.

    Attributes:
        charges: Formal charge of each element, e, by symbol or number.
    """

    charges: Mapping[str, float]


def formal_charges(charges: Tensor, node_attrs: Tensor, system: System, constraint: str) -> Tensor:
    """
    ``[n_atoms]`` charges of the elements, e.

    With the constraint "charge" what a system's total lacks is shared evenly by its atoms.
    """
    q = node_attrs @ charges
    if constraint == "charge":
        q = spread_charge(q, system)
    return q


def spread_charge(q: Tensor, system: System) -> Tensor:
    """Charges shifted evenly so that each system has its total charge."""
    assert system.total_charge is not None
    counts = system.sum(torch.ones_like(q))
    return q + system.expand((system.total_charge - system.sum(q)) / counts)


@register("fixed")
class Fixed(ChargeRule):
    """Formal charges and a short-range correction."""

    Config = FixedConfig
    constraints = ("none", "charge")
    variational = True

    def __init__(self, config: FixedConfig, context: RuleContext) -> None:
        super().__init__(config, context)
        values = per_element("rule.charges", config.charges, context.elements)
        self.register_buffer("charges", torch.tensor(values))
        self.coulomb = make_coulomb(context.density, l_max=0)

    def forward(self, system: System) -> RuleOutput:
        """Coulomb energy of the formal charges."""
        assert isinstance(self.charges, Tensor)
        q = formal_charges(self.charges, system.node_attrs, system, self.context.constraint)
        geometry = system.prepare(self.coulomb)
        rows = q[:, None]
        return RuleOutput(geometry.energy(rows), None, rows, geometry)
