"""What the energy may not depend on: axes, origin, atom order, cell choice, images, cutoff, batching."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

from electrostatics.systems import (
    BOUNDARIES,
    CRYSTAL,
    SLAB,
    boundary_case,
    random_rotation,
    rotated_rows,
)
from scfmlip import Coulomb
from scfmlip_kernels import backend, recent

F64 = torch.float64
ONE_SYSTEM = [n for n in BOUNDARIES if n != "batch of all"]
TIGHT = {"kspace_cutoff": 4.5, "self_interaction": True}


def results(geometry, rows):
    return (
        geometry.energy(rows),
        geometry.potential(rows),
        geometry.features(rows, widths=(1.5, 2.5)),
    )


def feature_rows(features):
    """``[n, 2, 4]`` rows out of features of two widths."""
    return torch.cat((features[:, :2, None], features[:, 2:].view(-1, 2, 3)), -1)


def assert_same(got, want, tolerance=1e-11):
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, tolerance)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**20), name=st.sampled_from(ONE_SYSTEM))
def test_rotation(seed, name):
    """Scalars stay, vectors turn; cells, fields and slab normals turn too."""
    generator = torch.Generator().manual_seed(seed)
    case = boundary_case(name, generator, n_atoms=3)
    want = results(case.geometry(), case.rows)
    rotation = random_rotation(generator)
    case.positions = case.positions @ rotation.T
    case.cell = None if case.cell is None else case.cell @ rotation.T
    if "external_field" in case.fields:
        case.fields["external_field"] = rotation @ case.fields["external_field"]
    rows = rotated_rows(case.rows, rotation)
    energy, potential, features = results(case.geometry(), rows)
    assert_close(energy, want[0], 1e-11)
    assert_close(potential, rotated_rows(want[1], rotation), 1e-11)
    assert_close(feature_rows(features), rotated_rows(feature_rows(want[2]), rotation), 1e-11)


@pytest.mark.parametrize("name", [n for n in BOUNDARIES if "field" not in n and "counter" not in n])
def test_translation(name, generator):
    """Any shift of everything; along a slab's open axis too, where nothing wraps."""
    case = boundary_case(name, generator)
    want = results(case.geometry(**TIGHT), case.rows)
    case.positions = case.positions + torch.tensor([13.0, -27.0, 5.0], dtype=F64)
    assert_same(results(case.geometry(**TIGHT), case.rows), want)


def test_translation_with_the_counter_charge(generator):
    case = boundary_case("slab with a counter-charge", generator)
    want = results(case.geometry(**TIGHT), case.rows)
    normal = torch.linalg.cross(case.cell[0], case.cell[1])
    shift = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
    along = float(shift @ normal / normal.norm())
    case.positions = case.positions + shift
    case.fields = {"counter_charge": tuple(b + along for b in case.fields["counter_charge"])}
    assert_same(results(case.geometry(**TIGHT), case.rows)[:2], want[:2])


@pytest.mark.parametrize("name", ONE_SYSTEM)
def test_order_of_the_atoms(name, generator):
    case = boundary_case(name, generator, n_atoms=7)
    want = results(case.geometry(), case.rows)
    order = torch.randperm(7, generator=generator)
    case.positions = case.positions[order]
    got = results(case.geometry(), case.rows[order])
    assert_same(got, (want[0], want[1][order], want[2][order]))


@pytest.mark.parametrize("name", ["crystal", "charged crystal", "slab", "charged slab"])
def test_images_of_the_atoms(name, generator):
    """Atoms moved by lattice vectors; of a slab, by those in its plane."""
    case = boundary_case(name, generator)
    want = results(case.geometry(), case.rows)
    n = torch.randint(-3, 4, (4, 3), generator=generator).double()
    if "slab" in name:
        n[:, 2] = 0
    case.positions = case.positions + n @ case.cell
    assert_same(results(case.geometry(), case.rows), want)


@pytest.mark.parametrize("repeat", [(2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 3, 1)])
@pytest.mark.parametrize("name", ["crystal", "charged crystal", "slab", "charged slab"])
def test_supercells(name, repeat, generator):
    """Energy per cell and potentials are those of the small cell; a slab grows in its plane."""
    if "slab" in name and repeat[2] > 1:
        pytest.skip("a slab does not repeat along its normal")
    case = boundary_case(name, generator, n_atoms=3)
    want = results(case.geometry(**TIGHT), case.rows)
    shifts = torch.cartesian_prod(*(torch.arange(r, dtype=F64) for r in repeat)) @ case.cell
    case.positions = (case.positions[None] + shifts[:, None]).flatten(0, 1)
    case.cell = case.cell * torch.tensor(repeat)[:, None]
    count = len(shifts)
    energy, potential, features = results(case.geometry(**TIGHT), case.rows.repeat(count, 1))
    assert_close(energy / count, want[0], 1e-11)
    assert_close(potential, want[1].repeat(count, 1), 1e-11)
    assert_close(features, want[2].repeat(count, 1), 1e-11)


# unimodular: other lattice vectors of the same lattice; the first two left-handed
BASES = [
    [[0, 1, 0], [1, 0, 0], [0, 0, 1]],
    [[-1, 0, 0], [1, 1, 0], [0, 0, 1]],
    [[1, 1, 0], [0, 1, 0], [0, 0, 1]],
    [[1, 0, 0], [-2, 1, 0], [0, 0, 1]],
    [[0, 1, 0], [0, 0, 1], [1, 0, 0]],
    [[1, 0, 2], [1, 1, -1], [0, 0, 1]],
]


@pytest.mark.parametrize("basis", BASES)
def test_choice_of_lattice_vectors(basis, generator):
    case = boundary_case("charged crystal", generator)
    want = results(case.geometry(**TIGHT), case.rows)
    case.cell = torch.tensor(basis, dtype=F64) @ case.cell
    assert_same(results(case.geometry(**TIGHT), case.rows), want)


@pytest.mark.parametrize("basis", BASES[:4])
def test_choice_of_a_slabs_vectors(basis, generator):
    case = boundary_case("charged slab", generator)
    want = results(case.geometry(**TIGHT), case.rows)
    case.cell = torch.tensor(basis, dtype=F64) @ case.cell
    assert_same(results(case.geometry(**TIGHT), case.rows), want)


@pytest.mark.parametrize("name", ["charged slab", "slab with a counter-charge", "slab in a field"])
@pytest.mark.parametrize("axis", [0, 1])
def test_open_axis(axis, name, generator):
    """The lattice vectors of a slab in another order, ``pbc`` with them."""
    case = boundary_case(name, generator)
    want = results(case.geometry(), case.rows)
    case.cell = case.cell.roll(axis - 2, 0)
    case.pbc = [i != axis for i in range(3)]
    assert_same(results(case.geometry(), case.rows), want)


@pytest.mark.parametrize("name", BOUNDARIES)
def test_cutoff(name, generator):
    """The default leaves out what it says, 1e-6 eV for unit multipoles, and nothing is left at 4.5."""
    case = boundary_case(name, generator)
    loose, tight = (results(case.geometry(**o), case.rows) for o in ({}, TIGHT))
    tighter = results(case.geometry(kspace_cutoff=6.0, self_interaction=True), case.rows)
    assert_same(tight, tighter, 1e-12)
    assert float((loose[0] - tight[0]).abs().max()) < 1e-6 * float(case.rows.abs().sum()) ** 2


@pytest.mark.parametrize("name", ["charged crystal", "slab in a field", "molecule in a box", "batch of all"])
def test_chunks_and_boxes(name, generator, monkeypatch):
    """How the work is cut up is invisible."""
    case = boundary_case(name, generator, n_atoms=70)
    want = results(case.geometry(), case.rows)
    monkeypatch.setattr("scfmlip_kernels.lattice.waves._CHUNK_BYTES", 1)
    monkeypatch.setattr("scfmlip_kernels.lattice.waves._PHASE_BYTES", 0)
    recent.clear()
    monkeypatch.setattr("scfmlip_kernels.lattice.grid._WORK_WORTH_A_BOX", 1)
    assert_same(results(case.geometry(), case.rows), want)


def mixture(generator):
    """Every boundary that shares options, sizes from 0 to 9, in one ragged batch."""
    names = ["molecule", "crystal", "slab", "crystal", "molecule", "charged slab", "slab", "molecule"]
    sizes = [3, 9, 4, 0, 1, 5, 0, 0]
    return [boundary_case(n, generator, n_atoms=s) for n, s in zip(names, sizes, strict=True)]


def joined(cases):
    cells = [torch.eye(3, dtype=F64) if c.cell is None else c.cell for c in cases]
    index = torch.arange(len(cases)).repeat_interleave(torch.tensor([len(c.positions) for c in cases]))
    return (
        torch.cat([c.positions for c in cases]),
        torch.stack(cells),
        torch.tensor([c.pbc for c in cases]),
        index,
    )


@pytest.mark.parametrize("self_interaction", [False, True])
@pytest.mark.parametrize("l_max", [0, 1])
def test_a_batch_is_its_systems(l_max, self_interaction, generator):
    cases = mixture(generator)
    operator = Coulomb(l_max=l_max, self_interaction=self_interaction)
    rows = torch.cat([c.rows for c in cases])[:, : (l_max + 1) ** 2].contiguous()
    positions, cells, pbc, index = joined(cases)
    # a field that every system can hold: along the normal of the slabs, none for crystals
    fields = torch.zeros(len(cases), 3, dtype=F64)
    for i, case in enumerate(cases):
        if case.pbc == SLAB:
            normal = torch.linalg.cross(case.cell[0], case.cell[1])
            fields[i] = 0.2 * normal / normal.norm()
        elif case.pbc != CRYSTAL:
            fields[i] = torch.tensor([0.1, -0.3, 0.2])
    volts = torch.linspace(-1.0, 1.0, len(cases), dtype=F64)
    options = {"external_field": fields, "external_potential": volts}
    r = positions.clone().requires_grad_()
    geometry = operator.prepare(r, cells, pbc, index, **options)
    widths = (1.5, 2.5)
    energy = geometry.energy(rows)
    potential, features = geometry.potential(rows), geometry.features(rows, widths=widths)
    (force,) = torch.autograd.grad(energy.sum(), r)
    energy = energy.detach()
    for i, case in enumerate(cases):
        mine = index == i
        if not mine.any():
            assert float(energy[i]) == 0.0
            continue
        r = case.positions.clone().requires_grad_()
        alone = operator.prepare(
            r, case.cell, case.pbc, external_field=fields[i], external_potential=volts[i]
        )
        assert_close(energy[i : i + 1], alone.energy(rows[mine]), 1e-11)
        assert_close(potential[mine], alone.potential(rows[mine]), 1e-11)
        assert_close(features[mine], alone.features(rows[mine], widths=widths), 1e-11)
        (gradient,) = torch.autograd.grad(alone.energy(rows[mine]).sum(), r)
        scale = float(force.abs().max())
        assert float((force[mine] - gradient).abs().max()) < 1e-11 * scale


def test_order_of_the_systems(generator):
    cases = mixture(generator)
    operator = Coulomb()
    results = []
    for some in (cases, cases[::-1]):
        geometry = operator.prepare(*joined(some))
        results.append(geometry.energy(torch.cat([c.rows for c in some])))
    assert_close(results[1].flip(0), results[0])


def test_counter_charges_in_a_batch(generator):
    """Each slab its own, whatever the cells."""
    cases = [boundary_case("slab with a counter-charge", generator, n_atoms=n) for n in (3, 5)]
    bounds = torch.tensor([[0.5, 6.0], [-3.0, 2.0]], dtype=F64)
    geometry = Coulomb().prepare(*joined(cases), counter_charge=bounds)
    rows = torch.cat([c.rows for c in cases])
    potential = geometry.potential(rows)
    for i, case in enumerate(cases):
        alone = Coulomb().prepare(case.positions, case.cell, case.pbc, counter_charge=bounds[i])
        mine = joined(cases)[3] == i
        assert_close(geometry.energy(rows)[i : i + 1], alone.energy(case.rows), 1e-11)
        assert_close(potential[mine], alone.potential(case.rows), 1e-11)


@pytest.mark.parametrize("form", ["stacked cells", "one cell", "list of pbc", "one flag"])
def test_ways_to_say_the_same(form, generator):
    """Cells and flags as MACE stacks them, or one for all."""
    case = boundary_case("crystal", generator, n_atoms=6)
    index = torch.tensor([0, 0, 0, 0, 1, 1])
    cells = case.cell.expand(2, 3, 3)
    operator = Coulomb()
    want = operator.prepare(case.positions, cells, torch.ones(2, 3).bool(), index).energy(case.rows)
    arguments = {
        "stacked cells": (cells.reshape(6, 3), torch.ones(6).bool()),
        "one cell": (case.cell, torch.ones(2, 3).bool()),
        "list of pbc": (cells, [CRYSTAL, CRYSTAL]),
        "one flag": (cells, True),
    }[form]
    assert torch.equal(operator.prepare(case.positions, *arguments, index).energy(case.rows), want)


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", ["batch of all", "slab with a counter-charge", "molecule in a box"])
def test_the_kernels_and_the_cpu_path_agree(name, dtype, generator, device):
    """Energies, features and forces of the whole operator, on both implementations."""
    case = boundary_case(name, generator, n_atoms=3, edge=5.0)
    found = []
    for path, where, kind in (("triton", device, dtype), ("cpu", "cpu", F64)):
        with backend(path):
            r = case.positions.to(dtype).to(where, kind).requires_grad_()
            rows = case.rows.to(dtype).to(where, kind)
            cell = case.cell.to(dtype).to(where, kind)
            index = None if case.batch_idx is None else case.batch_idx.to(where)
            geometry = case.coulomb().prepare(r, cell, case.pbc, index, **case.fields)
            energy = geometry.energy(rows)
            features = geometry.features(rows, widths=(1.5, 2.5))
            forces = torch.autograd.grad(energy.sum() + features.sin().sum(), r)
            found.append([x.detach().cpu() for x in (energy, features, *forces)])
    for got, want in zip(*found, strict=True):
        assert_close(got, want)
