"""
Descriptions of operators as text that travels with a graph.

An operator takes what it computes as JSON, so that an exported graph runs in any process. Each text is parsed
once per process. The descriptions and texts used last are remembered, so that a call pays for neither.
"""

import json
import threading
from collections import OrderedDict
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import torch


class Description(Protocol):
    """What an operator computes: a named tuple of numbers, strings and tuples of these."""

    @classmethod
    def from_json(cls, *args: Any, **kwargs: Any) -> Any:
        """From its fields with lists in place of tuples."""
        ...

    def check(self) -> None:
        """Raise ValueError where it contradicts itself."""
        ...


D = TypeVar("D", bound=Description)

# by the object itself: hashing thousands of terms takes longer than a small contraction
_texts: OrderedDict[int, tuple[Description, str]] = OrderedDict()
_MAX_TEXTS = 1024
_lock = threading.Lock()


def describe(description: Description) -> str:
    """
    The text of a description, from which `described` makes an equal one.

    Raises:
        ValueError: where the description contradicts itself.
    """
    found = _texts.get(id(description))
    if found is not None and found[0] is description:
        return found[1]
    description.check()
    named = [type(description).__name__, *tuple(description)]  # type: ignore[arg-type]
    # numbers of numpy and of torch as Python's
    text = json.dumps(named, separators=(",", ":"), default=lambda number: number.item())
    with _lock:
        _texts[id(description)] = description, text
        if len(_texts) > _MAX_TEXTS:
            _texts.popitem(last=False)
    return text


@torch.compiler.assume_constant_result
def constant_text(description: Description) -> str:
    """`describe` for functions that may be compiled: the graph holds the text."""
    return describe(description)


@lru_cache(maxsize=1024)
def described(text: str, kind: type[D]) -> D:
    """
    The description of a text; the same object for the same text.

    Raises:
        ValueError: for a text that describes no ``kind``.
    """
    try:
        name, *fields = json.loads(text)
        if name != kind.__name__:
            raise ValueError(f"it describes a {name}")
        return kind.from_json(*fields)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{text[:60]!r} is not the text of a {kind.__name__} ({error}): export the graph again with this "
            "version of scfmlip"
        ) from error
