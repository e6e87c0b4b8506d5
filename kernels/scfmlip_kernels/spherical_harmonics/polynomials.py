"""
Real spherical harmonics as polynomials of a unit vector, in e3nn's order and axes.

With (X, Y, Z) = (z, x, y), the axes of the textbooks, ``Y_lm = c_lm q_lm(Z) A_m(X, Y)`` for m >= 0 and with
``B_m`` for -m, where ``A_m + i B_m = (X + i Y)^m``, ``q_lm = d^m P_l / dZ^m`` of the Legendre polynomial and
``c_lm^2 = (2 l + 1) (2 - [m = 0]) (l - m)! / (l + m)!``. Their mean square over the sphere is 1.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial import legendre, polynomial
from torch import Tensor


@lru_cache(maxsize=256)
def legendre_derivative(l: int, m: int) -> tuple[float, ...]:
    """Coefficients of ``d^m P_l / dZ^m``, lowest power first; empty if it is 0."""
    if m > l:
        return ()
    found = np.atleast_1d(polynomial.polyder(legendre.leg2poly([0] * l + [1]), m))
    # exact: a Legendre polynomial's coefficients are integers over a power of two
    return tuple(float(c) for c in np.round(found * 2.0**l) / 2.0**l)


def scale(l: int, m: int) -> float:
    """c_lm for m >= 0."""
    return math.sqrt((2 * l + 1) * (2 - (m == 0)) * math.factorial(l - m) / math.factorial(l + m))


def columns(l_max: int) -> list[tuple[int, int]]:
    """(l, m) of each column."""
    return [(l, m) for l in range(l_max + 1) for m in range(-l, l + 1)]


def _powers(x: Tensor, y: Tensor, l_max: int) -> list[tuple[Tensor, Tensor]]:
    found = [(torch.ones_like(x), torch.zeros_like(x))]
    for _ in range(l_max):
        a, b = found[-1]
        found.append((x * a - y * b, x * b + y * a))
    return found


def _polynomial(coefficients: tuple[float, ...], z: Tensor) -> Tensor:
    total = torch.zeros_like(z)
    for c in reversed(coefficients):
        total = total * z + c
    return total


def _unit(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors in the textbooks' axes, inverse lengths, and which vectors are not 0."""
    squares = (vectors * vectors).sum(1)
    there = squares > 0
    inverse = torch.where(there, squares, torch.ones_like(squares)).rsqrt()
    return (vectors * inverse[:, None]).roll(1, 1), inverse, there


def harmonics_plain(vectors: Tensor, l_max: int) -> Tensor:
    """``[n, (l_max + 1)^2]`` in PyTorch; arguments as in `spherical_harmonics`."""
    unit, _, there = _unit(vectors)
    x, y, z = unit.unbind(1)
    powers, found = _powers(x, y, l_max), []
    for l, m in columns(l_max):
        part = powers[abs(m)][m < 0] * scale(l, abs(m))
        value = part * _polynomial(legendre_derivative(l, abs(m)), z)
        found.append(value if l == 0 else torch.where(there, value, torch.zeros_like(value)))
    return torch.stack(found, 1)


def _slopes(unit: Tensor, l_max: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Derivatives of each column's polynomial in X, Y and Z."""
    x, y, z = unit.unbind(1)
    powers, nothing, found = _powers(x, y, l_max), torch.zeros_like(x), []
    for l, m in columns(l_max):
        n, weight = abs(m), scale(l, abs(m))
        along_x, along_y = nothing, nothing
        if n:
            rest = n * weight * _polynomial(legendre_derivative(l, n), z)
            a, b = powers[n - 1]
            along_x, along_y = (rest * b, rest * a) if m < 0 else (rest * a, -rest * b)
        along_z = weight * powers[n][m < 0] * _polynomial(legendre_derivative(l, n + 1), z)
        found.append((along_x, along_y, along_z))
    return found


def gradient_plain(vectors: Tensor, grad: Tensor, l_max: int) -> Tensor:
    """``[n, 3]`` derivative of ``sum grad Y`` in the vectors; 0 where they are 0."""
    unit, inverse, there = _unit(vectors)
    slopes = [torch.stack(three, 1) for three in _slopes(unit, l_max)]
    slope = (torch.stack(slopes, 1) * grad[:, :, None]).sum(1)
    across = (slope - unit * (slope * unit).sum(1, keepdim=True)) * inverse[:, None]
    return torch.where(there[:, None], across.roll(-1, 1), torch.zeros_like(vectors))


def tangent_plain(vectors: Tensor, along: Tensor, l_max: int) -> Tensor:
    """``[n, (l_max + 1)^2]`` derivative of the harmonics along directions ``[n, 3]``."""
    unit, inverse, there = _unit(vectors)
    turned = along.roll(1, 1)
    across = (turned - unit * (turned * unit).sum(1, keepdim=True)) * inverse[:, None]
    across = torch.where(there[:, None], across, torch.zeros_like(across))
    return torch.stack([(torch.stack(three, 1) * across).sum(1) for three in _slopes(unit, l_max)], 1)
