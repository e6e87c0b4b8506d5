"""
Operator descriptions as text that is stored in the graph.

An operator takes the description of what it computes as JSON, so an exported graph runs in any process. Each
text is parsed once per process. Recent descriptions and texts are cached, so calls pay for neither.
"""

import json
import threading
from collections import OrderedDict
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import torch


class Description(Protocol):
    """Description of what an operator computes: a named tuple of numbers, strings and tuples of these."""

    @classmethod
    def from_json(cls, *args: Any, **kwargs: Any) -> Any:
        """Build the description from its fields, with lists in place of tuples."""
        ...

    def check(self) -> None:
        """Raise ValueError if the description is inconsistent."""
        ...


D = TypeVar("D", bound=Description)

# keyed by object identity: hashing thousands of terms takes longer than a small contraction
_texts: OrderedDict[int, tuple[Description, str]] = OrderedDict()
_MAX_TEXTS = 1024
_lock = threading.Lock()


def describe(description: Description) -> str:
    """
    The text of a description; `described` turns it back into an equal description.

    Raises:
        ValueError: for an inconsistent description.
    """
    found = _texts.get(id(description))
    if found is not None and found[0] is description:
        return found[1]
    description.check()
    named = [type(description).__name__, *tuple(description)]  # type: ignore[arg-type]
    # convert numpy and torch scalars to Python numbers
    text = json.dumps(named, separators=(",", ":"), default=lambda number: number.item())
    with _lock:
        _texts[id(description)] = description, text
        if len(_texts) > _MAX_TEXTS:
            _texts.popitem(last=False)
    return text


@torch.compiler.assume_constant_result
def constant_text(description: Description) -> str:
    """Like `describe`, for functions that may be compiled: the graph then contains the text."""
    return describe(description)


@lru_cache(maxsize=1024)
def described(text: str, kind: type[D]) -> D:
    """
    The description behind a text; equal texts give the same object.

    Raises:
        ValueError: for a text that does not describe a ``kind``.
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
