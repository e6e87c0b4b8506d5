"""When the host looks whether an iteration has ended."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...decisions import decisions

# the part of the steps that are expected to be left, and of those taken so far, before the next look: Krylov
# spaces converge ever faster
_LEFT, _TAKEN, _LEAST = 0.6, 0.25, 2


class Looks:
    """
    Looks at the state of an iteration: before every step on the CPU, as few as possible on a GPU.

    There every look is a wait, and every step too many costs more than that. The host therefore reads how far
    the slowest system still is from its end, and looks again when that could be reached at the rate so far.

    Args:
        first: The step before which a GPU is looked at first.

    Example:
        >>> import torch
        >>> from scfmlip.scf.solvers.looks import Looks
        >>> looks, distance = Looks(), torch.tensor([8.0, 2.0])  # times the tolerance
        >>> for step in range(10):
        ...     if looks.ended(step, distance > 1, distance, 1.0):
        ...         break
        ...     distance = distance / 2
        >>> step
        3
    """

    def __init__(self, first: int = 1) -> None:
        self._next = first
        self._start: Tensor
        self._last: tuple[int, float] | None = None
        self._taken = decisions()
        self._place = 0 if self._taken is None else self._taken.iteration()

    def ended(self, step: int, active: Tensor, residual: Tensor, target: Tensor | float) -> bool:
        """
        Whether no system is active any more.

        Args:
            step: Number of the next step, from 0.
            active: ``[n_systems]`` bool.
            residual: ``[n_systems]``.
            target: ``[n_systems]``, or one number: the residual at which a system ends.
        """
        if self._taken is None:
            return self._looked(step, active, residual, target)
        if self._taken.repeating:
            return self._taken.ended(self._place, step, active)
        ended = self._looked(step, active, residual, target)
        if ended:
            self._taken.taken[self._place] = step
        return ended

    def _looked(self, step: int, active: Tensor, residual: Tensor, target: Tensor | float) -> bool:
        """`ended`, of a step that decides for itself."""
        if active.device.type != "cuda":
            return not bool(active.any())
        if step < self._next and step:
            return False  # the first residual is kept, to know how fast it falls
        far = torch.where(active, (residual / target).detach().double(), 0.0)
        far = far.amax() if far.numel() else far.sum()
        if step == 0:
            self._start = far
            return self._next == 0 and float(far) == 0.0
        if self._last is None:
            start, now = torch.stack((self._start, far)).tolist()
            self._last = 0, start
        else:
            now = float(far)
        if now == 0.0:
            return True
        self._next = step + self._until_next(step, now)
        self._last = step, now
        return False

    def _until_next(self, step: int, now: float) -> int:
        """Steps until the next look."""
        assert self._last is not None
        before, then = self._last
        if not (math.isfinite(now) and math.isfinite(then) and 1.0 < now < then):
            return 1
        rate = math.log(then / now) / (step - before)
        return max(1, min(max(_LEAST, int(_TAKEN * step)), int(_LEFT * math.log(now) / rate)))
