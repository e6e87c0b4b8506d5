"""
Communication that autograd knows.

Ranks evaluate one graph together. What a rank holds is a variable of its own, and the loss is the sum of
what the ranks differentiate: then the adjoint of a sum over ranks is a sum over ranks, and gradients of local
rows are whole. Of a number that is the same on every rank each rank has a copy, whose gradient is a part; the
parts add up (`sum_gradient`). Where one function of all ranks stands for itself, as a solve does, it takes
whole gradients and gives whole ones: `share_gradient` makes parts of them again. Where the parts of a sum's
gradient are known to be equal, as those of all that ranks make of replicated numbers alike, each rank knows
their sum without a message: `sum_of_equals`, with `equal_parts` behind what was made.

Order: backward runs through one rank's graph from what was made last to what was made first (the engine's
queue goes by the number a node gets when it is made, and whatever consumes a result is made after it). Ranks
that have made the same collectives in the same order so meet in them again in backward, whatever lies
between, and however many atoms they have.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .communicator import Communicator


class Linear(torch.autograd.Function):
    """A linear map in which ranks meet, and its adjoint, which is to be differentiable in the same way."""

    @staticmethod
    def forward(
        values: Tensor, forward: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]
    ) -> Tensor:
        return forward(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.adjoint = inputs[2]
        # where nothing comes back to, on any rank, nothing is sent
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None):
        (grad,) = grad_outputs
        return None if grad is None else ctx.adjoint(grad), None, None


def _same(values: Tensor) -> Tensor:
    return values.view_as(values)


def all_reduce(values: Tensor, communicator: Communicator) -> Tensor:
    """
    The sum over ranks, on every rank.

    Args:
        values: Of one shape and floating dtype on every rank.
        communicator: The ranks.

    Returns:
        As ``values``. Differentiable any number of times, where the losses of the ranks add up.
    """
    if communicator.size == 1:
        return values
    return Linear.apply(values, communicator.all_reduce, partial(all_reduce, communicator=communicator))


def sum_gradient(values: Tensor, communicator: Communicator) -> Tensor:
    """
    A tensor that is the same on every rank, behind which gradients are whole.

    Args:
        values: Replicated.
        communicator: The ranks.

    Returns:
        ``values``; in backward the parts of its gradient, one from each rank, are added up.
    """
    if communicator.size == 1:
        return values
    return Linear.apply(values, _same, partial(all_reduce, communicator=communicator))


def sum_of_equals(values: Tensor, communicator: Communicator) -> Tensor:
    """
    The sum over ranks, on every rank, of which all ranks make the same: its gradient costs no message.

    Args:
        values: Of one shape and floating dtype on every rank.
        communicator: The ranks.

    Returns:
        As ``values``. The parts of its gradient are to be equal on all ranks; what is made of it and of
        other replicated numbers leaves through `equal_parts`, which sees to that. Second derivatives meet.
    """
    if communicator.size == 1:
        return values
    return Linear.apply(values, communicator.all_reduce, partial(_sum_equals, communicator=communicator))


def _sum_equals(parts: Tensor, communicator: Communicator) -> Tensor:
    """The sum over ranks of equal parts; its own gradient has a part of each rank."""
    adjoint = partial(sum_of_equals, communicator=communicator)
    return Linear.apply(parts, lambda values: communicator.size * values, adjoint)


def equal_parts(values: Tensor, communicator: Communicator) -> Tensor:
    """
    A tensor that is the same on every rank, behind which the parts of its gradient are equal.

    Args:
        values: Replicated.
        communicator: The ranks.

    Returns:
        ``values``; in backward every rank passes on the mean of the parts, which keeps their sum.
    """
    if communicator.size == 1:
        return values
    return Linear.apply(values, _same, partial(_mean, communicator=communicator))


def _mean(parts: Tensor, communicator: Communicator) -> Tensor:
    """The mean over ranks, its own adjoint."""
    adjoint = partial(_mean, communicator=communicator)
    return Linear.apply(parts, lambda values: communicator.all_reduce(values) / communicator.size, adjoint)


def share_gradient(values: Tensor, communicator: Communicator) -> Tensor:
    """
    A tensor that is the same on every rank, behind which gradients are parts: `sum_gradient`'s other way.

    Args:
        values: Replicated, with a gradient that is whole on every rank.
        communicator: The ranks.

    Returns:
        ``values``; in backward every rank passes on an equal part.
    """
    if communicator.size == 1:
        return values
    return Linear.apply(values, _same, lambda grad: grad / communicator.size)
