"""Communication by MPI, through mpi4py."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor

from .communicator import Communicator, Operation, spans

# bytes of one message, of which MPI counts no more than an int holds
_MOST = 2**30


class MpiCommunicator(Communicator):
    """
    Ranks of an MPI communicator. Tensors on a GPU go through the host.

    Args:
        comm: An ``mpi4py.MPI.Comm``; all processes of the run if None.

    Raises:
        ImportError: without mpi4py, or an MPI library.
    """

    def __init__(self, comm: Any = None) -> None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise ImportError(f"MPI needs mpi4py: pip install 'scfmlip[lammps]' ({error})") from error
        self._mpi: Any = MPI
        self._comm: Any = MPI.COMM_WORLD if comm is None else comm
        # apart from the communication of those that go on
        self._failed: Any = self._comm.Dup()
        super().__init__(self._comm.Get_rank(), self._comm.Get_size())

    def _reduce(self, values: Tensor, operation: Operation) -> Tensor:
        host = values.cpu()
        op = self._mpi.SUM if operation == "sum" else self._mpi.MAX
        if host.numel():
            self._comm.Allreduce(self._mpi.IN_PLACE, host.numpy(), op=op)
        return host.to(values.device)

    def _exchange(self, rows: Tensor, out: Tensor, send: Sequence[int], receive: Sequence[int]) -> None:
        # between neighbours alone: what all ranks do at once costs time with their number
        sent, got = rows.cpu().numpy(), out.cpu()
        host = got.numpy()
        requests = []
        for rank, first, last in spans(receive):
            if rank != self.rank:
                requests += [self._comm.Irecv(part, rank) for part in _pieces(host[first:last])]
        for rank, first, last in spans(send):
            if rank != self.rank:
                requests += [self._comm.Isend(part, rank) for part in _pieces(sent[first:last])]
        self._mpi.Request.Waitall(requests)
        if got.data_ptr() != out.data_ptr():
            out.copy_(got)

    def all_arrive(self, seconds: float) -> bool:
        """By a barrier that waits no longer."""
        end, barrier = time.monotonic() + seconds, self._failed.Ibarrier()
        while not barrier.Test():
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def abort(self) -> NoReturn:
        """End all ranks of the run."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._comm.Abort(1)
        os._exit(1)


def _pieces(rows: Any) -> list[Any]:
    """Views of contiguous rows that fit into a message each."""
    flat = rows.reshape(-1)
    step = _MOST // flat.itemsize
    return [flat[i : i + step] for i in range(0, flat.size, step)]
