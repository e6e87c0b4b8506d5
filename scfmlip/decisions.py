"""
What the host decides from values on a GPU, and the same decisions again without a look.

Solvers look whether they have converged, and go on or end. A step that is captured in a CUDA graph cannot
look: it repeats what an ordinary step before it decided, and leaves conditions behind that hold if that was
not enough. Who replays the graph looks at them, once, with everything else a step checks
(`scfmlip.waiting`); where one holds, the step is made again in the ordinary way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .waiting import Pending, current, read, together

# steps beyond those of the recorded iteration that a repeated one takes, and one more for so many
_MORE, _PART = 1, 8


class OtherPath(RuntimeError):
    """A step that repeated the decisions of an earlier one would have taken others: its numbers are void."""


@dataclass
class Decisions:
    """
    What one step decided, in order.

    Attributes:
        taken: The answers of `each_needed`, the numbers of `at_least`, and of each iteration the step at
            which it ended, or None if nothing but its own limit ended it.
        repeating: Whether they are being repeated; else they are being recorded.
    """

    taken: list[Any] = field(default_factory=list)
    repeating: bool = False
    _next: int = 0

    def rewound(self) -> Decisions:
        """The same, to be repeated from the start."""
        return Decisions(self.taken, True)

    def widened(self, other: Decisions) -> Decisions:
        """The same with as many steps as either has, if both took the same turns; else these."""
        kinds = [[type(entry) for entry in one.taken] for one in (self, other)]
        if kinds[0] != kinds[1]:
            return self
        both = zip(self.taken, other.taken, strict=True)
        return Decisions([max(a, b) if isinstance(a, int) else a for a, b in both])

    def answers(self, found: Tensor) -> list[bool]:
        """What a look at the conditions ``found [n]`` bool says, or said when it was recorded."""
        if not self.repeating:
            self.taken.append(found.tolist())
            return self.taken[-1]
        answers = self._recorded()
        for holds, value in zip(answers, found.unbind(), strict=True):
            if not holds:
                self._guard(value)
        return answers

    def number(self, count: Tensor, limit: int) -> int:
        """A look at ``count``, one integer, or what it was when it was recorded and some more."""
        if not self.repeating:
            self.taken.append(int(count))
            return self.taken[-1]
        value = min(limit, _with_more(self._recorded()))
        self._guard(count > value)
        return value

    def iteration(self) -> int:
        """The place of an iteration that begins."""
        if self.repeating:
            self._recorded()
            return self._next - 1
        self.taken.append(None)
        return len(self.taken) - 1

    def ended(self, place: int, step: int, active: Tensor) -> bool:
        """Whether a repeated iteration ends before ``step``; no number of ``active`` bool must hold then."""
        last = self.taken[place]
        if last is None or step < _with_more(last):
            return False
        self._guard(active.any())
        return True

    def _recorded(self) -> Any:
        if self._next == len(self.taken):
            raise OtherPath("a step made more decisions than the one before it")
        self._next += 1
        return self.taken[self._next - 1]

    def _guard(self, wrong: Tensor) -> None:
        pending = current()
        assert pending is not None
        pending.add(wrong, _refuse)


def _with_more(count: int) -> int:
    return count + _MORE + count // _PART


def _refuse() -> None:
    raise OtherPath("a step would have decided otherwise than the one before it")


def decisions() -> Decisions | None:
    """What is being recorded or repeated now; None in an ordinary step."""
    pending = current()
    return None if pending is None else pending.decisions


@contextlib.contextmanager
def deciding(taken: Decisions, pending: Pending) -> Iterator[None]:
    """
    Inside, decisions are recorded in ``taken`` or repeated from it; conditions go to ``pending``.

    Example:
        >>> import torch
        >>> from scfmlip.decisions import Decisions, OtherPath, deciding, needed
        >>> from scfmlip.waiting import Pending
        >>> def halvings(x):
        ...     count = 0
        ...     while needed(x > 1):
        ...         x, count = x / 2, count + 1
        ...     return count
        >>> recorded = Decisions()
        >>> with deciding(recorded, Pending()):
        ...     halvings(torch.tensor(7.0))
        3
        >>> pending = Pending()
        >>> with deciding(recorded.rewound(), pending):
        ...     halvings(torch.tensor(9.0))
        3
        >>> try:
        ...     pending.look()
        ... except OtherPath:
        ...     print("three are not enough")
        three are not enough
    """
    pending.decisions = taken
    with together(pending):
        yield


def needed(condition: Tensor) -> bool:
    """
    Whether a condition, one bool, holds, so that something has to be done that does no harm if it does not.

    Example:
        >>> import torch
        >>> from scfmlip.decisions import needed
        >>> values = torch.tensor([1.0, 2.0])
        >>> needed((values < 0).any())
        False
    """
    if decisions() is None:
        return bool(condition)
    return each_needed(condition)[0]


def each_needed(*conditions: Tensor) -> list[bool]:
    """
    `needed` for several conditions of one device, in one wait.

    Example:
        >>> import torch
        >>> from scfmlip.decisions import each_needed
        >>> each_needed(torch.tensor(True), torch.tensor(False))
        [True, False]
    """
    taken = decisions()
    if taken is None or not conditions:
        return read(*conditions)
    return taken.answers(torch.stack([condition.detach() for condition in conditions]))


def at_least(count: Tensor, limit: int) -> int:
    """
    A number that sizes depend on, or a larger one that does as well.

    Args:
        count: One integer.
        limit: It is never larger.

    Example:
        >>> import torch
        >>> from scfmlip.decisions import at_least
        >>> at_least(torch.tensor([3, 5, 2]).max(), 8)
        5
    """
    taken = decisions()
    return int(count) if taken is None else taken.number(count, limit)
