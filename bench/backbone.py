"""How much of a MACE-POLAR evaluation is its MACE backbone: time and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from .allocations import peak_allocated

_LAYER = "backbone layer"


class _Layers:
    """Hooks on embeddings, interactions and products where they stand in the model."""

    def __init__(self, model: Any) -> None:
        self.modules = [model.node_embedding, model.spherical_harmonics, model.radial_embedding]
        self.modules += [*model.interactions, *model.products]
        self.ranges: list[tuple[int, int]] = []  # sequence numbers that autograd gave to their nodes
        self.seconds: list[float] = []
        self._probe = torch.ones((), requires_grad=True)
        self._began: list[tuple[int, float, record_function]] = []

    def _following(self) -> int:
        with torch.enable_grad():
            node = self._probe.clone().grad_fn
        assert node is not None
        return node._sequence_nr()

    def _enter(self, *_: Any) -> None:
        region = record_function(_LAYER)
        region.__enter__()
        self._began.append((self._following(), time.perf_counter(), region))

    def _leave(self, *_: Any) -> None:
        stop = time.perf_counter()
        first, start, region = self._began.pop()
        region.__exit__(None, None, None)
        self.seconds.append(stop - start)
        self.ranges.append((first, self._following()))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around one evaluation."""
        handles = [m.register_forward_pre_hook(self._enter) for m in self.modules]
        handles += [m.register_forward_hook(self._leave) for m in self.modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if len(self.seconds) != len(self.modules):
            raise RuntimeError(f"{len(self.seconds)} of {len(self.modules)} layers of the backbone were seen")

    def differentiated(self, sequence: int) -> bool:
        """Whether the backward node of this number is of an operation in a layer."""
        return any(first < sequence < last for first, last in self.ranges)


def backbone_share(model: Any, evaluate: Callable[[], Any]) -> float:
    """
    Share of the time of one evaluation that the MACE layers take, forward and backward.

    The backward of what layers did is recognised by the sequence numbers of autograd's nodes. Edge vectors
    and everything else count as the rest.

    Args:
        model: PolarMACE, accelerated or not.
        evaluate: Energy and forces, with nothing else in it.

    Returns:
        Between 0 and 1. The profiler's own time, a few microseconds a call, is in both parts.
    """
    layers = _Layers(model)
    with layers.watched(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        evaluate()
        total = time.perf_counter() - start
    backward = 0.0
    for event in profiler.events() or ():
        mine = layers.differentiated(event.sequence_nr)
        if mine and event.name.startswith("autograd::engine::evaluate_function"):
            backward += 1e-6 * event.cpu_time_total
    return (sum(layers.seconds) + backward) / total


def peak_beside_backbone(model: Any, evaluate: Callable[[], Any]) -> float:
    """
    Most bytes alive at once of those that one evaluation allocates outside the MACE layers.

    Args:
        model: PolarMACE, accelerated or not.
        evaluate: Energy and forces, with nothing else in it.

    Returns:
        MiB.
    """
    layers = _Layers(model)

    def of_layers(event: Any) -> bool:
        if event.name.startswith("autograd::engine::evaluate_function"):
            return layers.differentiated(event.extra_fields.sequence_number)
        return event.name == _LAYER

    with layers.watched():
        return peak_allocated(evaluate, of_layers)
