"""
Many small tensors to a GPU and back in one copy.

A copy of its own for each of a batch's thirty tensors costs more than what is copied, and from ordinary
memory of the host, or to it, each is waited for.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# kernels are compiled for addresses that are multiples of 16 bytes; PyTorch allocates multiples of this
_ALIGNED = 512


def _places(tensors: list[Tensor]) -> tuple[list[int], int]:
    """Where each tensor begins in one buffer, and how long that is, in bytes."""
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
    return starts, end


def _parts(buffer: Tensor, tensors: list[Tensor], starts: list[int]) -> list[Tensor]:
    """Views of the buffer with the tensors' dtypes and shapes."""
    views = []
    for tensor, start in zip(tensors, starts, strict=True):
        size = tensor.numel() * tensor.element_size()
        views.append(buffer[start : start + size].view(tensor.dtype).view(tensor.shape))
    return views


def to_device(values: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """
    Move the tensors of a batch; to a GPU in one copy, for which the host does not wait.

    Args:
        values: Tensors without a graph, on one device; anything else stays as it is.
        device: Where to.

    Returns:
        The same keys. Tensors on a GPU are views of one buffer.

    Example:
        >>> import torch
        >>> from scfmlip.transfers import to_device
        >>> to_device({"positions": torch.zeros(1, 3), "name": "one atom"}, "cpu")
        {'positions': tensor([[0., 0., 0.]]), 'name': 'one atom'}
    """
    device, out = torch.device(device), dict(values)
    names = [k for k, v in out.items() if isinstance(v, Tensor) and v.device.type == "cpu"]
    if device.type != "cuda" or len(names) < 2:
        return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in out.items()}
    tensors = [out[k] for k in names]
    starts, size = _places(tensors)
    host = torch.zeros(size, dtype=torch.uint8).pin_memory()
    for part, tensor in zip(_parts(host, tensors, starts), tensors, strict=True):
        part.copy_(tensor)
    there = host.to(device, non_blocking=True)
    return out | dict(zip(names, _parts(there, tensors, starts), strict=True))


def to_host(values: Mapping[str, Any]) -> dict[str, Tensor]:
    """
    The tensors among some values, detached, on the host; from a GPU in one copy, for which the host waits.

    Example:
        >>> import torch
        >>> from scfmlip.transfers import to_host
        >>> to_host({"energy": torch.ones(1, requires_grad=True), "stress": None})
        {'energy': tensor([1.])}
    """
    out = {k: v.detach() for k, v in values.items() if isinstance(v, Tensor)}
    names = [k for k, v in out.items() if v.device.type == "cuda"]
    if len(names) < 2:
        return {k: v.cpu() for k, v in out.items()}
    # larger numbers first: then all begin at multiples of their size
    names.sort(key=lambda name: (-out[name].element_size(), str(out[name].dtype)))
    tensors = [out[name] for name in names]
    kinds = [list(group) for _, group in itertools.groupby(tensors, lambda tensor: tensor.dtype)]
    joined = [torch.cat([tensor.reshape(-1) for tensor in kind]).view(torch.uint8) for kind in kinds]
    together = torch.cat(joined).cpu()
    sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
    starts = [0, *itertools.accumulate(sizes)]
    return out | dict(zip(names, _parts(together, tensors, starts[:-1]), strict=True))
