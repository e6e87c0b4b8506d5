"""
Derivatives along one direction per atom, as sums over the monomials of the next degree.

Three operators are linear in each of two arguments, and their derivatives are one another:
``forces = sum_A own_A grad field_A``, ``shifted_along = direction . grad field_A`` and ``raised``, its
adjoint. Each is one launch on a GPU, and sums in float64.
"""

import math

import torch
from torch import Tensor

from ..constants import constant
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from .device import launch_forces, launch_raised, launch_shifted
from .monomials import monomial_count, rank_of_count, shifted_monomials


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


def _plain_forces(own: Tensor, field: Tensor) -> Tensor:
    slopes = gradients(field, rank_of_count(own.shape[-1]))
    n = math.prod(own.shape[1:])
    slopes = slopes.movedim(-2, 1).reshape(len(own), 3, n)
    return (slopes * own.reshape(len(own), 1, n)).sum(2)


def _plain_shifted(field: Tensor, directions: Tensor) -> Tensor:
    along = directions.to(field.dtype).view(-1, *(1,) * (field.ndim - 2), 3, 1)
    return (gradients(field, rank_of_count(field.shape[-1]) - 1) * along).sum(-2)


def _plain_raised(moments: Tensor, directions: Tensor) -> Tensor:
    rank = rank_of_count(moments.shape[-1])
    out = moments.new_zeros((*moments.shape[:-1], monomial_count(rank + 1)))
    for axis, shift in enumerate(shifted_monomials(rank)):
        along = directions[:, axis].to(moments.dtype).view(-1, *(1,) * (moments.ndim - 1))
        out = out.index_add(-1, constant(shift, torch.int64, moments.device), moments * along)
    return out


def _shifts(rank: int, device: torch.device) -> Tensor:
    return constant(shifted_monomials(rank), torch.int64, device)


def _lowered(rank: int, device: torch.device) -> Tensor:
    """``[3, n]``: the monomial of ``rank`` that an axis leads from to each of the next rank, or -1."""
    rows = [[-1] * monomial_count(rank + 1) for _ in range(3)]
    for row, shift in zip(rows, shifted_monomials(rank), strict=True):
        for below, above in enumerate(shift):
            row[above] = below
    return constant(tuple(map(tuple, rows)), torch.int64, device)


@operator("scfmlip::lattice_forces")
def _lattice_forces(own: Tensor, field: Tensor, factor: float, double: bool = True) -> Tensor:
    if not runs_triton(own):
        found = _plain_forces(own, field)
        return factor * found.double() if double else factor * found
    shifts = _shifts(rank_of_count(own.shape[-1]), own.device)
    return launch_forces(own, field, shifts, factor, torch.float64 if double else own.dtype)


@_lattice_forces.register_fake
def _(own, field, factor, double=True):
    return own.new_empty((own.shape[0], 3), dtype=torch.float64 if double else own.dtype)


@operator("scfmlip::shifted_along")
def _shifted_along(field: Tensor, directions: Tensor, factor: float) -> Tensor:
    if not runs_triton(field):
        return factor * _plain_shifted(field, directions)
    shifts = _shifts(rank_of_count(field.shape[-1]) - 1, field.device)
    return launch_shifted(field, directions, shifts, factor)


@_shifted_along.register_fake
def _(field, directions, factor):
    rank = rank_of_count(field.shape[-1])
    return field.new_empty((*field.shape[:-1], monomial_count(rank - 1)))


@operator("scfmlip::raised")
def _raised(moments: Tensor, directions: Tensor, factor: float) -> Tensor:
    if not runs_triton(moments):
        return factor * _plain_raised(moments, directions)
    return launch_raised(
        moments, directions, _lowered(rank_of_count(moments.shape[-1]), moments.device), factor
    )


@_raised.register_fake
def _(moments, directions, factor):
    rank = rank_of_count(moments.shape[-1])
    return moments.new_empty((*moments.shape[:-1], monomial_count(rank + 1)))


def _setup_context(ctx, inputs, output):
    first, second, ctx.factor, *rest = inputs
    ctx.n_more = 1 + len(rest)
    ctx.save_for_backward(first, second)


def _forces_backward(ctx, grad):
    own, field = ctx.saved_tensors
    d_own = d_field = None
    if ctx.needs_input_grad[0]:
        d_own = torch.ops.scfmlip.shifted_along(field, grad, ctx.factor).to(own.dtype)
    if ctx.needs_input_grad[1]:
        d_field = torch.ops.scfmlip.raised(own, grad, ctx.factor).to(field.dtype)
    return d_own, d_field, *(None,) * ctx.n_more


def _as_directions(own: Tensor, field: Tensor, factor: float, directions: Tensor) -> Tensor:
    """A gradient in directions, of their dtype."""
    double = directions.dtype == torch.float64
    return torch.ops.scfmlip.lattice_forces(own, field, factor, double).to(directions.dtype)


def _shifted_backward(ctx, grad):
    field, directions = ctx.saved_tensors
    d_field = d_directions = None
    if ctx.needs_input_grad[0]:
        d_field = torch.ops.scfmlip.raised(grad, directions, ctx.factor)
    if ctx.needs_input_grad[1]:
        d_directions = _as_directions(grad, field, ctx.factor, directions)
    return d_field, d_directions, None


def _raised_backward(ctx, grad):
    moments, directions = ctx.saved_tensors
    d_moments = d_directions = None
    if ctx.needs_input_grad[0]:
        d_moments = torch.ops.scfmlip.shifted_along(grad, directions, ctx.factor)
    if ctx.needs_input_grad[1]:
        d_directions = _as_directions(moments, grad, ctx.factor, directions)
    return d_moments, d_directions, None


_lattice_forces.register_autograd(_forces_backward, setup_context=_setup_context)
_shifted_along.register_autograd(_shifted_backward, setup_context=_setup_context)
_raised.register_autograd(_raised_backward, setup_context=_setup_context)
vmap_by_loop(_lattice_forces, "lattice_forces")
vmap_by_loop(_shifted_along, "shifted_along")
vmap_by_loop(_raised, "raised")


def raised(moments: Tensor, directions: Tensor, factor: float = 1.0) -> Tensor:
    """
    Moments of a source differentiated along its direction: each monomial times the index along it.

    Args:
        moments: ``[n_atoms, ..., n_monomials]`` of any rank.
        directions: ``[n_atoms, 3]``.
        factor: A number that multiplies the result.

    Returns:
        ``[n_atoms, ..., n_monomials]`` of the next rank.
    """
    return torch.ops.scfmlip.raised(moments, directions, factor)


def scaled_forces(own: Tensor, field: Tensor, factor: float) -> Tensor:
    """
    ``factor`` times `forces`, float64.

    Args:
        own: ``[n_atoms, ..., n_monomials]`` of some rank.
        field: ``[n_atoms, ..., n_monomials]`` of one rank more.
        factor: A number.
    """
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
    return torch.ops.scfmlip.lattice_forces(own, field, 1.0, False)


def shifted_along(field: Tensor, directions: Tensor, rank: int) -> Tensor:
    """
    Derivative of a field along a direction: monomials up to ``rank``, from those of ``rank + 1``.

    Args:
        field: ``[n_atoms, ..., n_monomials]`` of ``rank + 1``.
        directions: ``[n_atoms, 3]``.
        rank: Rank of the result.
    """
    assert field.shape[-1] == monomial_count(rank + 1)
    return torch.ops.scfmlip.shifted_along(field, directions, 1.0)
