"""The ASE calculator along a trajectory: neighbours that are kept, where solves start, exact restarts."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("mace", reason="needs mace-torch")
pytest.importorskip("ase", reason="needs ASE")

from models.cases import batch, make_model, slab, water

from scfmlip.ase import Calculator
from scfmlip.scf import ExtendedLagrangian


def walk(atoms, steps=6, size=0.03, seed=0):
    """Geometries along smooth paths."""
    velocities = np.random.default_rng(seed).normal(scale=size, size=(len(atoms), 3))
    for step in range(steps):
        moved = atoms.copy()
        moved.positions += velocities * step + 0.1 * velocities[::-1] * step**2 / steps
        yield moved


def test_a_skin_changes_no_number():
    """Energies, forces and charges of a list of its own at every step, to 1e-12."""
    model, counts = make_model("qeq"), []
    for skin in (0.0, 0.6):
        calc, results = Calculator(model, extrapolation=None, skin=skin), []
        for atoms in walk(slab(), 8):
            calc.get_property("forces", atoms)
            results.append({k: calc.results[k] for k in ("energy", "forces", "charges")})
        counts.append((calc.neighbours.builds, results))
    (fresh, want), (kept, got) = counts
    assert fresh == 8
    assert kept <= 4
    for a, b in zip(got, want, strict=True):
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-12, atol=1e-12)


def test_a_level_is_part_of_a_start():
    """Where the charge is given, a density and its Fermi level are a solution, a density alone is none."""
    model = make_model("affine")
    frame = batch(model, [water(1.0)])
    out = model(frame)
    start = {"initial_density": out["density_coefficients"]}
    assert int(model(frame, **start)["scf_iterations"]) > 2
    again = model(frame, **start, initial_level=out["fermi_level"])
    assert int(again["scf_iterations"]) <= 1
    torch.testing.assert_close(again["forces"], out["forces"], rtol=0, atol=1e-9)


def test_warm_starts_spare_iterations():
    taken = {}
    model = copy.deepcopy(make_model("affine"))
    model.rule.config = dataclasses.replace(model.rule.config, tolerance=1e-5)
    for name, guess in (("cold", None), ("warm", 3), ("auxiliary", ExtendedLagrangian())):
        calc, counts = Calculator(model, extrapolation=guess), []
        for atoms in walk(water(), 8, 0.002):
            calc.get_property("forces", atoms)
            counts.append(calc.results["scf_iterations"])
        taken[name] = sum(counts[4:]), calc.results["energy"], calc.results["forces"]
    for name in ("warm", "auxiliary"):
        assert taken[name][0] < taken["cold"][0]
        assert taken[name][1] == pytest.approx(taken["cold"][1], abs=1e-5)
        np.testing.assert_allclose(taken[name][2], taken["cold"][2], atol=1e-4)


@pytest.mark.parametrize("case", ["affine", "many_body"])
def test_what_a_solve_found_spares_the_next_one_iterations(case, monkeypatch):
    """The same energies and forces, to the tolerance; another order of the elements starts anew."""
    model, taken = make_model(case), {}
    for name in ("with", "without"):
        calc, counts, found = Calculator(model), [], []
        if name == "without":
            guess = calc._guess
            monkeypatch.setattr(calc, "_guess", lambda *a, guess=guess: {**guess(*a), "solver_memory": None})
        for atoms in walk(slab(1.0), 8, 0.002):
            calc.get_property("forces", atoms)
            counts.append(int(calc.results["scf_iterations"]))
            found.append((calc.results["energy"], calc.results["forces"]))
        assert "solver_memory" not in calc.results
        taken[name] = counts, found
    assert taken["with"][0][0] == taken["without"][0][0]
    assert sum(taken["with"][0][2:]) < 0.8 * sum(taken["without"][0][2:]), taken
    for (e, f), (e0, f0) in zip(taken["with"][1], taken["without"][1], strict=True):
        assert e == pytest.approx(e0, abs=1e-6)
        np.testing.assert_allclose(f, f0, atol=1e-5)
    calc = Calculator(model)
    calc.get_property("forces", slab(1.0))
    assert calc._memory.spaces
    calc.get_property("forces", slab(1.0)[::-1])
    fresh = Calculator(model)
    fresh.get_property("forces", slab(1.0)[::-1])
    assert calc.results["energy"] == fresh.results["energy"]


def test_one_more_property_is_no_step():
    """What was found at a geometry is remembered once, however many properties are asked of it."""
    calc = Calculator(make_model("affine"), extrapolation=2)
    for atoms in walk(water(), 3):
        atoms.calc = calc
        atoms.get_forces()
        calc.get_property("born_charges", atoms)
    assert len(calc._states.states) == 3
    assert not np.array_equal(*(s.numpy() for s in calc._states.states[:2]))
    assert calc.results["scf_iterations"] <= 1


def test_stress_comes_with_forces_once_it_was_asked_for():
    atoms = slab()
    atoms.cell[2] = [0.0, 0.0, 15.0]
    atoms.calc = calc = Calculator(make_model("qeq"))
    atoms.get_forces()
    assert "stress" not in calc.results
    want = atoms.get_stress()
    atoms.positions += 0.0
    atoms.positions[0, 0] += 1e-9
    atoms.get_forces()
    np.testing.assert_allclose(calc.results["stress"], want, atol=1e-7)


@pytest.mark.parametrize("guess", [2, None, "auxiliary"])
def test_state(guess):
    """A calculator that takes over goes on bit for bit."""
    model = make_model("affine")

    def make():
        return Calculator(model, extrapolation=ExtendedLagrangian() if guess == "auxiliary" else guess)

    first, second, frames = make(), make(), [*walk(water(), 6)]
    for atoms in frames[:3]:
        first.get_property("forces", atoms)
    second.set_state(first.get_state(), frames[2])
    if guess is not None:
        assert len(second._states.states) >= 3
    assert not second.check_state(frames[2])
    assert second.results.keys() == first.results.keys()
    for atoms in frames[3:]:
        first.get_property("forces", atoms)
        second.get_property("forces", atoms)
        assert first.results["energy"] == second.results["energy"]
        np.testing.assert_array_equal(first.results["forces"], second.results["forces"])


def test_a_level_that_is_no_guess():
    model = make_model("affine")
    for bad in (torch.zeros(2), torch.tensor([torch.nan])):
        with pytest.raises(ValueError, match=r"initial_level must be finite numbers of shape \[1\]"):
            model(batch(model, [water()]), initial_level=bad)
