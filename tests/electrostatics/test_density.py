"""Gaussian multipole bases: rows, normalisations, adjoints, and a Gaussian's interaction with itself."""

import math

import numpy as np
import pytest
import torch
from tolerances import assert_close

from electrostatics.brute_force import alpha_of, coulomb_matrix, open_pair
from scfmlip import Coulomb, GaussianMultipoles
from scfmlip.electrostatics.boundary import EXACT, GRAPH_LONGRANGE
from scfmlip.electrostatics.density import self_interaction
from scfmlip.electrostatics.self_interaction import self_field
from scfmlip.types import CARTESIAN_FROM_E3NN, E3NN_FROM_CARTESIAN
from scfmlip.units import COULOMB_CONSTANT, FIELD_CONSTANT

F64 = torch.float64
BASES = [
    (l, widths, n, o)
    for l in (0, 1)
    for widths in ((1.5,), (0.8, 2.0, 3.1))
    for n in ("multipoles", "receiver")
    for o in ("cartesian", "e3nn")
]


@pytest.mark.parametrize(("l_max", "widths", "normalization", "order"), BASES)
def test_rows(l_max, widths, normalization, order, generator):
    """Charges of every width, then dipoles of every width: one coefficient at a time."""
    basis = GaussianMultipoles(l_max, widths, normalization, order)
    n = len(widths)
    assert basis.n_widths == n
    assert basis.dim == n * (l_max + 1) ** 2
    moments = basis.to_moments(torch.eye(basis.dim, dtype=F64))
    assert moments.shape == (basis.dim, n, (l_max + 1) ** 2)
    for row in range(basis.dim):
        l, place = (0, row) if row < n else (1, row - n)
        width, m = (place, 0) if l == 0 else divmod(place, 3)
        if l == 1:
            m = 1 + (m if order == "cartesian" else (1, 2, 0)[m])  # y, z, x
        want = torch.zeros(n, (l_max + 1) ** 2, dtype=F64)
        sigma = widths[width]
        scale = math.sqrt(4 * math.pi) if l == 0 else math.sqrt(1.5) * math.pi * sigma
        want[width, m] = scale if normalization == "receiver" else 1.0
        assert_close(moments[row], want)


@pytest.mark.parametrize("l", [0, 1])
@pytest.mark.parametrize("sigma", [0.7, 2.3])
def test_receiver_normalisation(l, sigma):
    """``1 / C = int r^(l+2) exp(-r^2 / 2 sigma^2) dr``; its multipole moment by quadrature."""
    r = torch.linspace(0, 12 * sigma, 20001, dtype=F64)
    gauss = torch.exp(-(r**2) / (2 * sigma**2))
    c = 1 / torch.trapezoid(r ** (l + 2) * gauss, r)
    # moment of R_lm = sqrt(4 pi / (2 l + 1)) r^l Y_lm
    moment = math.sqrt(4 * math.pi / (2 * l + 1)) * c * torch.trapezoid(r ** (2 * l + 2) * gauss, r)
    basis = GaussianMultipoles(1, (sigma,), "receiver")
    got = basis.to_moments(torch.ones(1, 4, dtype=F64))[0, 0, 3 * l]
    assert_close(got, moment, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    ("l_max", "widths", "normalization", "order"), [*BASES, *((2, *rest) for l, *rest in BASES if l)]
)
def test_project_is_the_adjoint(l_max, widths, normalization, order, dtype, generator):
    basis = GaussianMultipoles(l_max, widths, normalization, order)
    rows = torch.randn(5, 2, basis.dim, generator=generator, dtype=F64).to(dtype)
    field = torch.randn(5, 2, basis.n_widths, basis.n_moments, generator=generator, dtype=F64).to(dtype)
    left = (basis.to_moments(rows) * field).double()
    right = (rows * basis.project(field)).double()
    assert (
        float((left.sum() - right.sum()).abs() / left.abs().sum()) < {torch.float32: 1e-6, F64: 1e-14}[dtype]
    )
    assert basis.to_moments(rows).dtype == basis.project(field).dtype == dtype


def test_orders_are_inverse_permutations():
    xyz = torch.tensor([10.0, 20.0, 30.0])
    assert xyz[list(E3NN_FROM_CARTESIAN)].tolist() == [20.0, 30.0, 10.0]
    assert torch.equal(xyz[list(E3NN_FROM_CARTESIAN)][list(CARTESIAN_FROM_E3NN)], xyz)


def test_e3nn_agrees():
    """The order in which e3nn 0.4.4 returns a vector's l = 1 harmonics, as MACE passes it edge vectors."""
    pytest.importorskip("mace", reason="mace-torch sets e3nn 0.4.4 up for a new torch")
    o3 = pytest.importorskip("e3nn.o3")
    v = torch.tensor([[0.2, -0.7, 0.4]])
    harmonics = o3.spherical_harmonics(1, v[:, [1, 2, 0]], normalize=False, normalization="integral")
    want = math.sqrt(3 / (4 * math.pi)) * v[:, list(E3NN_FROM_CARTESIAN)]
    torch.testing.assert_close(harmonics, want)


@pytest.mark.parametrize(("sigma", "other"), [(1.5, 1.5), (1.5, 3.0), (0.4, 2.0)])
def test_self_interaction_is_the_limit_of_no_distance(sigma, other):
    """Closed forms against derivatives of erf(alpha r) / r at r = 0."""
    pair = open_pair(alpha_of(sigma, other))
    matrix = coulomb_matrix(pair, torch.zeros(1, 3, dtype=F64))[0, :, 0]
    u0, u1, _ = self_interaction(sigma, other)
    assert_close(matrix, torch.diag(torch.tensor([u0, u1, u1, u1], dtype=F64)))


def test_published_self_interactions():
    """Features of sigma = 1.5 at 1.5 and 3.0 angstrom, receiver normalised, from design-space.md 1.2."""
    want = {(1.5, 0): 19.19952714, (3.0, 0): 12.14284715, (1.5, 1): 2.31546699, (3.0, 1): 1.17154392}
    for (width, l), value in want.items():
        ratio = math.sqrt(4 * math.pi) if l == 0 else math.sqrt(1.5) * math.pi * width
        # the constant of design-space.md 1.0, not CODATA
        assert abs(self_interaction(1.5, width)[l] * ratio - value) < 1e-7


@pytest.mark.parametrize("quirks", [EXACT, GRAPH_LONGRANGE])
def test_self_field(quirks, generator):
    """Every source width at every receiving width; the trapezoid rule differs by 1e-9."""
    source = GaussianMultipoles(1, (1.5, 2.0))
    moments = torch.randn(3, 2, 2, 4, generator=generator, dtype=F64)
    widths = (1.0, 1.5, 3.0)
    got = self_field(moments, source, widths, 1, quirks)
    want = torch.zeros(3, 2, 3, 4, dtype=F64)
    for s, sigma in enumerate(source.widths):
        for w, width in enumerate(widths):
            u = self_interaction(sigma, width)
            want[:, :, w] += moments[:, :, s] * torch.tensor([u[0], u[1], u[1], u[1]], dtype=F64)
    assert_close(got, want, 1e-12 if quirks is EXACT else 1e-8)
    assert_close(self_field(moments, source, widths, 0, quirks), got[..., :1])
    charges = GaussianMultipoles(0, (1.5, 2.0))
    alone = self_field(moments[..., :1], charges, widths, 1, quirks)
    assert_close(alone[..., :1], got[..., :1])
    assert not alone[..., 1:].any()


@pytest.mark.parametrize("boundary", ["open", "periodic"])
def test_self_interaction_is_what_the_switch_switches(boundary, generator):
    """Energy and potential differ by each Gaussian's own, in every boundary, for every width."""
    operator = Coulomb(sigma=(1.2, 1.9), kspace_cutoff=4.0, boundary=boundary)
    cell = None if boundary == "open" else 6 * torch.eye(3, dtype=F64)
    geometry = operator.prepare(torch.rand(3, 3, generator=generator, dtype=F64), cell)
    rows = torch.randn(3, 8, generator=generator, dtype=F64)
    moments = operator.source.to_moments(rows)[:, None]
    field = self_field(moments, operator.source, operator.source.widths, 1, EXACT)
    own = 0.5 * (field * moments).sum()
    difference = geometry.energy(rows, self_interaction=True) - geometry.energy(rows, self_interaction=False)
    assert_close(difference[0], own, 1e-11)
    difference = geometry.potential(rows, self_interaction=True) - geometry.potential(rows)
    assert_close(difference, operator.source.project(field[:, 0]), 1e-11)


def test_units():
    """k_e of two elementary charges, and how the constants hang together."""
    assert abs(COULOMB_CONSTANT - 14.3996454) < 1e-6
    assert abs(FIELD_CONSTANT - 4 * math.pi * COULOMB_CONSTANT) < 1e-12
    assert abs(FIELD_CONSTANT - 180.9512) < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, (1.0,)), "l_max must be 0, 1 or 2, got 3"),
        ((-1, (1.0,)), "l_max must be 0, 1 or 2, got -1"),
        ((1, ()), "widths must be positive"),
        ((1, (1.0, -2.0)), r"finite numbers in angstrom, got \(1.0, -2.0\)"),
        ((1, (0.0,)), "widths must be positive"),
        ((1, (math.nan,)), "widths must be positive"),
        ((1, (math.inf,)), "widths must be positive"),
        ((1, (1.0,), "none"), "normalization must be 'multipoles' or 'receiver', got 'none'"),
        ((1, (1.0,), "receiver", "xyz"), "order must be 'cartesian' or 'e3nn', got 'xyz'"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMultipoles(*arguments)


@pytest.mark.parametrize(
    "value", [np.float32(1.5), np.float64(1.5), np.array([1.5]), [1.5], 1.5, torch.tensor(1.5)]
)
def test_widths_come_in_many_forms(value):
    """Numbers of any library; what a checkpoint or a config file holds."""
    assert Coulomb(sigma=value).source.widths == (1.5,)
