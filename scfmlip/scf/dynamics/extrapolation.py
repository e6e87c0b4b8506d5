"""First guesses along a trajectory."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class StateExtrapolator:
    """
    Polynomial extrapolation of the last states: the first guess of a step of molecular dynamics.

    Charges follow smooth forces: a quadratic through the last three states saves most iterations of a
    solve whose preconditioner is good. Explicit state in, explicit state out: `add` what a step found, pass
    `guess` to the next one; `states` is all there is to save for a restart.

    Args:
        order: Of the polynomial: 0 repeats the last state, 2 is quadratic.

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
        """Remember what a step found; another shape (another system) starts afresh."""
        if self.states and self.states[-1].shape != state.shape:
            self.states = []
        self.states = [*self.states, state.detach()][-(self.order + 1) :]

    def guess(self) -> Tensor | None:
        """The next state, by the polynomial through as many as there are; None before the first."""
        n = len(self.states)
        if n == 0:
            return None
        weights = [(-1) ** (n - 1 - i) * math.comb(n, i) for i in range(n)]
        return torch.stack([w * s for w, s in zip(weights, self.states, strict=True)]).sum(0)
