"""Derivatives along a direction of each atom, as sums over the monomials of one degree more."""

import torch
from torch import Tensor

from .monomials import monomial_count, rank_of_count, shifted_monomials


def raised(moments: Tensor, directions: Tensor) -> Tensor:
    """
    Moments of the derivative of a source along its direction: each monomial times the index along it.

    Args:
        moments: ``[n_atoms, ..., n_monomials]`` of some rank.
        directions: ``[n_atoms, 3]``.

    Returns:
        ``[n_atoms, ..., n_monomials]`` of one rank more.
    """
    rank = rank_of_count(moments.shape[-1])
    out = moments.new_zeros((*moments.shape[:-1], monomial_count(rank + 1)))
    for axis, shift in enumerate(shifted_monomials(rank)):
        along = directions[:, axis].to(moments.dtype).view(-1, *(1,) * (moments.ndim - 1))
        out = out.index_add(-1, torch.tensor(shift, device=moments.device), moments * along)
    return out


def shifted_along(field: Tensor, directions: Tensor, rank: int) -> Tensor:
    """
    Derivative of a field along a direction: the monomials of up to ``rank``, from those of one rank more.

    Args:
        field: ``[n_atoms, ..., n_monomials]`` of ``rank + 1``.
        directions: ``[n_atoms, 3]``.
        rank: Of the result.
    """
    along = directions.to(field.dtype).view(-1, *(1,) * (field.ndim - 1), 3).unbind(-1)
    shifts = shifted_monomials(rank)
    x, y, z = (field[..., list(shift)] * a for shift, a in zip(shifts, along, strict=True))
    return x + y + z
