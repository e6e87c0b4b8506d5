"""Segments of a ragged batch: sums from rows to systems, and expansion from systems to rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scfmlip_kernels import segment_expand, segment_sum


@dataclass(frozen=True)
class Segments:
    """
    Rows of a batch, and the segment (system, or group of atoms) that each belongs to.

    Every sum over the atoms of a system goes through `sum` or `combine`, so a system whose atoms are
    distributed over several processes only needs a subclass (`scfmlip.distributed.SharedSegments`). Sums are
    deterministic.

    Attributes:
        ptr: ``[n_segments + 1]`` int64 first row of each segment, for sorted rows.
        index: ``[n_rows]`` int64 segment of each row.
        order: ``[n_rows]`` int64 order that sorts rows by segment; None if they are sorted.

    Example:
        >>> import torch
        >>> from scfmlip.segments import Segments
        >>> two = Segments.of(torch.tensor([0, 0, 1]), 2)
        >>> two.sum(torch.tensor([1.0, 2.0, 5.0])).tolist()
        [3.0, 5.0]
        >>> two.expand(torch.tensor([3.0, 5.0])).tolist()
        [3.0, 3.0, 5.0]
    """

    ptr: Tensor
    index: Tensor
    order: Tensor | None = None

    @classmethod
    def of(cls, index: Tensor, n_segments: int) -> Segments:
        """
        Make segments of rows in any order.

        Args:
            index: ``[n_rows]`` int64 segment of each row.
            n_segments: Number of segments, including empty ones at the end.
        """
        counts = torch.bincount(index, minlength=n_segments)
        ptr = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        if n_segments == 1 or bool((index.diff() >= 0).all()):
            return cls(ptr, index)
        return cls(ptr, index, torch.argsort(index, stable=True))

    @classmethod
    def counted(cls, counts: Tensor, device: torch.device) -> Segments:
        """
        Make segments with given numbers of rows.

        Args:
            counts: ``[n_segments]`` int64 number of rows per segment, on the CPU.
            device: Device of the segments.
        """
        ptr = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        return cls(ptr.to(device), torch.arange(len(counts)).repeat_interleave(counts).to(device))

    @property
    def shared(self) -> bool:
        """Whether other processes hold rows of the same segments."""
        return False

    def repeated(self, size: int) -> Segments:
        """The segments of the elements of flattened rows with ``size`` elements each."""
        if size == 1:
            return self
        order = self.order
        if order is not None:
            order = (size * order[:, None] + torch.arange(size, device=order.device)).flatten()
        index = self.index[:, None].expand(-1, size).flatten()
        return Segments(self.ptr * size, index, order)

    def with_unknowns(self, size: int) -> Segments:
        """These rows, followed by ``size`` additional rows per segment that belong to no atom."""
        steps = torch.arange(self.n_segments + 1, device=self.index.device)
        index = torch.cat((self.index, steps[:-1, None].expand(-1, size).flatten()))
        order = None if self.n_segments == 1 else torch.argsort(index, stable=True)
        return Segments(self.ptr + size * steps, index, order)

    @property
    def n_segments(self) -> int:
        """Number of segments."""
        return len(self.ptr) - 1

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.index)

    @property
    def counts(self) -> Tensor:
        """``[n_segments]`` float64 rows of each."""
        return self.ptr.diff().double()

    def sum(self, values: Tensor) -> Tensor:
        """Sum ``[n_rows, ...]`` float32 or float64 -> ``[n_segments, ...]``; empty segments give 0."""
        return self.own_sum(values)

    def own_sum(self, values: Tensor) -> Tensor:
        """As `sum`, over the rows of this process alone: a part, for `combine`."""
        if self.order is None:
            return segment_sum(values, self.ptr, self.index)
        return segment_sum(values[self.order], self.ptr, self.index[self.order])

    def share(self, rows: Tensor) -> Tensor:
        """Of rows that every process has alike, those that are left to this one."""
        return rows

    def of_others(self, index: Tensor) -> Segments:
        """
        Other rows of the same systems.

        Args:
            index: ``[n_rows]`` int64 system of each, sorted.
        """
        return Segments.of(index, self.n_segments)

    @property
    def host_counts(self) -> list[int]:
        """Rows of each segment, of all processes, on the host."""
        return self.ptr.diff().tolist()

    def agree(self, flag: bool) -> bool:
        """Whether a flag is set on every process that holds rows."""
        return flag

    def combine(self, parts: Tensor, alike: bool = False) -> Tensor:
        """
        What has been summed over the rows of this process, of any shape, over all rows there are.

        Args:
            parts: Of this process.
            alike: Whether all processes make the same of it, which leaves through `equal_parts`: then
                derivatives cost no message.
        """
        return parts

    def combine_all(self, *parts: Tensor, alike: bool = False) -> tuple[Tensor, ...]:
        """As `combine`, of several tensors of one dtype together: one message where there are any."""
        if not self.shared:
            return parts
        sizes = [part.numel() for part in parts]
        whole = self.combine(torch.cat([part.reshape(-1) for part in parts]), alike)
        return tuple(v.view(part.shape) for v, part in zip(whole.split(sizes), parts, strict=True))

    def highest(self, values: Tensor) -> Tensor:
        """``[n_rows, ...]`` -> ``[n_segments, ...]`` largest values, -inf without rows; without a graph."""
        low = values.new_full((self.n_segments, *values.shape[1:]), -torch.inf)
        index = self.index.view(-1, *(1,) * (values.ndim - 1)).expand_as(values)
        return low.scatter_reduce(0, index, values.detach(), "amax")

    def sum_gradient(self, values: Tensor) -> Tensor:
        """Numbers of segments, behind which gradients are whole, see `scfmlip.distributed.collectives`."""
        return values

    def equal_parts(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Numbers of segments, behind which processes have equal parts of the gradient."""
        return values

    def share_gradient(self, values: Tensor) -> Tensor:
        """Numbers of segments, behind which each process has a part of the gradient."""
        return values

    def expand(self, values: Tensor) -> Tensor:
        """Copy ``[n_segments, ...]`` to rows ``[n_rows, ...]``."""
        if self.order is not None:
            return values.index_select(0, self.index)
        return segment_expand(values, self.ptr, self.index)

    def mean(self, values: Tensor) -> Tensor:
        """Average ``[n_rows, ...]`` -> ``[n_segments, ...]``; empty segments give 0."""
        if self.n_segments == 1 and not self.shared:
            return self.sum(values) / max(self.n_rows, 1)
        counts = self.counts.clamp(min=1).to(values.dtype)
        return self.sum(values) / counts.view(-1, *(1,) * (values.ndim - 1))

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Dot product per segment: ``[..., n_rows]`` twice -> ``[..., n_segments]`` float64."""
        return self.sum((a * b).double().movedim(-1, 0)).movedim(0, -1)

    def norm(self, a: Tensor) -> Tensor:
        """Norm per segment: ``[..., n_rows]`` -> ``[..., n_segments]`` float64."""
        return self.dot(a, a).sqrt()
