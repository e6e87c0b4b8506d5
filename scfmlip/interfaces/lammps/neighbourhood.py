"""Own atoms, ghosts of other ranks and edges, out of LAMMPS's neighbour list."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...distributed import Communicator, Halo, build_halo
from ...mace_torch.domains import DomainEdges
from .engine import Atoms, Box

# what ghosts may be away from images of their atoms, angstrom: rounding of a large box
_IMAGE = 1e-6


class Neighbourhood:
    """
    What stays as it is between two builds of LAMMPS's neighbour list. Every rank makes one together.

    LAMMPS has a ghost for every image; here images of one atom share a row, the owner's where that is this
    rank, and edges count lattice vectors.

    Args:
        communicator: The ranks.
        atoms: Own atoms and LAMMPS's ghosts.
        box: The box.
        pairs: Own atoms and their neighbours, numbers as in ``atoms``.
        species: ``[n_types]`` the model's number of each type's element.
        device: Of tensors.

    Raises:
        ValueError: for atoms without ids of their own.
        RuntimeError: for ghosts that are no images of their atoms.
    """

    def __init__(
        self,
        communicator: Communicator,
        atoms: Atoms,
        box: Box,
        pairs: tuple[np.ndarray, np.ndarray],
        species: list[int],
        device: torch.device,
    ) -> None:
        n = self.n_owned = atoms.n_owned
        owned, near = atoms.ids[:n], atoms.ids[n:]
        order = np.argsort(owned, kind="stable")
        place = np.searchsorted(owned, near, sorter=order).clip(max=max(n - 1, 0))
        here = np.zeros(len(near), dtype=bool)
        row = np.zeros(len(near), dtype=np.int64)
        if n:
            row = order[place]
            here = owned[row] == near
        wanted, which = np.unique(near[~here], return_inverse=True)
        self.halo, ghost = _halo(communicator, owned, wanted, device)
        row[~here] = n + ghost.cpu().numpy()[which]
        rows = np.concatenate((np.arange(n), row))
        everywhere = self.halo.copy_out(torch.tensor(atoms.positions[:n], device=device)).cpu().numpy()
        away = (atoms.positions - everywhere[rows]) @ np.linalg.inv(box.cell)
        images = np.rint(away)
        rest = np.abs((away - images) @ box.cell).max(initial=0.0)
        worst = float(communicator.all_reduce(torch.tensor([rest], dtype=torch.float64), "max"))
        if worst > _IMAGE:
            raise RuntimeError(
                f"a ghost atom is {worst:.2g} angstrom away from every image of its atom: two atoms may have "
                "one id"
            )
        types = np.zeros(self.halo.n_all, dtype=np.int64)
        types[rows] = atoms.types
        self.species = torch.tensor(np.array(species)[types - 1], device=device)
        self._pairs, self._ids, self._positions = pairs, atoms.ids, atoms.positions
        # pairs up to there are listed; more may be
        apart = np.square(atoms.positions[pairs[0]] - atoms.positions[pairs[1]]).sum(1)
        self._reach = float(apart.max(initial=0.0)) ** 0.5 if n else np.inf
        self._sender, self._images = rows[pairs[1]], -images[pairs[1]]
        self.device = device

    def is_stale(self, atoms: Atoms, cutoff: float) -> bool:
        """Whether atoms are others than here, or have moved so far that pairs within the cutoff may lack."""
        if len(atoms.ids) != len(self._ids) or not np.array_equal(atoms.ids, self._ids):
            return True
        moved = np.square(atoms.positions - self._positions).sum(1).max(initial=0.0) ** 0.5
        return bool(moved > 0.5 * (self._reach - cutoff))

    def edges(self, positions: np.ndarray, cutoff: float) -> DomainEdges:
        """
        Pairs within the cutoff.

        Args:
            positions: ``[n, 3]`` angstrom of own atoms and LAMMPS's ghosts, as they are now.
            cutoff: Angstrom.
        """
        receiver, near = self._pairs
        vectors = positions[receiver] - positions[near]
        keep = (vectors**2).sum(1) < cutoff**2
        index = np.stack((self._sender[keep], receiver[keep]))
        return DomainEdges(
            torch.tensor(index, device=self.device), torch.tensor(self._images[keep], device=self.device)
        )


def _halo(
    communicator: Communicator, owned: np.ndarray, wanted: np.ndarray, device: torch.device
) -> tuple[Halo, Tensor]:
    return build_halo(communicator, torch.tensor(owned, device=device), torch.tensor(wanted, device=device))
