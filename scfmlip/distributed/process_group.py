"""Communication by torch.distributed: gloo, or nccl between GPUs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
import torch.distributed
from torch import Tensor

from .communicator import Communicator, Operation


class ProcessGroupCommunicator(Communicator):
    """
    Ranks of a group of torch.distributed, which has been initialised. nccl takes tensors on its GPU only.

    Args:
        group: The group; the default one if None.

    Raises:
        RuntimeError: where torch.distributed is not initialised.
    """

    def __init__(self, group: Any = None) -> None:
        if not torch.distributed.is_initialized():
            raise RuntimeError(
                "torch.distributed has no process group: call torch.distributed.init_process_group first"
            )
        self._group = group
        super().__init__(torch.distributed.get_rank(group), torch.distributed.get_world_size(group))

    def _reduce(self, values: Tensor, operation: Operation) -> Tensor:
        kinds = torch.distributed.ReduceOp
        op = kinds.SUM if operation == "sum" else kinds.MAX
        torch.distributed.all_reduce(values, op, group=self._group)
        return values

    def _exchange(self, rows: Tensor, out: Tensor, send: Sequence[int], receive: Sequence[int]) -> None:
        torch.distributed.all_to_all_single(out, rows, list(receive), list(send), group=self._group)

    def all_arrive(self, seconds: float) -> bool:
        """Not known here."""
        return False

    def abort(self) -> NoReturn:
        """End this process; whoever started it (torchrun, mpiexec) ends the others."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
