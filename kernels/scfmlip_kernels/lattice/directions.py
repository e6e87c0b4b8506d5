"""Derivatives along one direction per atom, as sums over the monomials of the next degree."""

import math

import torch
from torch import Tensor

from ..constants import constant
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from .device import launch_forces
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
        out = out.index_add(-1, constant(shift, torch.int64, moments.device), moments * along)
    return out


def gradients(field: Tensor, rank: int) -> Tensor:
    """
    Each monomial's derivatives: those of up to ``rank``, from a field of one rank more.

    Args:
        field: ``[..., n_monomials]`` of ``rank + 1``.
        rank: Of the result.

    Returns:
        ``[..., 3, n_monomials]``.
    """
    # one axis at a time: no place is selected twice, so that backward adds nothing in any order
    tables = (constant(shift, torch.int64, field.device) for shift in shifted_monomials(rank))
    return torch.stack([field.index_select(-1, table) for table in tables], -2)


@operator("scfmlip::lattice_forces")
def _lattice_forces(own: Tensor, field: Tensor, factor: float) -> Tensor:
    if not runs_triton(own):
        return factor * forces(own, field).double()
    shifts = constant(shifted_monomials(rank_of_count(own.shape[-1])), torch.int64, own.device)
    return launch_forces(own.contiguous(), field.contiguous(), shifts, factor)


@_lattice_forces.register_fake
def _(own, field, factor):
    return own.new_empty((own.shape[0], 3), dtype=torch.float64)


vmap_by_loop(_lattice_forces, "lattice_forces")


def scaled_forces(own: Tensor, field: Tensor, factor: float) -> Tensor:
    """
    ``factor`` times `forces`, float64; in one launch on a GPU where it is not differentiated again.

    Args:
        own: ``[n_atoms, n_channels, n_monomials]`` of some rank.
        field: ``[n_atoms, n_channels, n_monomials]`` of one rank more.
        factor: A number.
    """
    if torch.is_grad_enabled():
        return factor * forces(own, field).double()
    return torch.ops.scfmlip.lattice_forces(own, field, factor)


def forces(own: Tensor, field: Tensor) -> Tensor:
    """
    ``sum_A own_A grad field_A`` of each atom.

    Args:
        own: ``[n_atoms, ..., n_monomials]`` of some rank.
        field: ``[n_atoms, ..., n_monomials]`` of one rank more.

    Returns:
        ``[n_atoms, 3]``.
    """
    slopes = gradients(field, rank_of_count(own.shape[-1]))
    n = math.prod(own.shape[1:])
    slopes = slopes.movedim(-2, 1).reshape(len(own), 3, n)
    return (slopes * own.reshape(len(own), 1, n)).sum(2)


def shifted_along(field: Tensor, directions: Tensor, rank: int) -> Tensor:
    """
    Derivative of a field along a direction: monomials up to ``rank``, from those of ``rank + 1``.

    Args:
        field: ``[n_atoms, ..., n_monomials]`` of ``rank + 1``.
        directions: ``[n_atoms, 3]``.
        rank: Rank of the result.
    """
    along = directions.to(field.dtype).view(-1, *(1,) * (field.ndim - 2), 3, 1)
    return (gradients(field, rank) * along).sum(-2)
