"""
Independent sums for the tests: pair interactions of Gaussians in real space, by Ewald and in two dimensions.

Everything is the interaction ``G(r)`` of two unit Gaussian charges, a smooth even function, and its
derivatives; none of it uses the library's wave vectors, operators or corrections.
"""

import math
from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

from scfmlip.units import COULOMB_CONSTANT

Pair = Callable[[Tensor], Tensor]
SQRT_PI = math.sqrt(math.pi)


def smooth_erf(x: Tensor) -> Tensor:
    """``erf(sqrt(x)) / sqrt(x)``, analytic through x = 0."""
    small = x < 0.3
    root = torch.where(small, torch.ones_like(x), x).sqrt()
    y = torch.where(small, x, torch.zeros_like(x))
    series = torch.zeros_like(x)
    for k in range(18, -1, -1):
        series = series * y + (-1) ** k / (math.factorial(k) * (2 * k + 1))
    return torch.where(small, 2 / SQRT_PI * series, torch.erf(root) / root)


def alpha_of(sigma: float, other: float | None = None) -> float:
    """Two Gaussians of these widths interact as ``erf(alpha r) / r``."""
    return 1 / math.sqrt(2 * (sigma**2 + (sigma if other is None else other) ** 2))


def open_pair(alpha: float) -> Pair:
    """``erf(alpha r) / r``."""
    return lambda r: COULOMB_CONSTANT * alpha * smooth_erf(alpha**2 * (r * r).sum(-1))


def periodic_pair(cell: Tensor, alpha: float, split: float = 0.6) -> Pair:
    """
    A three-dimensional lattice of Gaussians in a uniform background, by Ewald's method.

    The splitting parameter is ``split * alpha``: half of the sum is done in real space, so that nothing
    but the physics is shared with a sum over wave vectors.
    """
    eta = split * alpha
    inverse = torch.linalg.inv(cell)
    volume = float(torch.linalg.det(cell))
    reach = 6.5 / eta
    heights = 1 / inverse.norm(dim=0)
    counts = [math.ceil(reach / float(h)) + 1 for h in heights]
    n = torch.tensor(list(product(*(range(-c, c + 1) for c in counts))), dtype=cell.dtype)
    images = n @ cell
    images = images[images.norm(dim=1) < reach + float(cell.norm(dim=1).sum())]
    k_max = 13 * eta
    counts = [math.ceil(k_max * float(v.norm()) / (2 * math.pi)) for v in cell]
    n = torch.tensor(list(product(*(range(-c, c + 1) for c in counts))), dtype=cell.dtype)
    k = 2 * math.pi * n @ inverse.T
    k = k[(k.norm(dim=1) > 1e-9) & (k.norm(dim=1) < k_max)]
    k2 = (k * k).sum(1)
    weights = 4 * math.pi / volume * torch.exp(-k2 / (4 * eta**2)) / k2
    background = math.pi / volume * (1 / eta**2 - 1 / alpha**2)

    def pair(r: Tensor) -> Tensor:
        r2 = ((r + images) ** 2).sum(-1)
        near = (alpha * smooth_erf(alpha**2 * r2) - eta * smooth_erf(eta**2 * r2)).sum()
        far = (weights * torch.cos(k @ r)).sum()
        return COULOMB_CONSTANT * (near + far - background)

    return pair


def slab_pair(first: Tensor, second: Tensor, alpha: float) -> Pair:
    """
    A two-dimensional lattice of Gaussians; the potential is ``-2 pi |z| / area`` far away.

    Parry's sum with Gaussians, exact in the third direction: no cell height enters anywhere.
    """
    normal = torch.linalg.cross(first, second)
    area = float(normal.norm())
    normal = normal / area
    plane = torch.stack((first, second, normal))
    reciprocal = 2 * math.pi * torch.linalg.inv(plane).T
    k_max = 13 * alpha
    counts = [math.ceil(k_max * float(v.norm()) / (2 * math.pi)) for v in (first, second)]
    n = torch.tensor(list(product(*(range(-c, c + 1) for c in counts))), dtype=first.dtype)
    g = n @ reciprocal[:2]
    g = g[(g.norm(dim=1) > 1e-9) & (g.norm(dim=1) < k_max)]
    length = g.norm(dim=1)

    def pair(r: Tensor) -> Tensor:
        z = (r * normal).sum(-1)
        up = torch.exp(length * z) * torch.special.erfc(length / (2 * alpha) + alpha * z)
        down = torch.exp(-length * z) * torch.special.erfc(length / (2 * alpha) - alpha * z)
        waves = (torch.cos(g @ r) * (up + down) * math.pi / length).sum()
        plane_sum = -2 * math.pi * average_distance(z, alpha)
        return COULOMB_CONSTANT / area * (waves + plane_sum)

    return pair


def average_distance(z: Tensor, alpha: float) -> Tensor:
    """``abs(z)`` averaged over two Gaussians: minus the potential of a plane, but for 2 pi k_e."""
    return z * torch.erf(alpha * z) + torch.exp(-((alpha * z) ** 2)) / (alpha * SQRT_PI)


def coulomb_matrix(pair: Pair, positions: Tensor, others: Tensor | None = None) -> Tensor:
    """
    Interactions of charges and dipoles at ``positions`` with those at ``others``, Cartesian rows.

    Returns:
        ``[n, 4, m, 4]`` eV; with ``others`` None each atom meets itself at distance 0 too.
    """
    r = (positions[:, None] - (positions if others is None else others)[None]).flatten(0, 1)
    gradient = torch.func.jacrev(pair)
    rows = []
    for vector in r:
        matrix = torch.empty(4, 4, dtype=r.dtype)
        matrix[0, 0] = pair(vector)
        matrix[1:, 0] = gradient(vector)
        matrix[0, 1:] = -matrix[1:, 0]
        matrix[1:, 1:] = -torch.func.jacfwd(gradient)(vector)
        rows.append(matrix)
    n = len(positions)
    return torch.stack(rows).view(n, -1, 4, 4).permute(0, 2, 1, 3)


def energy_and_potential(pair: Pair, positions: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """``1/2 p.K p`` and ``K p``, self-interaction included, Cartesian rows ``[n, 4]``."""
    potential = torch.einsum("iajb,jb->ia", coulomb_matrix(pair, positions), rows)
    return 0.5 * (rows * potential).sum(), potential
