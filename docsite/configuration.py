"""Tables of options, from the dataclasses that hold them and what their docstrings say of each."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

_ATTRIBUTE = re.compile(r"^(\w+(?:, \w+)*): (.*)$")


def describe_attributes(cls: type) -> dict[str, str]:
    """
    What a class's docstring says of each attribute, in one line each.

    Raises:
        ValueError: for a dataclass with a field that its docstring does not name.
    """
    lines = inspect.getdoc(cls).splitlines() if cls.__doc__ else []
    found: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in lines:
        if not line.startswith(" ") and line.strip():
            inside = line.strip() == "Attributes:"
            continue
        if not inside or not line.strip():
            continue
        start = _ATTRIBUTE.match(line[4:])
        if start:
            names = start[1].split(", ")
            found.update(dict.fromkeys(names, start[2]))
        else:
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
    missing = [f.name for f in dataclasses.fields(cls) if f.init and f.name not in found]
    if missing:
        raise ValueError(f"{cls.__qualname__}: its docstring says nothing of {', '.join(missing)}")
    return found


def type_name(hint: Any) -> str:
    """An annotation in the words of a YAML file."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return "name or mapping"
    if origin is typing.Literal:
        return ", ".join(str(a) for a in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(type_name(a) for a in arguments)
    if origin in (tuple, list):
        return f"list of {type_name(arguments[0])}"
    if origin in (dict, Mapping) or hint is dict or getattr(origin, "__name__", "") == "Mapping":
        return "mapping"
    if hint is type(None):
        return "null"
    if dataclasses.is_dataclass(hint):
        return "mapping"
    words = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
    name = getattr(hint, "__name__", str(hint))
    return words.get(name, name)


def default_of(field: dataclasses.Field) -> str:
    """A field's default as it would stand in YAML; "required" where there is none."""
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
        if dataclasses.is_dataclass(value):
            return "see there"
    else:
        return "required"
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (tuple, list)):
        return f"`[{', '.join(str(v) for v in value)}]`"
    if isinstance(value, dict):
        return f"`{{{', '.join(f'{k}: {v}' for k, v in value.items())}}}`"
    return f"`{value}`" if value != "" else '`""`'


def table(cls: type) -> str:
    """
    A Markdown table of a dataclass's options: name, type, default, meaning.

    Raises:
        ValueError: as `describe_attributes`.
    """
    meaning, hints = describe_attributes(cls), typing.get_type_hints(cls)
    rows = ["| option | is | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        text = meaning[field.name].replace("``", "`").replace("|", "\\|")
        rows.append(f"| `{field.name}` | {type_name(hints[field.name])} | {default_of(field)} | {text} |")
    if len(rows) == 2:
        return "No options."
    return "\n".join(rows)


def rule_tables() -> str:
    """A section for each charge rule: what it is, which constraints it obeys, its options."""
    from scfmlip.models import rule_names
    from scfmlip.models.rules import rule_class

    parts = []
    for name in rule_names():
        rule = rule_class(name)
        first = " ".join((inspect.getdoc(rule) or "").split("\n\n")[0].split())
        constraints = ", ".join(f"`{c}`" for c in rule.constraints)
        title = f"### `{name}` {{ #rule-{name.replace('_', '-')} }}"
        parts.append(f"{title}\n\n{first}\n\nConstraints: {constraints}.\n\n{table(rule.Config)}")
    return "\n\n".join(parts)


def loss_table() -> str:
    """The terms of a training's loss: label, key, unit."""
    from scfmlip.training import PENALTIES, TERMS

    rows = ["| term | compared with | named by | unit of the error |", "|---|---|---|---|"]
    for name, term in TERMS.items():
        rows.append(f"| `{name}` | {term.label.replace('_', ' ')} | `data.{term.option}` | {term.unit} |")
    for name, output in PENALTIES.items():
        rows.append(f"| `{name}` | no label: keeps `{output}` below 1 | | |")
    return "\n".join(rows)


def input_table() -> str:
    """The keys of ``atoms.info`` that every door reads."""
    from scfmlip.mace_torch.inputs import INPUTS

    rows = ["| what | keys of `atoms.info` | example |", "|---|---|---|"]
    for given in INPUTS.values():
        names = ", ".join(f"`{name}`" for name in given.names)
        rows.append(f"| {given.meaning} | {names} | `{given.example}` |")
    return "\n".join(rows)
