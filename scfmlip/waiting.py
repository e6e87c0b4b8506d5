"""
What the host has to know of values on a GPU, in as few waits as possible.

Reading a value of a GPU makes the host wait until all work before it is done. Checks that only matter if they
fail are therefore looked at together, at the end of a step.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

R = TypeVar("R")
_OPEN: contextvars.ContextVar[Pending | None] = contextvars.ContextVar("scfmlip.waiting", default=None)


class Pending:
    """
    Conditions on a GPU that nobody has looked at yet, and what to do where they hold.

    Example:
        >>> import torch
        >>> from scfmlip.waiting import Pending
        >>> pending, charge = Pending(), torch.tensor(0.1)
        >>> pending.add(charge != 0, lambda: print(f"a charge of {charge:.1f} e"))
        >>> pending.look()
        a charge of 0.1 e
    """

    def __init__(self) -> None:
        self._conditions: list[Tensor] = []
        self._acts: list[Callable[[], None]] = []
        self.open = True
        # whether more than one step is waited for, see `late_checks`
        self.late = False
        # of solvers, see `scfmlip.decisions`
        self.decisions: Any = None

    def add(self, condition: Tensor, act: Callable[[], None]) -> None:
        """Add a condition, one bool, and what to do if it holds."""
        self._conditions.append(condition.detach())
        self._acts.append(act)

    def flags(self) -> Tensor | None:
        """``[n]`` bool, all conditions; None without any."""
        return torch.stack(self._conditions) if self._conditions else None

    def look(self, flags: Tensor | None = None) -> None:
        """
        Look at all conditions, in one wait, and do what is to be done, in their order.

        Args:
            flags: ``[n]`` bool from `flags`, if it was made before.
        """
        acts = self._acts
        if flags is None:
            flags, self._conditions, self._acts = self.flags(), [], []
        if flags is not None:
            for holds, act in zip(flags.tolist(), acts, strict=True):
                if holds:
                    act()


@contextlib.contextmanager
def together(pending: Pending | None = None) -> Iterator[Pending]:
    """
    Inside, `when` postpones what it looks at on a GPU to the end: the host waits once.

    The outermost one counts. Where something fails inside, what was postponed comes first: it is the cause.

    Args:
        pending: Collects the conditions and is left to the caller to look at; a new one that is looked at
            here if None.

    Example:
        >>> import torch
        >>> from scfmlip.waiting import together, when
        >>> with together():
        ...     when(torch.tensor(True), lambda: print("values on the CPU do not wait"))
        values on the CPU do not wait
    """
    outer = _OPEN.get()
    if outer is not None and pending is None:
        yield outer
        return
    mine = Pending() if pending is None else pending
    token = _OPEN.set(mine)
    try:
        yield mine
    except Exception:
        if pending is None:
            mine.look()
        raise
    finally:
        _OPEN.reset(token)
        mine.open = pending is not None
    if pending is None:
        mine.look()


@contextlib.contextmanager
def late_checks() -> Iterator[None]:
    """
    Inside, steps on a GPU make the host wait for nothing that only matters if it fails.

    What a step checks is looked at when this ends, in one wait for all steps: NaN, charges that contradict
    each other, solves that have not converged, and whether the plans of Coulomb operators still held, which
    are taken to be those of the step before. Errors are those of the steps, but late; results inside are not
    to be used before this has ended without one. Each step leaves some bools and the tensors that an error
    would name, so end it every hundred steps or so. The first step of a batch, solvers that look whether they
    have converged, and tensors on the CPU are as outside.

    Raises:
        RuntimeError: when it ends, if cells, periodicity, systems or the extents of slabs and isolated
            systems were others than in the step before; and the errors of steps.

    Example:
        >>> import torch, scfmlip
        >>> geometry = scfmlip.Coulomb(l_max=0).prepare(torch.zeros(1, 3), 9 * torch.eye(3))
        >>> with scfmlip.late_checks():
        ...     for step in range(3):
        ...         energy = geometry.energy(torch.tensor([[0.1 * step]]))
    """
    with together() as pending:
        before, pending.late = pending.late, True
        try:
            yield
        finally:
            pending.late = before


def late(device: torch.device) -> Pending | None:
    """What collects the conditions of several steps on a GPU, see `late_checks`; None elsewhere."""
    pending = _OPEN.get()
    return pending if pending is not None and pending.late and device.type == "cuda" else None


@contextlib.contextmanager
def joined(pending: Pending | None) -> Iterator[None]:
    """Inside, conditions join ``pending`` if it is open: for backward passes in their own threads."""
    if pending is None or not pending.open or _OPEN.get() is not None:
        yield
        return
    token = _OPEN.set(pending)
    try:
        yield
    finally:
        _OPEN.reset(token)


def joins(backward: Callable[..., R]) -> Callable[..., R]:
    """Decorator of backward passes: their conditions join those of the forward pass, ``ctx.pending``."""

    @functools.wraps(backward)
    def call(ctx: Any, *grad_outputs: Any) -> R:
        with joined(ctx.pending):
            return backward(ctx, *grad_outputs)

    return call


def current() -> Pending | None:
    """What collects conditions now, see `together`."""
    return _OPEN.get()


def when(condition: Tensor, act: Callable[[], None]) -> None:
    """
    Do something if a condition holds: at once, or for a tensor of a GPU at the end of `together`.

    Args:
        condition: One bool.
        act: What to do, for instance raise an error.
    """
    pending = _OPEN.get()
    if pending is not None and condition.device.type == "cuda":
        pending.add(condition, act)
    elif bool(condition):
        act()


def any_bad(values: Tensor) -> Tensor:
    """
    One bool: whether any number is NaN or infinite, in two launches where `torch.isfinite` takes five.

    Example:
        >>> import torch
        >>> from scfmlip.waiting import any_bad
        >>> any_bad(torch.tensor([1.0, torch.inf])), any_bad(torch.tensor([1.0, 2.0]))
        (tensor(True), tensor(False))
    """
    values = values.detach()
    return (values - values).any()


def read(*conditions: Tensor) -> list[bool]:
    """
    Several conditions of one device, in one wait.

    Example:
        >>> import torch
        >>> from scfmlip.waiting import read
        >>> read(torch.tensor(True), torch.tensor(False))
        [True, False]
    """
    return torch.stack([c.detach() for c in conditions]).tolist() if conditions else []
