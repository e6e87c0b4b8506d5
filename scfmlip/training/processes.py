"""The processes that torchrun starts: rank of this one, and sums over all."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed
from torch import Tensor

from ..devices import pick_device


@dataclasses.dataclass(frozen=True)
class Processes:
    """
    One of the processes that train a model.

    Attributes:
        rank, world: Rank of this process, and number of processes.
        device: Device of this process.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over processes; it must have the same shape in each."""
        if self.world > 1:
            # gloo and nccl need tensors on their own kind of device
            moved = values.to(self.device, copy=True)
            torch.distributed.all_reduce(moved)
            return moved.to(values.device)
        return values

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            torch.distributed.barrier()


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the processes of torchrun, if there are any, and leave them at the end."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    picked = pick_device(device, local)
    if world == 1:
        yield Processes(0, 1, picked)
        return
    if picked.type == "cuda":
        torch.cuda.set_device(picked)
    torch.distributed.init_process_group("nccl" if picked.type == "cuda" else "gloo")
    try:
        yield Processes(torch.distributed.get_rank(), world, picked)
    finally:
        torch.distributed.destroy_process_group()
