"""Plain PyTorch definition of the structure factor; the tests' source of truth."""

import math

import torch
from torch import Tensor

from ..lattice.monomials import monomials, rank_of_count


def structure_factor_reference(
    frac: Tensor, moments: Tensor, miller: Tensor, system: Tensor, atom_system: Tensor
) -> Tensor:
    """
    Sum over atoms of ``m(n) e^{-2 pi i n.u}``, all phases at once, in float64.

    Args:
        frac: ``[n_atoms, 3]`` fractional coordinates u.
        moments: ``[n_atoms, n_channels, n_monomials]``.
        miller: ``[n_points, 3]`` integers n.
        system: ``[n_points]`` system of each point.
        atom_system: ``[n_atoms]`` system of each atom.

    Returns:
        ``[n_points, n_channels, 2]`` real and imaginary parts.
    """
    n = miller.double()
    rank = rank_of_count(moments.shape[-1])
    powers = torch.stack([n[:, 0] ** a * n[:, 1] ** b * n[:, 2] ** c for a, b, c in monomials(rank)], -1)
    phases = torch.tensor([(-1j) ** (a + b + c) for a, b, c in monomials(rank)])
    amplitude = torch.einsum("km,m,icm->kic", powers + 0j, phases, moments.double() + 0j)
    wave = torch.exp(-2j * math.pi * (n @ frac.double().T))
    wave = wave * (system[:, None] == atom_system[None, :])
    return torch.view_as_real((wave[:, :, None] * amplitude).sum(1))
