"""Ghosts by place: all atoms near some points, or all there are, whoever owns them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..neighbours import normals_of
from .communicator import Communicator
from .halo import Halo

# of fractional coordinates: rounding of them
_ROUNDING = 1e-9


def halo_within(
    communicator: Communicator,
    positions: Tensor,
    targets: Tensor,
    cell: Tensor,
    periodic: NDArray[np.bool_],
    reach: float,
) -> Halo:
    """
    The halo of every atom of other ranks that has an image within reach of one of this rank's points.

    Ranks tell each other the box around their points, in fractional coordinates; atoms near its corners come
    too. Every rank calls it together; nobody holds a table of all atoms.

    Args:
        communicator: The ranks.
        positions: ``[n_owned, 3]`` angstrom of own atoms, any image.
        targets: ``[n_points, 3]`` angstrom, of this rank.
        cell: ``[3, 3]`` angstrom, the same on every rank; vectors that are not periodic do not matter.
        periodic: ``[3]`` bool.
        reach: Angstrom.
    """
    box = cell.detach().cpu().double().numpy().copy()
    box[~periodic] = normals_of(box[periodic])
    inverse = np.linalg.inv(box)
    margin = reach * np.linalg.norm(inverse, axis=0) + _ROUNDING
    places, wanted = (t.detach().cpu().double().numpy() @ inverse for t in (positions, targets))
    corners = np.full((2, 3), -np.inf)
    if len(wanted):
        corners = np.stack((wanted.max(0), -wanted.min(0)))
    rows, counts = [np.zeros(0, dtype=np.int64)], []
    boxes = communicator.gather(torch.from_numpy(corners).to(positions.device)).cpu().numpy()
    for rank, (high, low) in enumerate(boxes):
        # steps along each vector that lead an atom into the box
        first, last = np.ceil(-low - margin - places), np.floor(high + margin - places)
        inside = np.where(periodic, first <= last, (first <= 0) & (last >= 0)).all(1)
        rows.append(np.flatnonzero(inside) if rank != communicator.rank else rows[0])
        counts.append(len(rows[-1]))
    send_rows = torch.from_numpy(np.concatenate(rows)).to(positions.device)
    # how many rows come from each rank, in one sum of short tables
    table = communicator.gather(torch.tensor(counts, device=send_rows.device))
    receive = table[:, communicator.rank].tolist()
    return Halo(communicator, len(positions), send_rows, counts, receive)


def halo_of_all(communicator: Communicator, counts: list[int], device: torch.device) -> Halo:
    """
    The halo of all atoms of all other ranks: every rank holds rows of the whole system.

    Args:
        communicator: The ranks.
        counts: ``[size]`` rows that each rank owns.
        device: Of the rows.
    """
    me, n_owned = communicator.rank, counts[communicator.rank]
    send = [n_owned * (rank != me) for rank in range(communicator.size)]
    receive = [n * (rank != me) for rank, n in enumerate(counts)]
    send_rows = torch.arange(n_owned, device=device).repeat(communicator.size - 1)
    return Halo(communicator, n_owned, send_rows, send, receive)
