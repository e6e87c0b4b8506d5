"""No charges: the plain short-range potential that all others are compared with."""

from dataclasses import dataclass

from .base import ChargeRule, RuleOutput, System
from .registry import register


@dataclass(frozen=True)
class ShortRangeConfig:
    """No options."""


@register("short_range")
class ShortRange(ChargeRule):
    """Nothing but the backbone."""

    Config = ShortRangeConfig
    has_geometry = False
    feels_external_charges = False

    def forward(self, system: System) -> RuleOutput:
        """No state and no energy."""
        return RuleOutput()
