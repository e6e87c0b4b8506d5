"""First guesses along a trajectory."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class StateExtrapolator:
    """
    First guesses for molecular dynamics by polynomial extrapolation of the last states.

    Charges change smoothly along a trajectory, so a quadratic through the last three states saves most
    iterations of a well preconditioned solve. Call `add` with the state of each step, and pass `guess` to the
    next solve. For a restart, only `states` needs to be saved.

    Args:
        order: Order of the polynomial: 0 repeats the last state, 2 is quadratic.

    Attributes:
        states: The last states, oldest first.

    Example:
        >>> import torch
        >>> from scfmlip.scf import StateExtrapolator
        >>> extrapolate = StateExtrapolator(order=1)
        >>> for step in range(2):
        ...     extrapolate.add(torch.tensor([[0.1 * step]]))  # what a solve found
        >>> extrapolate.guess()  # pass it to the next solve as its first guess
        tensor([[0.2000]])
    """

    def __init__(self, order: int = 2) -> None:
        if not isinstance(order, int) or isinstance(order, bool) or order < 0:
            raise ValueError(f"order of the extrapolation must be an integer of at least 0, got {order!r}")
        self.order = order
        self.states: list[Tensor] = []

    def add(self, state: Tensor) -> None:
        """Store the state of a step. A state of another shape (another system) clears the history."""
        if self.states and self.states[-1].shape != state.shape:
            self.states = []
        self.states = [*self.states, state.detach()][-(self.order + 1) :]

    def guess(self) -> Tensor | None:
        """The extrapolated next state, from as many states as are stored; None before the first."""
        n = len(self.states)
        if n == 0:
            return None
        weights = [(-1) ** (n - 1 - i) * math.comb(n, i) for i in range(n)]
        return torch.stack([w * s for w, s in zip(weights, self.states, strict=True)]).sum(0)
