"""Charges outside the model: exact derivatives, the energy they must have, and what cannot be answered."""

import numpy as np
import pytest
import torch

import scfmlip
from scfmlip.interfaces.ase import Calculator
from scfmlip.mace_torch.batches import make_batch

from .cases import ALL, REFERENCE, SYSTEMS, batch, crystal, make_model, slab, water
from .test_rules import NEED_COUNTER_CHARGE, energy, moved, slope

ANSWERING = [case for case in ALL if case != "short_range"]
# counter-charges where they change the equations
PAIRS = [
    (case, where)
    for case in ANSWERING
    for where in SYSTEMS
    if (case in (*NEED_COUNTER_CHARGE, "affine") if where == "counter_charge" else True)
    and not (case in NEED_COUNTER_CHARGE and where == "slab")
] + [("recursion", where) for where in ("open", "slab", "periodic")]


def with_ions(atoms, charges=(1.0, -0.6)):
    """Beside the system, above a slab's upper side."""
    atoms = atoms.copy()
    top = atoms.positions[atoms.positions[:, 2].argmax()]
    places = np.array([[0.4, 0.3, 2.2], [1.5, 0.2, 2.6]])[: len(charges)]
    atoms.info.update(external_charges=np.array(charges), external_positions=top + places)
    return atoms


@pytest.mark.parametrize(("case", "where"), PAIRS)
def test_forces_and_stress_are_derivatives(case, where):
    model = make_model(case)
    given = batch(model, [with_ions(SYSTEMS[where]())])
    out = model(given, compute_stress=True)
    generator = torch.Generator().manual_seed(0)
    place = given["external_positions"]
    direction, other = (
        torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in (given["positions"], place)
    )

    def shifted(s):
        new = {**moved(given, shift=s * direction), "external_positions": place + s * other}
        return energy(model, new).sum()

    got = -(out["forces"] * direction).sum() - (out["external_forces"] * other).sum()
    torch.testing.assert_close(got, slope(shifted), rtol=1e-7, atol=1e-8)
    if where != "open":
        strain = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        strain = strain + strain.T

        def strained(s):
            new = moved(given, strain=s * strain)
            new["external_positions"] = place @ (torch.eye(3, dtype=torch.float64) + s * strain)
            return energy(model, new).sum()

        got = (out["stress"][0] * strain).sum() * SYSTEMS[where]().get_volume()
        torch.testing.assert_close(got, slope(strained, 1e-4), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("where", ["open", "slab", "periodic"])
def test_the_energy_is_that_of_all_charges_without_theirs(where):
    model = make_model("fixed")
    atoms = with_ions(SYSTEMS[where](0.7))
    given = batch(model, [atoms])
    plain = {k: v for k, v in given.items() if "external" not in k}
    gained = energy(model, given) - energy(model, plain)

    cell = None if where == "open" else torch.tensor(atoms.cell.array)
    if where == "slab":
        cell[2] *= 4

    def coulomb(charges, positions):
        geometry = model.rule.coulomb.prepare(torch.tensor(positions), cell, atoms.pbc)
        return geometry.energy(torch.tensor(charges)[:, None])

    own = model(given)["charges"].numpy()
    ions, places = atoms.info["external_charges"], atoms.info["external_positions"]
    together = coulomb(np.concatenate((own, ions)), np.concatenate((atoms.positions, places)))
    expected = together - coulomb(own, atoms.positions) - coulomb(ions, places)
    torch.testing.assert_close(gained, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", ["local", "qeq", "affine", "mlp", "convex", "latent", "passive", *REFERENCE])
def test_far_charges_are_a_field(case):
    model, far, field = make_model(case), 2e4, 0.05
    at_origin = water()
    at_origin.positions -= at_origin.positions.mean(0)  # where MACE-POLAR's potential of a field is zero
    atoms = at_origin.copy()
    atoms.info["external_field"] = np.array([0.0, 0.0, -field])  # mace's sign
    inside = model(batch(model, [atoms]))
    charge = 0.5 * field * far**2 / scfmlip.units.COULOMB_CONSTANT
    ends = {
        "external_charges": [charge, -charge],
        "external_positions": [[0.0, 0.0, -far], [0.0, 0.0, far]],
    }
    atoms = at_origin.copy()
    atoms.info.update(ends)
    outside = model(batch(model, [atoms]))
    if case in REFERENCE:  # that zero moves along with the molecule
        inside["forces"], outside["forces"] = (o["forces"] - o["forces"].mean(0) for o in (inside, outside))
    for name in ("charges", "dipole", "forces"):
        torch.testing.assert_close(outside[name], inside[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", ["local", "qeq", "affine", "convex", "recursion"])
def test_forces_on_charges_need_no_stress(case):
    model, given = make_model(case), batch(make_model(case), [with_ions(water())])
    alone, beside = model(given), model(given, compute_stress=True)
    assert float(alone["external_forces"].abs().max()) > 1e-3
    torch.testing.assert_close(alone["external_forces"], beside["external_forces"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("case", ["local", "qeq", "qeq_narrow", "affine", "convex"])
def test_batches_equal_single_systems(case):
    model = make_model(case)
    frames = [with_ions(water()), slab(), with_ions(crystal(), (1.0,))]
    together = model(batch(model, frames), compute_potential=True)
    assert len(together["external_forces"]) == 3
    start = 0
    for i, frame in enumerate(frames):
        alone = model(batch(model, [frame]), compute_potential=True)
        rows = slice(start, start := start + len(frame))
        torch.testing.assert_close(together["energy"][i], alone["energy"][0], rtol=1e-8, atol=1e-9)
        for name in ("forces", "charges", "electrostatic_potential"):
            torch.testing.assert_close(together[name][rows], alone[name], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("case", ["local", "qeq", "affine", "passive", "convex", "recursion"])
def test_the_potential_at_atoms_is_that_of_all_charges(case):
    model, atoms = make_model(case), with_ions(water())
    out = model(batch(model, [atoms]), compute_potential=True)
    rows = out["density_coefficients"][:, [0, 3, 1, 2]]
    both = torch.tensor(np.concatenate((atoms.positions, atoms.info["external_positions"])))
    rows = torch.cat((rows, torch.zeros(2, 4, dtype=rows.dtype)))
    rows[-2:, 0] = torch.tensor(atoms.info["external_charges"])
    expected = model.rule.coulomb.prepare(both).potential(rows, self_interaction=False)[:3, 0]
    torch.testing.assert_close(out["electrostatic_potential"], expected, rtol=1e-9, atol=1e-9)


def test_calculator():
    atoms = with_ions(water())
    atoms.calc = Calculator(make_model("affine"))
    first = atoms.get_potential_energy()
    assert atoms.calc.results["external_forces"].shape == (2, 3)
    net = atoms.get_forces().sum(0) + atoms.calc.results["external_forces"].sum(0)
    np.testing.assert_allclose(net, 0, atol=1e-9)
    atoms.info["external_positions"] = atoms.info["external_positions"] + 0.1
    assert atoms.get_potential_energy() != first


def test_float32():
    frames = [with_ions(slab())]
    exact, single = (make_model("affine", dtype) for dtype in ("float64", "float32"))
    a, b = (model(batch(model, frames)) for model in (exact, single))
    for name in ("forces", "external_forces", "charges"):
        torch.testing.assert_close(b[name].double(), a[name], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"external_positions": [[0.0, 0.0]]}, "belong together"),
        ({"external_charges": [1.0]}, "belong together"),
        ({"external_charges": [np.nan, 1.0]}, "external_charges are NaN"),
        ({"external_positions": [[0.0, 0.0, np.inf], [0.0, 0.0, 9.0]]}, "external_positions are NaN"),
    ],
)
def test_bad_charges(change, message):
    model, atoms = make_model("local"), with_ions(water())
    atoms.info.update(change)
    with pytest.raises(ValueError, match=message):
        model(batch(model, [atoms]))


def test_bad_batches():
    model = make_model("local")
    given = batch(model, [with_ions(water())])
    with pytest.raises(ValueError, match="lacks n_external"):
        model({k: v for k, v in given.items() if k != "n_external"})
    with pytest.raises(ValueError, match=r"external_charges \[3\]"):
        model({**given, "n_external": torch.tensor([3])})


def test_who_cannot_answer():
    model = make_model("short_range")
    with pytest.raises(ValueError, match=r"short_range.*does not support"):
        model(batch(model, [with_ions(water())]))
    model = make_model("qeq")
    with pytest.raises(ValueError, match="without external charges"):
        scfmlip.models.work_functions(model, batch(model, [with_ions(slab())]))
    foreign = scfmlip.models.to_mace(make_model("short_range"))
    with pytest.raises(ValueError, match="does not support"):
        make_batch(foreign, [with_ions(water())], torch.device("cpu"), torch.float64)
