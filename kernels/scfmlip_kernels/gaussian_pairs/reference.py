"""Plain PyTorch definition of the pair sums, by nested autograd; the tests' source of truth."""

import math

import torch
from torch import Tensor

from ..lattice.monomials import monomials, rank_of_count


def gaussian_pairs_reference(
    positions: Tensor,
    moments: Tensor,
    widths: Tensor,
    atom_system: Tensor,
    rank: int,
    softening: float = 0.0,
    group_size: int = 1,
) -> Tensor:
    """
    Sum over other atoms of derivatives of ``erf(r / sqrt(2) S) / (r + softening)``, in float64.

    Autograd differentiates the radial function pair by pair. Arguments as in `gaussian_pairs`, with
    ``atom_system [n_atoms]`` in place of the pointers.
    """
    positions, moments = positions.double(), moments.double()
    n_atoms, n_channels, n_widths, _ = moments.shape
    source_rank = rank_of_count(moments.shape[-1])
    out = torch.zeros((n_atoms, n_channels, n_widths, len(monomials(rank))), dtype=torch.float64)
    for i in range(n_atoms):
        for j in range(n_atoms):
            if i // group_size == j // group_size or atom_system[i] != atom_system[j]:
                continue
            r = (positions[i] - positions[j]).detach().requires_grad_()
            for w in range(n_widths):
                d = r.norm()
                f = torch.erf(d / (math.sqrt(2) * widths[w].double())) / (d + softening)
                for s, source in enumerate(monomials(source_rank)):
                    for t, target in enumerate(monomials(rank)):
                        g = f
                        for axis in range(3):
                            for _ in range(source[axis] + target[axis]):
                                (full,) = torch.autograd.grad(g, r, create_graph=True)
                                g = full[axis]
                        out[i, :, w, t] += (-1) ** sum(source) * g.detach() * moments[j, :, w, s]
    return out
