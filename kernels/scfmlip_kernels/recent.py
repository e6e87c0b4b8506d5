"""A cache of what the CPU paths last computed from tensors, keyed by the tensors' content."""

from threading import local
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

V = TypeVar("V")
_generation = 0


def clear() -> None:
    """Clear all caches; each thread frees its memory at its next lookup."""
    global _generation
    _generation += 1


class Recent(Generic[V]):
    """
    The last few results, each with a copy of the tensor it was computed from.

    Comparing content means that reused memory or in-place changes cannot be mistaken for the same tensor.
    Every thread has its own cache, so none waits for another.

    Args:
        most: Number of results to keep.
    """

    def __init__(self, most: int) -> None:
        self.most, self._memory = most, local()

    def entries(self) -> list[tuple[Tensor, Any, V]]:
        """Tensors, keys and results of this thread, most recently used last."""
        if getattr(self._memory, "generation", None) != _generation:
            self._memory.generation, self._memory.entries = _generation, []
        return self._memory.entries

    def find(self, tensor: Tensor, key: Any = None) -> V | None:
        """The result for an equal tensor and key, or None."""
        entries = self.entries()
        for i, (before, of, value) in enumerate(entries):
            same = before.dtype == tensor.dtype and before.shape == tensor.shape and of == key
            if same and torch.equal(before, tensor):
                entries.append(entries.pop(i))
                return value
        return None

    def keep(self, value: V, tensor: Tensor, key: Any = None) -> V:
        """Store a result in place of the oldest, and return it."""
        entries = self.entries()
        entries.append((tensor.clone(), key, value))
        del entries[: -self.most]
        return value
