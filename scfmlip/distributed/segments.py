"""Rows of one system that several ranks share: sums over all of them."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from ..segments import Segments
from .collectives import all_reduce, equal_parts, share_gradient, sum_gradient, sum_of_equals
from .communicator import Communicator


@dataclasses.dataclass(frozen=True)
class SharedSegments(Segments):
    """
    Rows of a system that this rank owns, whose sums are over all ranks; every rank calls together.

    Attributes:
        communicator: The ranks.
        n_unknowns: Rows at the end that belong to no atom: every rank has the same, they count once.

    Raises:
        ValueError: for several systems.
    """

    communicator: Communicator = dataclasses.field(kw_only=True)
    n_unknowns: int = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.n_segments != 1:
            raise ValueError(f"ranks share one system, got {self.n_segments}")

    @property
    def shared(self) -> bool:
        """With more ranks than one."""
        return self.communicator.size > 1

    def repeated(self, size: int) -> SharedSegments:
        """As `Segments.repeated`."""
        plain = Segments(self.ptr, self.index).repeated(size)
        return SharedSegments(plain.ptr, plain.index, communicator=self.communicator)

    def with_unknowns(self, size: int) -> SharedSegments:
        """As `Segments.with_unknowns`."""
        plain = Segments(self.ptr, self.index).with_unknowns(size)
        return SharedSegments(plain.ptr, plain.index, communicator=self.communicator, n_unknowns=size)

    @property
    def counts(self) -> Tensor:
        """As `Segments.counts`, of all ranks; unknowns count too."""
        known = torch.tensor([sum(self.rank_counts) + self.n_unknowns], dtype=torch.float64)
        return known.to(self.index.device)

    @functools.cached_property
    def rank_counts(self) -> list[int]:
        """Rows of each rank that belong to atoms; ranks ask each other once, together."""
        own = torch.tensor(self.n_rows - self.n_unknowns, device=self.index.device)
        return self.communicator.gather(own).tolist()

    def sum(self, values: Tensor) -> Tensor:
        """As `Segments.sum`, over all ranks."""
        own = all_reduce(self.own_sum(values), self.communicator)
        unknown = values[self.n_rows - self.n_unknowns :]
        return own + unknown.sum(0, keepdim=True) if self.n_unknowns else own

    def own_sum(self, values: Tensor) -> Tensor:
        """As `Segments.own_sum`; of rows that belong to atoms."""
        return values[: self.n_rows - self.n_unknowns].sum(0, keepdim=True)

    def share(self, rows: Tensor) -> Tensor:
        """As `Segments.share`: each rank takes every so manyth."""
        return rows[self.communicator.rank :: self.communicator.size]

    def of_others(self, index: Tensor) -> SharedSegments:
        """As `Segments.of_others`: of this rank."""
        return shared_segments(len(index), self.communicator, index.device)

    @property
    def host_counts(self) -> list[int]:
        """As `Segments.host_counts`."""
        return self.counts.long().tolist()

    def agree(self, flag: bool) -> bool:
        """As `Segments.agree`, on all ranks."""
        missing = torch.tensor([float(not flag)], device=self.index.device)
        return not bool(self.communicator.all_reduce(missing, "max"))

    def combine(self, parts: Tensor, alike: bool = False) -> Tensor:
        """As `Segments.combine`, over all ranks."""
        return (sum_of_equals if alike else all_reduce)(parts, self.communicator)

    def equal_parts(self, *values: Tensor) -> tuple[Tensor, ...]:
        """See `scfmlip.distributed.equal_parts`; one message for all."""
        flat = torch.cat([value.reshape(-1) for value in values])
        found = equal_parts(flat, self.communicator).split([value.numel() for value in values])
        return tuple(v.view(value.shape) for v, value in zip(found, values, strict=True))

    def highest(self, values: Tensor) -> Tensor:
        """As `Segments.highest`, over all ranks."""
        return self.communicator.all_reduce(super().highest(values), "max")

    def sum_gradient(self, values: Tensor) -> Tensor:
        """See `scfmlip.distributed.sum_gradient`."""
        return sum_gradient(values, self.communicator)

    def share_gradient(self, values: Tensor) -> Tensor:
        """See `scfmlip.distributed.share_gradient`."""
        return share_gradient(values, self.communicator)


def shared_segments(n_rows: int, communicator: Communicator, device: torch.device) -> SharedSegments:
    """``n_rows`` rows of the one system that the ranks share."""
    index = torch.zeros(n_rows, dtype=torch.int64, device=device)
    return SharedSegments(torch.tensor([0, n_rows], device=device), index, communicator=communicator)
