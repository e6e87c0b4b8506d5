"""Rows sorted by species, and the checks that operators with a species index share."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_floats, check_index, check_shape, check_tensors


class SpeciesOrder(NamedTuple):
    """
    Rows sorted by species.

    Attributes:
        order: ``[n_rows]`` int64, rows sorted by species (stable).
        ptr: ``[n_species + 1]`` int64, where each species starts in ``order``.
    """

    order: Tensor
    ptr: Tensor


def sort_species(index: Tensor, n_species: int) -> SpeciesOrder:
    """Sort rows by species, without synchronising a GPU with the host."""
    values, order = torch.sort(index, stable=True)
    return SpeciesOrder(order, torch.searchsorted(values, torch.arange(n_species + 1, device=index.device)))


def check_species(name: str, tensors: dict[str, Tensor], index: Tensor, shapes: dict[str, tuple]) -> None:
    """
    Check that the tensors have one floating dtype and the right shapes, and that the index is in range.

    Args:
        name: Name of the operator.
        tensors: Tensors by name. ``"weights"`` has one row per species; the first tensor has the rows.
        index: Species of each row.
        shapes: Shapes of the tensors; sizes given as strings may have any value.

    Raises:
        TypeError: for another dtype.
        ValueError: for a wrong shape or device, or an index out of range.
    """
    check_tensors(name, **tensors, index=index)
    check_floats(name, **tensors)
    for key, tensor in tensors.items():
        check_shape(name, key, tensor, shapes[key])
    check_shape(name, "index", index, (next(iter(tensors.values())).shape[0],))
    check_index(name, "index", index, tensors["weights"].shape[0], "species")
