"""Derivatives along one direction per atom, as sums over the monomials of the next degree."""

import torch
from torch import Tensor

from .monomials import monomial_count, rank_of_count, shifted_monomials


def raised(moments: Tensor, directions: Tensor) -> Tensor:
    """
    Moments of a source differentiated along its direction: each monomial times the index along it.

    Args:
        moments: ``[n_atoms, ..., n_monomials]`` of any rank.
        directions: ``[n_atoms, 3]``.

    Returns:
        ``[n_atoms, ..., n_monomials]`` of the next rank.
    """
    rank = rank_of_count(moments.shape[-1])
    out = moments.new_zeros((*moments.shape[:-1], monomial_count(rank + 1)))
    for axis, shift in enumerate(shifted_monomials(rank)):
        along = directions[:, axis].to(moments.dtype).view(-1, *(1,) * (moments.ndim - 1))
        out = out.index_add(-1, torch.tensor(shift, device=moments.device), moments * along)
    return out


def shifted_along(field: Tensor, directions: Tensor, rank: int) -> Tensor:
    """
    Derivative of a field along a direction: monomials up to ``rank``, from those of ``rank + 1``.

    Args:
        field: ``[n_atoms, ..., n_monomials]`` of ``rank + 1``.
        directions: ``[n_atoms, 3]``.
        rank: Rank of the result.
    """
    along = directions.to(field.dtype).view(-1, *(1,) * (field.ndim - 1), 3).unbind(-1)
    shifts = shifted_monomials(rank)
    x, y, z = (field[..., list(shift)] * a for shift, a in zip(shifts, along, strict=True))
    return x + y + z
