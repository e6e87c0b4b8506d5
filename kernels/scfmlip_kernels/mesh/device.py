"""
Per-atom tables of the two mesh kernels, in one launch.

The source is generated for each order and rank: the recursion of `splines.spline_weights` without a loop.
Grid: blocks of (sorted atom, axis) pairs. No atomics.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import triton
from torch import Tensor

from ..codegen import SourceWriter, kernel_of
from ..tuned import compiler_options

_BLOCK = 128

_HEAD = """
def kernel(
    coords_ptr,  # [n_atoms, 3] float64
    atoms_ptr,  # [n_atoms] int64 original index of each sorted atom
    atom_system_ptr,  # [n_atoms] int64
    table_ptr,  # [n_systems, 8] int64, see MeshGrid.table
    first_ptr,  # [n_atoms, 3] int32 first mesh points
    weights_ptr,  # [n_atoms, 3, RANK + 1, ORDER]
    rows_ptr,  # [n_atoms, 8] int64 rows of the table
    n_atoms,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = row < 3 * n_atoms
    place = row // 3
    axis = row % 3
    atom = tl.load(atoms_ptr + place, mask=inside, other=0)
    system = tl.load(atom_system_ptr + atom, mask=inside, other=0)
    coord = tl.load(coords_ptr + atom * 3 + axis, mask=inside, other=0.0)
    n = tl.load(table_ptr + system * 8 + axis, mask=inside, other=1)
    for column in range(8):
        mine = inside & (axis == column % 3)
        value = tl.load(table_ptr + system * 8 + column, mask=mine, other=0)
        tl.store(rows_ptr + place * 8 + column, value, mask=mine)
"""


def _pieces(out: SourceWriter, order: int, rank: int) -> dict[int, list[str]]:
    """Names of the splines of each order, as in `splines.spline_weights`."""
    out.add(1, "s1_0 = t * 0.0 + 1.0")
    out.add(1, "s2_0 = 1.0 - t")
    out.add(1, "s2_1 = t")
    for n in range(3, order + 1):
        scale = repr(1 / (n - 1))
        out.add(1, f"s{n}_0 = (1.0 - t) * s{n - 1}_0 * {scale}")
        for j in range(1, n - 1):
            left = f"(t + {float(n - 1 - j)}) * s{n - 1}_{j - 1}"
            out.add(1, f"s{n}_{j} = ({left} + ({float(1 + j)} - t) * s{n - 1}_{j}) * {scale}")
        out.add(1, f"s{n}_{n - 1} = t * s{n - 1}_{n - 2} * {scale}")
    return {n: [f"s{n}_{j}" for j in range(n)] for n in range(order - rank, order + 1)}


@lru_cache(maxsize=128)
def splines_kernel(order: int, rank: int) -> Any:
    """The kernel of one order and rank."""
    out = SourceWriter()
    out.add_block(_HEAD)
    out.add(1, f"shifted = coord - {float(order // 2 - 1)}")
    out.add(1, "lower = tl.floor(shifted)")
    out.add(1, "first = lower.to(tl.int64) % n")
    out.add(1, "first = tl.where(first < 0, first + n, first)")
    out.add(1, "tl.store(first_ptr + row, first.to(tl.int32), mask=inside)")
    out.add(1, "t = (shifted - lower).to(weights_ptr.dtype.element_ty)")
    out.add(1, f"weights = weights_ptr + row * {(rank + 1) * order}")
    lower = _pieces(out, order, rank)
    for r in range(rank + 1):
        values = lower[order - r]
        for step in range(r):  # a derivative is a difference of splines of the next lower order
            names = [f"d{r}_{step}_{j}" for j in range(len(values) + 1)]
            steps = [f"{a} - {b}" for a, b in pairwise(values)]
            for name, text in zip(names, [f"-{values[0]}", *steps, values[-1]], strict=True):
                out.add(1, f"{name} = {text}")
            values = names
        for j, value in enumerate(values):
            out.add(1, f"tl.store(weights + {r * order + j}, {value}, mask=inside)")
    return kernel_of(out.source(), "mesh_splines", ("n_atoms",))


def sorted_splines(
    coords: Tensor,
    atoms: Tensor,
    atom_system: Tensor,
    table: Tensor,
    order: int,
    rank: int,
    like: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Splines of the atoms, sorted by block, of the dtype of ``like``.

    Returns:
        ``[n_atoms, 3]`` int32 first mesh points, ``[n_atoms, 3, rank + 1, order]`` splines, and
        ``[n_atoms, 8]`` int64 rows of the table.
    """
    n = len(atoms)
    first, rows = atoms.new_empty((n, 3), dtype=torch.int32), atoms.new_empty((n, 8))
    weights = like.new_empty((n, 3, rank + 1, order))
    if n:
        splines_kernel(order, rank)[(triton.cdiv(3 * n, _BLOCK),)](
            coords_ptr=coords,
            atoms_ptr=atoms,
            atom_system_ptr=atom_system,
            table_ptr=table,
            first_ptr=first,
            weights_ptr=weights,
            rows_ptr=rows,
            n_atoms=n,
            BLOCK=_BLOCK,
            **compiler_options(4, 1, like),
        )
    return first, weights, rows
