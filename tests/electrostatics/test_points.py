"""Density, potential and field at points: pairs, lattice sums, Poisson's equation, charges that add up."""

import math

import numpy as np
import pytest
import torch
from tolerances import assert_close

from electrostatics.brute_force import alpha_of, coulomb_matrix, open_pair, periodic_pair, slab_pair
from electrostatics.systems import BOUNDARIES, boundary_case
from scfmlip.units import COULOMB_CONSTANT, FIELD_CONSTANT

F64 = torch.float64
SIGMA = 1.5
POINTS = torch.tensor(
    [[0.3, 0.4, 0.5], [2.0, 3.1, 1.7], [4.9, 0.2, 4.4], [-7.0, 12.0, 3.0], [1.0, 1.0, 2.5]], dtype=F64
)


def gaussian_density(r, rows, sigma):
    """Charges and dipoles: ``(q + d.r / sigma^2) exp(-r^2 / 2 sigma^2) / (2 pi sigma^2)^1.5``."""
    gauss = torch.exp(-(r**2).sum(-1) / (2 * sigma**2)) / (2 * math.pi * sigma**2) ** 1.5
    return (gauss * (rows[:, 0] + (r * rows[:, 1:]).sum(-1) / sigma**2)).sum(-1)


def as_if_points(pair, positions, rows):
    """Potential and field at POINTS: a receiver without width."""
    matrix = coulomb_matrix(pair, POINTS, positions)
    values = torch.einsum("iajb,jb->ia", matrix, rows)
    return values[:, 0], -values[:, 1:]


def test_molecule(generator):
    """One point lies on an atom."""
    case = boundary_case("molecule", generator)
    case.positions[2] = POINTS[1]
    values = case.geometry().at(POINTS, case.rows)
    potential, field = as_if_points(open_pair(alpha_of(SIGMA, 0.0)), case.positions, case.rows)
    assert_close(values.potential, potential)
    assert_close(values.field, field)
    density = gaussian_density(POINTS[:, None] - case.positions, case.rows, SIGMA)
    assert_close(values.density, density)


@pytest.mark.parametrize("name", ["crystal", "charged crystal"])
def test_crystal(name, generator):
    case = boundary_case(name, generator, n_atoms=3)
    values = case.geometry().at(POINTS, case.rows)
    potential, field = as_if_points(
        periodic_pair(case.cell, alpha_of(SIGMA, 0.0), 0.5), case.positions, case.rows
    )
    # its wave vectors leave out 1e-6 V for a unit multipole, as documented for energies
    assert float((values.potential - potential).abs().max()) < 3e-6
    assert float((values.field - field).abs().max()) < 1e-5
    n = torch.cartesian_prod(*(torch.arange(-3.0, 4.0),) * 3).double() @ case.cell
    density = sum(gaussian_density(POINTS[:, None] - case.positions + v, case.rows, SIGMA) for v in n)
    background = case.rows[:, 0].sum() / torch.linalg.det(case.cell)
    assert background.abs() < 1e-15 or "charged" in name
    assert float((values.density - density).abs().max()) < 1e-6


@pytest.mark.parametrize("axis", [0, 2])
def test_slab(axis, generator):
    case = boundary_case("charged slab", generator, n_atoms=3)
    plane = case.cell[:2]
    normal = torch.linalg.cross(plane[0], plane[1])
    case.positions = case.positions - (case.positions @ normal)[:, None] * normal / (normal @ normal)
    case.cell[2] = 40 * normal / normal.norm()
    potential, field = as_if_points(
        slab_pair(plane[0], plane[1], alpha_of(SIGMA, 0.0)), case.positions, case.rows
    )
    case.cell = case.cell.roll(axis - 2, 0)
    case.pbc = [i != axis for i in range(3)]
    values = case.geometry().at(POINTS, case.rows)
    assert float((values.potential - potential).abs().max()) < 3e-6
    assert float((values.field - field).abs().max()) < 1e-5


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slab_has_no_images(axis, generator):
    """Any height above and below it, the sum in two dimensions; far away a charged plane with a dipole."""
    case = boundary_case("charged slab", generator, n_atoms=3)
    plane = case.cell[:2]
    normal = torch.linalg.cross(plane[0], plane[1])
    normal = normal / normal.norm()
    heights = torch.tensor([-300.0, -40.0, -12.0, -3.0, 1.0, 9.0, 23.0, 35.0, 4000.0], dtype=F64)
    points = case.positions[:1] + heights[:, None] * normal
    matrix = coulomb_matrix(slab_pair(plane[0], plane[1], alpha_of(SIGMA, 0.0)), points[1:-1], case.positions)
    want = torch.einsum("iajb,jb->ia", matrix, case.rows)
    case.cell = case.cell.roll(axis - 2, 0)
    case.pbc = [i != axis for i in range(3)]
    values = case.geometry().at(points, case.rows)
    assert float((values.potential[1:-1] - want[:, 0]).abs().max()) < 3e-6
    assert float((values.field[1:-1] + want[:, 1:]).abs().max()) < 1e-5
    moment = ((case.rows[:, 0] * (case.positions @ normal)) + case.rows[:, 1:] @ normal).sum()
    z, charge = (points @ normal)[[0, -1]], case.rows[:, 0].sum()
    area = torch.linalg.cross(plane[0], plane[1]).norm()
    far = -2 * math.pi * COULOMB_CONSTANT / area * (charge * z.abs() - z.sign() * moment)
    assert_close(values.potential[[0, -1]], far, 1e-9)  # what the window keeps of lateral waves
    density = values.density[heights.abs() > 15]
    assert float(density.abs().max()) < 1e-9


@pytest.mark.parametrize("name", BOUNDARIES)
def test_features_average_the_potential_at_points(name, generator):
    """sqrt(4 pi) times the Gaussian average of `at`: both are one potential, external fields included."""
    case = boundary_case(name, generator, n_atoms=2)
    geometry = case.geometry(sigma=1.0, kspace_cutoff=6.0)
    width = 0.6
    features = geometry.features(case.rows, widths=(width,))
    # Gauss-Hermite would do; a product rule of 9 points per axis is exact enough for smooth V
    nodes, weights = gauss_hermite(13)
    offsets = width * torch.cartesian_prod(nodes, nodes, nodes)
    weights = torch.cartesian_prod(weights, weights, weights).prod(-1)
    n = len(case.positions)
    points = (case.positions[:, None] + offsets).reshape(-1, 3)
    index = None if case.batch_idx is None else case.batch_idx.repeat_interleave(len(offsets))
    values = geometry.at(points, case.rows, index)
    average = (values.potential.view(n, -1) * weights).sum(1)
    gradient = -(values.field.view(n, -1, 3) * weights[:, None]).sum(1)
    assert float((features[:, 0] / math.sqrt(4 * math.pi) - average).abs().max()) < 1e-5
    ratio = math.sqrt(1.5) * math.pi * width
    assert float((features[:, 1:] / ratio - gradient).abs().max()) < 1e-5


def gauss_hermite(n):
    """Nodes and weights of the normal distribution."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


@pytest.mark.parametrize("name", [n for n in BOUNDARIES if n != "batch of all"])
def test_poissons_equation(name, generator):
    """-laplacian V = FIELD_CONSTANT (rho - background), with the field as its gradient."""
    case = boundary_case(name, generator)
    geometry = case.geometry()
    step = 0.02
    shifts = step * torch.cat(
        (torch.zeros(1, 3), torch.eye(3), -torch.eye(3), 2 * torch.eye(3), -2 * torch.eye(3))
    )
    # inside the cell: along an open axis V is that of the slab between its images only
    points = POINTS if case.cell is None else torch.rand(5, 3, generator=generator, dtype=F64) @ case.cell
    values = geometry.at((points[:, None] + shifts.double()).reshape(-1, 3), case.rows)
    v, field = values.potential.view(5, -1), values.field.view(5, -1, 3)
    near, far = v[:, 1:4] + v[:, 4:7], v[:, 7:10] + v[:, 10:13]
    laplacian = ((16 * near - far - 30 * v[:, :1]) / (12 * step**2)).sum(1)
    density = values.density.view(5, -1)[:, 0]
    background = 0.0
    if name == "charged crystal":
        background = float(case.rows[:, 0].sum() / torch.linalg.det(case.cell))
    want = FIELD_CONSTANT * (density - background)
    assert float((laplacian + want).abs().max()) < 1e-4 * float(want.abs().max()) + 1e-5
    slope = (8 * (v[:, 1:4] - v[:, 4:7]) - (v[:, 7:10] - v[:, 10:13])) / (12 * step)
    assert float((slope + field[:, 0]).abs().max()) < 1e-6 * max(1.0, float(slope.abs().max()))


@pytest.mark.parametrize("name", ["crystal", "charged crystal", "charged slab", "molecule in a box"])
def test_the_density_holds_the_charge(name, generator):
    """Its integral over the cell, a lattice sum of a smooth function, is the charge; so is its dipole."""
    case = boundary_case(name, generator)
    n, cell, start = 16, case.cell, 0.0
    if name == "charged slab":  # a slab's Gaussians end above and below it
        n, cell, start = 36, case.cell * torch.tensor([[1.0], [1.0], [3.0]]), -case.cell[2]
    fractions = torch.cartesian_prod(*(torch.arange(n, dtype=F64) / n,) * 3)
    values = case.geometry().at(start + fractions @ cell, case.rows)
    volume = float(torch.linalg.det(cell))
    charge = float(case.rows[:, 0].sum())
    assert abs(float(values.density.mean()) * volume - charge) < 1e-8


def test_the_counter_charge_is_in_the_density(generator):
    """With it a slab is neutral, flat where it should be, and its far field is 0."""
    case = boundary_case("slab with a counter-charge", generator)
    case.cell = torch.diag(torch.tensor([6.0, 6.0, 50.0], dtype=F64))
    case.fields = {"counter_charge": (14.0, 24.0)}
    geometry = case.geometry()
    heights = torch.linspace(-13, 37, 126, dtype=F64)[:-1]
    side = torch.arange(12, dtype=F64) / 2
    x, y, z = torch.meshgrid(side, side, heights, indexing="ij")
    values = geometry.at(torch.stack((x, y, z), -1).view(-1, 3), case.rows)
    profile = values.density.view(144, -1).mean(0)
    assert abs(float(profile.mean())) < 1e-9
    charge = float(case.rows[:, 0].sum())
    middle = int((heights - 19.0).abs().argmin())
    assert abs(float(profile[middle]) + charge / (36 * 10.0)) < 1e-5  # the edges are 3.3 widths away
    far = geometry.at(torch.tensor([[1.0, 2.0, -12.0], [3.0, 4.0, 33.0]], dtype=F64), case.rows)
    assert float(far.field.abs().max()) < 1e-5
    moment = (case.rows[:, 0] * case.positions[:, 2] + case.rows[:, 3]).sum() - charge * 19.0
    step = float(far.potential[1] - far.potential[0])
    assert abs(step - FIELD_CONSTANT * float(moment) / 36) < 1e-4


def test_external_fields_are_included(generator):
    case = boundary_case("molecule in a field", generator)
    field, volts = case.fields["external_field"], float(case.fields["external_potential"])
    with_field = case.geometry().at(POINTS, case.rows)
    case.fields = {}
    plain = case.geometry().at(POINTS, case.rows)
    assert_close(with_field.field, plain.field + field)
    assert_close(with_field.potential, plain.potential + volts - POINTS @ field)
    assert torch.equal(with_field.density, plain.density)


def test_a_batch_of_points(generator):
    """Systems with many points, one, and none, in any mixture of boundaries."""
    case = boundary_case("batch of all", generator, n_atoms=3)
    geometry = case.geometry()
    counts = [3, 0, 1, 2, 0, 4]
    index = torch.arange(6).repeat_interleave(torch.tensor(counts))
    points = 5 * torch.rand(10, 3, generator=generator, dtype=F64)
    together = geometry.at(points, case.rows, index)
    for i in range(6):
        mine = case.batch_idx == i
        alone = case.coulomb().prepare(case.positions[mine], case.cell[i], case.pbc[i])
        values = alone.at(points[index == i], case.rows[mine])
        for a, b in zip(together, values, strict=True):
            assert_close(a[index == i], b, 1e-11)


@pytest.mark.parametrize("name", ["crystal", "charged slab", "molecule in a field", "molecule in a box"])
def test_gradients(name, generator):
    """Potential and density follow points, atoms and multipoles; the field is minus one of these."""
    case = boundary_case(name, generator, n_atoms=2, edge=4.0)
    operator = case.coulomb(kspace_cutoff=2.0, tolerance=1e-2)
    plan = operator.plan(case.cell, case.pbc, None, 2)
    points = (POINTS[:2] % 4.0).clone().requires_grad_()
    r, p = case.positions.clone().requires_grad_(), case.rows.clone().requires_grad_()

    def function(points, r, p):
        values = operator.prepare(r, case.cell, plan=plan, **case.fields).at(points, p)
        return values.potential, values.density

    assert torch.autograd.gradcheck(function, (points, r, p))
    values = operator.prepare(r, case.cell, plan=plan, **case.fields).at(points, p)
    (slope,) = torch.autograd.grad(values.potential.sum(), points)
    assert_close(values.field, -slope, 1e-11)


@pytest.mark.parametrize("name", ["charged crystal", "charged slab", "molecule", "batch of all"])
def test_float32(name, generator):
    case = boundary_case(name, generator)
    index = None if case.batch_idx is None else torch.tensor([0, 1, 2, 3, 4])
    points = POINTS.float()
    found = []
    for dtype in (torch.float32, F64):
        cell = None if case.cell is None else case.cell.float().to(dtype)
        r, p = case.positions.float().to(dtype), case.rows.float().to(dtype)
        geometry = case.coulomb().prepare(r, cell, case.pbc, case.batch_idx)
        found.append(geometry.at(points.to(dtype), p, index))
    for got, want in zip(*found, strict=True):
        assert got.dtype == torch.float32
        assert_close(got, want)


def test_several_widths_add_up(generator):
    case = boundary_case("charged crystal", generator)
    for name in ("charged crystal", "molecule"):
        case = boundary_case(name, generator)
        rows = torch.cat(
            (case.rows[:, :1], 0.3 * case.rows[:, :1], case.rows[:, 1:], 0.3 * case.rows[:, 1:]), 1
        )
        both = case.geometry(sigma=(1.2, 1.9)).at(POINTS, rows)
        parts = [case.geometry(sigma=s).at(POINTS, f * case.rows) for s, f in ((1.2, 1.0), (1.9, 0.3))]
        for a, b, c in zip(both, *parts, strict=True):
            assert float((a - b - c).abs().max()) < 1e-5


def test_charges_only(generator):
    for name in ("charged crystal", "molecule"):
        case = boundary_case(name, generator)
        rows = case.rows.clone()
        rows[:, 1:] = 0
        full = case.geometry(kspace_cutoff=4.0).at(POINTS, rows)
        small = case.geometry(kspace_cutoff=4.0, l_max=0).at(POINTS, rows[:, :1].contiguous())
        for a, b in zip(small, full, strict=True):
            assert float((a - b).abs().max()) < 1e-5


def test_a_point_charge_far_away(generator):
    case = boundary_case("molecule", generator)
    values = case.geometry().at(torch.tensor([[3000.0, 4000.0, 0.0]], dtype=F64), case.rows)
    q = case.rows[:, 0].sum()
    assert_close(values.potential, (COULOMB_CONSTANT * q / 5000)[None], 1e-2)  # dipoles are 1e-3 of it
    assert float(values.density) == 0.0


def test_refuses(generator):
    case = boundary_case("batch of all", generator)
    geometry = case.geometry()
    with pytest.raises(ValueError, match="this geometry holds 6 systems: pass points_batch_idx"):
        geometry.at(POINTS, case.rows)
    with pytest.raises(ValueError, match=r"points_batch_idx|batch_idx must not decrease"):
        geometry.at(POINTS, case.rows, torch.tensor([1, 0, 0, 0, 0]))
    case = boundary_case("molecule", generator)
    geometry = case.geometry()
    with pytest.raises(ValueError, match="one density"):
        geometry.at(POINTS, case.rows[:, None])
    with pytest.raises(TypeError, match=r"points is torch\.float32 but positions are torch\.float64"):
        geometry.at(POINTS.float(), case.rows)
    with pytest.raises(ValueError, match="points holds NaN or infinity"):
        geometry.at(POINTS * torch.nan, case.rows)
    with pytest.raises(ValueError, match=r"points must have shape \[n_points, 3\]"):
        geometry.at(POINTS[:, :2], case.rows)
