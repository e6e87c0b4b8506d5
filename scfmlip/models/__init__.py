"""
The design space: every way to put electrostatics into an interatomic potential, on one MACE backbone.

Needs ``scfmlip[mace]``. `build` makes a model from a configuration, `ChargeRule` and `register` add a rule.
"""

import mace  # noqa: F401  (before e3nn, which it makes loadable)

from .backbone import Backbone
from .build import build, config_to_dict, make_config
from .checkpoint import load, save
from .config import BackboneConfig, DensityConfig, ModelConfig
from .convert import from_mace, to_mace
from .model import Model
from .rules import (
    ChargeRule,
    RuleContext,
    RuleDensity,
    RuleEnergies,
    RuleOutput,
    System,
    register,
    rule_names,
)
from .vacuum import work_functions

__all__ = [
    "Backbone",
    "BackboneConfig",
    "ChargeRule",
    "DensityConfig",
    "Model",
    "ModelConfig",
    "RuleContext",
    "RuleDensity",
    "RuleEnergies",
    "RuleOutput",
    "System",
    "build",
    "config_to_dict",
    "from_mace",
    "load",
    "make_config",
    "register",
    "rule_names",
    "save",
    "to_mace",
    "work_functions",
]
