"""Plain PyTorch definition of sums over listed pairs, by nested autograd; the tests' source of truth."""

import math

import torch
from torch import Tensor

from ..lattice.monomials import monomials, rank_of_count
from .pairs import PairList


def _interaction(d: Tensor, widths: Tensor) -> Tensor:
    """``[erf(d / sqrt(2) S) - erf(d / sqrt(2) T)] / d`` for one row ``S, T`` of widths."""
    inner, outer = widths.double().tolist()
    value = torch.erf(d / (math.sqrt(2) * inner)) / d
    return value if math.isinf(outer) else value - torch.erf(d / (math.sqrt(2) * outer)) / d


def listed_pairs_reference(
    targets: Tensor, sources: Tensor, moments: Tensor, widths: Tensor, pairs: PairList, rank: int
) -> Tensor:
    """
    Sum over listed sources of derivatives of a difference of Gaussian interactions, in float64.

    Every derivative is taken by autograd of the radial function, pair by pair. Arguments as in
    `listed_pairs`; no target may lie on a source it sees.
    """
    targets, sources, moments = targets.double(), sources.double(), moments.double()
    _, n_channels, n_widths, _ = moments.shape
    source_rank, ptr = rank_of_count(moments.shape[-1]), pairs.target_ptr.tolist()
    out = torch.zeros((len(targets), n_channels, n_widths, len(monomials(rank))), dtype=torch.float64)
    for i in range(len(targets)):
        for j in pairs.near[ptr[i] : ptr[i + 1]].tolist():
            r = (targets[i] - sources[j]).detach().requires_grad_()
            for w in range(n_widths):
                f = _interaction(r.norm(), widths[w])
                for s, source in enumerate(monomials(source_rank)):
                    for t, target in enumerate(monomials(rank)):
                        g = f
                        for axis in range(3):
                            for _ in range(source[axis] + target[axis]):
                                (full,) = torch.autograd.grad(g, r, create_graph=True)
                                g = full[axis]
                        out[i, :, w, t] += (-1) ** sum(source) * g.detach() * moments[j, :, w, s]
    return out
