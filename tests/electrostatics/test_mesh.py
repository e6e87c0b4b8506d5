"""The mesh against the direct sum: values and derivatives under every boundary condition, refusals."""

import dataclasses

import pytest
import torch
from tolerances import assert_close

from electrostatics.systems import BOUNDARIES, CRYSTAL, boundary_case, random_batch, random_rotation
from scfmlip import Coulomb
from scfmlip.electrostatics.mesh import Mesh

F64 = torch.float64
# both to about rounding
FINE, DIRECT = {"method": "mesh", "tolerance": 1e-12}, {"method": "direct", "tolerance": 1e-13}
PERIODIC = [name for name in BOUNDARIES if "molecule" not in name or "box" in name]


def everything(case, **options):
    """Energy, potential, features, points, and derivatives up to the second, as one dictionary."""
    leaves = [case.positions.clone(), case.cell.clone(), case.rows.clone()]
    case = dataclasses.replace(case, positions=leaves[0], cell=leaves[1], rows=leaves[2])
    for leaf in leaves:
        leaf.requires_grad_()
    geometry = case.geometry(feature_widths=(1.0, 2.5), **options)
    energy, features = geometry.energy(case.rows), geometry.features(case.rows)
    found = {"energy": energy, "potential": geometry.potential(case.rows), "features": features}
    first = torch.autograd.grad(energy.sum(), leaves, create_graph=True)
    found |= dict(zip(("force", "stress", "conjugate"), first, strict=True))
    wave = torch.cos(torch.arange(features.numel(), dtype=F64)).view_as(features)
    of_features = torch.autograd.grad((features * wave).sum(), leaves, create_graph=True)
    found |= {f"features by {n}": g for n, g in zip("rcp", of_features, strict=True)}
    for name, gradients in (("energy", first), ("features", of_features)):
        square = sum((g**2).sum() for g in gradients)
        second = torch.autograd.grad(square, leaves, retain_graph=True)
        found |= {f"second of {name} by {n}": g for n, g in zip("rcp", second, strict=True)}
    return found


@pytest.mark.parametrize("name", PERIODIC)
def test_all_that_the_direct_sum_gives(name, generator):
    case = boundary_case(name, generator, n_atoms=3, edge=5.0)
    got, want = everything(case, **FINE), everything(case, **DIRECT)
    for key, value in got.items():
        assert_close(value, want[key], 1e-9 if "second" in key else 1e-10)


@pytest.mark.parametrize("name", PERIODIC)
def test_points(name, generator):
    case = boundary_case(name, generator, n_atoms=3, edge=5.0)
    if name == "batch of all":
        index = torch.arange(6).repeat_interleave(4)
    else:
        index = torch.zeros(9, dtype=torch.int64)
    points = 6 * torch.rand(len(index), 3, generator=generator, dtype=F64) - 1
    got, want = (case.geometry(**o).at(points, case.rows, index) for o in (FINE, DIRECT))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-8)
    if name in ("slab", "slab with a counter-charge"):
        levels = [case.geometry(**o).vacuum_levels(case.rows) for o in (FINE, DIRECT)]
        assert_close(*levels)


@pytest.mark.parametrize("flip", [0, 1, 2])
def test_left_handed_and_very_skewed_cells(flip, generator):
    """The lattice is the same with a vector turned around, or another added to it."""
    positions, cell, _, rows = random_batch([6], generator, 0.8)
    want = Coulomb(**DIRECT).prepare(positions, cell[0]).energy(rows)
    other = cell[0].clone()
    other[flip] *= -1
    other[(flip + 1) % 3] += other[flip]
    assert_close(Coulomb(**FINE).prepare(positions, other).energy(rows), want, 1e-11)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slabs_along_any_axis(axis, generator):
    case = boundary_case("charged slab", generator, n_atoms=4, edge=5.0)
    roll = [(i - axis - 1) % 3 for i in range(3)]
    pbc = [i != axis for i in range(3)]
    cell = case.cell[roll]
    energies = [Coulomb(**o).prepare(case.positions, cell, pbc).energy(case.rows) for o in (FINE, DIRECT)]
    assert_close(*energies, 1e-10)


def test_channels_and_widths(generator):
    """Two spins, two widths of the density, three of the features."""
    positions, cell, index, _ = random_batch([4, 7], generator, 0.3)
    rows = torch.randn(11, 2, 8, generator=generator, dtype=F64)
    results = []
    for options in (FINE, DIRECT):
        operator = Coulomb(sigma=(1.0, 1.7), feature_widths=(0.9, 1.4, 3.0), **options)
        geometry = operator.prepare(positions, cell, CRYSTAL, index)
        results.append((geometry.energy(rows), geometry.potential(rows), geometry.features(rows)))
    for got, want in zip(*results, strict=True):
        assert_close(got, want, 1e-10)


def test_float32(generator):
    positions, cell, _, rows = random_batch([20], generator, 0.3)
    want = Coulomb(**DIRECT).prepare(positions, cell)
    for tolerance in (1e-3, 1e-6):  # sums in float32, and in float64
        single = [t.float() for t in (positions, cell, rows)]
        geometry = Coulomb(method="mesh", tolerance=tolerance).prepare(*single[:2])
        assert geometry.potential(single[2]).dtype == torch.float32
        bound = max(3e-6, 10 * tolerance)
        assert_close(geometry.potential(single[2]), want.potential(rows), bound)
        assert_close(geometry.energy(single[2]), want.energy(rows), bound)


def test_forces_are_the_derivative_of_the_energy(generator):
    """On a coarse mesh too: the energy and its gradient belong to one function."""
    positions, cell, _, rows = random_batch([5], generator, 0.3)
    operator = Coulomb(method="mesh", tolerance=1e-2)

    def energy(r, h):
        return operator.prepare(r, h).energy(rows)

    inputs = (positions.requires_grad_(), cell[0].requires_grad_())
    plan = operator.plan(cell, None, None, 5)
    operator = dataclasses.replace(operator, validate=False)
    assert torch.autograd.gradcheck(energy, inputs, atol=1e-6)
    geometry = operator.prepare(*inputs, plan=plan)
    unit = torch.eye(20, dtype=F64).view(5, 4, 20).transpose(1, 2)
    matrix = geometry.potential(unit, self_interaction=True).transpose(1, 2).reshape(20, 20)
    assert_close(matrix, matrix.mT, 1e-13)


def test_rotations_and_whole_lattice_vectors(generator):
    """A mesh turns with its cell; atoms may be in any image."""
    positions, cell, _, rows = random_batch([8], generator, 0.3)
    operator = Coulomb(method="mesh", l_max=0)
    want = operator.prepare(positions, cell).energy(rows[:, :1])
    turned = random_rotation(generator)
    assert_close(operator.prepare(positions @ turned.T, cell @ turned.T).energy(rows[:, :1]), want, 1e-11)
    images = torch.randint(-3, 4, (8, 3), generator=generator).double() @ cell[0]
    assert_close(operator.prepare(positions + images, cell).energy(rows[:, :1]), want, 1e-11)


def test_a_batch_is_its_systems(generator):
    positions, cell, index, rows = random_batch([3, 9, 1], generator, 0.4, net_charge=True)
    operator = Coulomb(**FINE)
    together = operator.prepare(positions, cell, CRYSTAL, index).energy(rows)
    for i in range(3):
        mine = index == i
        alone = operator.prepare(positions[mine], cell[i]).energy(rows[mine])
        assert_close(together[i : i + 1], alone, 1e-10)


def test_what_was_used(generator):
    positions, cell, index, _ = random_batch([3, 9], generator)
    for method in ("direct", "mesh"):
        geometry = Coulomb(method=method).prepare(positions, cell, [CRYSTAL, [False] * 3], index)
        assert geometry.method == [method, "mesh" if method == "mesh" else "pairs"]
        assert isinstance(geometry.kspace, Mesh) == (method == "mesh")
    assert Coulomb().prepare(positions, cell, CRYSTAL, index).method == ["direct", "direct"]


def test_refuses(generator):
    with pytest.raises(ValueError, match="kspace_cutoff is for method='direct'"):
        Coulomb(method="mesh", kspace_cutoff=3.0)
    with pytest.raises(ValueError, match="compat is for method='direct'"):
        Coulomb(method="mesh", compat="les")
    with pytest.raises(ValueError, match="method must be 'auto', 'direct' or 'mesh', got 'pme'"):
        Coulomb(method="pme")
    positions, cell, _, _ = random_batch([3], generator)
    with pytest.raises(ValueError, match=r"needs a mesh of \d+ x \d+ x \d+ points .* GiB are free"):
        Coulomb(method="mesh").prepare(positions, 1e4 * cell)
    single = Coulomb(method="mesh", tolerance=1e-9)
    with pytest.raises(ValueError, match=r"float32 .* tolerance of at least .* use float64"):
        single.prepare(positions.float(), cell.float())


@pytest.mark.parametrize("name", ["crystal", "slab", "batch of all"])
def test_one_graph(name, generator):
    """Compiled with a plan made outside: the same numbers, gradients included."""
    case = boundary_case(name, generator)
    operator = case.coulomb(method="mesh", feature_widths=(1.0, 2.0))
    plan = operator.plan(case.cell, case.pbc, case.batch_idx, len(case.positions), positions=case.positions)

    def function(r, h, p):
        geometry = operator.prepare(r, h, plan=plan)
        return geometry.energy(p).sum() + geometry.features(p).square().sum() + geometry.potential(p).sum()

    torch._dynamo.reset()
    leaves = [t.clone().requires_grad_() for t in (case.positions, case.cell, case.rows)]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    results = [(f(*leaves), *torch.autograd.grad(f(*leaves), leaves)) for f in (compiled, function)]
    for got, want in zip(*results, strict=True):
        assert_close(got, want)
    torch._dynamo.reset()


def test_transforms(generator):
    """torch.func's hessian, and vmap over multipoles and positions."""
    case = boundary_case("crystal", generator)
    operator = case.coulomb(method="mesh")
    plan = operator.plan(case.cell, case.pbc, None, len(case.positions))

    def energy(r):
        return operator.prepare(r, case.cell, plan=plan).energy(case.rows).sum()

    want = torch.autograd.functional.hessian(energy, case.positions)
    assert_close(torch.func.hessian(energy)(case.positions), want)
    potential = operator.prepare(case.positions, case.cell, plan=plan).potential
    rows = torch.randn(3, *case.rows.shape, generator=generator, dtype=F64)
    assert_close(torch.vmap(potential)(rows), torch.stack([potential(r) for r in rows]))
    moved = torch.stack((case.positions, case.positions + 0.3))
    assert_close(torch.vmap(energy)(moved), torch.stack([energy(r) for r in moved]))
