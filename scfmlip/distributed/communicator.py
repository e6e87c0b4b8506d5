"""
What processes that share one system ask of each other, whatever carries it.

Every rank calls every method in the same order, also with tensors without rows. Nothing else of the library
knows which library carries the messages; `mpi` and `process_group` are the two there are.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, NoReturn

import torch
from torch import Tensor

Operation = Literal["sum", "max"]


@dataclasses.dataclass
class Traffic:
    """
    What one rank has sent so far.

    Attributes:
        reductions: Sums and maxima over all ranks.
        reduced_bytes: Of this rank's tensors in them.
        exchanges: Exchanges of rows.
        messages: To other ranks in those.
        message_bytes: In those messages.
    """

    reductions: int = 0
    reduced_bytes: int = 0
    exchanges: int = 0
    messages: int = 0
    message_bytes: int = 0

    def since(self, before: Traffic) -> Traffic:
        """What was sent after ``before``, a copy of an earlier count."""
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(before)
        return Traffic(*(now - then for now, then in zip(mine, theirs, strict=True)))

    def copy(self) -> Traffic:
        """The counts as they are now."""
        return dataclasses.replace(self)


class Communicator(ABC):
    """
    The processes that share a system. Results of reductions are the same numbers on every rank.

    Args:
        rank: The number of this process, from 0.
        size: How many there are.

    Attributes:
        traffic: What this rank has sent.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.traffic = rank, size, Traffic()

    def all_reduce(self, values: Tensor, operation: Operation = "sum") -> Tensor:
        """
        A tensor of every rank, of one shape, added up or its largest entries; without a graph.

        Args:
            values: float32, float64 or int64; not changed.
            operation: "sum" or "max".

        Raises:
            ValueError: for another operation.
        """
        if operation not in ("sum", "max"):
            raise ValueError(f"operation must be 'sum' or 'max', got {operation!r}")
        out = values.detach().clone(memory_format=torch.contiguous_format)
        if self.size == 1:
            return out
        self.traffic.reductions += 1
        self.traffic.reduced_bytes += out.numel() * out.element_size()
        return self._reduce(out, operation)

    def exchange(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """
        Rows to given ranks for rows from them; without a graph.

        Args:
            rows: ``[sum(send), ...]`` those for rank 0 first.
            send: ``[size]`` how many go to each rank.
            receive: ``[size]`` how many come from each.

        Returns:
            ``[sum(receive), ...]`` those of rank 0 first.
        """
        rows = rows.detach().contiguous()
        out = rows.new_empty((sum(receive), *rows.shape[1:]))
        mine = slice(sum(send[: self.rank]), sum(send[: self.rank + 1]))
        here = slice(sum(receive[: self.rank]), sum(receive[: self.rank + 1]))
        out[here] = rows[mine]
        if self.size == 1:
            return out
        row_bytes = rows.element_size() * (rows[0].numel() if len(rows) else 0)
        others = [n for rank, n in enumerate(send) if rank != self.rank and n]
        self.traffic.exchanges += 1
        self.traffic.messages += len(others)
        self.traffic.message_bytes += row_bytes * sum(others)
        self._exchange(rows, out, send, receive)
        return out

    def gather(self, values: Tensor) -> Tensor:
        """
        ``[size, ...]`` a tensor of every rank, of one shape, on each of them; without a graph.

        For short tensors: it is summed with zeros in the place of the others.
        """
        out = values.new_zeros((self.size, *values.shape))
        out[self.rank] = values.detach()
        return self.all_reduce(out)

    @abstractmethod
    def _reduce(self, values: Tensor, operation: Operation) -> Tensor:
        """``values``, contiguous and nobody else's, over all ranks."""

    @abstractmethod
    def _exchange(self, rows: Tensor, out: Tensor, send: Sequence[int], receive: Sequence[int]) -> None:
        """Fill ``out`` with what other ranks sent; both contiguous."""

    @abstractmethod
    def all_arrive(self, seconds: float) -> bool:
        """Whether every rank calls this within so many seconds: then nobody waits for this one elsewhere."""
        ...

    @abstractmethod
    def abort(self) -> NoReturn:
        """End all ranks at once: one has failed where others wait for it."""
        ...


class SingleProcess(Communicator):
    """One process that has all atoms."""

    def __init__(self) -> None:
        super().__init__(0, 1)

    def _reduce(self, values: Tensor, operation: Operation) -> Tensor:
        return values

    def _exchange(self, rows: Tensor, out: Tensor, send: Sequence[int], receive: Sequence[int]) -> None:
        """Nothing: there is no other."""

    def all_arrive(self, seconds: float) -> bool:
        """There is no other."""
        return True

    def abort(self) -> NoReturn:
        """End this process."""
        raise SystemExit(1)


def spans(counts: Sequence[int]) -> list[tuple[int, int, int]]:
    """Rank, first and last row of every rank that has rows, of rows sorted by rank."""
    found, first = [], 0
    for rank, n in enumerate(counts):
        if n:
            found.append((rank, first, first + n))
        first += n
    return found
