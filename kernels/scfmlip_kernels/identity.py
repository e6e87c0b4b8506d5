"""What was made of tensors, kept while the very same tensors are asked about."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from threading import local
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

V = TypeVar("V")
_Key = tuple[Any, tuple[int, ...], int]


class ByIdentity(Generic[V]):
    """
    The last few results, each kept while its tensors live and nobody writes into them.

    Compares objects and their versions, never values, so that a GPU's host does not wait. Nothing is kept
    while a compiler traces, inside `torch.func`, in inference mode, or while a CUDA graph is captured, where
    a result that is not made again would be missing in the graph. Every thread has its own.

    Args:
        most: Number of results to keep.
    """

    def __init__(self, most: int) -> None:
        self.most, self._memory = most, local()

    def get(self, tensors: tuple[Tensor, ...], key: Any, make: Callable[[], V]) -> V:
        """
        The result for these tensors and this key, made if it is not there.

        Args:
            tensors: What it is made from.
            key: Anything else it depends on; compared by value.
            make: Makes it. The result must not be written into.
        """
        if not _keeps(tensors):
            return make()
        versions, grad = tuple(t._version for t in tensors), torch.is_grad_enabled()
        entries: list = self._memory.__dict__.setdefault("entries", [])
        for entry in entries:
            references, before, value = entry
            if before == (key, versions, grad) and all(
                r() is t for r, t in zip(references, tensors, strict=True)
            ):
                return value
        value = make()
        forget = _forgetter(entries)
        entries.append((tuple(weakref.ref(t, forget) for t in tensors), (key, versions, grad), value))
        del entries[: -self.most]
        return value


def _forgetter(entries: list) -> Callable[[Any], None]:
    """Drops results whose tensors are gone, when one is."""

    def forget(gone: Any) -> None:
        entries[:] = [entry for entry in entries if all(r is not gone for r in entry[0])]

    return forget


def _keeps(tensors: tuple[Tensor, ...]) -> bool:
    if torch.compiler.is_compiling() or detect_fake_mode() is not None:
        return False
    if torch._C._are_functorch_transforms_active() or any(t.is_inference() for t in tensors):
        return False
    return not (tensors and tensors[0].is_cuda and torch.cuda.is_current_stream_capturing())
