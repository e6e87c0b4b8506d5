"""Operator registration: dispatch, fake tensors, derivatives, public function."""

import math

import torch
from torch import Tensor

from ..checks import outside_autocast
from ..dispatch import loop_over_batch, runs_triton
from ..lattice import LatticeGrid
from ..lattice.checks import check_lattice_arguments, check_tables
from ..lattice.directions import raised, scaled_forces
from ..lattice.monomials import rank_of_count
from ..operators import operator
from .cpu import structure_factor_cpu
from .kernel import launch_structure_factor


@operator("scfmlip::structure_factor")
def _structure_factor(
    frac: Tensor,
    moments: Tensor,
    points: Tensor,
    atom_ptr: Tensor,
    row_tiles: Tensor,
    point_tiles: Tensor,
    atom_tiles: Tensor,
    n_points: int,
) -> Tensor:
    frac, moments = frac.contiguous(), moments.contiguous()
    if runs_triton(moments):
        check_tables("structure_factor", n_points, row_tiles)
        return launch_structure_factor(frac, moments, row_tiles, point_tiles, n_points)
    return structure_factor_cpu(frac, moments, points, atom_ptr)


@_structure_factor.register_fake
def _(frac, moments, points, atom_ptr, row_tiles, point_tiles, atom_tiles, n_points):
    return frac.new_empty((n_points, moments.shape[1], 2))


def _setup_context(ctx, inputs, output):
    frac, moments, *tables = inputs
    ctx.save_for_backward(frac, moments, *tables[:-1])
    ctx.n_points = tables[-1]


def lattice_gradients(ctx, frac, moments, coefficients, tables):
    """
    Gradients of ``sum_k Re(conj(coefficients) S)`` in the fractional coordinates and the moments.

    S and its adjoint field V share this bilinear form, so the backward pass of both operators is one field of
    the next rank: the gradient in the moments is the field itself, and a derivative in u shifts its
    monomials.
    """
    rank = rank_of_count(moments.shape[-1])
    wants_frac = ctx.needs_input_grad[0]
    field = torch.ops.scfmlip.lattice_field(
        frac, coefficients, *tables, rank + 1 if wants_frac else rank, moments.dtype
    )
    d_moments = field[..., : moments.shape[-1]]
    d_frac = None
    if wants_frac:
        d_frac = scaled_forces(moments, field, 2 * math.pi)
    return d_frac, d_moments


def _backward(ctx, grad):
    frac, moments, *tables = ctx.saved_tensors
    d_frac, d_moments = lattice_gradients(ctx, frac, moments, grad, (*tables, ctx.n_points))
    return d_frac, d_moments, None, None, None, None, None, None


def _jvp(args, tangents):
    frac, moments, *tables = args
    d_frac, d_moments = tangents[:2]
    found = None
    if d_frac is not None:
        sources = raised(moments, (2 * math.pi) * d_frac)
        found = torch.ops.scfmlip.structure_factor(frac, sources, *tables)
    if d_moments is not None:
        more = torch.ops.scfmlip.structure_factor(frac, d_moments, *tables)
        found = more if found is None else found + more
    return found


_structure_factor.register_autograd(_backward, setup_context=_setup_context, jvp=_jvp)


@_structure_factor.register_vmap
def _(info, in_dims, frac, moments, *tables):
    if any(dim is not None for i, dim in enumerate(in_dims) if i != 1):
        return loop_over_batch(torch.ops.scfmlip.structure_factor, info, in_dims, frac, moments, *tables)
    # a batch of moments becomes additional channels
    moments = moments.movedim(in_dims[1], 1)
    sums = torch.ops.scfmlip.structure_factor(frac, moments.flatten(1, 2), *tables)
    return sums.unflatten(1, moments.shape[1:3]), 1


def structure_factor(frac: Tensor, moments: Tensor, grid: LatticeGrid) -> Tensor:
    r"""
    Structure factors of point multipoles at the points of a Miller grid.

    ``S(n) = sum_i m_i(n) exp(-2 pi i n.u_i)`` with ``m_i(n) = sum_A m_iA (-i)^|A| n^A`` over the
    monomials A of degree at most the rank: a charge q and a reduced dipole d give ``q - i n.d``.
    The sum runs over the atoms of the point's own system, accumulated in float64.

    Args:
        frac: Fractional coordinates, ``[n_atoms, 3]`` float64, in turns; any range.
        moments: Coefficients of the monomials in the order of `lattice.monomials`,
            ``[n_atoms, n_channels, 1 | 4 | 10 | 20]`` float32 or float64. Arithmetic on the
            (atom, point) pairs runs in this dtype.
        grid: Miller boxes of the batch.

    Returns:
        ``[n_points, n_channels, 2]`` float64, real and imaginary parts. Points outside the sphere hold 0 or
        their structure factor; multiply by ``grid.weight``. Differentiable any number of times in
        ``frac`` and ``moments``; each derivative in ``frac`` raises the rank by one.

    Raises:
        TypeError: for another dtype.
        ValueError: for shapes that do not match, or tensors on different devices.

    The structure factor of Ewald sums, e.g. Essmann et al., J. Chem. Phys. 103, 8577 (1995), eq. 2.10.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import build_lattice_grid, structure_factor
        >>> cell = 4.0 * torch.eye(3, dtype=torch.float64).unsqueeze(0)
        >>> grid = build_lattice_grid(cell, cutoff=1.6, atom_ptr=torch.tensor([0, 2]))
        >>> frac = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]], dtype=torch.float64)  # CsCl
        >>> charges = torch.tensor([1.0, -1.0], dtype=torch.float64).view(2, 1, 1)
        >>> s = structure_factor(frac, charges, grid)
        >>> s[grid.weight > 0, 0, 0].round(decimals=6)  # 0 at the origin, 2 where h + k + l is odd
        tensor([0., 2., 2., 2.], dtype=torch.float64)
    """
    (moments,) = outside_autocast(moments)
    check_lattice_arguments("structure_factor", frac, moments, "moments", grid)
    rank_of_count(moments.shape[-1])
    if len(moments) != len(frac):
        raise ValueError(f"structure_factor: {len(moments)} rows of moments for {len(frac)} of frac")
    return torch.ops.scfmlip.structure_factor(frac, moments, *grid.tables, grid.n_points)
