"""The ASE calculator: properties, recomputation, refusals."""

import numpy as np
import pytest
import torch

pytest.importorskip("mace", reason="needs mace-torch")
pytest.importorskip("ase", reason="needs ASE")

from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from mace_torch.polar_models import batch_of, random_frames, shared_polar_model
from models.cases import crystal, make_model, water

import scfmlip
from scfmlip.ase import Calculator

T, F = True, False
OPTIONS = {"hidden_irreps": "8x0e + 8x1o"}


def molecule_spin(atoms, charge):
    """The lowest multiplicity of its electrons."""
    return 1 + (int(atoms.numbers.sum()) - charge) % 2


@pytest.fixture
def model():
    return shared_polar_model(**OPTIONS)


@pytest.fixture
def atoms(model):
    (frame,) = random_frames([(T, T, T)])
    frame.calc = Calculator(model)
    return frame


def test_properties_equal_the_models(atoms, model):
    """mace-torch's own code on its own batch."""
    torch.set_default_dtype(torch.float64)
    out = model(batch_of([atoms], model))
    assert atoms.get_potential_energy() == pytest.approx(out["energy"].item(), rel=1e-9)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    names = {"dipole": "dipole", "energies": "node_energy"}
    names |= dict.fromkeys(["electrostatic_energy", "electron_energy"], "")
    names |= dict.fromkeys(["forces", "charges", "spins", "density_coefficients"], "")
    for name, key in names.items():
        got = np.asarray(atoms.calc.get_property(name, atoms))
        want = out[key or name].detach().numpy().reshape(got.shape)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-9 * np.abs(want).max(), err_msg=name)
    for method, name in (("forces", "forces"), ("charges", "charges"), ("dipole_moment", "dipole")):
        np.testing.assert_array_equal(getattr(atoms, f"get_{method}")(), atoms.calc.results[name])
    assert abs(atoms.get_charges().sum() - atoms.info["charge"]) < 1e-9


def test_stress_has_the_order_of_voigt():
    """xx, yy, zz, yz, xz, xy of a triclinic cell, each by differences."""
    frame = crystal()
    frame.calc = Calculator(make_model("qeq"), extrapolation=None)
    order = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    step, want = 2e-4, []
    for i, j in order:
        energies = []
        for k in (1, -1):
            strain = np.zeros((3, 3))
            strain[i, j] += 0.5 * k * step
            strain[j, i] += 0.5 * k * step
            strained = frame.copy()
            strained.set_cell(frame.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            strained.calc = frame.calc
            energies.append(strained.get_potential_energy())
        want.append((energies[0] - energies[1]) / (2 * step))
    want = np.array(want) / frame.get_volume()
    got = frame.get_stress()
    scale = np.abs(want).max()
    apart = np.abs(want[:, None] - want)[np.triu_indices(6, 1)]
    assert apart.min() > 1e-2 * scale, "an exchange would not be seen"
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * scale)  # finite differences
    rows = [[0, 5, 4], [5, 1, 3], [4, 3, 2]]
    np.testing.assert_allclose(frame.get_stress(voigt=False), want[rows], rtol=0, atol=1e-4 * scale)


def test_born_charges_and_polarizability_by_differences():
    """``[atom, component of the position, component of the dipole]`` and of the field, mace's sign undone."""
    atoms = water()
    atoms.calc = Calculator(make_model("qeq"), extrapolation=None)
    born = atoms.calc.get_property("born_charges", atoms)
    assert np.abs(born - born.swapaxes(1, 2)).max() > 1e-3, "a transposition would not be seen"
    alpha = atoms.calc.get_property("polarizability", atoms)
    step = 1e-3

    def dipole(shift, field):
        moved = atoms.copy()
        moved.positions[1] += shift
        moved.info["external_field"] = -np.asarray(field)
        moved.calc = atoms.calc
        return moved.get_dipole_moment()

    for i, row in enumerate(np.eye(3) * step):
        slope = (dipole(row, [0, 0, 0]) - dipole(-row, [0, 0, 0])) / (2 * step)
        np.testing.assert_allclose(born[1, i], slope, atol=1e-5)  # finite differences
        slope = (dipole([0, 0, 0], row) - dipole([0, 0, 0], -row)) / (2 * step)
        np.testing.assert_allclose(alpha[i], slope, atol=1e-5)  # finite differences
    # asked for alone
    other = water()
    other.calc = Calculator(make_model("qeq"))
    np.testing.assert_allclose(other.calc.get_property("polarizability", other), alpha, atol=1e-8)


def test_stress_belongs_to_the_frames_own_volume(model):
    (slab,) = random_frames([(T, T, F)], box=5.0)
    slab.cell[:2, 2] = 0.0
    slab.cell[2] = [0.0, 0.0, 20.0]
    slab.info["external_field"] = np.zeros(3)
    slab.calc = Calculator(model)
    stress = slab.get_stress()
    step, energies = 1e-5, []
    for sign in (1, -1):
        strained = slab.copy()
        strain = np.diag([1 + sign * step, 1, 1])
        strained.set_cell(np.asarray(slab.cell) @ strain, scale_atoms=True)
        strained.calc = slab.calc
        energies.append(strained.get_potential_energy())
    want = (energies[0] - energies[1]) / (2 * step) / slab.get_volume()
    assert stress[0] == pytest.approx(want, rel=1e-5)  # finite differences


def test_charge_spin_and_field_recompute(atoms):
    first = atoms.get_potential_energy()
    atoms.info["charge"] = 1.0
    second = atoms.get_potential_energy()
    assert second != first
    assert abs(atoms.get_charges().sum() - 1.0) < 1e-9
    atoms.info["external_field"] = np.array([0.0, 0.0, 0.1])
    third = atoms.get_potential_energy()
    assert third != second
    atoms.info["spin"] += 2.0
    assert atoms.get_potential_energy() != third
    atoms.info["comment"] = "does not matter"
    assert atoms.calc.calculation_required(atoms, ["energy"]) is False


@pytest.mark.parametrize(
    "key", ["external_field", "external_positions", "external_charges", "charge", "other"]
)
def test_changes_in_place_recompute(model, key):
    """ASE's copy of the atoms shares the arrays of their info."""
    frame = water()
    frame.info |= {
        "external_field": np.array([0.0, 0.0, 0.05]),
        "external_charges": np.array([0.5]),
        "external_positions": np.array([[0.0, 0.0, 6.0]]),
        "charge": np.array(0.0),
        "other": np.array([1.0]),
    }
    ours = make_model("qeq")
    frame.calc = Calculator(ours, extrapolation=None)
    first = frame.get_potential_energy()
    frame.info[key] += 0.25
    second = frame.get_potential_energy()
    fresh = frame.copy()
    fresh.calc = Calculator(ours, extrapolation=None)
    assert second == pytest.approx(fresh.get_potential_energy(), rel=1e-10)
    assert (abs(second - first) < 1e-12) == (key == "other")
    assert frame.calc.calculation_required(frame, ["energy"]) is False
    if key == "charge":  # under another name
        del frame.info["charge"]
        frame.info["total_charge"] = 0.0
        assert frame.get_potential_energy() == pytest.approx(first, rel=1e-9)


@pytest.mark.parametrize("given", [{"charge": "1"}, {"charge": True}, {"spin": "high"}, {"fermi_level": "x"}])
def test_arguments_that_are_no_numbers(model, given):
    with pytest.raises(ValueError, match="must be a number, got"):
        Calculator(model, **given)


def test_the_atoms_come_before_the_arguments(model):
    (frame,) = random_frames([(F, F, F)])
    frame.info = {"total_charge": 1, "spin": molecule_spin(frame, 1)}
    frame.calc = Calculator(model, charge=0, spin=7)
    assert abs(frame.get_charges().sum() - 1.0) < 1e-9


def test_the_callers_model_is_left_alone(model):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    Calculator(model, dtype="float32")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert next(model.parameters()).requires_grad


def test_float32_and_unaccelerated(atoms, model):
    want = atoms.get_potential_energy()
    atoms.calc = Calculator(model, dtype="float32")
    assert atoms.get_potential_energy() == pytest.approx(want, rel=1e-5)
    assert atoms.get_forces().dtype == np.float32
    assert {p.dtype for p in atoms.calc.model.parameters()} == {torch.float32}
    torch.set_default_dtype(torch.float64)
    atoms.calc = Calculator(model, accelerate=False)
    assert atoms.get_potential_energy() == pytest.approx(want, rel=1e-9)


def test_left_handed_lattice_vectors(atoms, model):
    other = atoms.copy()
    other.set_cell(atoms.cell.array[[1, 0, 2]])
    other.calc = atoms.calc
    assert other.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), rel=1e-9)
    np.testing.assert_allclose(other.get_forces(), atoms.get_forces(), rtol=0, atol=1e-9)
    other.calc = Calculator(model, accelerate=False)
    with pytest.raises(ValueError, match=r"left-handed.* mace-torch's own"):
        other.get_potential_energy()


def test_loads_what_mace_saved(atoms, model, tmp_path):
    torch.save(model, tmp_path / "polar.model")
    want = atoms.get_potential_energy()
    atoms.calc = Calculator(tmp_path / "polar.model", trust_pickle=True)
    assert atoms.get_potential_energy() == pytest.approx(want, rel=1e-12)
    torch.save({"a": 1}, tmp_path / "dict.model")
    with pytest.raises(TypeError, match="holds a dict, not a mace-torch model"):
        Calculator(tmp_path / "dict.model")
    with pytest.raises(FileNotFoundError, match="there is no model file"):
        Calculator(tmp_path / "none.model")


def test_refuses_what_it_cannot_evaluate(atoms, model):
    calc = atoms.calc

    def energy(frame):
        frame.calc = calc
        return frame.get_potential_energy()

    for key in ("charge", "spin"):
        frame = atoms.copy()
        del frame.info[key]
        with pytest.raises(ValueError, match=rf"lacks atoms.info\['{key}'\]"):
            energy(frame)
    frame = atoms.copy()
    frame.positions[2, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite positions, first at atom 2"):
        energy(frame)
    frame = atoms.copy()
    frame.numbers[0] = 79
    with pytest.raises(ValueError, match="holds Au, which the model does not support; it has H, C, O"):
        energy(frame)
    frame = atoms.copy()
    frame.cell[2] = 0.0
    with pytest.raises(ValueError, match="no volume"):
        energy(frame)
    with pytest.raises(ValueError, match="has no atoms"):
        energy(Atoms(info={"charge": 0, "spin": 1}))
    with pytest.raises(ValueError, match="dtype must be"):
        Calculator(model, dtype="half")


@pytest.mark.parametrize("number", [119, 500, -1, 0])
def test_refuses_numbers_of_no_element(model, number):
    atoms = Atoms([8, 1], [[0, 0, 0], [0, 0, 1.0]], info={"charge": 0, "spin": 1})
    atoms.numbers[1] = number
    atoms.calc = Calculator(model)
    with pytest.raises(ValueError, match=f"holds the element {number}, which the model does not support"):
        atoms.get_potential_energy()


@pytest.mark.parametrize("pbc", [True, False])
@pytest.mark.parametrize("far", [1e13, 1e200])
def test_refuses_atoms_whose_place_is_not_known(far, pbc):
    """Whole angstroms are less than the last digit: images of such atoms are anywhere."""
    atoms = water()
    atoms.cell, atoms.pbc = np.eye(3) * 7.0, pbc
    atoms.positions[1, 2] = far
    atoms.calc = Calculator(make_model("short_range"))
    with pytest.raises(ValueError, match=r"atom 1 .* so far away that its position is rounded by"):
        atoms.get_potential_energy()


def test_keys_that_are_no_texts(atoms):
    want = atoms.get_potential_energy()
    other = atoms.copy()
    other.info |= {5: 1.0, ("a", 1): "x", None: 2.0}
    other.calc = atoms.calc
    assert other.get_potential_energy() == pytest.approx(want, rel=1e-12)
    assert other.get_potential_energy() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"device": "abacus"}, ValueError, "device must be auto, cpu or cuda, got 'abacus'"),
        ({"device": None}, ValueError, "device must be auto, cpu or cuda, got None"),
        ({"device": "meta"}, ValueError, "device must be auto, cpu or cuda, got 'meta'"),
        ({"device": "cuda:99"}, ValueError, "device is cuda"),
        ({"dtype": []}, ValueError, "dtype must be"),
        ({"head": 3}, ValueError, "the model has no head 3"),
        ({"head": []}, ValueError, r"the model has no head \[\]"),
        ({"extrapolation": "x"}, ValueError, "extrapolation must be an integer of at least 0, got 'x'"),
        ({"extrapolation": 1.5}, ValueError, "got 1.5"),
        ({"extrapolation": True}, ValueError, "got True"),
        ({"model": None}, TypeError, "model must be a model or the name of its file, got None"),
        ({"model": b"x"}, TypeError, "model must be a model or the name of its file"),
    ],
)
def test_arguments_that_cannot_be(given, kind, message):
    with pytest.raises(kind, match=message):
        Calculator(**{"model": make_model("short_range"), **given})


def test_one_atom_and_no_cell(model):
    atom = Atoms("O", info={"charge": 0, "spin": 1}, calculator=Calculator(model))
    assert np.isfinite(atom.get_potential_energy())
    np.testing.assert_allclose(atom.get_forces(), 0.0, atol=1e-10)
    with pytest.raises(PropertyNotImplementedError, match="volume"):
        atom.get_stress()


def test_charge_and_spin_by_default_arguments(model):
    (frame,) = random_frames([(F, F, F)])
    frame.info.clear()
    spin = molecule_spin(frame, 1) + 2
    frame.calc = Calculator(model, charge=1, spin=spin)
    assert abs(frame.get_charges().sum() - 1.0) < 1e-9
    told = frame.copy()
    told.info = {"charge": 1, "spin": spin}
    told.calc = Calculator(model)
    assert frame.get_potential_energy() == told.get_potential_energy()
    # in cells a multiplicity may be anything: an exchange would not be refused
    (crystal,) = random_frames([(T, T, T)], n_atoms=4, box=5.0)
    crystal.info = {}
    crystal.calc = Calculator(model, charge=2, spin=3)
    assert crystal.get_charges().sum() == pytest.approx(2.0, abs=1e-9)


def test_arguments_reach_the_model():
    """The head and the Fermi level of the calculator, for atoms that say nothing."""
    config = scfmlip.models.config_to_dict(make_model("qeq").config)
    config["backbone"] = {**config["backbone"], "heads": ["low", "high"], "shift": [0.0, 5.0]}
    model, atoms, energies = scfmlip.models.build(config), water(), {}
    for head in ("low", "high"):
        atoms.calc = Calculator(model, head=head)
        energies[head] = atoms.get_potential_energy()
    assert energies["high"] > energies["low"] + 1
    totals = []
    for level in (-1.0, 1.0):
        atoms.calc = Calculator(make_model("qeq"), fermi_level=level)
        totals.append(atoms.get_charges().sum())
        assert atoms.calc.results["fermi_level"] == pytest.approx(level, abs=1e-8)
    assert totals[1] < totals[0] - 1e-3, "more electrons at a higher level"


def test_densities_of_other_elements_are_forgotten():
    """Not one bit of the next result depends on them."""
    model, atoms = make_model("convex"), water()
    atoms.calc = Calculator(model)
    atoms.get_potential_energy()
    atoms.numbers = atoms.numbers[::-1]
    fresh = atoms.copy()
    fresh.calc = Calculator(model)
    np.testing.assert_array_equal(atoms.get_charges(), fresh.get_charges())


def test_short_molecular_dynamics_conserves_energy(model):
    """Potential energy moves by far more than the total: forces of a wrong size or sign cannot pass."""
    from ase import units
    from ase.md.verlet import VelocityVerlet

    (frame,) = random_frames([(F, F, F)], n_atoms=6, box=6.0)
    frame.info["external_field"] = np.zeros(3)
    frame.calc = Calculator(model)
    rng = np.random.default_rng(0)
    frame.set_momenta(0.1 * rng.standard_normal((len(frame), 3)) * np.sqrt(frame.get_masses())[:, None])
    dynamics, total, potential = VelocityVerlet(frame, 0.4 * units.fs), [], []
    for _ in range(20):
        total.append(frame.get_total_energy())
        potential.append(frame.get_potential_energy())
        dynamics.run(1)
    assert np.ptp(potential) > 5e-3
    assert np.ptp(total) < 2e-3 * np.ptp(potential)


def test_attribute_access():
    assert scfmlip.ase.Calculator is Calculator
