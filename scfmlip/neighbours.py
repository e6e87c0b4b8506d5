"""Neighbour lists on the host, for any cell and periodicity."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .devices import free_memory

# most bins of the cell list: nearly empty cells use fewer, larger bins
_BINS = 1e7
# angstrom: smaller distances may be zero in float32
_SAME = 1e-5
# memory per pair while the list is made
_BYTES_PER_PAIR = 160
# most neighbours per atom; real systems have a few hundred
_MANY = 1e5
# angstrom by which a reused list may be wrong at its edge: rounding of lengths
_EDGE = 1e-6


def normals_of(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """
    ``[3 - n, 3]`` orthonormal directions perpendicular to ``n`` vectors.

    Example:
        >>> import numpy as np
        >>> from scfmlip.neighbours import normals_of
        >>> abs(normals_of(np.array([[3.0, 0.0, 0.0], [1.0, 2.0, 0.0]])))  # across two lateral vectors
        array([[0., 0., 1.]])
    """
    if not len(vectors):
        return np.eye(3)
    return np.linalg.qr(vectors.T, mode="complete")[0].T[len(vectors) :]


def neighbour_pairs(
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    cutoff: float,
    apart: bool = True,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """
    All pairs within a cutoff, including periodic images, and of an atom with its own images.

    Args:
        positions: ``[n_atoms, 3]`` angstrom, inside the cell or outside.
        cell: ``[3, 3]`` angstrom, rows are lattice vectors; vectors of open directions are ignored.
        pbc: ``[3]`` booleans.
        cutoff: Cutoff, angstrom.
        apart: Refuse two atoms at the same position.

    Returns:
        ``[2, n_pairs]`` sender and receiver, sorted by sender, and ``[n_pairs, 3]`` image of the receiver:
        the pair's vector is ``positions[receiver] - positions[sender] + image @ cell``.

    Raises:
        ValueError: for two atoms at the same position, whose direction is undefined; for a cell so small that
            atoms have an unphysical number of neighbours; for more pairs than fit into memory.
        ImportError: without matscipy.

    Example:
        >>> import numpy as np
        >>> pairs, images = neighbour_pairs(np.zeros((1, 3)), 3.0 * np.eye(3), np.ones(3, dtype=bool), 3.5)
        >>> pairs.shape, images[0].tolist()  # six images of the atom itself
        ((2, 6), [0, 0, -1])
    """
    try:
        from matscipy.neighbours import neighbour_list
    except ImportError as error:
        raise ImportError("neighbour lists come from matscipy: pip install matscipy") from error

    if not len(positions):
        return np.zeros((2, 0), dtype=np.int64), np.zeros((0, 3), dtype=np.int64)
    # use a box around the atoms along open directions, independent of the cell vectors there
    box = np.array(cell, dtype=float)
    normals = normals_of(box[pbc])
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
    _check_number(len(positions), box[pbc], high - low, cutoff)
    inside = positions - (low - cutoff) @ normals
    cells = np.where(pbc, np.floor(np.linalg.solve(box.T, inside.T).T), 0).astype(np.int64)
    inside = inside - cells @ box
    reach = max(cutoff, (volume / _BINS) ** (1 / 3))
    i, j, image, length = neighbour_list("ijSd", positions=inside, cell=box, pbc=pbc, cutoff=reach)
    if not pbc.all():
        image = np.where(pbc, image, 0)
    if reach > cutoff:
        keep = length < cutoff
        i, j, image, length = i[keep], j[keep], image[keep], length[keep]
    same = np.flatnonzero(length < _SAME)
    itself = same[(i[same] == j[same]) & ~image[same].any(1)]
    if apart and len(itself) < len(same):
        first = np.setdiff1d(same, itself)[0]
        raise ValueError(f"atoms {i[first]} and {j[first]} are at the same position, or at images of it")
    if len(itself):
        i, j, image = np.delete(i, itself), np.delete(j, itself), np.delete(image, itself, 0)
    image = image.astype(np.int64)
    if cells.any():
        image += cells[i] - cells[j]
    return np.stack((i, j)).astype(np.int64), image


def _check_number(
    n_atoms: int, vectors: NDArray[np.float64], extent: NDArray[np.float64], cutoff: float
) -> None:
    """
    Refuse lists that do not fit into memory, for instance with a cutoff or a cell in the wrong unit.

    Args:
        n_atoms: Number of atoms.
        vectors: ``[n_periodic, 3]`` lattice vectors, angstrom.
        extent: ``[3 - n_periodic]`` extent of the atoms along open directions, angstrom.
        cutoff: Cutoff, angstrom.
    """
    # images of the cell within the cutoff, and the fraction of an open direction
    reach = (1.0, 2 * cutoff, np.pi * cutoff**2, 4 / 3 * np.pi * cutoff**3)[len(vectors)]
    size = float(np.sqrt(np.linalg.det(vectors @ vectors.T))) if len(vectors) else 1.0
    near = float(np.prod(np.minimum(1.0, 2 * cutoff / np.maximum(extent, 1e-9))))
    needed = _BYTES_PER_PAIR * n_atoms**2 * near * reach / max(size, 1e-300)
    free = free_memory(torch.device("cpu"))
    if needed > free:
        raise ValueError(
            f"{n_atoms} atoms have about {needed / _BYTES_PER_PAIR:.2g} pairs nearer than {cutoff:g} "
            f"angstrom, {needed / 2**30:.3g} GiB, with {free / 2**30:.3g} GiB free: check that cell, "
            "positions and cutoff are in angstrom"
        )


class _Reference(NamedTuple):
    """A geometry and all its pairs up to the cutoff and the skin."""

    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    cutoff: float
    pairs: NDArray[np.int64]
    images: NDArray[np.int64]


class SkinList:
    """
    `neighbour_pairs` along a trajectory, from a longer list that is made anew only when it has to be.

    The list holds all pairs up to ``cutoff + skin``; those within the cutoff are picked at every call, so
    that the answer is always that of `neighbour_pairs`, in an order of its own for each sender. It lasts
    while no pair can have come in from beyond it: while no atom has moved by more than half the skin, in a
    crystal beside the strain of its cell, and that strain has not used it up.

    Args:
        skin: Angstrom, at least 0; 0 makes a new list at every call.

    Attributes:
        builds: How many lists were made.

    Raises:
        ValueError: for a skin that is not such a number.

    Example:
        >>> import numpy as np
        >>> neighbours, pbc = SkinList(skin=0.5), np.ones(3, dtype=bool)
        >>> for step in range(5):  # atoms that move by 0.1 angstrom in all
        ...     pairs, _ = neighbours(np.array([[0.0, 0.0, 0.02 * step]]), 3.0 * np.eye(3), pbc, 3.5)
        >>> pairs.shape, neighbours.builds
        ((2, 6), 1)
    """

    def __init__(self, skin: float = 0.5) -> None:
        number = not isinstance(skin, bool) and isinstance(skin, (int, float, np.floating))
        if not number or not 0 <= skin < math.inf:
            raise ValueError(f"skin must be a number of at least 0, angstrom, got {skin!r}")
        self.skin, self.builds = float(skin), 0
        self._reference: _Reference | None = None

    @property
    def origin(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        """Positions and cell of which the list was made, all there is to save for a restart; or None."""
        known = self._reference
        return None if known is None else (known.positions, known.cell)

    def __call__(
        self, positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_], cutoff: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs and images as `neighbour_pairs` returns them, with its arguments and errors."""
        if self.skin == 0:
            self.builds += 1
            return neighbour_pairs(positions, cell, pbc, cutoff)
        known = self._reference
        if known is None or not self._lasts(known, positions, cell, pbc, cutoff):
            known = self.build(positions, cell, pbc, cutoff)
        (i, j), images = known.pairs, known.images
        vectors = positions[j] - positions[i] + images @ np.where(pbc[:, None], cell, 0.0)
        square = np.einsum("ij,ij->i", vectors, vectors)
        if len(square) and square.min() < _SAME**2:
            first = int(square.argmin())
            raise ValueError(f"atoms {i[first]} and {j[first]} are in one place, or in two images of one")
        near = square < cutoff**2
        return known.pairs[:, near], images[near]

    def build(
        self, positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_], cutoff: float
    ) -> _Reference:
        """Make the list of this geometry."""
        positions, cell, pbc = np.array(positions, float), np.array(cell, float), np.array(pbc, bool)
        pairs, images = neighbour_pairs(positions, cell, pbc, cutoff + self.skin)
        self._reference = _Reference(positions, cell, pbc, cutoff, pairs, images)
        self.builds += 1
        return self._reference

    def _lasts(
        self,
        known: _Reference,
        positions: NDArray[np.float64],
        cell: NDArray[np.float64],
        pbc: NDArray[np.bool_],
        cutoff: float,
    ) -> bool:
        """Whether no pair within the cutoff can be missing."""
        if cutoff != known.cutoff or len(positions) != len(known.positions) or (pbc != known.pbc).any():
            return False
        before, shrunk = known.positions, 1.0
        if (cell[pbc] != known.cell[pbc]).any():
            if not pbc.all():
                return False
            strain = np.linalg.solve(known.cell, cell)
            before, shrunk = before @ strain, float(np.linalg.svd(strain, compute_uv=False)[-1])
        moved = float(np.sqrt(((positions - before) ** 2).sum(1).max(initial=0.0)))
        return shrunk * (cutoff + self.skin) - 2 * moved > cutoff + _EDGE
