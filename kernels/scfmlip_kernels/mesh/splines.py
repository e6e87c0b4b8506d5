"""
Cardinal B-splines on a mesh of unit spacing, and the window of their sums in Fourier space.

``theta_p`` is the p-fold convolution of the unit box with itself, centred at 0: a piecewise polynomial of
degree p - 1, p - 2 times differentiable, zero beyond p / 2. Schoenberg, Quart. Appl. Math. 4, 45 (1946).
"""

import math
from itertools import pairwise

import torch
from torch import Tensor


def spline_weights(offsets: Tensor, order: int, rank: int) -> Tensor:
    """
    The splines that are nonzero at given points, and their derivatives.

    Args:
        offsets: ``[...]`` t in [0, 1): for even ``order``, the distance of a point from the mesh point below.
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
        for _ in range(r):  # a derivative is a difference of splines of the next lower order
            steps = [a - b for a, b in pairwise(values)]
            values = [-values[0], *steps, values[-1]]
        found.append(torch.stack(values, -1))
    return torch.stack(found, -2)


def _lattice_sum(turns: Tensor, order: int) -> Tensor:
    """``sum_m sinc(turns + m)^order`` for an even order, exactly: the transform of the spline's samples."""
    samples = spline_weights(torch.zeros((), dtype=torch.float64), order, 0)[0]  # of theta at order/2 - 1 - j
    nodes = torch.arange(order, dtype=torch.float64) - (order // 2 - 1)
    return torch.cos(2 * math.pi * turns[:, None] * nodes) @ samples


def window(n: int, order: int) -> Tensor:
    """
    Per-axis factor that turns sums over a mesh of n points into sums over atoms.

    Spreading multiplies a wave by ``sinc^p`` and mixes it with its aliases on the mesh. The factor
    ``sinc^p / sum_m sinc^2p`` minimises the mean square error over all positions of the atoms: Hockney and
    Eastwood, Computer Simulation Using Particles (1988), eq. 8-22, for an interaction that decays before the
    mesh's largest wave vector.

    Args:
        n: Mesh points along the axis.
        order: Order of the splines.

    Returns:
        ``[n]`` float64, in the order of `torch.fft.fftfreq`; 0 for the wave with a wavelength of two mesh
        points, which has no direction.
    """
    turns = torch.fft.fftfreq(n, dtype=torch.float64)
    factor = torch.sinc(turns) ** order / _lattice_sum(turns, 2 * order)
    return torch.where(turns == -0.5, torch.zeros_like(factor), factor)
