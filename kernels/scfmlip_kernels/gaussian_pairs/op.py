"""Operator registration: dispatch, fake tensors, derivatives, public function."""

import torch
from torch import Tensor

from ..dispatch import loop_over_batch, runs_triton
from ..lattice import monomial_count, shifted_monomials
from ..lattice.monomials import rank_of_count
from .cpu import gaussian_pairs_chunked
from .kernel import kernel_holds, launch_gaussian_pairs


@torch.library.custom_op("scfmlip::gaussian_pairs", mutates_args=())
def _gaussian_pairs(
    positions: Tensor,
    moments: Tensor,
    widths: Tensor,
    atom_ptr: Tensor,
    rank: int,
    softening: float,
    group_size: int,
) -> Tensor:
    arguments = (widths, atom_ptr, rank, softening, group_size)
    positions, moments = positions.contiguous(), moments.contiguous()
    if runs_triton(positions) and kernel_holds(moments, rank):
        return launch_gaussian_pairs(positions, moments, *arguments)
    return gaussian_pairs_chunked(positions, moments, *arguments)


@_gaussian_pairs.register_fake
def _(positions, moments, widths, atom_ptr, rank, softening, group_size):
    return moments.new_empty((*moments.shape[:3], monomial_count(rank)))


def _setup_context(ctx, inputs, output):
    positions, moments, widths, atom_ptr, ctx.rank, ctx.softening, ctx.group_size = inputs
    ctx.save_for_backward(positions, moments, widths, atom_ptr)


def _backward(ctx, grad):
    # sum_i g_iA (-1)^|B| T_(A+B)(r_i - r_j) c_jB is the same sum with targets and sources exchanged, so
    # the gradient in the moments is this operator on g, and a derivative in a position shifts monomials.
    positions, moments, widths, atom_ptr = ctx.saved_tensors
    source_rank = rank_of_count(moments.shape[-1])
    wants_positions = ctx.needs_input_grad[0]

    def sums(sources, rank):
        return torch.ops.scfmlip.gaussian_pairs(
            positions, sources, widths, atom_ptr, rank, ctx.softening, ctx.group_size
        )

    def shifted(own, field, rank):
        return torch.stack([(own * field[..., list(s)]).sum((1, 2, 3)) for s in shifted_monomials(rank)], -1)

    adjoint = sums(grad, source_rank + 1 if wants_positions else source_rank)
    d_moments = adjoint[..., : moments.shape[-1]]
    d_positions = None
    if wants_positions:
        field = sums(moments, ctx.rank + 1)
        d_positions = shifted(grad, field, ctx.rank) + shifted(moments, adjoint, source_rank)
        d_positions = d_positions.to(positions.dtype)
    return d_positions, d_moments, None, None, None, None, None


_gaussian_pairs.register_autograd(_backward, setup_context=_setup_context)


@_gaussian_pairs.register_vmap
def _(info, in_dims, positions, moments, *rest):
    if any(dim is not None for i, dim in enumerate(in_dims) if i != 1):
        return loop_over_batch(torch.ops.scfmlip.gaussian_pairs, info, in_dims, positions, moments, *rest)
    # batched moments are further channels
    moments = moments.movedim(in_dims[1], 1)
    out = torch.ops.scfmlip.gaussian_pairs(positions, moments.flatten(1, 2), *rest)
    return out.unflatten(1, moments.shape[1:3]), 1


def gaussian_pairs(
    positions: Tensor,
    moments: Tensor,
    widths: Tensor,
    atom_ptr: Tensor,
    rank: int,
    softening: float = 0.0,
    group_size: int = 1,
) -> Tensor:
    r"""
    Potential of Gaussian multipoles and its derivatives, summed over all pairs of each system.

    ``V_A(r_i) = sum_j sum_B (-1)^|B| d^(A+B) f(r_i - r_j) c_jB`` over the other atoms j of i's system,
    with ``f(r) = erf(r / sqrt(2) S) / (r + softening)``: two Gaussians of widths s and t interact with
    ``S^2 = s^2 + t^2``. B = 0 is a charge, the degree-1 monomials a Cartesian dipole.

    Args:
        positions: ``[n_atoms, 3]``, float32 or float64.
        moments: ``[n_atoms, n_channels, n_widths, 1 | 4 | 10]`` of the same dtype: sources of every
            channel, for each width their own.
        widths: ``[n_widths]`` float64 on the CPU, the S of each.
        atom_ptr: ``[n_systems + 1]`` int64 on the CPU, first atom of each system.
        rank: Highest degree of the monomials A.
        softening: Added to the distance in the denominator; derivatives up to order 3 in all if not 0.
        group_size: Atoms ``n * group_size .. (n + 1) * group_size - 1`` do not see one another.

    Returns:
        ``[n_atoms, n_channels, n_widths, n_monomials]`` of the same dtype. Without softening
        differentiable any number of times in ``positions`` and ``moments``.

    Raises:
        TypeError: for another dtype, or two different ones.
        ValueError: for shapes that do not fit together.
        NotImplementedError: for derivatives a softened sum does not have.
    """
    if positions.dtype not in (torch.float32, torch.float64) or moments.dtype != positions.dtype:
        raise TypeError(
            "gaussian_pairs: positions and moments must share float32 or float64, got "
            f"{positions.dtype} and {moments.dtype}"
        )
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise ValueError(f"gaussian_pairs: positions must be [n_atoms, 3], got {list(positions.shape)}")
    if not torch.compiler.is_compiling() and len(positions) != int(atom_ptr[-1]):
        raise ValueError(
            f"gaussian_pairs: {len(positions)} positions, but atom_ptr ends at {int(atom_ptr[-1])}"
        )
    if moments.ndim != 4 or moments.shape[0] != len(positions) or moments.shape[2] != len(widths):
        raise ValueError(
            f"gaussian_pairs: moments must be [{len(positions)}, n_channels, {len(widths)}, "
            f"n_monomials], got {list(moments.shape)}"
        )
    rank_of_count(moments.shape[-1])
    return _gaussian_pairs(positions, moments, widths, atom_ptr, rank, softening, group_size)
