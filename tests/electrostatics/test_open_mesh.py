"""Isolated systems on a mesh in a box: the same numbers as sums over all pairs, to the tolerance."""

import pytest
import torch

from scfmlip import Coulomb, charge_equilibration
from scfmlip.electrostatics import plan as plans
from scfmlip.electrostatics.kept import KeptPlans
from scfmlip.segments import Segments


def cloud(n, density=0.1, seed=0, dtype=torch.float64, stretch=(1.0, 1.0, 1.0)):
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(n, 3, generator=generator, dtype=torch.float64) * (n / density) ** (1 / 3)
    return (positions * torch.tensor(stretch).double()).to(dtype)


def rows_of(operator, n, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, operator.source.dim, generator=generator, dtype=torch.float64).to(dtype)


def values(operator, positions, rows, **options):
    """Energy, forces, potentials and features."""
    r = positions.clone().requires_grad_()
    geometry = operator.prepare(r, None, False, **options)
    energy = geometry.energy(rows)
    (gradient,) = torch.autograd.grad(energy.sum(), r)
    parts = (energy, gradient, geometry.potential(rows), geometry.features(rows))
    return geometry, [part.detach() for part in parts]


@pytest.mark.parametrize("l_max", [0, 1, 2])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("stretch", [(1.0, 1.0, 1.0), (4.0, 1.0, 0.3)])
def test_equal_to_all_pairs(l_max, tolerance, stretch):
    options = {"l_max": l_max, "sigma": (1.2, 1.7), "feature_widths": (1.0, 2.0), "tolerance": tolerance}
    positions = cloud(40, stretch=stretch)
    found, right = (
        values(operator, positions, rows_of(operator, 40))
        for operator in (Coulomb(method="mesh", **options), Coulomb(method="direct", **options))
    )
    assert (found[0].method, right[0].method) == (["mesh"], ["pairs"])
    # multipoles of 1 and more, 40 atoms: errors of pairs add up as the root of their number
    for a, b in zip(found[1], right[1], strict=True):
        assert float((a - b).abs().max()) < 40 * tolerance


def test_total_charge_dipole_and_place_do_not_matter():
    operator = Coulomb(l_max=1, sigma=1.0, method="mesh", tolerance=1e-8)
    positions, rows = cloud(12), rows_of(operator, 12)
    rows[:, 0] += 1.0  # charged
    far = positions + torch.tensor([300.0, -1000.0, 77.0]).double()
    exact = Coulomb(l_max=1, sigma=1.0, method="direct")
    want = exact.prepare(positions, None, False).energy(rows)
    for place in (positions, far):
        torch.testing.assert_close(operator.prepare(place, None, False).energy(rows), want, rtol=0, atol=1e-6)


def test_derivatives_of_first_and_second_order():
    operator = Coulomb(l_max=1, sigma=0.9, method="mesh", tolerance=1e-4)
    positions, rows = cloud(4).requires_grad_(), rows_of(operator, 4).requires_grad_()
    plan = operator.plan(None, False, None, 4, positions=positions)
    assert plan.boxes is not None

    def energy(positions, rows):
        return operator.prepare(positions, None, False, plan=plan).energy(rows)

    assert torch.autograd.gradcheck(energy, (positions, rows))
    assert torch.autograd.gradgradcheck(energy, (positions, rows))


def test_a_batch_of_molecules_beside_a_crystal():
    cells = 6.0 * torch.eye(3, dtype=torch.float64).expand(3, 3, 3)
    pbc = torch.tensor([[False] * 3, [True] * 3, [False] * 3])
    positions = torch.cat((cloud(20), cloud(9, seed=2), cloud(31, seed=3)))
    batch = torch.tensor([0] * 20 + [1] * 9 + [2] * 31)
    found = []
    for method in ("mesh", "direct"):
        operator = Coulomb(l_max=1, sigma=1.3, method=method, tolerance=1e-7)
        geometry = operator.prepare(positions, cells, pbc, batch)
        found.append((geometry.method, geometry.energy(rows_of(operator, 60))))
    assert [method for method, _ in found] == [["mesh"] * 3, ["pairs", "direct", "pairs"]]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-5)


def test_auto_takes_the_mesh_for_large_systems_only():
    for n, method in ((30, "pairs"), (3000, "mesh")):
        positions = cloud(n, dtype=torch.float32)
        operator = Coulomb(l_max=1, sigma=1.5, tolerance=1e-4)
        geometry = operator.prepare(positions, None, False)
        assert geometry.method == [method]
    # a long chain fills its box badly
    chain = cloud(600, stretch=(200.0, 0.1, 0.1))
    assert Coulomb(l_max=0, sigma=1.5).prepare(chain, None, False).method == ["pairs"]
    # numbers of a reference code and of models that were trained with a cutoff stay what they are
    for kept in ({"compat": "graph_longrange"}, {"kspace_cutoff": 4.0}, {"method": "direct"}):
        plan = Coulomb(l_max=1, sigma=1.5, **kept).plan(None, False, None, 3000, positions=positions)
        assert plan.boxes is None


@pytest.mark.parametrize("l_max", [0, 1])
def test_float32(l_max):
    positions = cloud(50, dtype=torch.float32)
    options = {"l_max": l_max, "sigma": 1.2, "tolerance": 1e-4}
    found, right = (
        values(operator, positions, rows_of(operator, 50, torch.float32))[1]
        for operator in (Coulomb(method="mesh", **options), Coulomb(method="direct", **options))
    )
    for a, b in zip(found, right, strict=True):
        assert a.dtype == torch.float32
        assert float((a - b).abs().max()) < 40 * 1e-4


def test_a_plan_allows_some_growth_and_refuses_more():
    operator = Coulomb(l_max=0, sigma=1.2, method="mesh", tolerance=1e-6)
    positions, rows = cloud(20), rows_of(operator, 20)
    plan = operator.plan(None, False, None, 20, positions=positions)
    grown = positions.clone()
    grown[positions[:, 0].argmax(), 0] += 0.4
    found = operator.prepare(grown, None, False, plan=plan).energy(rows)
    exact = Coulomb(l_max=0, sigma=1.2, method="direct").prepare(grown, None, False).energy(rows)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-5)
    grown[positions[:, 0].argmax(), 0] += 3.0
    with pytest.raises(ValueError, match=r"isolated system 0 of the batch is .* make a new one"):
        operator.prepare(grown, None, False, plan=plan)


def test_receivers_that_the_mesh_is_not_made_for_are_summed_over_pairs():
    found = []
    for method in ("mesh", "direct"):
        operator = Coulomb(l_max=0, sigma=1.2, method=method, tolerance=1e-6)
        geometry = operator.prepare(cloud(20), None, False)
        rows = rows_of(operator, 20)
        found.append(
            [geometry.features(rows, widths, l_max) for widths, l_max in ((0.3, 0), (9.0, 0), (1.2, 1))]
        )
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_charges_and_points():
    n = 60
    positions = cloud(n)
    chi, hardness = torch.linspace(-1, 1, n).double(), torch.full((n,), 8.0).double()
    found = []
    for method in ("mesh", "direct"):
        operator = Coulomb(l_max=0, sigma=1.2, method=method, tolerance=1e-8)
        geometry = operator.prepare(positions, None, False)
        solution = charge_equilibration(geometry, chi, hardness, 1.0, tolerance=1e-9)
        points = torch.tensor([[0.0, 0.0, 0.0], [40.0, -3.0, 5.0]], dtype=torch.float64)
        found.append((solution.state, geometry.at(points, solution.state).potential))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_a_mesh_without_memory_is_refused_or_not_taken(monkeypatch):
    positions = cloud(10, stretch=(1e4, 1e4, 1e4))
    with pytest.raises(ValueError, match=r"needs a mesh of .* points"):
        Coulomb(l_max=0, sigma=0.5, method="mesh").prepare(positions, None, False)
    assert Coulomb(l_max=0, sigma=0.5).prepare(positions, None, False).method == ["pairs"]


def test_compiled_with_a_plan():
    operator = Coulomb(l_max=1, sigma=1.2, method="mesh", tolerance=1e-4)
    positions, rows = cloud(10), rows_of(operator, 10)
    plan = operator.plan(None, False, None, 10, positions=positions)
    assert isinstance(plan.boxes, plans.Boxes)

    @torch.compile(fullgraph=True, backend="eager")
    def energy(positions, rows):
        return operator.prepare(positions, None, False, plan=plan).energy(rows)

    want = operator.prepare(positions, None, False, plan=plan).energy(rows)
    torch.testing.assert_close(energy(positions, rows), want)


def test_kept_plans_follow_the_extents():
    n = 20
    kept, operator = KeptPlans(), Coulomb(l_max=0, sigma=1.2, method="mesh", tolerance=1e-6)
    positions, cell = cloud(n), torch.eye(3, dtype=torch.float64)[None]
    pbc, one = torch.zeros(1, 3, dtype=torch.bool), Segments.of(torch.zeros(n, dtype=torch.int64), 1)
    top = positions[:, 0].argmax()
    plans_of = []
    for step in (0.0, 0.01, 3.0, 3.0, -3.0):
        positions = positions.clone()
        positions[top, 0] += step
        plan = kept.look(positions, cell, pbc, one)[0].plan(operator)
        fresh = operator.plan(cell, pbc, None, n, positions=positions)
        assert torch.equal(plan.boxes.cells, fresh.boxes.cells)
        plans_of.append(plan)
    assert plans_of[0] is plans_of[1]
    assert plans_of[1] is not plans_of[2]
