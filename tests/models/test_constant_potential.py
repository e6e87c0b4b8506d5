"""Slabs with a counter-charge: charges, levels and work functions do not depend on where things stand."""

import numpy as np
import pytest
import torch

import scfmlip.models
from models.cases import batch, make_model, slab

# given level, and given charge
AT_LEVEL = ["qeq", "affine", "many_body", "convex", "passive"]
AT_CHARGE = ["qeq", "affine", "mlp", "passive", "convex", "general"]


def elsewhere(atoms, along, height, upside_down=False):
    """The same slab and counter-charge, moved along the normal, in a cell of another height."""
    moved = atoms.copy()
    moved.info = dict(atoms.info)
    moved.positions[:, 2] += along
    low, high = atoms.info["counter_charge"]
    moved.info["counter_charge"] = (low + along, high + along)
    moved.cell[2] = [0.0, 0.0, height]
    if upside_down:
        moved.positions[:, 2] *= -1
        moved.info["counter_charge"] = (-high - along, -low - along)
    return moved


PLACES = [(0.0, 17.0), (-8.0, 40.0), (300.0, 25.0), (2.5, 4.0), (1.0, 0.0)]


@pytest.mark.parametrize("case", AT_LEVEL)
def test_charges_at_a_level(case):
    model = make_model(case, constraint="fermi_level")
    start = slab(0.0, True)
    outs = [model(batch(model, [elsewhere(start, *place)], fermi_level=-1.0)) for place in PLACES]
    assert abs(float(outs[0]["total_charge"])) > 1e-3  # the level does something
    for out in outs[1:]:
        torch.testing.assert_close(out["charges"], outs[0]["charges"], rtol=0, atol=1e-8)
        torch.testing.assert_close(out["energy"], outs[0]["energy"], rtol=0, atol=1e-8)
        torch.testing.assert_close(out["forces"], outs[0]["forces"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("charge", [0.0, 0.4])
@pytest.mark.parametrize("case", AT_CHARGE)
def test_levels_and_work_functions_at_a_charge(case, charge):
    model = make_model(case)
    start = slab(charge, True)
    given = [batch(model, [elsewhere(start, *place)]) for place in PLACES]
    levels = [float(model(g)["fermi_level"]) for g in given]
    np.testing.assert_allclose(levels, levels[0], rtol=0, atol=1e-7)
    work = torch.cat([scfmlip.models.work_functions(model, g) for g in given])
    torch.testing.assert_close(work, work[:1].expand_as(work), rtol=0, atol=1e-7)
    flipped = batch(model, [elsewhere(start, *PLACES[0], upside_down=True)])
    other = scfmlip.models.work_functions(model, flipped)
    torch.testing.assert_close(other.flip(1), work[:1], rtol=0, atol=1e-7)


@pytest.mark.parametrize("case", ["qeq", "passive", "convex"])
def test_levels_are_derivatives_of_the_energy(case):
    """Of rules whose state minimises it: minus dE/dQ, the counter-charge following."""
    model, step = make_model(case), 1e-3
    energies = [float(model(batch(model, [slab(0.3 + s * step, True)]))["energy"]) for s in (-2, -1, 1, 2)]
    slope = (8 * (energies[2] - energies[1]) - (energies[3] - energies[0])) / (12 * step)
    level = float(model(batch(model, [slab(0.3, True)]))["fermi_level"])
    assert level == pytest.approx(-slope, abs=1e-7)


def test_work_functions_differ_by_the_dipole():
    """Between the two sides of what is neutral as a whole."""
    model = make_model("qeq")
    atoms = slab(0.4, True)
    given = batch(model, [atoms])
    out = model(given)
    low, high = atoms.info["counter_charge"]
    moment = float(out["dipole"][0, 2]) - float(out["total_charge"]) * 0.5 * (low + high)
    area = np.linalg.norm(np.cross(*atoms.cell.array[:2]))
    work = scfmlip.models.work_functions(model, given)[0]
    assert float(work[0] - work[1]) == pytest.approx(4 * np.pi * 14.399645 * moment / area, rel=1e-5)


def test_external_field_along_the_normal():
    """It acts on the counter-charge too: the energy of what is neutral does not depend on the place."""
    model = make_model("qeq")
    start = slab(0.4, True)
    start.info["external_field"] = [0.0, 0.0, 0.05]
    outs = [model(batch(model, [elsewhere(start, *place)])) for place in PLACES[:3]]
    for out in outs[1:]:
        torch.testing.assert_close(out["energy"], outs[0]["energy"], rtol=0, atol=1e-8)
        torch.testing.assert_close(out["fermi_level"], outs[0]["fermi_level"], rtol=0, atol=1e-8)
