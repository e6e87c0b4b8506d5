"""Totals of some columns over the rows of each system, and the projector that conserves them."""

from __future__ import annotations

import torch
from torch import Tensor

from scfmlip_kernels.constants import constant

from ..electrostatics.checks import to_tensor
from ..segments import Segments
from ..waiting import when
from .options import check_numbers


class GivenTotals:
    """
    The constraint that each charge column, summed over a system's rows, has a given value.

    Args:
        rows: The system of each row.
        columns: Indices, in a flattened row, of the numbers that hold charges.
        size: Length of a flattened row.

    Raises:
        ValueError: for columns that do not exist.
    """

    def __init__(self, rows: Segments, columns: list[int], size: int) -> None:
        if size == 0:
            raise ValueError(
                "total_charge needs a state whose rows hold numbers for the charges: they are empty"
            )
        if not columns or any(not 0 <= c < size for c in columns) or len(set(columns)) != len(columns):
            raise ValueError(f"charge_columns must be different numbers from 0 to {size - 1}, got {columns}")
        self.rows, self.n_systems, self.columns, self.size = rows, rows.n_segments, columns, size
        self.empty = rows.counts == 0
        self.counts = rows.counts.clamp(min=1)[:, None]

    def totals(self, value: Tensor | float, like: Tensor) -> Tensor:
        """
        ``[n_systems]`` or ``[n_systems, n_columns]`` from the user's value.

        Raises:
            TypeError: for a value that is not a number.
            ValueError: for another shape, NaN, or a charge in a system without rows.
        """
        what = "a number, or one for each system (e)"
        totals = to_tensor("total_charge", value, what, dtype=like.dtype, device=like.device)
        wide = (self.n_systems, len(self.columns))
        if totals.ndim == 2 and totals.shape[1] == len(self.columns) and totals.shape[0] in (1, wide[0]):
            totals = totals.expand(wide)
        elif totals.ndim < 2 and len(self.columns) == 1 and totals.numel() in (1, self.n_systems):
            totals = totals.expand(self.n_systems)
        else:
            raise ValueError(
                f"total_charge must be a number or have shape {[self.n_systems]}, or {list(wide)} for "
                f"charge_columns={self.columns}, got {list(totals.shape)}"
            )
        check_numbers("total_charge", totals)
        wanted = (totals.detach().reshape(wide) != 0).any(1)
        bad = self.empty & wanted

        def refuse() -> None:
            i = int(torch.nonzero(bad)[0])
            raise ValueError(
                f"system {i} has no rows and cannot hold total_charge {totals[i].tolist()} e: give it 0, and "
                "check batch_idx and n_systems"
            )

        when(bad.any(), refuse)
        return totals

    def sum(self, state: Tensor, alike: bool = False) -> Tensor:
        """``[n_rows, ...]`` -> ``[n_systems, n_columns]`` float64; for ``alike`` see `Segments.combine`."""
        columns = constant(tuple(self.columns), torch.int64, state.device)
        charges = state.reshape(-1, self.size).index_select(1, columns).double()
        return self.rows.combine(self.rows.own_sum(charges), alike)

    def missing(self, state: Tensor, totals: Tensor, alike: bool = False) -> Tensor:
        """
        The totals minus the sums of ``state [n_rows, ...]``, in the shape and dtype of the totals.

        With ``alike`` all processes have equal parts of its gradient.
        """
        return (totals.double() - self.sum(state, alike).view(totals.shape)).to(totals.dtype)

    def mean(self, state: Tensor) -> Tensor:
        """``[n_rows, ...]`` -> ``[n_systems, n_columns]``."""
        return (self.sum(state) / self.counts).to(state.dtype)

    def _spread(self, values: Tensor) -> Tensor:
        """``[n_systems, n_columns]`` -> ``[n_rows * size]``; 0 in other columns."""
        columns = constant(tuple(self.columns), torch.int64, values.device)
        place = torch.zeros((len(self.columns), self.size), dtype=values.dtype, device=values.device)
        place = place.scatter(1, columns[:, None], 1.0)
        return (self.rows.expand(values) @ place).flatten()

    def project(self, x: Tensor) -> Tensor:
        """``[n]``: what keeps the totals."""
        return x - self._spread(self.mean(x))

    def even(self, totals: Tensor) -> Tensor:
        """``[n]``: the totals spread evenly over the rows of each system."""
        return self._spread(totals.reshape(self.n_systems, len(self.columns)) / self.counts)

    def feasible(self, x: Tensor, totals: Tensor) -> Tensor:
        """``[n]``: the nearest state that satisfies the totals."""
        return self.project(x) + self.even(totals)
