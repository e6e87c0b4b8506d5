"""
Ghosts: rows of atoms that other ranks own and this rank's atoms have as neighbours.

Forward copies an owner's row to wherever it is a ghost; the adjoint adds what came together at the ghosts to
their owners. Images of one atom share a row: edges hold the lattice vectors, and an atom that meets its own
rank's images needs no ghost at all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .collectives import Linear
from .communicator import Communicator


class Halo:
    """
    Which own rows other ranks have as ghosts, and from whom this rank's ghosts come.

    Args:
        communicator: The ranks.
        n_owned: Rows that this rank owns.
        send_rows: ``[n_sent]`` int64 own rows that go out, by rank; a row may go to several.
        send: ``[size]`` how many of them go to each rank.
        receive: ``[size]`` how many ghosts come from each rank.
    """

    def __init__(
        self,
        communicator: Communicator,
        n_owned: int,
        send_rows: Tensor,
        send: list[int],
        receive: list[int],
    ) -> None:
        self.communicator, self.n_owned = communicator, n_owned
        self.send_rows, self.send, self.receive = send_rows, send, receive
        self.n_ghosts = sum(receive)

    @property
    def n_all(self) -> int:
        """Own rows and ghosts."""
        return self.n_owned + self.n_ghosts

    @property
    def natoms(self) -> tuple[int, int]:
        """Own rows and ghosts, as mace-torch's interaction blocks want them."""
        return self.n_owned, self.n_ghosts

    def extend(self, rows: Tensor) -> Tensor:
        """
        ``[n_owned, ...]`` -> ``[n_all, ...]``, ghosts behind; every rank calls it together.

        Differentiable any number of times, where the losses of the ranks add up.
        """
        if self.communicator.size == 1:
            return rows
        return Linear.apply(rows, self.copy_out, self.collect)

    def collect(self, rows: Tensor) -> Tensor:
        """``[n_all, ...]`` -> ``[n_owned, ...]``: ghosts added to their owners; the adjoint of `extend`."""
        if self.communicator.size == 1:
            return rows
        return Linear.apply(rows, self.add_back, self.extend)

    def copy_out(self, rows: Tensor) -> Tensor:
        """As `extend`, without a graph."""
        ghosts = self.communicator.exchange(rows.detach()[self.send_rows], self.send, self.receive)
        return torch.cat((rows.detach(), ghosts))

    def add_back(self, rows: Tensor) -> Tensor:
        """As `collect`, without a graph."""
        mine, ghosts = rows.detach().split((self.n_owned, self.n_ghosts))
        parts = self.communicator.exchange(ghosts, self.receive, self.send)
        return mine.index_add(0, self.send_rows, parts)

    # what mace-torch's interaction blocks call, where they are its own

    def forward_exchange(self, rows: Tensor, out: Tensor, _: int) -> None:
        """Fill ``out [n_all, .]`` with own rows and the ghosts' owners'."""
        out.copy_(self.copy_out(rows[: self.n_owned]))

    def reverse_exchange(self, rows: Tensor, out: Tensor, _: int) -> None:
        """Fill ``out [n_all, .]`` with own rows and what the ghosts add; zero at the ghosts."""
        out[: self.n_owned] = self.add_back(rows)
        out[self.n_owned :] = 0


def build_halo(communicator: Communicator, owned: Tensor, wanted: Tensor) -> tuple[Halo, Tensor]:
    """
    The halo of given ghosts; every rank calls it together.

    Who owns an atom is asked of the rank of its id modulo their number, so that nobody holds a table of all.

    Args:
        communicator: The ranks.
        owned: ``[n_owned]`` int64 ids of own atoms, on the device of the rows.
        wanted: ``[n_ghosts]`` int64 ids of atoms of other ranks, each once.

    Returns:
        The halo, and ``[n_ghosts]`` int64: the ghost that each wanted atom has become, 0 the first behind the
        own rows.

    Raises:
        ValueError: on every rank, for ids that no rank or several ranks own.
    """
    owners = _find_owners(communicator, owned, wanted)
    by_owner = torch.argsort(owners[:, 0], stable=True)
    rows, send = _post(communicator, owners[:, 1:], owners[:, 0])
    receive = torch.bincount(owners[:, 0], minlength=communicator.size).tolist()
    ghost = torch.empty_like(by_owner)
    ghost[by_owner] = torch.arange(len(by_owner), device=owned.device)
    return Halo(communicator, len(owned), rows[:, 0], send, receive), ghost


def _find_owners(communicator: Communicator, owned: Tensor, wanted: Tensor) -> Tensor:
    """``[n_ghosts, 2]`` rank that owns each wanted atom, and its row there."""
    size, device = communicator.size, owned.device
    own = torch.stack((owned, torch.arange(len(owned), device=device)), 1)
    table, counts = _post(communicator, own, owned % size)
    ranks = torch.arange(size, device=device).repeat_interleave(torch.tensor(counts, device=device))
    order = torch.argsort(table[:, 0], stable=True)
    # a last line that is nobody's, so that every question finds a place
    table = torch.cat((table[order], table.new_full((1, 2), -1)))
    ids, ranks = table[:-1, 0].contiguous(), torch.cat((ranks[order], ranks.new_full((1,), -1)))
    questions, asked = _post(communicator, wanted[:, None], wanted % size)
    place = torch.searchsorted(ids, questions[:, 0].contiguous())
    unknown = table[place, 0] != questions[:, 0]
    wrong = torch.stack(((ids[1:] == ids[:-1]).sum(), unknown.sum()))
    twice, lost = communicator.all_reduce(wrong).tolist()
    if twice or lost:
        raise ValueError(
            f"{twice} atom ids belong to two atoms, and {lost} of ghosts to none: every atom needs an id of "
            "its own (in LAMMPS, atom_modify id yes)"
        )
    answers = torch.stack((ranks[place], table[place, 1]), 1)
    back = communicator.exchange(answers, asked, torch.bincount(wanted % size, minlength=size).tolist())
    found = torch.empty_like(back)
    found[torch.argsort(wanted % size, stable=True)] = back
    return found


def _post(communicator: Communicator, rows: Tensor, to: Tensor) -> tuple[Tensor, list[int]]:
    """Rows to the ranks ``to``, which get them in the order they have here, and how many came from each."""
    size = communicator.size
    send = torch.bincount(to, minlength=size)
    receive = communicator.exchange(send[:, None], [1] * size, [1] * size)[:, 0].tolist()
    order = torch.argsort(to, stable=True)
    return communicator.exchange(rows[order], send.tolist(), receive), receive
