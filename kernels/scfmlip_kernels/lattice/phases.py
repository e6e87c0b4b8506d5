"""
Tables of sines and cosines that the CPU path keeps between calls.

A model asks several times at the same positions: features, energy, their derivatives. Up to a few hundred
atoms all phases of a system are stored, and a lattice sum is one matrix product. Up to a few thousand the
products of the functions of two axes are stored, beyond that the functions of each axis, and in the largest
systems nothing is: they compute by chunks, every time.
"""

from threading import local
from typing import NamedTuple

import torch
from torch import Tensor

from .basis import axis_functions, harmonics, products
from .monomials import monomials

# (atom, point) pairs of a system up to which its phases are stored; bytes that a system and a batch may store
_MAX_PAIRS = 1 << 19
_SYSTEM_BYTES = 9_000_000
_MAX_BYTES = 24 << 20
_KEPT = 2
MAX_RANK = 3
_memory = local()


class StoredPhases(NamedTuple):
    """
    Phases of one system.

    Attributes:
        atoms: Slice of the batch's atoms.
        points: Slice of the batch's points.
        powers: ``[20, 2 n_points]`` monomials of the Miller indices up to rank 3, times
            ``(-1)^(degree // 2)``, each value twice.
        waves: ``[n_atoms, 2 n_points]`` cosine and sine of ``2 pi n.u``, interleaved.
    """

    atoms: slice
    points: slice
    powers: Tensor
    waves: Tensor


class AxisTables(NamedTuple):
    """
    Functions of the axes for one box.

    Attributes:
        cos, sin: ``[n_h, n_atoms]`` of the first axis.
        y, z: Of the other two, see `basis.axis_functions`.
        columns: Their products ``[n_columns, n_atoms]`` where these are kept, else None.
    """

    cos: Tensor
    sin: Tensor
    y: Tensor
    z: Tensor
    columns: Tensor | None

    def chunk(self, begin: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Cosine, sine and columns of some of the atoms."""
        if self.columns is None:
            columns = products(self.y[:, begin:end], self.z[:, begin:end])
        else:
            columns = self.columns[:, begin:end]
        return self.cos[:, begin:end], self.sin[:, begin:end], columns


class Tables(NamedTuple):
    """What is kept: phases by system, axis tables by first point of a box."""

    phases: dict[int, StoredPhases]
    axes: dict[int, AxisTables]


def axis_tables(u: Tensor, box: list[int], dtype: torch.dtype, columns: bool = False) -> AxisTables:
    """Of the atoms at ``u [n_atoms, 3]``, with or without the products."""
    _, h_first, h_count, n_k, n_l, _ = box
    cos, sin = harmonics(u[:, 0], h_first + h_count - 1, dtype)
    y, z = axis_functions(u[:, 1], n_k, dtype), axis_functions(u[:, 2], n_l, dtype)
    return AxisTables(cos[h_first:], sin[h_first:], y, z, products(y, z) if columns else None)


def kept_tables(frac: Tensor, boxes: Tensor, atom_ptr: Tensor, dtype: torch.dtype) -> Tables:
    """
    Tables of the systems that are small enough; kept for the next call at the same positions.

    Args:
        frac: ``[n_atoms, 3]`` float64 on the CPU.
        boxes: ``[n_boxes, 6]``: system, first h, number of h, n_k, n_l, first point.
        atom_ptr: ``[n_systems + 1]``.
        dtype: Of the tables.
    """
    kept: list[tuple[tuple[Tensor, ...], Tables]] = _memory.__dict__.setdefault("kept", [])
    inputs = (frac, boxes, atom_ptr)
    for i, (before, tables) in enumerate(kept):
        if before[3].dtype == dtype and all(
            a.shape == b.shape and torch.equal(a, b) for a, b in zip(before[:3], inputs, strict=True)
        ):
            kept.append(kept.pop(i))
            return tables
    tables = _tabulate(frac, boxes, atom_ptr, dtype)
    if tables.phases or tables.axes:
        # by content: a copy of O(atoms), so that no reuse of memory can be mistaken for the same positions
        kept.append(((*(t.clone() for t in inputs), frac.new_empty(0, dtype=dtype)), tables))
        del kept[:-_KEPT]
    return tables


def _tabulate(frac: Tensor, boxes: Tensor, atom_ptr: Tensor, dtype: torch.dtype) -> Tables:
    ptr = atom_ptr.tolist()
    of_system: dict[int, list[list[int]]] = {}
    for box in boxes.tolist():
        of_system.setdefault(box[0], []).append(box)
    tables, left = Tables({}, {}), _MAX_BYTES
    for i, mine in of_system.items():
        atoms = slice(ptr[i], ptr[i + 1])
        n_atoms = ptr[i + 1] - ptr[i]
        pairs = n_atoms * sum(b[2] * (2 * b[3] + 1) * (2 * b[4] + 1) for b in mine)
        axes = n_atoms * sum(2 * (b[2] + b[3] + b[4] + 1) for b in mine)
        columns = axes + n_atoms * sum((2 * b[3] + 1) * (2 * b[4] + 1) for b in mine)
        if n_atoms == 0:
            continue
        if pairs <= _MAX_PAIRS and 2 * pairs * dtype.itemsize <= left:
            tables.phases[i] = _phases(frac, mine, atoms, dtype)
            left -= 2 * pairs * dtype.itemsize
        elif columns * dtype.itemsize <= min(left, _SYSTEM_BYTES):
            tables.axes.update({b[5]: axis_tables(frac[atoms], b, dtype, columns=True) for b in mine})
            left -= columns * dtype.itemsize
        elif axes * dtype.itemsize <= left:
            tables.axes.update({b[5]: axis_tables(frac[atoms], b, dtype) for b in mine})
            left -= axes * dtype.itemsize
    return tables


def _phases(frac: Tensor, boxes: list[list[int]], atoms: slice, dtype: torch.dtype) -> StoredPhases:
    """All phases of one system."""
    top = [max(b[1] + b[2] - 1 for b in boxes), max(b[3] for b in boxes), max(b[4] for b in boxes)]
    x, y, z = (_waves(frac[atoms, axis], n, dtype) for axis, n in enumerate(top))
    parts, miller = [], []
    for _, h_first, h_count, n_k, n_l, _ in boxes:
        h, k, l = range(h_first, h_first + h_count), range(-n_k, n_k + 1), range(-n_l, n_l + 1)
        columns = y[:, top[1] - n_k :][:, : len(k), None] * z[:, None, top[2] - n_l :][..., : len(l)]
        rows = x[:, top[0] + h_first :][:, :h_count]
        parts.append((rows[:, :, None] * columns.flatten(1)[:, None]).flatten(1))
        miller.append(torch.cartesian_prod(*(torch.tensor(axis, dtype=dtype) for axis in (h, k, l))))
    waves, first = torch.cat(parts, 1), boxes[0][5]
    points = slice(first, first + waves.shape[1])
    powers = _signed_powers(torch.cat(miller))
    return StoredPhases(atoms, points, powers, torch.view_as_real(waves).flatten(1))


def _signed_powers(n: Tensor) -> Tensor:
    columns = [
        n[:, 0] ** a * n[:, 1] ** b * n[:, 2] ** c * (-1) ** ((a + b + c) // 2)
        for a, b, c in monomials(MAX_RANK)
    ]
    return torch.stack(columns).repeat_interleave(2, 1)


def _waves(turns: Tensor, n_max: int, dtype: torch.dtype) -> Tensor:
    """``exp(2 pi i n turns)`` for n = -n_max .. n_max, ``[n_atoms, 2 n_max + 1]`` complex."""
    cos, sin = harmonics(turns, n_max, dtype)
    wave = torch.complex(cos, sin).T
    return torch.cat((wave[:, 1:].conj().flip(1), wave), 1)
