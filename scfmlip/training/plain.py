"""YAML with plain values only: numbers, strings, lists and mappings without duplicate keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """The safe loader, without dates, and with an error for duplicate keys."""

    # dates stay strings
    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own)
        first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """
        Compose a mapping.

        Raises:
            yaml.MarkedYAMLError: for a duplicate key.
        """
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is set twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return node


def read_yaml(text: str) -> Any:
    """
    Read a YAML text.

    Raises:
        ValueError: for invalid YAML, duplicate keys, or values that are not plain.
    """
    try:
        values = yaml.load(text, _Loader)
        json.dumps(values)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"not valid YAML: {where}{getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise ValueError("not valid YAML: lists or mappings are nested too deeply") from None
    except TypeError as error:
        raise ValueError(f"it holds more than numbers, strings, lists and mappings: {error}") from None
    return values


def read_options(path: str | Path, needed: str) -> Mapping[str, Any]:
    """
    The options in a YAML file.

    Args:
        path: The file.
        needed: Names of options that it must have, for the message.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not YAML, names an option twice, or holds no options.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        values = read_yaml(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} holds no options: it must be a mapping with {needed}")
    return values
