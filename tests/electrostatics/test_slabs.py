"""Slabs are two-dimensional: no cell height enters anything, and potentials have one zero."""

import itertools
import math

import pytest
import torch
from tolerances import assert_close

from electrostatics.brute_force import alpha_of, energy_and_potential, slab_pair
from electrostatics.systems import boundary_case, random_rotation
from scfmlip import Coulomb
from scfmlip.electrostatics import checks
from scfmlip.electrostatics.slab import gaussian_reach, lateral_reach
from scfmlip.units import COULOMB_CONSTANT

F64 = torch.float64
SIGMA = 1.5
RESOLVED = {"self_interaction": True, "kspace_cutoff": 4.5}
PLANES = {
    "narrow": [[4.0, 0.2, 0.5], [1.0, 3.5, -0.5]],
    "wide": [[16.0, 0.0, 0.0], [3.0, 14.0, 0.0]],
    "needle": [[3.5, 0.0, 0.0], [0.3, 25.0, 0.0]],
    "skewed": [[5.0, 0.0, 0.0], [9.0, 4.5, 0.0]],
}


def normal_of(plane):
    normal = torch.linalg.cross(plane[0], plane[1])
    return normal / normal.norm()


def draw(plane, heights, generator):
    """Atoms at given heights over random places of the plane, charges that do not add up to 0."""
    n = len(heights)
    positions = torch.rand(n, 2, generator=generator, dtype=F64) @ plane
    positions = positions + torch.tensor(heights, dtype=F64)[:, None] * normal_of(plane)
    rows = torch.randn(n, 4, generator=generator, dtype=F64) * torch.tensor([0.6, 0.3, 0.3, 0.3])
    return positions, rows


@pytest.mark.parametrize("heights", [(0.0, 1.0, 2.5), (-2.0, 22.0, 1.0), (0.0, 60.0, 61.0)])
@pytest.mark.parametrize("name", PLANES)
def test_any_thickness_is_the_two_dimensional_sum(name, heights, generator):
    """Thin and wide, thick and narrow, and atoms wrapped through an open boundary that has no period."""
    plane = torch.tensor(PLANES[name], dtype=F64)
    positions, rows = draw(plane, heights, generator)
    energy, potential = energy_and_potential(slab_pair(plane[0], plane[1], alpha_of(SIGMA)), positions, rows)
    cell = torch.cat((plane, 20.0 * normal_of(plane)[None]))
    geometry = Coulomb(**RESOLVED).prepare(positions, cell, [True, True, False])
    assert_close(geometry.energy(rows), energy[None], 1e-11)
    assert_close(geometry.potential(rows), potential, 1e-11)


def test_both_ways_to_keep_images_out_are_taken(generator):
    kinds = set()
    for name, heights in (("narrow", (0.0, 30.0)), ("wide", (0.0, 3.0))):
        plane = torch.tensor(PLANES[name], dtype=F64)
        positions, _ = draw(plane, heights, generator)
        cell = torch.cat((plane, 20.0 * normal_of(plane)[None]))
        geometry = Coulomb().prepare(positions, cell, [True, True, False])
        kinds.add(bool(geometry.plan.lattice.slabs.truncated[0]))
    assert kinds == {True, False}


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("name", PLANES)
def test_the_tolerance_bounds_what_images_leave(name, tolerance, generator):
    """At one cutoff for all: only the height of the cell differs."""
    plane = torch.tensor(PLANES[name], dtype=F64)
    positions, rows = draw(plane, (0.0, 2.0, 5.0), generator)
    cell = torch.cat((plane, 20.0 * normal_of(plane)[None]))
    want = energy_and_potential(slab_pair(plane[0], plane[1], alpha_of(SIGMA)), positions, rows)[0]
    operator = Coulomb(**RESOLVED)
    object.__setattr__(operator, "tolerance", tolerance)
    assert operator.image_tolerance < tolerance
    got = operator.prepare(positions, cell, [True, True, False]).energy(rows)
    assert float((got - want).abs()) < tolerance * float(rows.abs().sum() ** 2)


def results(operator, positions, cell, pbc, rows, points, **fields):
    """Everything a geometry gives, and the strain derivative."""
    r = positions.clone().requires_grad_()
    strain = torch.zeros(3, 3, dtype=F64, requires_grad=True)
    deform = torch.eye(3, dtype=F64) + 0.5 * (strain + strain.T)
    geometry = operator.prepare(r @ deform, cell @ deform, pbc, **fields)
    energy = geometry.energy(rows)
    forces, virial = torch.autograd.grad(energy.sum(), (r, strain))
    values = geometry.at(points, rows)
    return energy, geometry.potential(rows), geometry.features(rows), *values, forces, virial


@pytest.mark.parametrize("charge", ["neutral", "charged", "counter-charge"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_open_vector_is_no_physics(axis, charge, generator):
    """Height, tilt, and a vector of length 0 change nothing, not even rounding, on any axis."""
    plane = torch.tensor(PLANES["narrow"], dtype=F64)
    normal = normal_of(plane)
    positions, rows = draw(plane, (0.0, 3.0, 4.0, 7.0), generator)
    fields = {}
    if charge == "neutral":
        rows[:, 0] -= rows[:, 0].mean()
    elif charge == "counter-charge":
        fields = {"counter_charge": (12.0, 15.0), "external_field": 0.1 * normal}
    points = positions + torch.tensor([[0.3], [-9.0], [40.0], [-70.0]], dtype=F64) * normal
    pbc = [i != axis for i in range(3)]
    operator = Coulomb(feature_widths=(1.5, 2.5))
    found = []
    vectors = [h * normal + t * plane[0] for h, t in ((9.0, 0.0), (3.0, 0.4), (500.0, -2.0), (0.0, 0.0))]
    for vector in vectors:
        cell = torch.cat((plane, vector[None])).roll(axis - 2, 0)
        found.append(results(operator, positions, cell, pbc, rows, points, **fields))
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            assert_close(got, want, 1e-12)


def test_a_slab_turned_by_any_angle(generator):
    """Rotated as a whole, rows of the cell in any order: rotated results."""
    case = boundary_case("charged slab", generator)
    rotation = random_rotation(generator)
    operator = Coulomb(**RESOLVED)
    energy = operator.prepare(case.positions, case.cell, case.pbc).energy(case.rows)
    rows = torch.cat((case.rows[:, :1], case.rows[:, 1:] @ rotation.T), 1)
    for order in itertools.permutations(range(3)):
        order = list(order)
        cell, pbc = (case.cell @ rotation.T)[order], [case.pbc[i] for i in order]
        got = operator.prepare(case.positions @ rotation.T, cell, pbc).energy(rows)
        assert_close(got, energy, 1e-11)


def test_forces_and_stress_are_derivatives(generator):
    """Of a slab whose interaction is cut off at half the height; second derivatives too."""
    plane = torch.tensor(PLANES["wide"], dtype=F64)
    positions, rows = draw(plane, (0.0, 0.5, 1.0), generator)
    cell = torch.cat((plane, 9.0 * normal_of(plane)[None]))
    operator = Coulomb(sigma=1.5, tolerance=1e-2, self_interaction=True)
    plan = operator.plan(cell, [True, True, False], None, 3, positions=positions)
    assert bool(plan.lattice.slabs.truncated[0])

    def energy(r, cell, p):
        return operator.prepare(r, cell, plan=plan, counter_charge=(5.0, 7.0)).energy(p)

    inputs = [t.clone().requires_grad_() for t in (positions, cell, rows)]
    assert torch.autograd.gradcheck(energy, inputs)
    assert torch.autograd.gradgradcheck(energy, inputs)


def shifted(case, along, generator):
    """The same slab and counter-charge elsewhere, in another cell."""
    normal = normal_of(case.cell[:2])
    bounds = tuple(b + along for b in case.fields["counter_charge"])
    cell = case.cell.clone()
    cell[2] = cell[2] * float(1 + 3 * torch.rand((), generator=generator))
    fields = {**case.fields, "counter_charge": bounds}
    return case.positions + along * normal, cell, fields


@pytest.mark.parametrize("field", [0.0, 0.2])
@pytest.mark.parametrize("along", [-31.0, 4.5, 1000.0])
def test_potentials_do_not_depend_on_where_a_slab_stands(along, field, generator):
    """With a counter-charge: energy, potential, features and values at points."""
    case = boundary_case("slab with a counter-charge", generator)
    normal = normal_of(case.cell[:2])
    case.fields["external_field"] = field * normal
    points = case.positions + torch.tensor([[0.0], [2.0], [-8.0], [30.0]], dtype=F64) * normal
    plain = case.geometry()
    positions, cell, fields = shifted(case, along, generator)
    moved = case.coulomb().prepare(positions, cell, case.pbc, **fields)
    assert_close(moved.energy(case.rows), plain.energy(case.rows), 1e-10)
    assert_close(moved.potential(case.rows), plain.potential(case.rows), 1e-10)
    assert_close(moved.features(case.rows), plain.features(case.rows), 1e-10)
    values = moved.at(points + along * normal, case.rows), plain.at(points, case.rows)
    for got, want in zip(*values, strict=True):
        assert_close(got, want, 1e-9)
    if not field:
        assert_close(moved.vacuum_levels(case.rows), plain.vacuum_levels(case.rows), 1e-10)


def test_features_are_the_derivative_of_the_energy(generator):
    """One zero for both: of the density's own width, features are potentials but for normalisation."""
    case = boundary_case("slab with a counter-charge", generator)
    case.fields["external_field"] = 0.2 * normal_of(case.cell[:2])
    geometry = case.geometry()
    rows = case.rows.clone().requires_grad_()
    (slope,) = torch.autograd.grad(geometry.energy(rows).sum(), rows)
    assert_close(geometry.potential(case.rows), slope, 1e-11)
    features = geometry.features(case.rows, widths=(SIGMA,))
    scale = torch.tensor([math.sqrt(4 * math.pi), *(math.sqrt(1.5) * math.pi * SIGMA,) * 3], dtype=F64)
    assert_close(features / scale, slope, 1e-11)


def test_the_zero_is_the_counter_charge(generator):
    """Potentials average to 0 over it; the neutral slab's is 0 beyond it."""
    case = boundary_case("slab with a counter-charge", generator)
    case.fields = {"counter_charge": (20.0, 26.0)}
    nodes = torch.arange(400, dtype=F64) / 400
    side = torch.arange(8, dtype=F64) / 8
    x, y, z = torch.meshgrid(side, side, 20 + 6 * (nodes + 0.5 / 400), indexing="ij")
    normal = normal_of(case.cell[:2])
    plane = torch.stack((x, y), -1).view(-1, 2) @ case.cell[:2]
    points = plane - (plane @ normal)[:, None] * normal + z.reshape(-1, 1) * normal
    mean = case.geometry(sigma=0.8).at(points, case.rows).potential.mean()
    # at() is of points, the counter-charge is smoothed: 1/2 sigma^2 V'' on average over its profile
    area = torch.linalg.cross(case.cell[0], case.cell[1]).norm()
    charge = float(case.rows[:, 0].sum())
    scale = 4 * math.pi * COULOMB_CONSTANT * charge / float(area)
    assert abs(float(mean)) < 0.1 * abs(scale)
    case.rows[:, 0] -= case.rows[:, 0].mean()
    levels = case.geometry().vacuum_levels(case.rows)
    moment = ((case.rows[:, 0] * (case.positions @ normal)) + case.rows[:, 1:] @ normal).sum()
    assert abs(float(levels[0, 1])) < 1e-10
    assert float(levels[0, 0]) == pytest.approx(-float(4 * math.pi * COULOMB_CONSTANT * moment / area))


def test_vacuum_levels_are_potentials_far_away(generator):
    case = boundary_case("slab with a counter-charge", generator)
    normal = normal_of(case.cell[:2])
    for fields in ({"counter_charge": (14.0, 18.0)}, {"external_potential": 0.3}):
        case.fields = fields
        rows = case.rows.clone()
        if "external_potential" in fields:
            rows[:, 0] -= rows[:, 0].mean()
        geometry = case.geometry()
        points = torch.tensor([[-90.0], [120.0]], dtype=F64) * normal
        assert_close(geometry.vacuum_levels(rows)[0], geometry.at(points, rows).potential, 1e-9)


def test_no_vacuum_levels(generator):
    case = boundary_case("charged slab", generator)
    with pytest.raises(ValueError, match=r"carries a charge of .* give it a counter-charge"):
        case.geometry().vacuum_levels(case.rows)
    case.fields = {"counter_charge": (9.0, 10.0), "external_field": normal_of(case.cell[:2])}
    with pytest.raises(ValueError, match="leave the field out"):
        case.geometry().vacuum_levels(case.rows)
    molecule = boundary_case("molecule", generator)
    with pytest.raises(ValueError, match="system 0 of the batch is not a slab"):
        molecule.geometry().vacuum_levels(molecule.rows)


def test_a_plan_holds_for_one_thickness(generator):
    case = boundary_case("slab", generator)
    operator, n, normal = case.coulomb(), len(case.positions), normal_of(case.cell[:2])
    plan = operator.plan(case.cell, case.pbc, None, n, positions=case.positions)
    want = case.geometry().energy(case.rows)
    assert_close(operator.prepare(case.positions, case.cell, plan=plan).energy(case.rows), want, 1e-12)
    # without positions it is for slabs as thick as their cell
    loose = operator.plan(case.cell, case.pbc, None, n)
    energy = operator.prepare(case.positions, case.cell, plan=loose).energy(case.rows)
    assert float((energy - want).abs()) < 1e-6
    far = case.positions.clone()
    far[0] += 40 * normal
    with pytest.raises(ValueError, match=r"slab 0 of the batch is .* angstrom thick, its plan is for up to"):
        operator.prepare(far, case.cell, plan=plan)
    case.cell[2] = 0.0
    with pytest.raises(ValueError, match=r"system 0 is a slab whose open cell vector .* pass positions"):
        operator.plan(case.cell, case.pbc, None, n)


def test_features_wider_than_planned(generator):
    """Receivers that nobody announced get cells in which they end."""
    case = boundary_case("charged slab", generator)
    announced = case.geometry(feature_widths=(9.0,), kspace_cutoff=4.5).features(case.rows)
    found = case.geometry(kspace_cutoff=4.5).features(case.rows, widths=(9.0,))
    assert_close(found, announced, 1e-11)


def test_reaches():
    """Distances at which what images leave falls below a tolerance."""
    s = math.sqrt(2.0)
    r = gaussian_reach(2.0, 1e-8, 0)
    assert COULOMB_CONSTANT / r * math.erfc(r / (math.sqrt(2) * s)) == pytest.approx(1e-8, rel=1e-3)
    square = 8.0 * torch.eye(3, dtype=F64)[:2]
    g = lateral_reach(square, 1.0, 1e-8, 0)
    # four shortest waves, the next ones have died
    left = 4 * 2 * math.pi * COULOMB_CONSTANT / (64 * 2 * math.pi / 8) * math.exp(-2 * math.pi * g / 8)
    assert left == pytest.approx(1e-8, rel=0.05)
    skewed = torch.stack((square[0], square[1] + 7 * square[0]))
    assert lateral_reach(skewed, 1.0, 1e-8, 0) == pytest.approx(g)


def test_more_wave_vectors_than_memory(monkeypatch):
    """Refused with the numbers before anything is allocated."""
    monkeypatch.setattr(checks, "free_memory", lambda device: 2.0**30)
    positions = torch.zeros(1, 3, dtype=F64)
    with pytest.raises(ValueError, match=r"about 7\.8e\+07 wave .* 36\.1 GiB of memory, 1 GiB are free"):
        Coulomb(sigma=0.5, method="direct").prepare(positions, 250.0 * torch.eye(3, dtype=F64))
