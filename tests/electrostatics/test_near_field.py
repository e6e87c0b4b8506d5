"""Narrow Gaussians through smooth waves and neighbours: against the plain sum over waves."""

import dataclasses
import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from tolerances import assert_close

from electrostatics.systems import CRYSTAL, SLAB, boundary_case, random_batch
from electrostatics.test_mesh import PERIODIC, everything
from electrostatics.test_mesh_tolerance import interactions
from scfmlip import Coulomb
from scfmlip.units import COULOMB_CONSTANT

pytest.importorskip("matscipy", reason="neighbour lists come from matscipy")

F64 = torch.float64
PLAIN = {"method": "direct", "tolerance": 1e-13}
SPLIT = {"tolerance": 1e-12, "smooth": 1.1}


# half of the time that all of them take, and 11 GB
LARGE = ("batch of all", "mesh")


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case == LARGE))
        for case in itertools.product(PERIODIC, ("direct", "mesh"))
    ],
)
def test_all_that_the_plain_sum_gives(name, method, generator):
    """Features of a narrower and of a wider Gaussian than the smooth one."""
    case = boundary_case(name, generator, n_atoms=3, edge=4.0)
    split = {**SPLIT, "method": method, "sigma": 0.7}
    assert case.geometry(**split).smooth_width == 1.1
    got, want = everything(case, **split), everything(case, **PLAIN, sigma=0.7)
    for key, value in got.items():
        assert_close(value, want[key], 1e-8 if "second" in key else 1e-10)


@pytest.mark.parametrize("method", ["direct", "mesh"])
@pytest.mark.parametrize("name", PERIODIC)
def test_points(name, method, generator):
    """Density, potential and field, on an atom too, and far above slabs."""
    case = boundary_case(name, generator, n_atoms=3, edge=4.0)
    index = torch.arange(6 if name == "batch of all" else 1).repeat_interleave(6)
    points = 5 * torch.rand(len(index), 3, generator=generator, dtype=F64) - 1
    points[0] = case.positions[0]
    if "slab" in name:
        points[1, 2] = 30.0
    given = ({**SPLIT, "method": method}, PLAIN)
    got, want = (case.geometry(**o, sigma=0.6).at(points, case.rows, index) for o in given)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-8)


@pytest.mark.parametrize("method", ["direct", "mesh"])
@given(data=st.data())
@settings(max_examples=12, deadline=None, derandomize=True)
def test_errors_are_below_the_tolerance(data, method):
    """Random cells, places, widths, multipoles and tolerances; the plain sum at a thousandth of it."""
    tolerance = 10 ** -data.draw(st.floats(2, 8))
    sigma, l_max = data.draw(st.floats(0.3, 0.9)), data.draw(st.sampled_from([0, 1]))
    smooth = sigma * data.draw(st.floats(1.05, 4.0))
    edge, skew = data.draw(st.floats(2.0, 6.0)), data.draw(st.floats(0.0, 0.4))
    pbc = data.draw(st.sampled_from([CRYSTAL, SLAB]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    cell = edge * (torch.eye(3, dtype=F64) + skew * (torch.rand(3, 3, generator=generator, dtype=F64) - 0.5))
    positions = torch.rand(4, 3, generator=generator, dtype=F64) @ cell
    positions[1] = positions[0] + 0.1
    options = {"l_max": l_max, "sigma": sigma}
    plain = Coulomb(method="direct", tolerance=1e-3 * tolerance, **options)
    want = interactions(plain, positions, cell, pbc)
    operator = Coulomb(method=method, smooth=smooth, tolerance=tolerance, **options)
    got = interactions(operator, positions, cell, pbc)
    assert float((got - want).abs().max()) < tolerance + 1e-14 * float(want.abs().max())


def test_channels_and_several_widths(generator):
    """Two spins; densities of narrow and wide Gaussians, features narrower and wider than either."""
    positions, cell, index, _ = random_batch([4, 6], generator, 0.3)
    rows = torch.randn(10, 2, 8, generator=generator, dtype=F64)
    for sigma, widths in (((0.4, 0.8), (0.5, 1.5)), ((0.5, 1.6), (0.3, 2.0)), ((1.6, 1.3), (0.2, 1.4))):
        results = []
        for options in (SPLIT, PLAIN):
            operator = Coulomb(sigma=sigma, feature_widths=widths, **options)
            geometry = operator.prepare(positions, cell, CRYSTAL, index)
            assert (geometry.smooth_width is None) == (options is PLAIN)
            both = [geometry.potential(rows, self_interaction=s) for s in (True, False)]
            results.append(
                (*both, geometry.energy(rows), geometry.energy(rows, True), geometry.features(rows))
            )
        for got, want in zip(*results, strict=True):
            assert_close(got, want, 1e-10)


@pytest.mark.parametrize("pbc", [CRYSTAL, SLAB])
def test_quadrupoles(pbc, generator):
    """Forces and points too."""
    positions, cell, _, _ = random_batch([5], generator, 0.3)
    rows, found = torch.randn(5, 9, generator=generator, dtype=F64), []
    points = positions + 0.5
    for options in (SPLIT, PLAIN):
        r = positions.clone().requires_grad_()
        geometry = Coulomb(l_max=2, sigma=0.6, feature_widths=(0.4, 1.5), **options).prepare(r, cell, pbc)
        energy = geometry.energy(rows, self_interaction=True)
        force = torch.autograd.grad(energy.sum(), r, retain_graph=True)[0]
        values = geometry.at(points, rows)
        found.append((energy, force, geometry.potential(rows), geometry.features(rows), *values))
    for got, want in zip(*found, strict=True):
        assert_close(got, want, 1e-8)


def test_features_of_any_width(generator):
    """Not asked for when the operator was made: right, or refused with what to do."""
    positions, cell, _, rows = random_batch([6], generator, 0.3)
    for sigma in (0.5, (0.5, 1.5)):
        columns = rows if sigma == 0.5 else torch.cat((rows, rows), 1)
        split, plain = (Coulomb(sigma=sigma, **o).prepare(positions, cell) for o in (SPLIT, PLAIN))
        assert_close(split.features(columns, (0.3, 0.8)), _features(plain, columns, (0.3, 0.8)), 1e-10)
    with pytest.raises(ValueError, match=r"need neighbours up to .* pass feature_widths=\(3.0,\) to Coulomb"):
        split.features(columns, 3.0)
    Coulomb(sigma=0.5, **SPLIT).prepare(positions, cell).features(rows, 3.0)


def _features(geometry, rows, widths):
    operator = dataclasses.replace(geometry.coulomb, feature_widths=widths)
    return operator.prepare(geometry.positions, geometry.cell).features(rows)


def test_neighbours_are_found_again(generator):
    """A plan remembers those of its positions, and looks again for others and in a strained cell."""
    positions, cell, _, rows = random_batch([8], generator, 0.3)
    operator = Coulomb(sigma=0.5, **SPLIT)
    plan = operator.plan(cell, None, None, 8, positions=positions)
    assert operator.prepare(positions, cell, plan=plan).near.near is plan.near.found
    assert plan.near.found.reach == plan.near.reach
    for moved, strained in (
        (positions + 2 * torch.rand(8, 3, generator=generator, dtype=F64), cell),
        (positions, 1.1 * cell),
    ):
        want = operator.prepare(moved, strained).energy(rows)
        assert_close(operator.prepare(moved, strained, plan=plan).energy(rows), want, 1e-10)
        bare = operator.plan(cell, None, None, 8)
        assert_close(operator.prepare(moved, strained, plan=bare).energy(rows), want, 1e-10)


def test_invariances(generator):
    """Atoms in any image; left-handed cells; two atoms in one place."""
    positions, cell, _, rows = random_batch([6], generator, 0.5)
    positions[3] = positions[2]
    operator, plain = (Coulomb(sigma=0.5, **o) for o in (SPLIT, PLAIN))
    want = plain.prepare(positions, cell).energy(rows)
    assert_close(operator.prepare(positions, cell).energy(rows), want, 1e-10)
    images = torch.randint(-3, 4, (6, 3), generator=generator).double() @ cell[0]
    assert_close(operator.prepare(positions + images, cell).energy(rows), want, 1e-10)
    flipped = cell[0] * torch.tensor([1.0, -1.0, 1.0], dtype=F64)[:, None]
    assert_close(operator.prepare(positions, flipped).energy(rows), want, 1e-10)


def test_derivatives(generator):
    positions, cell, _, rows = random_batch([2], generator, 0.2)
    cell = 0.6 * cell[0]
    operator = Coulomb(sigma=0.5, smooth=1.0, tolerance=1e-3, feature_widths=(0.3,))

    def function(r, h, p):
        geometry = operator.prepare(r, h)
        return geometry.energy(p), geometry.potential(p), geometry.features(p)

    leaves = [x.requires_grad_() for x in (positions, cell, rows)]
    # neighbours beyond the cutoff come and go: they carry the tolerance
    operator = dataclasses.replace(operator, tolerance=1e-10)
    assert torch.autograd.gradcheck(function, leaves, atol=1e-6, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, atol=1e-5, fast_mode=True)


def test_float32(generator):
    """As good as the plain sum: neighbours are summed in float64."""
    positions, cell, _, rows = random_batch([20], generator, 0.3)
    want = Coulomb(sigma=0.4, **PLAIN).prepare(positions, cell)
    single = [t.float() for t in (positions, cell, rows)]
    geometry = Coulomb(sigma=0.4, smooth=1.2).prepare(*single[:2])
    assert geometry.potential(single[2]).dtype == geometry.energy(single[2]).dtype == torch.float32
    assert_close(geometry.potential(single[2]), want.potential(rows), 3e-6)
    assert_close(geometry.energy(single[2]), want.energy(rows), 3e-6)


def test_transforms(generator):
    """torch.func's hessian, vmap over multipoles; what needs a search refuses to be batched or compiled."""
    case = boundary_case("crystal", generator, n_atoms=3, edge=4.0)
    operator = case.coulomb(sigma=0.6, smooth=1.0)

    def energy(r):
        return operator.prepare(r, case.cell).energy(case.rows).sum()

    want = torch.autograd.functional.hessian(energy, case.positions)
    assert_close(torch.func.hessian(energy)(case.positions), want)
    potential = operator.prepare(case.positions, case.cell).potential
    rows = torch.randn(3, *case.rows.shape, generator=generator, dtype=F64)
    assert_close(torch.vmap(potential)(rows), torch.stack([potential(r) for r in rows]))
    plan = operator.plan(case.cell, None, None, 3, positions=case.positions)

    def planned(r):
        return operator.prepare(r, case.cell, plan=plan).energy(case.rows).sum()

    with pytest.raises(ValueError, match="near_list reads values on the host"):
        torch.vmap(planned)(torch.stack((case.positions, case.positions)))
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"pass smooth=0.0 to Coulomb"):
        torch.compile(planned, backend="eager", fullgraph=True)(case.positions)
    torch._dynamo.reset()


MADELUNG = {
    # positions in units of the edge of the cube, and the constant of the distance of neighbours
    "NaCl": ([(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)], (1, 1, 1), 0.5, 1.747564594633182),
    "CsCl": ([(0, 0, 0)], (1, 1, 1), 3**0.5 / 2, 1.762674773070990),
    "ZnS": ([(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)], (0.5, 0.5, 0.5), 3**0.5 / 4, 1.638055053388789),
}


@pytest.mark.parametrize("sigma", [0.1, 1e-3])
@pytest.mark.parametrize("name", MADELUNG)
def test_point_charges(name, sigma):
    """Madelung constants of 216 or 250 ions and more as good as points: E. R. Smith's and Tyagi's digits."""
    cations, shift, distance, constant = MADELUNG[name]
    base = torch.tensor(cations, dtype=F64) / 2
    both = torch.cat((base, base + torch.tensor(shift, dtype=F64) / 2))
    n, edge = 3, 5.0
    steps = torch.cartesian_prod(*(torch.arange(n, dtype=F64),) * 3)
    positions = ((both[:, None] + steps) * edge).flatten(0, 1)
    charges = torch.ones(len(positions), 1, dtype=F64)
    charges[len(positions) // 2 :] = -1
    cell = n * edge * torch.eye(3, dtype=F64)
    for method in ("direct", "mesh"):
        operator = Coulomb(l_max=0, sigma=sigma, method=method, smooth=1.5, tolerance=1e-9)
        geometry = operator.prepare(positions, cell)
        found = -2 * float(geometry.energy(charges)) * distance * edge / COULOMB_CONSTANT / len(positions)
        assert found == pytest.approx(constant, rel=1e-9)


def test_refuses():
    for wrong in (-1.0, float("nan"), "auto"):
        with pytest.raises(ValueError, match="smooth must be a width in angstrom, 0 or None"):
            Coulomb(smooth=wrong)
    with pytest.raises(ValueError, match="kspace_cutoff is for Gaussians as they are"):
        Coulomb(smooth=1.0, kspace_cutoff=5.0)
    with pytest.raises(ValueError, match="compat is for Gaussians as they are"):
        Coulomb(smooth=1.0, compat="les")
