"""Checks of options and arguments that all solvers share."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from ..segments import Segments
from ..waiting import any_bad, when

ON_FAILURE = ("raise", "warn", "ignore")


def check_solver(tolerance: float, max_iterations: int, on_failure: str) -> None:
    """
    Refuse solver options that are invalid.

    Raises:
        TypeError: for a tolerance or a number of iterations that is not a number.
        ValueError: for one out of range, or an unknown ``on_failure``.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, numbers.Real):
        raise TypeError(f"tolerance must be a number, got {tolerance!r}")
    if not (math.isfinite(tolerance) and 0 <= tolerance < 1):
        raise ValueError(f"tolerance is relative and must be at least 0 and below 1, got {tolerance!r}")
    check_whole("max_iterations", max_iterations, 0)
    if on_failure not in ON_FAILURE:
        raise ValueError(f"on_failure must be one of {', '.join(map(repr, ON_FAILURE))}, got {on_failure!r}")


def check_state(state: Tensor, parameters: Sequence[Tensor]) -> None:
    """
    Check the first guess and the parameters of `fixed_point` and `minimize_functional`.

    Raises:
        TypeError: for a state that is not float32 or float64, or parameters that are not a sequence of
            tensors.
        ValueError: for a state that is one number, or holds NaN or infinity.
    """
    if not isinstance(state, Tensor) or state.dtype not in (torch.float32, torch.float64):
        got = state.dtype if isinstance(state, Tensor) else type(state).__name__
        raise TypeError(f"state must be a float32 or float64 tensor, got {got}")
    if state.ndim == 0:
        raise ValueError("state must have shape [n_rows, ...], got one number: pass state[None]")

    def refuse() -> None:
        bad = int(torch.nonzero(~torch.isfinite(state.detach()).flatten(1 if state.ndim > 1 else 0))[0, 0])
        raise ValueError(
            f"state holds NaN or infinity, first in row {bad}: start from numbers, or from zeros"
        )

    when(any_bad(state), refuse)
    if isinstance(parameters, Tensor):
        raise TypeError("parameters must be a sequence of tensors, got one tensor: pass (tensor,)")
    if not isinstance(parameters, Sequence):
        raise TypeError(f"parameters must be a sequence of tensors, got {type(parameters).__name__}")
    for i, parameter in enumerate(parameters):
        if not isinstance(parameter, Tensor):
            raise TypeError(
                f"parameters[{i}] must be a tensor, got {type(parameter).__name__}: convert it, or let the "
                "function capture it (it then counts as constant)"
            )


def read_batch(state: Tensor, batch_idx: Tensor | Segments | None, n_systems: int | None) -> Segments:
    """
    The system of each row of the state.

    Raises:
        TypeError: for systems that are not integers.
        ValueError: for another shape, negative numbers, or more systems than ``n_systems`` (or than rows, if
            they are counted).
    """
    rows = state.shape[0]
    if n_systems is not None:
        check_whole("n_systems", n_systems, 0)
    if isinstance(batch_idx, Segments) and batch_idx.n_rows == rows:
        return batch_idx
    if batch_idx is None:
        batch_idx = torch.zeros(rows, dtype=torch.int64, device=state.device)
    if not isinstance(batch_idx, Tensor) or batch_idx.dtype not in (torch.int64, torch.int32):
        got = batch_idx.dtype if isinstance(batch_idx, Tensor) else type(batch_idx).__name__
        raise TypeError(f"batch_idx must be an int64 tensor, got {got}")
    if batch_idx.shape != (rows,):
        raise ValueError(f"batch_idx must have shape [{rows}], got {list(batch_idx.shape)}")
    index = batch_idx.to(state.device, torch.int64)
    low, high = (int(index.min()), int(index.max())) if rows else (0, -1)
    if low < 0:
        raise ValueError(f"batch_idx must number systems from 0, got {low}")
    if n_systems is None and high >= rows > 0:
        raise ValueError(
            f"batch_idx counts up to {high} in {rows} rows: number the systems from 0, or pass n_systems"
        )
    n_systems = high + 1 if n_systems is None else int(n_systems)
    if high >= n_systems:
        raise ValueError(f"batch_idx counts up to {high}, but n_systems is {n_systems}")
    return Segments.of(index, n_systems)


def check_whole(name: str, value: int, least: int) -> None:
    """
    Check for a whole number that is large enough, and small enough for 32-bit tables.

    Raises:
        TypeError: for something else.
        ValueError: for one out of range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < least:
        what = "not be negative" if least == 0 else f"be at least {least}"
        raise ValueError(f"{name} must {what}, got {value!r}")
    if value >= 2**31:
        raise ValueError(f"{name} must be below 2^31, got {value!r}")


def check_numbers(name: str, values: Tensor) -> None:
    """
    Refuse NaN and infinity.

    Raises:
        ValueError: names the values.
    """

    def refuse() -> None:
        raise ValueError(f"{name} holds NaN or infinity: {values.tolist()}")

    when(any_bad(values), refuse)


def check_callable(name: str, value: object, takes: str, count: int) -> None:
    """
    Check for a function that takes ``count`` arguments.

    Raises:
        TypeError: for anything else; the message says what it ``takes``.
    """
    if not callable(value):
        raise TypeError(f"{name} must be a function of {takes}, got {type(value).__name__}")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # not every function has a signature
        return
    try:
        signature.bind(*[None] * count)
    except TypeError as error:
        raise TypeError(f"{name} must take {takes}, {count} in all here: {error}") from None


def check_columns(columns: Sequence[int]) -> list[int]:
    """
    Check the columns of a state and return them as a list.

    Raises:
        TypeError: for anything but a sequence of whole numbers.
    """
    if isinstance(columns, (str, bytes)) or not isinstance(columns, Sequence):
        raise TypeError(f"charge_columns must be a sequence of whole numbers, got {columns!r}")
    for column in columns:
        if isinstance(column, bool) or not isinstance(column, numbers.Integral):
            raise TypeError(f"charge_columns must be whole numbers, got {column!r}")
    return [int(c) for c in columns]


def check_guess(name: str, value: object, shape: Sequence[int]) -> None:
    """
    Check a first guess: a tensor of finite numbers of a given shape.

    Raises:
        TypeError: for anything but a tensor of real numbers.
        ValueError: for another shape, NaN or infinity.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a float32 or float64 tensor, got {got}")
    if value.shape != tuple(shape):
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(value.shape)}")

    def refuse() -> None:
        raise ValueError(f"{name} holds NaN or infinity: start from numbers, or leave it out")

    when(any_bad(value), refuse)


def check_returned(name: str, value: object, shape: Sequence[int], like: Tensor) -> None:
    """
    Check the return value of the user's function.

    Raises:
        TypeError: for a value that is not a tensor, or has another dtype or device than ``like``.
        ValueError: for another shape.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must return a tensor, got {type(value).__name__}")
    if value.shape != tuple(shape):
        raise ValueError(f"{name} must return shape {list(shape)}, got {list(value.shape)}")
    if value.dtype != like.dtype or value.device != like.device:
        raise TypeError(
            f"{name} must return {like.dtype} on {like.device} as the state is, got {value.dtype} on "
            f"{value.device}: convert it, or the state"
        )
