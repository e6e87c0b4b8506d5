"""Plain PyTorch definition of the lattice field; the tests' source of truth."""

import math

import torch
from torch import Tensor

from ..lattice.monomials import monomials


def lattice_field_reference(
    frac: Tensor,
    coefficients: Tensor,
    miller: Tensor,
    system: Tensor,
    atom_system: Tensor,
    rank: int,
) -> Tensor:
    """
    Real part of the sum over points of ``(i n)^A P e^{2 pi i n.u}``, all phases at once, in float64.

    Args:
        frac: ``[n_atoms, 3]`` fractional coordinates u.
        coefficients: ``[n_points, n_channels, 2]`` real and imaginary parts of P.
        miller: ``[n_points, 3]`` integers n.
        system: ``[n_points]`` system of each point.
        atom_system: ``[n_atoms]`` system of each atom.
        rank: Highest degree of the monomials n^A.

    Returns:
        ``[n_atoms, n_channels, n_monomials]``.
    """
    n = miller.double()
    powers = torch.stack(
        [1j ** (a + b + c) * n[:, 0] ** a * n[:, 1] ** b * n[:, 2] ** c for a, b, c in monomials(rank)],
        -1,
    )
    wave = torch.exp(2j * math.pi * (frac.double() @ n.T))
    wave = wave * (atom_system[:, None] == system[None, :])
    p = torch.view_as_complex(coefficients.double().contiguous())
    return torch.einsum("ik,kc,km->icm", wave, p, powers).real
