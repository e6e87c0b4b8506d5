"""Operator registration: dispatch, fake tensors, derivatives, public function."""

import math

import torch
from torch import Tensor

from ..checks import (
    check_floats,
    check_pointers,
    check_rank,
    check_shape,
    check_tensors,
    outside_autocast,
    readable,
)
from ..dispatch import loop_over_batch, runs_triton
from ..lattice import monomial_count
from ..lattice.directions import forces, raised, shifted_along
from ..lattice.monomials import rank_of_count
from ..operators import operator
from .cpu import gaussian_pairs_chunked
from .kernel import kernel_holds, launch_gaussian_pairs


@operator("scfmlip::gaussian_pairs")
def _gaussian_pairs(
    positions: Tensor,
    moments: Tensor,
    widths: Tensor,
    atom_ptr: Tensor,
    rank: int,
    softening: float,
    group_size: int,
    tiles: Tensor | None = None,
) -> Tensor:
    arguments = (widths, atom_ptr, rank, softening, group_size)
    positions = positions.contiguous()
    if runs_triton(positions) and kernel_holds(moments, rank, softening):
        return launch_gaussian_pairs(positions, moments, *arguments, tiles)
    return gaussian_pairs_chunked(positions, moments.contiguous(), *arguments)


@_gaussian_pairs.register_fake
def _(positions, moments, widths, atom_ptr, rank, softening, group_size, tiles=None):
    return moments.new_empty((*moments.shape[:3], monomial_count(rank)))


def _setup_context(ctx, inputs, output):
    # dispatchers leave out arguments that are their defaults
    positions, moments, widths, atom_ptr, ctx.rank, ctx.softening, ctx.group_size, *tiles = inputs
    ctx.n_rest = 5 + len(tiles)
    ctx.save_for_backward(positions, moments, widths, atom_ptr, tiles[0] if tiles else None)


def _backward(ctx, grad):
    # sum_i g_iA (-1)^|B| T_(A+B)(r_i - r_j) c_jB is the same sum with targets and sources exchanged. So
    # the gradient in the moments is this operator applied to g; a derivative in a position shifts monomials.
    positions, moments, widths, atom_ptr, tiles = ctx.saved_tensors
    source_rank = rank_of_count(moments.shape[-1])
    wants_positions = ctx.needs_input_grad[0]

    def sums(sources, rank):
        return torch.ops.scfmlip.gaussian_pairs(
            positions, sources, widths, atom_ptr, rank, ctx.softening, ctx.group_size, tiles
        )

    adjoint = sums(grad, source_rank + 1 if wants_positions else source_rank)
    d_moments = adjoint[..., : moments.shape[-1]]
    d_positions = None
    if wants_positions:
        field = sums(moments, ctx.rank + 1)
        d_positions = forces(grad, field) + forces(moments, adjoint)
        d_positions = d_positions.to(positions.dtype)
    return d_positions, d_moments, *(None,) * ctx.n_rest


def _jvp(args, tangents):
    positions, moments, widths, atom_ptr, rank, *options = args
    d_positions, d_moments = tangents[:2]

    def sums(sources, rank):
        return torch.ops.scfmlip.gaussian_pairs(positions, sources, widths, atom_ptr, rank, *options)

    terms = []
    if d_positions is not None:
        terms.append(shifted_along(sums(moments, rank + 1), d_positions, rank))
        terms.append(sums(raised(moments, d_positions), rank))
    if d_moments is not None:
        terms.append(sums(d_moments, rank))
    return sum(terms[1:], start=terms[0])


_gaussian_pairs.register_autograd(_backward, setup_context=_setup_context, jvp=_jvp)


@_gaussian_pairs.register_vmap
def _(info, in_dims, positions, moments, *rest):
    if any(dim is not None for i, dim in enumerate(in_dims) if i != 1):
        return loop_over_batch(torch.ops.scfmlip.gaussian_pairs, info, in_dims, positions, moments, *rest)
    # a batch of moments becomes additional channels
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
    tiles: Tensor | None = None,
) -> Tensor:
    r"""
    Potential of Gaussian multipoles and its derivatives, summed over all pairs of each system.

    ``V_A(r_i) = sum_j sum_B (-1)^|B| d^(A+B) f(r_i - r_j) c_jB`` over the other atoms j of i's system,
    with ``f(r) = erf(r / sqrt(2) S) / (r + softening)``: two Gaussians of widths s and t interact with
    ``S^2 = s^2 + t^2``. B = 0 is a charge, the degree-1 monomials a Cartesian dipole.

    Args:
        positions: ``[n_atoms, 3]``, float32 or float64.
        moments: ``[n_atoms, n_channels, n_widths, 1 | 4 | 10]`` of the same dtype: the sources of every
            channel and width.
        widths: ``[n_widths]`` float64 on the CPU, the S of each.
        atom_ptr: ``[n_systems + 1]`` int64 on the CPU, first atom of each system.
        rank: Highest degree of the monomials A.
        softening: Added to the distance in the denominator. If not 0, derivatives exist up to order 3 in
            total.
        group_size: Atoms ``n * group_size .. (n + 1) * group_size - 1`` do not interact with one another.
        tiles: ``[n_tiles, 3]`` int32 of `pair_tiles`, on the device of the positions. Without them a GPU's
            host waits the first time that it sees an ``atom_ptr``.

    Returns:
        ``[n_atoms, n_channels, n_widths, n_monomials]`` of the same dtype. Without softening it is
        differentiable any number of times in ``positions`` and ``moments``.

    Raises:
        TypeError: for another dtype, or two different ones.
        ValueError: for shapes that do not match.
        NotImplementedError: for derivatives that a softened sum does not have.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import gaussian_pairs
        >>> positions = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
        >>> charges = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)  # atoms, channels, widths, monomials
        >>> widths = torch.tensor([0.5], dtype=torch.float64)
        >>> gaussian_pairs(positions, charges, widths, torch.tensor([0, 2]), rank=0).flatten()  # -1/r and 1/r
        tensor([-0.2500,  0.2500])
    """
    positions, moments = outside_autocast(positions, moments)
    _check(positions, moments, widths, atom_ptr, rank, softening, group_size)
    if tiles is not None:
        check_tensors("gaussian_pairs", positions=positions, tiles=tiles)
        check_shape("gaussian_pairs", "tiles", tiles, ("n_tiles", 3))
        if tiles.dtype != torch.int32:
            raise TypeError(f"gaussian_pairs: tiles must be int32, of pair_tiles, got {tiles.dtype}")
    return torch.ops.scfmlip.gaussian_pairs(
        positions, moments, widths, atom_ptr, rank, softening, group_size, tiles
    )


def _check(positions, moments, widths, atom_ptr, rank, softening, group_size) -> None:
    op = "gaussian_pairs"
    check_tensors(op, positions=positions, moments=moments)
    check_floats(op, positions=positions, moments=moments)
    check_shape(op, "positions", positions, ("n_atoms", 3))
    if not isinstance(widths, Tensor) or widths.dtype != torch.float64 or widths.device.type != "cpu":
        raise ValueError(f"{op}: widths must be a float64 tensor on the CPU, got {_kind(widths)}")
    check_shape(op, "widths", widths, ("n_widths",))
    check_shape(op, "moments", moments, (len(positions), "n_channels", len(widths), "n_monomials"))
    rank_of_count(moments.shape[-1])
    check_rank(op, rank)
    check_pointers(op, "atom_ptr", atom_ptr, len(positions), "positions")
    if readable(widths) and not all(0 < width < math.inf for width in widths.tolist()):
        raise ValueError(f"{op}: widths must be above 0 and finite, got {widths.tolist()}")
    if not isinstance(softening, (int, float)) or not 0 <= softening < math.inf:
        raise ValueError(f"{op}: softening must be 0 or more and finite, got {softening!r}")
    if not isinstance(group_size, int) or group_size < 1:
        raise ValueError(f"{op}: group_size must be an integer of at least 1, got {group_size!r}")


def _kind(value: object) -> str:
    return f"{value.dtype} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
