"""No charges: the short-range potential that serves as baseline."""

from dataclasses import dataclass

from .base import ChargeRule, RuleOutput, System
from .registry import register


@dataclass(frozen=True)
class ShortRangeConfig:
    """No options."""


@register("short_range")
class ShortRange(ChargeRule):
    """The backbone alone."""

    Config = ShortRangeConfig
    has_geometry = False
    feels_external_charges = False

    def forward(self, system: System) -> RuleOutput:
        """No state and no additional energy."""
        return RuleOutput()
