"""Operator registration: dispatch, fake tensors, derivatives, public function."""

import math

import torch
from torch import Tensor

from ..checks import FLOATS, check_rank
from ..dispatch import loop_over_batch, runs_triton
from ..lattice import LatticeGrid, monomial_count
from ..lattice.checks import check_lattice_arguments, check_tables
from ..lattice.directions import shifted_along
from ..operators import operator
from ..structure_factor.op import lattice_gradients
from .cpu import lattice_field_cpu
from .kernel import launch_lattice_field


@operator("scfmlip::lattice_field")
def _lattice_field(
    frac: Tensor,
    coefficients: Tensor,
    points: Tensor,
    atom_ptr: Tensor,
    row_tiles: Tensor,
    point_tiles: Tensor,
    atom_tiles: Tensor,
    n_points: int,
    rank: int,
    dtype: torch.dtype,
) -> Tensor:
    frac, coefficients = frac.contiguous(), coefficients.contiguous()
    if runs_triton(coefficients):
        check_tables("lattice_field", n_points, row_tiles)
        return launch_lattice_field(frac, coefficients, row_tiles, atom_tiles, rank, dtype)
    return lattice_field_cpu(frac, coefficients, points, atom_ptr, rank, dtype)


@_lattice_field.register_fake
def _(
    frac,
    coefficients,
    points,
    atom_ptr,
    row_tiles,
    point_tiles,
    atom_tiles,
    n_points,
    rank,
    dtype,
):
    shape = (frac.shape[0], coefficients.shape[1], monomial_count(rank))
    return frac.new_empty(shape, dtype=dtype)


def _setup_context(ctx, inputs, output):
    frac, coefficients, *rest = inputs
    ctx.save_for_backward(frac, coefficients, *rest[:5])
    ctx.n_points = rest[5]


def _backward(ctx, grad):
    frac, coefficients, *tables = ctx.saved_tensors
    tables = (*tables, ctx.n_points)
    d_frac = d_coefficients = None
    if ctx.needs_input_grad[0]:
        d_frac, _ = lattice_gradients(ctx, frac, grad, coefficients, tables)
    if ctx.needs_input_grad[1]:
        d_coefficients = torch.ops.scfmlip.structure_factor(frac, grad, *tables)
    return d_frac, d_coefficients, *(None,) * 8


def _jvp(args, tangents):
    frac, coefficients, *tables, rank, dtype = args
    d_frac, d_coefficients = tangents[:2]
    found = None
    if d_frac is not None:
        field = torch.ops.scfmlip.lattice_field(frac, coefficients, *tables, rank + 1, dtype)
        found = shifted_along(field, (2 * math.pi) * d_frac, rank)
    if d_coefficients is not None:
        more = torch.ops.scfmlip.lattice_field(frac, d_coefficients, *tables, rank, dtype)
        found = more if found is None else found + more
    return found


_lattice_field.register_autograd(_backward, setup_context=_setup_context, jvp=_jvp)


@_lattice_field.register_vmap
def _(info, in_dims, frac, coefficients, *rest):
    if any(dim is not None for i, dim in enumerate(in_dims) if i != 1):
        return loop_over_batch(torch.ops.scfmlip.lattice_field, info, in_dims, frac, coefficients, *rest)
    # a batch of coefficients becomes additional channels
    coefficients = coefficients.movedim(in_dims[1], 1)
    field = torch.ops.scfmlip.lattice_field(frac, coefficients.flatten(1, 2), *rest)
    return field.unflatten(1, coefficients.shape[1:3]), 1


def lattice_field(
    frac: Tensor, coefficients: Tensor, grid: LatticeGrid, rank: int, dtype: torch.dtype
) -> Tensor:
    r"""
    A Fourier series and its derivatives at the atoms: the adjoint of `structure_factor`.

    ``V_A(u_i) = Re sum_n P(n) (i n)^A exp(2 pi i n.u_i)`` for the monomials A of degree at most
    ``rank``. The sum runs over all points of the atom's own system. Rank 0 is the potential, rank 1 adds
    ``(1 / 2 pi) dV/du``.

    Args:
        frac: Fractional coordinates, ``[n_atoms, 3]`` float64, in turns; any range.
        coefficients: ``[n_points, n_channels, 2]`` float64, real and imaginary part of P; 0 where the
            grid's weight is 0.
        grid: Miller boxes of the batch.
        rank: Highest degree of the monomials.
        dtype: float32 or float64, the dtype in which (atom, point) pairs are summed.

    Returns:
        ``[n_atoms, n_channels, n_monomials]`` of ``dtype``. Differentiable any number of times in
        ``frac`` and ``coefficients``; each derivative in ``frac`` raises the rank by one.

    Raises:
        TypeError: for another dtype.
        ValueError: for shapes that do not match, or tensors on different devices.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import build_lattice_grid, lattice_field
        >>> cell = 4.0 * torch.eye(3, dtype=torch.float64).unsqueeze(0)
        >>> grid = build_lattice_grid(cell, cutoff=1.6, atom_ptr=torch.tensor([0, 2]))
        >>> coefficients = torch.zeros(grid.n_points, 1, 2, dtype=torch.float64)
        >>> coefficients[(grid.miller == torch.tensor([1, 0, 0])).all(1), 0, 0] = 1.0  # cos(2 pi u_x)
        >>> frac = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]], dtype=torch.float64)
        >>> lattice_field(frac, coefficients, grid, rank=0, dtype=torch.float64).flatten().round(decimals=6)
        tensor([ 1., -1.], dtype=torch.float64)
    """
    check_lattice_arguments("lattice_field", frac, coefficients, "coefficients", grid)
    if dtype not in FLOATS:
        raise TypeError(f"lattice_field: dtype must be float32 or float64, got {dtype}")
    check_rank("lattice_field", rank)
    if (
        coefficients.dtype != torch.float64
        or coefficients.shape[0] != grid.n_points
        or coefficients.shape[2] != 2
    ):
        raise ValueError(
            f"lattice_field: coefficients must be float64 [{grid.n_points}, n_channels, 2], got "
            f"{coefficients.dtype} {list(coefficients.shape)}"
        )
    return torch.ops.scfmlip.lattice_field(frac, coefficients, *grid.tables, grid.n_points, rank, dtype)
