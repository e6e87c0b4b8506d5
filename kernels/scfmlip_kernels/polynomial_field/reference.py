"""Plain PyTorch definition by automatic differentiation; the tests' source of truth."""

import torch
from torch import Tensor

from ..lattice.monomials import monomials


def polynomial_field_reference(r: Tensor, c: Tensor, rank: int) -> Tensor:
    """Derivatives of each row's polynomial, one after another, ``[n_atoms, n_channels, n_monomials]``."""
    columns = []
    for a, b, g in monomials(rank):
        total = torch.zeros_like(c[..., 0])
        for place, powers in enumerate(monomials(2)):
            factor = 0.5 if max(powers) == 2 else 1.0
            term = torch.ones_like(r[:, 0])
            for axis, (power, order) in enumerate(zip(powers, (a, b, g), strict=True)):
                for step in range(order):
                    factor *= max(power - step, 0)
                term = term * r[:, axis] ** max(power - order, 0)
            total = total + factor * c[..., place] * term[:, None]
        columns.append(total)
    return torch.stack(columns, -1)


def polynomial_moments_reference(r: Tensor, p: Tensor) -> Tensor:
    """The adjoint of `polynomial_field_reference`, column by column."""
    rank = {1: 0, 4: 1, 10: 2}[p.shape[-1]]
    columns = []
    for place in range(10):
        unit = torch.zeros((*p.shape[:2], 10), dtype=p.dtype)
        unit[..., place] = 1.0
        columns.append((polynomial_field_reference(r, unit, rank) * p).sum(-1))
    return torch.stack(columns, -1)
