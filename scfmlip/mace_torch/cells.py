"""The cells that mace-torch's electrostatics is given: long vectors along what is open."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..neighbours import normals_of


def reference_cell(
    positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_], cutoff: float
) -> NDArray[np.float64]:
    """
    The cell whose wave vectors mace-torch's electrostatics sums over, with long vectors along what is open.

    Where mace-torch 0.3.16 puts them across the periodic ones it is its own, ``5 cutoff (1 + max |x|)`` along
    x, y or z, of which its energies of slabs depend. A slab whose normal is z but whose rows come in another
    order gets the same, and a turned one what it had when its first lattice vector lay along an axis. The box
    of a molecule is taken around the molecule, wherever that lies.

    Args:
        positions: ``[n_atoms, 3]`` angstrom.
        cell: ``[3, 3]`` angstrom, the frame's own.
        pbc: ``[3]``.
        cutoff: Of the model, angstrom.

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
        # no axis lies across: the first lattice vector takes the place of one, and so on
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
