"""
The CPU path's tables of sines and cosines, cached between calls at the same positions.

A model calls several times at the same positions: for features, the energy, and their derivatives. Up to a
few hundred atoms, all phases of a system are stored, and a lattice sum is one matrix product. Up to a few
thousand, the columns (functions of the second and third axis, `lattice.sphere`) are stored. Beyond that, only
the functions of each axis are, and columns are made for one chunk of atoms at a time. Phases are reduced in
float64, so float32 tables are accurate to rounding however large the cell is.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..recent import Recent
from .sphere import HalfSphere

# most bytes of phases that a system stores; most bytes of columns per system, and of everything per batch
# (measured on one core: phases are faster up to 500 atoms in float32, 300 in float64)
_PHASE_BYTES = 4 << 20
_SYSTEM_BYTES = 9_000_000
_MAX_BYTES = 24 << 20
# approximate bytes of a chunk's columns and of the rows multiplied with them
_CHUNK_BYTES = 4 << 20
_ROW_BYTES = 4 << 20


def harmonics(turns: Tensor, n_max: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``2 pi j turns`` for j = 0 .. n_max: two ``[n_max + 1, n_atoms]``."""
    index = torch.arange(n_max + 1, dtype=torch.float64)
    phase = index[:, None] * turns
    phase = (phase - phase.round()).to(dtype).mul_(2 * math.pi)
    return phase.cos(), phase.sin_()


def rotated(values: Tensor, n: Tensor) -> Tensor:
    """Derivative of ``sin, cos`` of n phases, ``[n, 2, n_atoms]``, in the phase: ``n cos, -n sin``."""
    n = n.to(values.dtype)[:, None]
    return torch.stack((values[:, 1] * n, values[:, 0] * -n), 1)


@dataclass
class Waves:
    """
    Functions of the axes of one system.

    Attributes:
        sphere: The system's wave vectors.
        rows: ``[n_planes, 2, n_atoms]`` sine and cosine of ``2 pi h u``.
        y: ``[2, n, n_atoms]`` cosine and sine of the second axis, k = 0, 1, ...
        z: ``[2, n, n_atoms]`` of the third axis, l = -l_max .. l_max.
        columns: ``[2 n_columns, n_atoms]`` cosine and sine of each column, or None if they are not stored.
        phases: ``[2 n, n_atoms]`` cosine and sine of every point, or None if they are not stored.
    """

    sphere: HalfSphere
    rows: Tensor
    y: Tensor
    z: Tensor
    columns: Tensor | None = None
    phases: Tensor | None = None

    def chunk(self, begin: int, end: int) -> Tensor:
        """Columns of atoms ``begin`` to ``end``, ``[2 n_columns, end - begin]``."""
        if self.columns is not None:
            return self.columns[:, begin:end]
        k, l = self.sphere.columns.unbind(1)
        y_cos, y_sin = self.y[..., begin:end].index_select(1, k)
        z_cos, z_sin = self.z[..., begin:end].index_select(1, l + self.z.shape[1] // 2)
        found = y_cos.new_empty((len(k), 2, end - begin))
        torch.mul(y_cos, z_cos, out=found[:, 0]).addcmul_(y_sin, z_sin, value=-1)
        torch.mul(y_sin, z_cos, out=found[:, 1]).addcmul_(y_cos, z_sin)
        return found.flatten(0, 1)

    def all_phases(self) -> Tensor:
        """Phases of every point, ``[2 n, n_atoms]``."""
        sphere, columns = self.sphere, self.chunk(0, self.rows.shape[2])
        columns = columns.view(-1, 2, columns.shape[1])
        row_sin, row_cos = self.rows.index_select(0, sphere.miller[:, 0]).unbind(1)
        cos, sin = columns.index_select(0, sphere.column).unbind(1)
        sin = sin * sphere.sign[:, None]
        found = cos.new_empty((len(cos), 2, cos.shape[1]))
        torch.mul(row_cos, cos, out=found[:, 0]).addcmul_(row_sin, sin, value=-1)
        torch.mul(row_sin, cos, out=found[:, 1]).addcmul_(row_cos, sin)
        return found.flatten(0, 1)


_recent: Recent[list["Waves | None"]] = Recent(2)


def make_waves(frac: Tensor, sphere: HalfSphere, dtype: torch.dtype) -> Waves:
    """Functions of the axes for atoms at ``frac [n_atoms, 3]``, without columns or phases."""
    k_max = int(sphere.columns[:, 0].max())
    l_max = int(sphere.columns[:, 1].abs().max())
    x, y, z = (harmonics(frac[:, i], n, dtype) for i, n in enumerate((sphere.n_planes - 1, k_max, l_max)))
    z_cos = torch.cat((z[0][1:].flip(0), z[0]))
    z_sin = torch.cat((-z[1][1:].flip(0), z[1]))
    return Waves(sphere, torch.stack(x[::-1], 1), torch.stack(y), torch.stack((z_cos, z_sin)))


def chunk_atoms(n_columns: int, n_rows: int, dtype: torch.dtype) -> int:
    """Atoms per chunk such that its columns, and the rows multiplied with them, stay in the cache."""
    columns = _CHUNK_BYTES // max(1, 2 * n_columns * dtype.itemsize)
    rows = _ROW_BYTES // max(1, n_rows * dtype.itemsize)
    return max(64, min(columns, rows) // 16 * 16)


def kept_waves(
    frac: Tensor, spheres: list[HalfSphere], atom_ptr: list[int], dtype: torch.dtype
) -> list[Waves | None]:
    """
    The tables of every system; None for a system without atoms, or too large to store any.

    Args:
        frac: ``[n_atoms, 3]`` float64 on the CPU.
        spheres: Wave vectors of each system.
        atom_ptr: First atom of each system.
        dtype: dtype of the tables.
    """
    key = (spheres, atom_ptr, dtype)
    known = _recent.find(frac, key)
    if known is not None:
        return known
    found: list[Waves | None] = []
    left = _MAX_BYTES
    for sphere, begin, end in zip(spheres, atom_ptr[:-1], atom_ptr[1:], strict=True):
        waves, bytes_ = _tabulate(frac[begin:end], sphere, dtype, left)
        found.append(waves)
        left -= bytes_
    if any(waves is not None for waves in found):
        _recent.keep(found, frac, key)
    return found


def _tabulate(frac: Tensor, sphere: HalfSphere, dtype: torch.dtype, left: int) -> tuple[Waves | None, int]:
    """Tables of up to ``left`` bytes, and their size."""
    n_atoms, n = len(frac), len(sphere.miller)
    unit = n_atoms * dtype.itemsize
    functions = 6 * sum(sphere.miller.abs().amax(0).tolist()) if n else 0
    if n_atoms == 0 or functions * unit > left:
        return None, 0
    waves, size = make_waves(frac, sphere, dtype), functions * unit
    if 2 * n * unit <= _PHASE_BYTES and size + 2 * n * unit <= left:
        waves.phases = waves.all_phases()
        size += 2 * n * unit
    elif 2 * len(sphere.columns) * unit <= min(left - size, _SYSTEM_BYTES):
        waves.columns = waves.chunk(0, n_atoms)
        size += 2 * len(sphere.columns) * unit
    return waves, size
