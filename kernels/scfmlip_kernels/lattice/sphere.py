"""
The CPU path's layout of a half sphere of wave vectors: planes of columns, without points outside.

Points (h, k, l) and (h, -k, -l) of a plane share one column, a cosine and a sine of ``k eta + l zeta``.
Columns are sorted by the highest plane they reach, so every plane holds a prefix of them. A lattice sum over
a run of planes is then one matrix product with a prefix of the columns: work is proportional to the sphere,
not to the box around it.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..recent import Recent

# Overhead of a matrix product, in multiplications and in rows: products of few rows run at half the speed
# (measured on one core: 6 rows 50 Gflop/s, 24 rows 83, 96 rows 92).
_WORK_OF_A_CALL = 400_000
_ROWS_OF_A_CALL = 5


@dataclass(eq=False)
class HalfSphere:
    """
    The points of one system.

    Attributes:
        points: Their indices among the grid's points.
        miller: ``[n, 3]`` int64.
        columns: ``[n_columns, 2]`` int64, k and l with k > 0, or k = 0 and l >= 0; highest reach first.
        reach: Number of columns in each plane h = 0, 1, ..., not increasing.
        column: ``[n]`` int64, column of each point.
        sign: ``[n]`` int64, 1 for a point on its column, -1 for the column's mirror image.
        slots: ``[n]`` int64, index of each point in ``[2, n_planes, n_columns]``, mirror images second.
    """

    points: slice | Tensor
    miller: Tensor
    columns: Tensor
    reach: list[int]
    column: Tensor
    sign: Tensor
    slots: Tensor
    _powers: dict[tuple[bool, int, torch.dtype], Tensor] = field(default_factory=dict)
    _runs: dict[tuple[int, int], list[tuple[int, int, int]]] = field(default_factory=dict)

    @property
    def n_planes(self) -> int:
        """Number of planes."""
        return len(self.reach)

    def runs(self, n_atoms: int, per_row: int) -> list[tuple[int, int, int]]:
        """
        Group planes into runs ``(first, last + 1, number of columns)``, balancing wasted work against calls.

        Args:
            n_atoms: Number of atoms in a matrix product.
            per_row: Rows of the product for each sine and each cosine of the first axis.
        """
        key = (n_atoms, per_row)
        if key in self._runs:
            return self._runs[key]
        best: list[tuple[float, int]] = [(0.0, 0)]
        for stop in range(1, self.n_planes + 1):
            options = []
            for start in range(max(0, stop - 32), stop):
                rows = 2 * (stop - start) * per_row + _ROWS_OF_A_CALL
                work = rows * 2 * self.reach[start] * n_atoms + _WORK_OF_A_CALL
                options.append((best[start][0] + work, start))
            best.append(min(options))
        found, stop = [], self.n_planes
        while stop > 0:
            start = best[stop][1]
            found.append((start, stop, self.reach[start]))
            stop = start
        self._runs[key] = found[::-1]
        return found[::-1]

    def powers(self, exponents: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> Tensor:
        """
        Monomials of the columns' or the points' indices times ``(-1)^(degree // 2)``, each repeated twice.

        Args:
            exponents: Exponents of (k, l) or of (h, k, l), one row of the result for each.
            dtype: dtype of the result.

        Returns:
            ``[len(exponents), 2 n_columns | 2 n]``.
        """
        whole = len(exponents[0]) == 3
        key = (whole, len(exponents), dtype)
        if key not in self._powers:
            index = (self.miller if whole else self.columns).to(dtype)
            rows = [(index ** torch.tensor(e)).prod(1) * (-1) ** (sum(e) // 2) for e in exponents]
            self._powers[key] = torch.stack(rows).repeat_interleave(2, 1)
        return self._powers[key]


_recent: Recent[list[HalfSphere]] = Recent(4)


def half_spheres(points: Tensor) -> list[HalfSphere]:
    """
    The half spheres of a batch, one per system; cached for the next call with the same grid.

    Args:
        points: ``[n_points, 5]`` int32, see `LatticeGrid`.
    """
    found = _recent.find(points)
    if found is not None:
        return found
    table = points.numpy()
    spheres = []
    if len(table):
        first = np.flatnonzero(np.diff(table[:, 0], prepend=-1))
        by_system = dict(
            zip(table[first, 0].tolist(), np.split(np.arange(len(table)), first[1:]), strict=True)
        )
        for i in range(int(table[-1, 0]) + 1):
            mine = by_system.get(i, np.zeros(0, np.int64))
            spheres.append(_half_sphere(mine[table[mine, 4] == 1], table))
    return _recent.keep(spheres, points)


def _half_sphere(mine: np.ndarray, table: np.ndarray) -> HalfSphere:
    h, k, l = table[mine, 1:4].astype(np.int64).T
    sign = np.where((k > 0) | ((k == 0) & (l >= 0)), 1, -1)
    k_column, l_column = sign * k, sign * l
    width = 2 * int(np.abs(l).max(initial=0)) + 1
    key = k_column * width + l_column + width // 2
    _, one, column = np.unique(key, return_index=True, return_inverse=True)
    height = np.zeros(len(one), np.int64)
    np.maximum.at(height, column, h)
    order = np.argsort(-height, kind="stable")
    column = np.argsort(order)[column]
    planes = int(h.max(initial=-1)) + 1
    reach = [int(n) for n in (height[None] >= np.arange(planes)[:, None]).sum(1)]
    consecutive = len(mine) > 0 and mine[-1] - mine[0] == len(mine) - 1
    return HalfSphere(
        points=slice(int(mine[0]), int(mine[-1]) + 1) if consecutive else torch.from_numpy(mine),
        miller=torch.from_numpy(table[mine, 1:4].astype(np.int64)),
        columns=torch.from_numpy(np.stack((k_column, l_column), 1)[one][order]),
        reach=reach,
        column=torch.from_numpy(column),
        sign=torch.from_numpy(sign),
        slots=torch.from_numpy(((sign < 0) * planes + h) * len(one) + column),
    )
