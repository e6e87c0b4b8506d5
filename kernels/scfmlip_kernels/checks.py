"""
Input checks that the operators share; messages name the operator, the argument and what to do.

They check shapes, dtypes and devices. They read values only where that costs nothing: on a CPU, and not while
a compiler traces or `torch.vmap` batches.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .transforms import is_batched

FLOATS = (torch.float32, torch.float64)
_LOW = (torch.float16, torch.bfloat16)


def outside_autocast(*tensors: Any) -> tuple[Any, ...]:
    """
    An operator's inputs under `torch.autocast`: lower precisions become float32.

    Our operators behave as those on PyTorch's autocast float32 list. Outside autocast nothing changes.
    """
    for tensor in tensors:
        if isinstance(tensor, Tensor) and tensor.dtype in _LOW:
            break
    else:
        return tensors
    return tuple(
        t.float()
        if isinstance(t, Tensor) and t.dtype in _LOW and torch.is_autocast_enabled(t.device.type)
        else t
        for t in tensors
    )


def readable(*tensors: Tensor) -> bool:
    """Whether values can be read without cost."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    return all([tensor.is_cpu and not is_batched(tensor) for tensor in tensors])


def check_tensors(op: str, **tensors: Any) -> None:
    """Check that all are tensors on one device."""
    first = None
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
        first = tensor.device if first is None else first
        if tensor.device != first:
            places = ", ".join(f"{key} on {t.device}" for key, t in tensors.items() if isinstance(t, Tensor))
            raise ValueError(f"{op}: all tensors must be on one device, got {places}: move them with .to()")


def check_floats(op: str, **tensors: Tensor) -> None:
    """Check that all share one dtype, float32 or float64."""
    first = None
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{op}: {name} must be float32 or float64, got {tensor.dtype}: convert it")
        if first is None:
            first = name, tensor.dtype
        elif tensor.dtype != first[1]:
            raise TypeError(f"{op}: {name} is {tensor.dtype}, {first[0]} is {first[1]}: convert one of them")


def check_shape(op: str, name: str, tensor: Tensor, shape: tuple[Any, ...]) -> None:
    """Check a shape; sizes given as strings may have any value."""
    if tensor.ndim != len(shape) or any(
        not isinstance(want, str) and got != want for got, want in zip(tensor.shape, shape, strict=True)
    ):
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{op}: {name} must be [{wanted}], got {list(tensor.shape)}")


def check_index(op: str, name: str, index: Tensor, n: int, what: str) -> None:
    """Check that an index is int64 and, where values can be read, within ``0 .. n - 1``."""
    if index.dtype != torch.int64:
        raise TypeError(f"{op}: {name} must be int64, got {index.dtype}: convert it with .long()")
    if readable(index) and index.numel():
        low, high = (int(v) for v in torch.aminmax(index))
        if low < 0 or high >= n:
            raise ValueError(f"{op}: {name} names {what} {low} to {high}, there are {n}")


def check_rank(op: str, rank: Any) -> None:
    """Check that a rank is an integer of at least 0."""
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 0:
        raise ValueError(f"{op}: rank must be an integer of at least 0, got {rank!r}")


def check_pointers(op: str, name: str, ptr: Any, n_rows: int, rows: str) -> None:
    """Check pointers ``[n + 1]``: int64 on the CPU, from 0 to the number of rows, not decreasing."""
    if not isinstance(ptr, Tensor) or ptr.dtype != torch.int64 or ptr.ndim != 1 or not len(ptr):
        found = f"{ptr.dtype} {list(ptr.shape)}" if isinstance(ptr, Tensor) else type(ptr).__name__
        raise ValueError(
            f"{op}: {name} must be int64 [n + 1], where each system starts and the end, got {found}"
        )
    if ptr.device.type != "cpu":
        raise ValueError(f"{op}: {name} must be on the CPU, it is on {ptr.device}: move it with .cpu()")
    if readable(ptr):
        bounds = ptr.tolist()
        if bounds[0] != 0 or bounds[-1] != n_rows:
            raise ValueError(
                f"{op}: {name} must go from 0 to {n_rows}, the number of {rows}, it goes from {bounds[0]} to "
                f"{bounds[-1]}"
            )
        if any(last < first for first, last in pairwise(bounds)):
            raise ValueError(f"{op}: {name} must not decrease, got {bounds[:20]}")
