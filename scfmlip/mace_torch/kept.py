"""What an accelerated model reads of its buffers, kept so that a GPU's host does not wait for it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

V = TypeVar("V")
# by model and name; not in the models, which are copied, pickled and restored
_VALUES: WeakKeyDictionary[torch.nn.Module, dict[str, tuple[Any, Any, Any]]] = WeakKeyDictionary()


def kept_of_buffers(model: torch.nn.Module, name: str, buffers: Sequence[Tensor], make: Callable[[], V]) -> V:
    """
    A value made from buffers of a model, until one of them is replaced or written to.

    Args:
        model: The model.
        name: Of the value.
        buffers: What it is made from.
        make: Makes it, by reading them.
    """
    try:
        key = tuple((b.data_ptr(), b._version, b.dtype, b.device) for b in buffers)
    except RuntimeError:  # tensors of inference mode have no version
        return make()
    known = _VALUES.setdefault(model, {})
    if name not in known or known[name][0] != key:
        # the buffers stay alive, so that no other takes their memory
        known[name] = key, make(), tuple(buffers)
    return known[name][1]
