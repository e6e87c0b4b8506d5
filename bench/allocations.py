"""Peak memory by the events of PyTorch's CPU allocator, where a process' resident memory is too coarse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_allocated(call: Callable[[], object], skip: Callable[[Any], bool] = lambda event: False) -> float:
    """
    Most bytes alive at once of those that a call allocates.

    Temporaries inside operations are included; what was there before is not.

    Args:
        call: What is measured.
        skip: Whether an event of the profiler's tree, and all within it, is not counted. Asked after the
            call has ended.

    Returns:
        MiB.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True) as profiler:
        call()
    kineto: Any = profiler.profiler
    moments: list[tuple[int, int, int, bool]] = []
    pending = [(root, True) for root in kineto.kineto_results.experimental_event_tree()]
    while pending:
        event, counts = pending.pop()
        fields = event.extra_fields
        if type(fields).__name__ == "_ExtraFields_Allocation":
            moments.append((event.start_time_ns, fields.ptr, fields.alloc_size, counts))
            continue
        counts = counts and not skip(event)
        pending += [(child, counts) for child in event.children]
    alive: dict[int, int] = {}
    now = most = 0
    for _, place, size, counts in sorted(moments):
        if size < 0:
            now -= alive.pop(place, 0)
        elif counts:
            alive[place] = size
            now += size
            most = max(most, now)
    return most / 2**20
