"""Rows in the order of their species, and the checks that operators with a species index share."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_floats, check_index, check_shape, check_tensors


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


def check_species(name: str, tensors: dict[str, Tensor], index: Tensor, shapes: dict[str, tuple]) -> None:
    """
    Raise unless the tensors have one floating dtype and their shapes, and the index names species that exist.

    Args:
        name: Of the operator.
        tensors: By their names; species are rows of ``"weights"``, rows those of the first.
        index: Species of each row.
        shapes: Of the tensors; sizes that may be any are strings.

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
