"""Rows sorted by species, and the checks that operators with a species index share."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_floats, check_index, check_shape, check_tensors
from ..identity import ByIdentity


class SpeciesOrder(NamedTuple):
    """
    Rows sorted by species.

    Attributes:
        order: ``[n_rows]`` int64, rows sorted by species (stable).
        ptr: ``[n_species + 1]`` int64, where each species starts in ``order``.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import sort_species
        >>> species = sort_species(torch.tensor([1, 0, 1]), n_species=2)
        >>> type(species).__name__, len(species.order)
        ('SpeciesOrder', 3)
    """

    order: Tensor
    ptr: Tensor


_kept: ByIdentity[SpeciesOrder] = ByIdentity(4)


def sort_species(index: Tensor, n_species: int) -> SpeciesOrder:
    """
    Sort rows by species, once for the same tensor, without synchronising a GPU with the host.

    Args:
        index: ``[n_rows]`` int64, species of each row.
        n_species: Number of species.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import sort_species
        >>> species = sort_species(torch.tensor([1, 0, 1]), n_species=3)
        >>> species.order.tolist(), species.ptr.tolist()
        ([1, 0, 2], [0, 1, 3, 3])
    """

    def make() -> SpeciesOrder:
        values, order = torch.sort(index, stable=True)
        ptr = torch.searchsorted(values, torch.arange(n_species + 1, device=index.device))
        return SpeciesOrder(order, ptr)

    return _kept.get((index,), n_species, make)


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
