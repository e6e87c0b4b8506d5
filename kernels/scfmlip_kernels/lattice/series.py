"""
Powers of Miller indices in Fourier series whose terms are a cosine and a sine.

A pair (c, s) stands for c + i s. Differentiating in a phase multiplies by the index and by i (for sums) or -i
(for coefficients). So sums against differentiated functions, and coefficients of differentiated series, need
no further tables.
"""

from math import comb

import torch
from torch import Tensor


def plane_sets(rank: int) -> tuple[tuple[int, int], ...]:
    """Exponents (b, g) of the second and third axis with b + g <= rank, lower degrees first."""
    return tuple((degree - g, g) for degree in range(rank + 1) for g in range(degree + 1))


def _of_degree(degree: int, variables: int) -> slice:
    """Slice of the monomials of one degree in graded order."""
    return slice(comb(degree + variables - 1, variables), comb(degree + variables, variables))


def combine(sums: Tensor, powers: Tensor, rank: int, variables: int) -> Tensor:
    """
    Sum over monomials of ``(i n)^A`` times sums against the functions.

    Args:
        sums: ``[n_rows, n_monomials, n_channels, 2 n]``, pairs last; overwritten in place.
        powers: ``[n_monomials, 2 n]`` from `HalfSphere.powers`.
        rank: Highest degree.
        variables: 2 or 3, how many indices the monomials have.

    Returns:
        ``[n_rows, n_channels, n, 2]``.
    """
    parts: list[Tensor | None] = [sums[:, 0], None]
    for degree in range(1, rank + 1):
        mine = _of_degree(degree, variables)
        term = (sums[:, mine] * powers[mine, None]).sum(1)
        before = parts[degree % 2]
        parts[degree % 2] = term if before is None else before.add_(term)
    even, odd = parts
    assert even is not None
    even = even.unflatten(-1, (-1, 2))
    if odd is not None:
        odd = odd.unflatten(-1, (-1, 2))
        even[..., 0] -= odd[..., 1]
        even[..., 1] += odd[..., 0]
    return even


def spread(coefficients: Tensor, powers: Tensor, rank: int, variables: int) -> Tensor:
    """
    Coefficients of all derivatives of a series; the adjoint of `combine`.

    Args:
        coefficients: ``[n_rows, n_channels, n, 2]``.
        powers: ``[n_monomials, 2 n]`` from `HalfSphere.powers`.
        rank: Highest degree.
        variables: 2 or 3, how many indices the monomials have.

    Returns:
        ``[n_rows, n_monomials, n_channels, 2 n]``.
    """
    bases = [coefficients.flatten(2)]
    if rank > 0:
        turned = torch.stack((coefficients[..., 1], -coefficients[..., 0]), -1)
        bases.append(turned.flatten(2))
    n_rows, n_channels, n_functions = bases[0].shape
    out = coefficients.new_empty((n_rows, len(powers), n_channels, n_functions))
    for degree in range(rank + 1):
        mine = _of_degree(degree, variables)
        torch.mul(bases[degree % 2][:, None], powers[mine, None], out=out[:, mine])
    return out
