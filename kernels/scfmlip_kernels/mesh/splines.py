"""
Cardinal B-splines on a mesh of unit spacing, and what a sum over them is in Fourier space.

``theta_p`` is the p-fold convolution of the unit box with itself, centred at 0: p - 1 times a piecewise
polynomial, p - 2 times differentiable, zero beyond p / 2. Schoenberg, Quart. Appl. Math. 4, 45 (1946).
"""

import math
from itertools import pairwise

import torch
from torch import Tensor


def spline_weights(offsets: Tensor, order: int, rank: int) -> Tensor:
    """
    The splines that are not 0 at points, and their derivatives.

    Args:
        offsets: ``[...]`` t in [0, 1): how far a point is from the mesh point below it where ``order`` is
            even.
        order: p, at least 2.
        rank: Highest derivative, less than ``order``.

    Returns:
        ``[..., rank + 1, order]``: the r-th derivative of ``theta_p(t + p / 2 - 1 - j)`` for j = 0 .. p - 1.
    """
    t = offsets
    pieces = [1 - t, t]
    lower = {1: [torch.ones_like(t)], 2: pieces}
    for n in range(3, order + 1):
        scale = 1 / (n - 1)
        inner = [
            ((t + (n - 1 - j)) * pieces[j - 1] + ((1 + j) - t) * pieces[j]) * scale for j in range(1, n - 1)
        ]
        pieces = [(1 - t) * pieces[0] * scale, *inner, t * pieces[-1] * scale]
        lower[n] = pieces
    found = []
    for r in range(rank + 1):
        values = lower[order - r]
        for _ in range(r):  # a derivative is a difference of splines of one order less
            steps = [a - b for a, b in pairwise(values)]
            values = [-values[0], *steps, values[-1]]
        found.append(torch.stack(values, -1))
    return torch.stack(found, -2)


def _lattice_sum(turns: Tensor, order: int) -> Tensor:
    """``sum_m sinc(turns + m)^order`` for an even order, exactly: the spline's samples, transformed."""
    samples = spline_weights(torch.zeros((), dtype=torch.float64), order, 0)[0]  # of theta at order/2 - 1 - j
    nodes = torch.arange(order, dtype=torch.float64) - (order // 2 - 1)
    return torch.cos(2 * math.pi * turns[:, None] * nodes) @ samples


def window(n: int, order: int) -> Tensor:
    """
    What sums over a mesh of n points are multiplied with to become sums over atoms, per axis.

    A spread wave is ``sinc^p`` of itself plus the same of all waves that look like it on the mesh. The factor
    ``sinc^p / sum_m sinc^2p`` is best in the mean square over all places of the atoms: Hockney and Eastwood,
    Computer Simulation Using Particles (1988), eq. 8-22, of an interaction that ends before the mesh does.

    Args:
        n: Mesh points of the axis.
        order: Of the splines.

    Returns:
        ``[n]`` float64, in the order of `torch.fft.fftfreq`; 0 for the wave of two mesh points, which has no
        direction.
    """
    turns = torch.fft.fftfreq(n, dtype=torch.float64)
    factor = torch.sinc(turns) ** order / _lattice_sum(turns, 2 * order)
    return torch.where(turns == -0.5, torch.zeros_like(factor), factor)
