"""The processes that torchrun starts: who this one is, and sums over all."""

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
    One process among those that train a model.

    Attributes:
        rank, world: Its number, and how many there are.
        device: Where it computes.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this one writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes, of a tensor of equal shape in each."""
        if self.world > 1:
            # gloo and nccl each want tensors of their own kind
            moved = values.to(self.device, copy=True)
            torch.distributed.all_reduce(moved)
            return moved.to(values.device)
        return values

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            torch.distributed.barrier()


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the processes of torchrun, if there are any, and leave them in the end."""
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
