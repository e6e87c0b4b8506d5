"""What all solves refuse."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

ON_FAILURE = ("raise", "warn", "ignore")


def check_solver(tolerance: float, max_iterations: int, on_failure: str) -> None:
    """
    Refuse options that no solve can follow.

    Raises:
        TypeError: for a tolerance or a number of iterations that is no number.
        ValueError: for one out of range, or an unknown ``on_failure``.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, numbers.Real):
        raise TypeError(f"tolerance must be a number, got {tolerance!r}")
    if not (math.isfinite(tolerance) and 0 <= tolerance < 1):
        raise ValueError(f"tolerance is relative and must be at least 0 and below 1, got {tolerance!r}")
    if isinstance(max_iterations, bool) or not isinstance(max_iterations, numbers.Integral):
        raise TypeError(f"max_iterations must be a whole number, got {max_iterations!r}")
    if max_iterations < 0:
        raise ValueError(f"max_iterations must not be negative, got {max_iterations!r}")
    if on_failure not in ON_FAILURE:
        raise ValueError(f"on_failure must be one of {', '.join(map(repr, ON_FAILURE))}, got {on_failure!r}")


def check_state(state: Tensor, parameters: Sequence[Tensor]) -> None:
    """
    What `fixed_point` and `minimize_functional` start from.

    Raises:
        TypeError: for a state that is not float32 or float64, or parameters that are not a sequence.
    """
    if not isinstance(state, Tensor) or state.dtype not in (torch.float32, torch.float64):
        got = state.dtype if isinstance(state, Tensor) else type(state).__name__
        raise TypeError(f"state must be a float32 or float64 tensor, got {got}")
    if isinstance(parameters, Tensor):
        raise TypeError("parameters must be a sequence of tensors, got one tensor: pass (tensor,)")
