"""Rows in the order of their species, and the checks that operators with a species index share."""

from typing import NamedTuple

import torch
from torch import Tensor


class SpeciesOrder(NamedTuple):
    """
    Where the rows of each species stand.

    Attributes:
        order: ``[n_rows]`` int64, rows in the order of their species, equal ones as they stand.
        ptr: ``[n_species + 1]`` int64, where each species starts in ``order``.
    """

    order: Tensor
    ptr: Tensor


def sort_species(index: Tensor, n_species: int) -> SpeciesOrder:
    """Sort rows by species; nothing synchronises a GPU with the host."""
    values, order = torch.sort(index, stable=True)
    return SpeciesOrder(order, torch.searchsorted(values, torch.arange(n_species + 1, device=index.device)))


def check_species(name: str, tensors: dict[str, Tensor], index: Tensor, n_species: int) -> None:
    """
    Raise unless the tensors have one floating dtype, and the index names species that exist.

    Values of the index are looked at on a CPU only, and not while compiling.

    Raises:
        TypeError: for another dtype.
        ValueError: for a wrong shape or device, or an index out of range.
    """
    first, *others = tensors
    for key, tensor in tensors.items():
        if tensor.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"{name}: {key} must be float32 or float64, got {tensor.dtype}")
        if tensor.ndim != 3:
            raise ValueError(f"{name}: {key} must have 3 dimensions, got {list(tensor.shape)}")
    for key in others:
        if tensors[key].dtype != tensors[first].dtype:
            raise TypeError(f"{name}: {key} is {tensors[key].dtype}, {first} is {tensors[first].dtype}")
    if index.dtype != torch.int64:
        raise TypeError(f"{name}: index must be int64, got {index.dtype}")
    n_rows = tensors[first].shape[0]
    if index.ndim != 1 or index.shape[0] != n_rows:
        raise ValueError(f"{name}: index must be [{n_rows}], got {list(index.shape)}")
    devices = {key: tensor.device for key, tensor in {**tensors, "index": index}.items()}
    if len(set(devices.values())) > 1:
        found = ", ".join(f"{key} on {device}" for key, device in devices.items())
        raise ValueError(f"{name}: all tensors must be on one device, got {found}")
    if not torch.compiler.is_compiling() and index.device.type == "cpu" and n_rows:
        low, high = (int(v) for v in torch.aminmax(index))
        if low < 0 or high >= n_species:
            raise ValueError(f"{name}: index names species {low} to {high}, there are {n_species}")
