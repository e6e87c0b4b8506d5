"""
Charge rules: every way to put electrostatics into a potential, one file each.

To add one, write a `ChargeRule` with a ``Config`` and decorate it with ``@register("name")``.
"""

from . import (  # each registers its rule
    equilibrated,
    fixed,
    fixed_point,
    functional,
    latent,
    local,
    local_split,
    recursion,
    short_range,
)
from .base import (
    ChargeRule,
    RuleContext,
    RuleDensity,
    RuleEnergies,
    RuleOutput,
    System,
    make_coulomb,
)
from .registry import name_of, register, rule_class, rule_config, rule_names

__all__ = [
    "ChargeRule",
    "RuleContext",
    "RuleDensity",
    "RuleEnergies",
    "RuleOutput",
    "System",
    "equilibrated",
    "fixed",
    "fixed_point",
    "functional",
    "latent",
    "local",
    "local_split",
    "make_coulomb",
    "name_of",
    "recursion",
    "register",
    "rule_class",
    "rule_config",
    "rule_names",
    "short_range",
]
