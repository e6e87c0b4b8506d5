"""Totals of some columns of the rows of every system, and the projector on what keeps them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..electrostatics.checks import to_tensor


class GivenTotals:
    """
    The constraint ``sum over a system's rows of each charge column = given``.

    Args:
        batch_idx: ``[n_rows]`` int64 system of each row.
        n_systems: How many.
        columns: Numbers of a flattened row that hold charges.
        size: Numbers of a row.

    Raises:
        ValueError: for columns that do not exist.
    """

    def __init__(self, batch_idx: Tensor, n_systems: int, columns: list[int], size: int) -> None:
        if not columns or any(not 0 <= c < size for c in columns) or len(set(columns)) != len(columns):
            raise ValueError(f"charge_columns must be different numbers from 0 to {size - 1}, got {columns}")
        self.batch_idx, self.n_systems, self.columns, self.size = batch_idx, n_systems, columns, size
        counts = torch.bincount(batch_idx, minlength=n_systems).clamp(min=1)
        self.counts = counts[:, None]

    def totals(self, value: Tensor | float, like: Tensor) -> Tensor:
        """``[n_systems]`` or ``[n_systems, n_columns]`` from what the user gave."""
        what = "a number, or one for each system (e)"
        totals = to_tensor("total_charge", value, what, dtype=like.dtype, device=like.device)
        wide = (self.n_systems, len(self.columns))
        if totals.ndim == 2 and totals.shape[1] == len(self.columns) and totals.shape[0] in (1, wide[0]):
            return totals.expand(wide)
        if totals.ndim < 2 and len(self.columns) == 1 and totals.numel() in (1, self.n_systems):
            return totals.expand(self.n_systems)
        raise ValueError(
            f"total_charge must be a number or have shape {[self.n_systems]}, or {list(wide)} for "
            f"charge_columns={self.columns}, got {list(totals.shape)}"
        )

    def sum(self, state: Tensor) -> Tensor:
        """``[n_rows, ...]`` -> ``[n_systems, n_columns]``."""
        charges = state.reshape(-1, self.size)[:, self.columns]
        zero = charges.new_zeros((self.n_systems, len(self.columns)))
        return zero.index_add(0, self.batch_idx, charges)

    def mean(self, state: Tensor) -> Tensor:
        """``[n_rows, ...]`` -> ``[n_systems, n_columns]``."""
        return self.sum(state) / self.counts

    def _spread(self, values: Tensor) -> Tensor:
        """``[n_systems, n_columns]`` -> ``[n_rows * size]``, 0 in other columns."""
        place = torch.zeros((len(self.columns), self.size), dtype=values.dtype, device=values.device)
        place[torch.arange(len(self.columns)), self.columns] = 1
        return (values[self.batch_idx] @ place).flatten()

    def project(self, x: Tensor) -> Tensor:
        """``[n]``: what keeps the totals."""
        return x - self._spread(self.mean(x))

    def even(self, totals: Tensor) -> Tensor:
        """``[n]``: the totals spread over the rows of each system."""
        return self._spread(totals.reshape(self.n_systems, len(self.columns)) / self.counts)
