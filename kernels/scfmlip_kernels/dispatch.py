"""Which implementation an operator runs: Triton on a GPU, the CPU path elsewhere."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Backend = Literal["auto", "cpu", "triton"]
_forced: list[Backend] = ["auto"]


@contextlib.contextmanager
def backend(name: Backend) -> Iterator[None]:
    """
    Choose the implementation of every operator called inside the block.

    Args:
        name: ``"auto"`` runs Triton on CUDA or ROCm tensors, and on CPU tensors too when Triton's
            interpreter is on (``TRITON_INTERPRET=1``); ``"cpu"`` keeps CPU tensors on the CPU path
            even then; ``"triton"`` always runs the kernels.

    Raises:
        ValueError: for another name.

    Example:
        >>> import torch, scfmlip_kernels
        >>> x, weights, species = torch.ones(2, 1, 3), torch.ones(1, 3, 3), torch.tensor([0, 0])
        >>> with scfmlip_kernels.backend("cpu"):  # the CPU path, even where the interpreter is on
        ...     out = scfmlip_kernels.indexed_linear(x, weights, species)
        >>> out.flatten()
        tensor([3., 3., 3., 3., 3., 3.])
    """
    if name not in ("auto", "cpu", "triton"):
        raise ValueError(f"backend must be 'auto', 'cpu' or 'triton', got {name!r}")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def interpreting() -> bool:
    """Whether Triton's interpreter is on."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def needs_kernel_tables(device: torch.device) -> bool:
    """Whether operators on tensors of this device currently run Triton kernels."""
    return device.type == "cuda" or (_forced[-1] != "cpu" and interpreting())


def runs_triton(tensor: Tensor) -> bool:
    """Whether an operator on ``tensor`` runs its Triton kernel."""
    if tensor.is_cuda:
        return True
    forced = _forced[-1]
    if forced == "triton" and not interpreting():
        raise RuntimeError(
            "Triton kernels run on CPU tensors only through the interpreter: set TRITON_INTERPRET=1 "
            "before triton is imported, or move the tensors to a GPU"
        )
    return forced != "cpu" and interpreting()


def loop_over_batch(op: Any, info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
    """
    ``torch.vmap`` of an operator by a loop over the batch.

    Args:
        op: The operator.
        info: The object that ``register_vmap`` passes; its ``batch_size`` is used.
        in_dims: Batch dimension of each argument, or None.
        args: The arguments.

    Returns:
        The stacked results and their batch dimensions, 0.
    """
    rows = [
        op(*(a.select(d, i) if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    if isinstance(rows[0], tuple):
        return tuple(torch.stack(column) for column in zip(*rows, strict=True)), (0,) * len(rows[0])
    return torch.stack(rows), 0


def vmap_by_loop(definition: Any, name: str) -> None:
    """Make ``torch.vmap`` run a custom operator by a loop over the batch."""

    @definition.register_vmap
    def _(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Any, Any]:
        return loop_over_batch(getattr(torch.ops.scfmlip, name), info, in_dims, *args)
