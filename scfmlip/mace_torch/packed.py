"""Parameters that operators take as one vector, all of a model's copied in one launch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

# vectors made of several parameters, by what they are for; set while a model runs
_PACKED: ContextVar[dict[Any, Tensor] | None] = ContextVar("packed", default=None)


@contextlib.contextmanager
def packed(groups: Mapping[Any, Sequence[Tensor]]) -> Iterator[None]:
    """
    Inside, `packed_vector` finds the parameters of each group one behind the other; one copy for all.

    Args:
        groups: Parameters by a key.
    """
    flat = [t.flatten() for tensors in groups.values() for t in tensors]
    if not flat:
        yield
        return
    sizes = [sum(t.numel() for t in tensors) for tensors in groups.values()]
    token = _PACKED.set(dict(zip(groups, torch.cat(flat).split(sizes), strict=True)))
    try:
        yield
    finally:
        _PACKED.reset(token)


def packed_vector(key: Any, tensors: Sequence[Tensor]) -> Tensor:
    """The parameters of a group one behind the other, made here unless a model has made them."""
    known = None if torch.compiler.is_compiling() else _PACKED.get()
    if known is not None and key in known:
        return known[key]
    return torch.cat([t.flatten() for t in tensors])
