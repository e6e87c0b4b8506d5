"""Inputs of the model that change with time: Fermi level and external field."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import MdConfig, Ramp


def value_at(given: Any, time: float) -> NDArray[np.float64]:
    """
    A constant or a ramp at a time, fs.

    Example:
        >>> float(value_at(Ramp((0.0, 10.0), (1.0, 2.0)), 2.5))
        1.25
    """
    if not isinstance(given, Ramp):
        return np.asarray(given, dtype=float)
    values = np.stack([np.asarray(value, dtype=float) for value in given.values])
    flat = values.reshape(len(values), -1)
    found = np.array([np.interp(time, given.times, column) for column in flat.T])
    return found.reshape(values.shape[1:])


class Schedule:
    """
    What ``atoms.info`` holds at a time.

    Fields are given to ``atoms.info`` in mace's sign, energy + field . dipole, whatever the configuration
    calls them in.

    Args:
        config: The run.
    """

    def __init__(self, config: MdConfig) -> None:
        self._level, self._field = config.fermi_level, config.external_field
        self._sign = 1.0 if config.field_convention == "mace" else -1.0
        self.changes = isinstance(self._level, Ramp) or isinstance(self._field, Ramp)

    def __call__(self, time: float) -> dict[str, Any]:
        """Names and values at ``time``, fs."""
        found: dict[str, Any] = {}
        if self._level is not None:
            found["fermi_level"] = float(value_at(self._level, time))
        if self._field is not None:
            field = value_at(self._field, time).reshape(-1)
            field = np.array([0.0, 0.0, field[0]]) if field.size == 1 else field
            found["external_field"] = self._sign * field
        return found
