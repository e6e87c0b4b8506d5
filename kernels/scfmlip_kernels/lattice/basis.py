"""
Tables of the CPU path: real Fourier functions of one lattice axis and their derivatives.

A lattice sum over a box is a matrix product between row functions (multipoles times e^{i h xi}) and
column functions (products of real functions of the second and third axis). Real functions halve the
arithmetic of complex exponentials, because a pair +k, -k shares one cosine and one sine; phases are
reduced in float64, so float32 tables are exact to rounding however large the cell is.
"""

import math

import torch
from torch import Tensor

# Column tables of a chunk of atoms stay about this large, so that they live in the cache.
_CHUNK_BYTES = 6 << 20


def chunk_atoms(n_columns: int, dtype: torch.dtype) -> int:
    """Atoms per chunk such that the column table of a box fits in the cache."""
    return max(64, _CHUNK_BYTES // (n_columns * dtype.itemsize) // 16 * 16)


def harmonics(turns: Tensor, n_max: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``2 pi j turns`` for j = 0 .. n_max: two ``[n_max + 1, n_atoms]``."""
    index = torch.arange(n_max + 1, dtype=torch.float64)
    phase = index[:, None] * turns
    phase = (phase - phase.round()).to(dtype).mul_(2 * math.pi)
    return phase.cos(), phase.sin_()


def axis_functions(turns: Tensor, n_max: int, dtype: torch.dtype) -> Tensor:
    """
    Real Fourier functions of one axis.

    Args:
        turns: ``[n_atoms]`` float64 fractional coordinates.
        n_max: Largest index.
        dtype: Of the result.

    Returns:
        ``[2 n_max + 1, n_atoms]``; rows are 1, cos 1, ..., cos n_max, sin 1, ..., sin n_max.
    """
    cos, sin = harmonics(turns, n_max, dtype)
    return torch.cat((cos, sin[1:]))


def products(y: Tensor, z: Tensor) -> Tensor:
    """
    All products of the second and third axis' functions.

    Args:
        y: ``[2 n_k + 1, n_atoms]``.
        z: ``[2 n_l + 1, n_atoms]``.

    Returns:
        ``[(2 n_k + 1) * (2 n_l + 1), n_atoms]``, the columns of a box.
    """
    return (y[:, None, :] * z[None, :, :]).flatten(0, 1)


def derivative(sums: Tensor, dim: int, order: int) -> Tensor:
    """
    Sums against the ``order``-th derivatives of an axis' functions, from sums against the functions.

    Differentiating swaps each cosine with its sine and multiplies by the index, so no further table
    is needed. Taken as a map on coefficients instead of sums it is its own adjoint up to sign:
    ``derivative(c, dim, order) * (-1)**order`` are the coefficients of the differentiated series.
    """
    if order == 0:
        return sums
    n = sums.shape[dim] // 2
    index = torch.arange(1, n + 1, dtype=sums.dtype)
    shape = [1] * sums.ndim
    shape[dim] = n
    zero, cos, sin = sums.split((1, n, n), dim)
    zero, power = torch.zeros_like(zero), (index**order).view(shape)
    if order % 4 == 1:
        cos, sin = -sin, cos
    elif order % 4 == 2:
        cos, sin = -cos, -sin
    elif order % 4 == 3:
        cos, sin = sin, -cos
    return torch.cat((zero, cos * power, sin * power), dim)


def to_exponentials(raw: Tensor, dim: int) -> Tensor:
    """Sums against ``1, cos, sin`` turned into sums against ``e^{-i k phase}``, k = -n .. n."""
    n = raw.shape[dim] // 2
    zero, cos, sin = raw.split((1, n, n), dim)
    return torch.cat(((cos + 1j * sin).flip(dim), zero, cos - 1j * sin), dim)


def from_exponentials(coefficients: Tensor, dim: int) -> Tensor:
    """Coefficients of ``e^{+i k phase}``, k = -n .. n, turned into those of ``1, cos, sin``."""
    n = coefficients.shape[dim] // 2
    minus, zero, plus = coefficients.split((n, 1, n), dim)
    minus = minus.flip(dim)
    return torch.cat((zero, plus + minus, 1j * (plus - minus)), dim)
