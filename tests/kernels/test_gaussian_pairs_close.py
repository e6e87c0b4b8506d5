"""
Close and coincident atoms: pair sums against their Taylor series in 40 digits.

Nested autograd, the reference of the other tests, divides by r and loses its digits below 0.3 angstrom.
"""

import math
from functools import cache
from itertools import product

import mpmath
import pytest
import torch
from tolerances import RELATIVE, assert_close

from kernels.problems import DTYPES, PATHS
from scfmlip_kernels import gaussian_pairs
from scfmlip_kernels.gaussian_pairs.radial import gaussian_radial
from scfmlip_kernels.lattice import monomial_count, monomials

F64 = torch.float64
WIDTH = 1.5 * math.sqrt(2)  # two Gaussians of 1.5 angstrom; the series takes over below 4.24 angstrom
WIDTHS = torch.tensor([WIDTH], dtype=F64)
DISTANCES = [0.0, 1e-6, 1e-3, 0.05, 0.3, 1.0, 4.3]
RANKS = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)]
DIRECTION = torch.tensor([0.6, -0.48, 0.64], dtype=F64)


def falling(n, d):
    """``n (n - 1) ... (n - d + 1)``: what d derivatives leave of the n-th power."""
    return math.perm(n, d) if n >= d else 0


@cache
def exact(vector, rank):
    """Derivatives of ``erf(a r) / r`` from ``2 a / sqrt(pi) sum_k (-a^2 r^2)^k / k! (2 k + 1)``."""
    with mpmath.workdps(40):
        alpha2 = 1 / (2 * mpmath.mpf(WIDTH) ** 2)
        xyz = [mpmath.mpf(v) for v in vector]
        x = alpha2 * sum(v**2 for v in xyz)
        order = next(
            k for k in range(4, 200) if x ** (k - 4) / mpmath.factorial(k - 4) < mpmath.mpf(10) ** -30
        )
        powers = [[v**n for n in range(2 * order + 1)] for v in xyz]
        values = [mpmath.mpf(0)] * monomial_count(rank)
        for i, j, l in product(range(order + 1), repeat=3):
            k = i + j + l
            if k > order:
                continue
            shared = (-alpha2) ** k / (2 * k + 1)
            shared /= mpmath.factorial(i) * mpmath.factorial(j) * mpmath.factorial(l)
            for m, exponents in enumerate(monomials(rank)):
                term = shared
                for axis, n, d in zip(range(3), (2 * i, 2 * j, 2 * l), exponents, strict=True):
                    factor = falling(n, d)
                    term = term * factor * powers[axis][n - d] if factor else mpmath.mpf(0)
                values[m] += term
        scale = 2 * mpmath.sqrt(alpha2 / mpmath.pi)
        return torch.tensor([float(scale * v) for v in values], dtype=F64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("path", PATHS)
def test_values(path, distance, dtype, device):
    """Every rank up to 4 in all, each degree against its own largest value."""
    where = "cpu" if path == "cpu" else device
    positions = torch.zeros(2, 3, dtype=dtype)
    positions[0] = (distance * DIRECTION).to(dtype)
    table = exact(tuple(positions[0].double().tolist()), 4)
    degree_of = torch.tensor([sum(m) for m in monomials(4)])
    place = {m: i for i, m in enumerate(monomials(4))}
    for source_rank, rank in RANKS:
        sources, targets = monomials(source_rank), monomials(rank)
        moments = torch.zeros(2, len(sources), 1, len(sources), dtype=dtype)
        moments[1, :, 0] = torch.eye(len(sources))  # one channel a multipole
        got = gaussian_pairs(positions.to(where), moments.to(where), WIDTHS, torch.tensor([0, 2]), rank)
        got = got[0, :, 0].double().cpu()
        for s, source in enumerate(sources):
            for t, target in enumerate(targets):
                index = place[tuple(a + b for a, b in zip(source, target, strict=True))]
                want = (-1) ** sum(source) * float(table[index])
                scale = float(table[degree_of == degree_of[index]].abs().max())
                assert abs(float(got[s, t]) - want) <= RELATIVE[dtype] * scale, (source, target)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
def test_coincident_atoms_pull_on_their_dipoles_only(path, dtype, device):
    """At r = 0 there are derivatives: charges feel no force, a charge pushes a dipole's partner."""
    where = "cpu" if path == "cpu" else device
    r = torch.zeros(2, 3, dtype=dtype, device=where, requires_grad=True)
    p = torch.tensor([[1.0, 0, 0, 0], [2.0, 0, 0, 0.5]], dtype=dtype, device=where)
    p = p[:, None, None].requires_grad_()
    field = gaussian_pairs(r, p, WIDTHS, torch.tensor([0, 2]), 1)
    force, potential = torch.autograd.grad(0.5 * (field * p).sum(), (r, p), create_graph=True)
    assert_close(potential.detach(), field.detach())
    alpha = 1 / (math.sqrt(2) * WIDTH)
    # erf(a r) / r = 2 a / sqrt(pi) (1 - a^2 r^2 / 3 + ...); only q_0 d_1 has a first derivative
    curvature = -4 * alpha**3 / (3 * math.sqrt(math.pi))
    want = torch.zeros(2, 3, dtype=F64)
    want[0, 2] = -1.0 * 0.5 * curvature
    want[1, 2] = -want[0, 2]
    assert_close(force.cpu(), want)
    second = torch.autograd.grad(force[:, 2].sum() + force[0, 0] * 3, r)[0]
    assert torch.isfinite(second).all()
    # two charges at one place: a spring of -q_0 q_1 curvature between their x
    assert_close(second[:, 0].cpu(), 3 * 2.0 * curvature * torch.tensor([1.0, -1.0], dtype=F64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_radial_functions(dtype):
    """Both branches of the Boys functions and the place where they meet, point by point."""
    alpha = 1 / (math.sqrt(2) * WIDTH)
    meet = math.sqrt(2) / alpha
    points = [0.0, 1e-4, 0.1, 1.0, 3.0, meet - 1e-5, meet, meet + 1e-5, meet + 0.1, 6.0, 12.0, 80.0]
    r = torch.tensor(points, dtype=dtype)
    got = gaussian_radial(r, alpha, 4)
    with mpmath.workdps(40):
        for n in range(5):
            for i, point in enumerate(r.double().tolist()):
                x = (mpmath.mpf(alpha) * point) ** 2
                boys = mpmath.hyp1f1(n + mpmath.mpf(1) / 2, n + mpmath.mpf(3) / 2, -x) / (2 * n + 1)
                want = 2 * alpha / mpmath.sqrt(mpmath.pi) * (-2 * mpmath.mpf(alpha) ** 2) ** n * boys
                assert abs(float(got[n][i]) / float(want) - 1) < RELATIVE[dtype], (n, point)
