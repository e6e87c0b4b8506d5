"""The names of the charge rules, and their configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..config import from_dict
from .base import ChargeRule

Rule = TypeVar("Rule", bound=type[ChargeRule])
_RULES: dict[str, type[ChargeRule]] = {}


def register(name: str) -> Callable[[Rule], Rule]:
    """
    Class decorator that registers a rule under a name.

    Raises:
        ValueError: if the name is taken.

    Example:
        >>> import dataclasses
        >>> from scfmlip.models import ChargeRule, RuleOutput, register, rule_names
        >>> @dataclasses.dataclass(frozen=True)
        ... class NothingConfig:
        ...     pass
        >>> @register("nothing")
        ... class Nothing(ChargeRule):
        ...     Config = NothingConfig
        ...     def forward(self, system):
        ...         return RuleOutput()
        >>> "nothing" in rule_names()  # a model's configuration may now say "rule": "nothing"
        True
    """

    def add(rule: Rule) -> Rule:
        if name in _RULES:
            raise ValueError(f"the charge rule {name!r} exists already: {_RULES[name].__qualname__}")
        if not dataclasses.is_dataclass(getattr(rule, "Config", None)):
            raise TypeError(f"{rule.__qualname__}.Config must be a dataclass of its options")
        _RULES[name] = rule
        return rule

    return add


def rule_names() -> list[str]:
    """
    Names of all registered rules.

    Example:
        >>> from scfmlip.models import rule_names
        >>> for name in rule_names():
        ...     print(name)
        equilibrated
        fixed
        fixed_point
        functional
        latent
        local
        local_split
        recursion
        short_range
    """
    return sorted(_RULES)


def rule_class(name: str) -> type[ChargeRule]:
    """
    The rule with a given name.

    Raises:
        ValueError: for an unknown name; lists the known ones.
    """
    if name not in _RULES:
        raise ValueError(f"there is no charge rule {name!r}; there are {', '.join(rule_names())}")
    return _RULES[name]


def rule_config(values: Any) -> Any:
    """A rule's configuration from ``{"name": ..., **options}`` or from a name; instances pass through."""
    if isinstance(values, str):
        values = {"name": values}
    if not isinstance(values, Mapping):
        if any(isinstance(values, rule.Config) for rule in _RULES.values()):
            return values
        raise TypeError(f"rule must be a name or a mapping with a name, got {values!r}")
    if not isinstance(values.get("name"), str):
        raise ValueError(f"rule needs a name: one of {', '.join(rule_names())}")
    options = {key: value for key, value in values.items() if key != "name"}
    return from_dict(rule_class(values["name"]).Config, options, f"rule {values['name']!r}")


def name_of(config: Any) -> str:
    """The name under which a configuration's rule is registered."""
    return next(name for name, rule in _RULES.items() if rule.Config is type(config))
