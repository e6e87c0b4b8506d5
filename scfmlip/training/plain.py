"""YAML of plain values: numbers, texts, lists and mappings in which nothing is named twice."""

from __future__ import annotations

import json
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """The safe loader, without dates, that sees when a key comes again."""

    # dates stay texts
    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own)
        first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """
        A mapping.

        Raises:
            yaml.MarkedYAMLError: for a key that it has already.
        """
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return node


def read_yaml(text: str) -> Any:
    """
    What a YAML text holds.

    Raises:
        ValueError: for what is no YAML, holds a key twice, or something else than plain values.
    """
    try:
        values = yaml.load(text, _Loader)
        json.dumps(values)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"no YAML of options: {where}{getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise ValueError("no YAML of options: lists or mappings within each other without end") from None
    except TypeError as error:
        raise ValueError(f"it holds more than numbers, texts, lists and mappings: {error}") from None
    return values
