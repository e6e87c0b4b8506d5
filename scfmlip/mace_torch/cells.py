"""The cells for mace-torch's electrostatics, with long vectors along open directions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..neighbours import normals_of


def reference_cell(
    positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_], cutoff: float
) -> NDArray[np.float64]:
    """
    The cell whose wave vectors mace-torch's electrostatics sums over, with long vectors along open
    directions.

    If mace-torch 0.3.16's long vectors span a cell with the periodic ones, the cell is mace-torch's own,
    ``5 cutoff (1 + max |x|)`` along x, y or z; its slab energies depend on this length. A slab with normal z
    whose rows come in another order gets the same cell. A rotated slab gets the cell that it has when its
    first lattice vector lies along an axis. The box of a molecule is centred on the molecule, wherever that
    is.

    Args:
        positions: ``[n_atoms, 3]`` angstrom.
        cell: ``[3, 3]`` angstrom, the frame's own.
        pbc: ``[3]``.
        cutoff: Cutoff of the model, angstrom.

    Returns:
        ``[3, 3]`` angstrom.
    """
    padded, axes = np.array(cell, dtype=float), np.eye(3)
    vectors, rows = padded[pbc], np.flatnonzero(~pbc)
    if not len(rows):
        return padded
    if not len(vectors):
        positions = positions - 0.5 * (positions.min(0) + positions.max(0))
    free = np.abs(axes @ vectors.T).max(1, initial=0) <= 1e-6 * np.abs(vectors).max(initial=0)
    if free.sum() < len(rows):
        # no axis is transverse: use the first lattice vector instead, and so on
        along = np.linalg.qr(vectors.T)[0].T
        positions = positions @ np.concatenate((along, normals_of(vectors))).T
        across = normals_of(vectors)
    else:
        spare = [k for k in np.flatnonzero(free) if k not in rows]
        across = axes[[k if free[k] else spare.pop() for k in rows]]
    padded[rows] = (np.abs(positions).max() + 1) * 5 * cutoff * across
    if not free[rows].all() and np.linalg.det(padded) < 0:
        padded[rows[0]] *= -1
    return padded
