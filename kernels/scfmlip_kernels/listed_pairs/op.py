"""Operator registration: dispatch, fake tensors, derivatives, public function."""

import torch
from torch import Tensor

from ..checks import (
    check_floats,
    check_index,
    check_rank,
    check_shape,
    check_tensors,
    outside_autocast,
    readable,
)
from ..dispatch import loop_over_batch, runs_triton
from ..lattice import monomial_count, shifted_monomials
from ..lattice.directions import raised, shifted_along
from ..lattice.monomials import rank_of_count
from ..operators import operator
from .cpu import listed_pairs_chunked
from .kernel import kernel_holds, launch_listed_pairs
from .pairs import PairList


@operator("scfmlip::listed_pairs")
def _listed_pairs(
    targets: Tensor,
    sources: Tensor,
    moments: Tensor,
    widths: Tensor,
    target_ptr: Tensor,
    near: Tensor,
    source_ptr: Tensor,
    seen: Tensor,
    rank: int,
) -> Tensor:
    points = targets.contiguous(), sources.contiguous(), moments.contiguous()
    if runs_triton(targets) and kernel_holds(moments, rank):
        return launch_listed_pairs(*points, widths, target_ptr, near, rank)
    return listed_pairs_chunked(*points, widths, target_ptr, near, rank)


@_listed_pairs.register_fake
def _(targets, sources, moments, widths, target_ptr, near, source_ptr, seen, rank):
    return moments.new_empty((targets.shape[0], *moments.shape[1:3], monomial_count(rank)))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.rank = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    # sum_i g_iA (-1)^|B| T_(A+B)(r_i - s_j) c_jB is the same sum with targets and sources exchanged, so
    # the gradient in the moments is this operator on g, and a derivative in a position shifts monomials.
    targets, sources, moments, widths, *pairs = ctx.saved_tensors
    source_rank = rank_of_count(moments.shape[-1])
    wants_targets, wants_sources, wants_moments = ctx.needs_input_grad[:3]
    op = torch.ops.scfmlip.listed_pairs

    def shifted(own, field, rank):
        return torch.stack([(own * field[..., list(s)]).sum((1, 2, 3)) for s in shifted_monomials(rank)], -1)

    d_targets = d_sources = d_moments = None
    if wants_targets:
        field = op(targets, sources, moments, widths, *pairs, ctx.rank + 1)
        d_targets = shifted(grad, field, ctx.rank)
    if wants_sources or wants_moments:
        turned = pairs[2], pairs[3], pairs[0], pairs[1]
        rank = source_rank + 1 if wants_sources else source_rank
        adjoint = op(sources, targets, grad, widths, *turned, rank)
        d_moments = adjoint[..., : moments.shape[-1]]
        if wants_sources:
            d_sources = shifted(moments, adjoint, source_rank)
    return d_targets, d_sources, d_moments, None, None, None, None, None, None


def _jvp(args, tangents):
    targets, sources, moments, *options, rank = args
    d_targets, d_sources, d_moments = tangents[:3]

    def sums(moments, rank):
        return torch.ops.scfmlip.listed_pairs(targets, sources, moments, *options, rank)

    terms = []
    if d_targets is not None:
        terms.append(shifted_along(sums(moments, rank + 1), d_targets, rank))
    if d_sources is not None:
        terms.append(sums(raised(moments, d_sources), rank))
    if d_moments is not None:
        terms.append(sums(d_moments, rank))
    return sum(terms[1:], start=terms[0])


_listed_pairs.register_autograd(_backward, setup_context=_setup_context, jvp=_jvp)


@_listed_pairs.register_vmap
def _(info, in_dims, targets, sources, moments, *rest):
    if any(dim is not None for i, dim in enumerate(in_dims) if i != 2):
        return loop_over_batch(
            torch.ops.scfmlip.listed_pairs, info, in_dims, targets, sources, moments, *rest
        )
    # batched moments are further channels
    moments = moments.movedim(in_dims[2], 1)
    out = torch.ops.scfmlip.listed_pairs(targets, sources, moments.flatten(1, 2), *rest)
    return out.unflatten(1, moments.shape[1:3]), 1


def listed_pairs(
    targets: Tensor, sources: Tensor, moments: Tensor, widths: Tensor, pairs: PairList, rank: int
) -> Tensor:
    r"""
    Potential of Gaussian multipoles and its derivatives at points, summed over the pairs of a list.

    ``V_A(t_i) = sum_(j near i) sum_B (-1)^|B| d^(A+B) f(t_i - s_j) c_jB`` with
    ``f(r) = [erf(r / sqrt(2) S) - erf(r / sqrt(2) T)] / r``: what Gaussians narrower than others leave out,
    which ends where the wide ones do; two of widths s and t interact with ``S^2 = s^2 + t^2``. B = 0 is a
    charge, the degree-1 monomials a Cartesian dipole. A target may lie on a source: f is smooth.

    Args:
        targets: ``[n_targets, 3]``, float32 or float64.
        sources: ``[n_sources, 3]`` of the same dtype.
        moments: ``[n_sources, n_channels, n_widths, 1 | 4 | 10]`` of the same dtype: sources of every
            channel, for each pair of widths their own.
        widths: ``[n_widths, 2]`` float64 on the CPU, S and T of each; an infinite T subtracts nothing.
        pairs: From `sort_pairs`: on the device of the points.
        rank: Highest degree of the monomials A.

    Returns:
        ``[n_targets, n_channels, n_widths, n_monomials]`` of the same dtype. Differentiable any number of
        times in ``targets``, ``sources`` and ``moments``.

    Raises:
        TypeError: for another dtype, or two different ones.
        ValueError: for shapes that do not fit together, or widths in float32 so small that it cannot hold
            the derivatives.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import listed_pairs, sort_pairs
        >>> points = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
        >>> pairs = sort_pairs(torch.tensor([0, 1]), torch.tensor([1, 0]), n_targets=2, n_sources=2)
        >>> charges = torch.ones(2, 1, 1, 1, dtype=torch.float64)
        >>> widths = torch.tensor([[0.5, 1.5]], dtype=torch.float64)  # S and T
        >>> found = listed_pairs(points, points, charges, widths, pairs, rank=0)
        >>> [round(v, 4) for v in found.flatten().tolist()]
        [0.4595, 0.4595]
    """
    targets, sources, moments = outside_autocast(targets, sources, moments)
    _check(targets, sources, moments, widths, pairs, rank)
    return torch.ops.scfmlip.listed_pairs(targets, sources, moments, widths, *pairs, rank)


def _check(targets, sources, moments, widths, pairs, rank) -> None:
    op = "listed_pairs"
    lists = dict(zip(PairList._fields, pairs, strict=True))
    check_tensors(op, targets=targets, sources=sources, moments=moments, **lists)
    check_floats(op, targets=targets, sources=sources, moments=moments)
    check_shape(op, "targets", targets, ("n_targets", 3))
    check_shape(op, "sources", sources, ("n_sources", 3))
    if not isinstance(widths, Tensor) or widths.dtype != torch.float64 or widths.device.type != "cpu":
        raise ValueError(f"{op}: widths must be a float64 tensor on the CPU, got {widths!r}")
    check_shape(op, "widths", widths, ("n_widths", 2))
    check_shape(op, "moments", moments, (len(sources), "n_channels", len(widths), "n_monomials"))
    source_rank = rank_of_count(moments.shape[-1])
    check_rank(op, rank)
    check_shape(op, "target_ptr", pairs.target_ptr, (len(targets) + 1,))
    check_shape(op, "source_ptr", pairs.source_ptr, (len(sources) + 1,))
    check_shape(op, "seen", pairs.seen, (len(pairs.near),))
    check_index(op, "near", pairs.near, len(sources), "sources")
    check_index(op, "seen", pairs.seen, len(targets), "targets")
    for name in ("target_ptr", "source_ptr"):
        ptr = getattr(pairs, name)
        if ptr.dtype != torch.int64 or (readable(ptr) and int(ptr[-1]) != len(pairs.near)):
            raise ValueError(f"{op}: {name} must be int64 and end at {len(pairs.near)}, the number of pairs")
    if readable(widths) and not bool((widths > 0).all()):
        raise ValueError(f"{op}: widths must be above 0, got {widths.tolist()}")
    # the largest derivative that is asked for, and one more of a gradient
    highest = torch.finfo(moments.dtype).max
    if (
        readable(widths)
        and widths.numel()
        and float(widths.min()) ** (2 * (rank + source_rank) + 3) * highest < 1
    ):
        raise ValueError(
            f"{op}: {moments.dtype} cannot hold the derivatives of Gaussians {float(widths.min()):g} wide: "
            "use float64"
        )
