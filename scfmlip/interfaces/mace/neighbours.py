"""Neighbours within a cutoff in any cell, and the cells that mace-torch's electrostatics is given."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# bins of the cell list: fewer, larger ones take over in cells that are nearly empty
_BINS = 1e7
# angstrom: below that float32 may see no distance
_SAME = 1e-5
# neighbours of an atom, of which those of real systems have a few hundred: more would fill the memory
_MANY = 1e5


def _normals(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[3 - n, 3]`` orthonormal directions across ``n`` vectors."""
    if not len(vectors):
        return np.eye(3)
    return np.linalg.qr(vectors.T, mode="complete")[0].T[len(vectors) :]


def neighbour_pairs(
    positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_], cutoff: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    All pairs nearer than a cutoff, images included, an atom with itself only across the cell.

    Args:
        positions: ``[n_atoms, 3]`` angstrom, in the cell or any number of cells away.
        cell: ``[3, 3]`` angstrom, rows are lattice vectors; those that are not periodic do not matter.
        pbc: ``[3]``.
        cutoff: Angstrom.

    Returns:
        ``[2, n_pairs]`` sender and receiver, sorted by the sender, and ``[n_pairs, 3]`` lattice vectors of
        the image: ``positions[receiver] - positions[sender] + image @ cell`` leads from one to the other.

    Raises:
        ValueError: for two atoms in one place, between which there is no direction; for a cell so small that
            an atom has more neighbours than any real one.
    """
    from matscipy.neighbours import neighbour_list

    # a box around the atoms along what is open, so that the search depends on no vector given there
    box = np.array(cell, dtype=float)
    normals = _normals(box[pbc])
    heights = positions @ normals.T
    low, high = heights.min(0), heights.max(0)
    box[~pbc] = (high - low + 2 * cutoff + 1)[:, None] * normals
    volume = abs(np.linalg.det(box))
    if 4 / 3 * np.pi * cutoff**3 * len(positions) > _MANY * volume:
        raise ValueError(
            f"the cell {np.asarray(cell).tolist()}, periodic along {np.flatnonzero(pbc).tolist()}, is so "
            f"small that {len(positions)} atoms have more than {_MANY:.0e} neighbours each within {cutoff:g} "
            "angstrom: are its vectors in angstrom?"
        )
    inside = positions - (low - cutoff) @ normals
    cells = np.where(pbc, np.floor(np.linalg.solve(box.T, inside.T).T), 0).astype(np.int64)
    inside = inside - cells @ box
    reach = max(cutoff, (volume / _BINS) ** (1 / 3))
    i, j, image, length = neighbour_list("ijSd", positions=inside, cell=box, pbc=pbc, cutoff=reach)
    image = np.where(pbc, image, 0)
    keep = (length < cutoff) & ((i != j) | image.any(1))
    if (length[keep] < _SAME).any():
        first = np.flatnonzero(keep & (length < _SAME))[0]
        raise ValueError(f"atoms {i[first]} and {j[first]} are in one place, or in two images of one")
    i, j, image = i[keep].astype(np.int64), j[keep].astype(np.int64), image[keep].astype(np.int64)
    return np.stack((i, j)), image + cells[i] - cells[j]


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
        positions = positions @ np.concatenate((along, _normals(vectors))).T
        across = _normals(vectors)
    else:
        spare = [k for k in np.flatnonzero(free) if k not in rows]
        across = axes[[k if free[k] else spare.pop() for k in rows]]
    padded[rows] = (np.abs(positions).max() + 1) * 5 * cutoff * across
    if not free[rows].all() and np.linalg.det(padded) < 0:
        padded[rows[0]] *= -1
    return padded
