"""Checkpoints, mace-torch's models both ways, the calculator, bad input."""

import copy
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from mace_torch.les_models import NORM_FACTORS, les_model
from mace_torch.mace_models import mace_model
from mace_torch.polar_models import batch_of, random_frames, shared_polar_model

import scfmlip
import scfmlip.models
from scfmlip.ase import Calculator
from scfmlip.cli import main
from scfmlip.mace_torch.potentials import site_potential

from .cases import BACKBONE, batch, crystal, make_model, slab, water

T, F = True, False


def same(a, b, names=("energy", "forces", "stress")):
    for name in names:
        torch.testing.assert_close(a[name], b[name].detach(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "case", ["split", "qeq_feedback", "mlp", "many_body", "general", "latent", "qeq_screened"]
)
def test_saved_models_give_the_same_numbers(case, tmp_path):
    model = make_model(case)
    scfmlip.save(model, tmp_path / "m.safetensors")
    loaded = scfmlip.load(tmp_path / "m.safetensors")
    assert loaded.config == model.config
    given = batch(model, [water(), slab()])
    same(loaded(given, compute_stress=True), model(given, compute_stress=True))


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    from scfmlip.models import checkpoint

    path = tmp_path / "m.safetensors"
    scfmlip.save(make_model("local"), path)
    before = path.read_bytes()

    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "to_bytes", broken)
    with pytest.raises(OSError, match="disk full"):
        scfmlip.save(make_model("qeq"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("scaled", [True, False])
def test_mace_both_ways(scaled, tmp_path):
    original = mace_model(scaled=scaled)
    model = scfmlip.models.from_mace(original)
    frames = random_frames([(T, T, T)])
    for atoms in frames:
        atoms.numbers[atoms.numbers == 6] = 14
        del atoms.info["external_field"]
    given = batch(model, frames)
    out = model(given, compute_stress=True)
    want = original(copy.copy(given), compute_stress=True)
    same(out, want)
    scfmlip.save(model, tmp_path / "m.safetensors")
    same(scfmlip.load(tmp_path / "m.safetensors")(given, compute_stress=True), want)
    back = scfmlip.models.to_mace(model)
    assert type(back).__module__.startswith("mace.")
    same(back(copy.copy(given), compute_stress=True), want)


def test_polar_both_ways(tmp_path):
    original = shared_polar_model(hidden_irreps="8x0e + 8x1o")
    model = scfmlip.models.from_mace(original)
    frames = random_frames([(T, T, T), (T, T, T)])
    given = batch_of(frames, original)
    out = model(given)
    want = scfmlip.accelerate(original)(dict(given))
    names = ("energy", "forces", "charges", "density_coefficients", "dipole", "spins", "electrostatic_energy")
    same(out, want, names)
    scfmlip.save(model, tmp_path / "m.safetensors")
    same(scfmlip.load(tmp_path / "m.safetensors")(given), want, names)
    same(scfmlip.models.to_mace(model)(dict(given)), want, ("charges",))
    atoms = frames[0].copy()
    del atoms.info["external_field"]
    atoms.calc = Calculator(model)
    potential = atoms.calc.get_property("potential", atoms)
    alone = site_potential(atoms, atoms.calc.get_property("density_coefficients", atoms), 1.5)
    np.testing.assert_allclose(potential, alone, rtol=1e-6, atol=1e-6)
    atoms.pbc = (True, False, False)  # PolarMACE takes a wire for a crystal; potentials there are not defined
    assert np.isfinite(atoms.get_potential_energy())
    with pytest.raises(PropertyNotImplementedError):
        atoms.calc.get_property("potential", atoms)
    stress = scfmlip.accelerate(original)(dict(given), compute_stress=True)["stress"]
    torch.testing.assert_close(model(given, compute_stress=True)["stress"], stress, rtol=1e-8, atol=1e-10)


LES = [
    {},
    {"norm_factor": NORM_FACTORS[0]},
    {"les_arguments": {"sigma": 1.3, "dl": 1.7, "remove_self_interaction": False}, "heads": ("a", "b")},
    {"num_interactions": 1},
    {"use_last_readout_only": True},
]


def les_frames():
    """Crystal, slab and molecule, without the field that MACELES has no ear for."""
    found = random_frames([(T, T, T), (T, T, F), (F, F, F)], n_atoms=5)
    for atoms in found:
        atoms.info.clear()
    return found


@pytest.mark.parametrize("options", LES)
def test_maceles_both_ways(options, tmp_path, monkeypatch):
    """In every boundary and head; only the way back needs the package `les`."""
    torch.set_default_dtype(torch.float64)
    original = les_model(**options)
    given = batch_of(les_frames(), original)
    given["head"] = torch.arange(3) % len(original.heads)
    fast = scfmlip.accelerate(original)(dict(given), compute_stress=True)
    # mace-torch 0.3.16 leaves the latent sum out of the stress
    want = {**original(copy.copy(given)), "stress": fast["stress"], "virials": fast["virials"]}
    names = ("energy", "forces", "latent_charges", "node_energy", "stress", "virials")
    model = scfmlip.models.from_mace(original)
    scfmlip.save(model, tmp_path / "m.safetensors")
    back = scfmlip.models.to_mace(model)
    assert type(back) is type(original)
    assert back.les.ewald.norm_factor == original.les.ewald.norm_factor
    same(back(copy.copy(given)), want, names[:-2])
    assert set(back.state_dict()) == set(original.state_dict())
    monkeypatch.setitem(sys.modules, "les", None)
    out = model(given, compute_stress=True)
    same(out, want, names)
    torch.testing.assert_close(
        out["electrostatic_energy"], want["les_energy"].detach(), rtol=1e-9, atol=1e-10
    )
    same(scfmlip.load(tmp_path / "m.safetensors")(given, compute_stress=True), want, names)
    with pytest.raises(ImportError, match="needs the package `les`"):
        scfmlip.models.to_mace(model)


def test_maceles_files(tmp_path):
    """Converted on the command line, and run in ASE in every boundary, mace's padded cells included."""
    torch.set_default_dtype(torch.float64)
    torch.save(les_model(), tmp_path / "a.model")
    command = ["convert", "--trust-pickle", str(tmp_path / "a.model"), str(tmp_path / "b.safetensors")]
    assert main(command) == 0
    assert main(["convert", str(tmp_path / "b.safetensors"), str(tmp_path / "c.model")]) == 0
    for atoms in les_frames():
        found = []
        for name in ("a.model", "b.safetensors", "c.model"):
            atoms.calc = Calculator(tmp_path / name, trust_pickle=True)
            stress = atoms.get_stress()
            found.append((atoms.get_potential_energy(), atoms.get_forces(), stress))
            assert atoms.calc.get_property("latent_charges", atoms).shape == (len(atoms),)
        for other in found[1:]:
            for got, want in zip(other, found[0], strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-9)


def test_maceles_of_more_than_charges_is_refused():
    original = les_model()
    model = scfmlip.models.from_mace(original)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert next(scfmlip.models.to_mace(model).parameters()).dtype == torch.float32
    for where, option in (
        (original.les, "use_epsilon_r_scaling"),
        (original.les, "use_fixed_atomic_charges"),
        (original.les, "use_atomic_alpha"),
        (original.les, "is_periodic"),
        (original, "use_induced_dipoles"),
    ):
        setattr(where, option, True)
        with pytest.raises(ValueError, match=option):
            scfmlip.models.from_mace(original)
        delattr(where, option)
    original.readouts[-1].non_linearity.acts[0].f = torch.tanh
    with pytest.raises(ValueError, match="only silu is supported"):
        scfmlip.models.from_mace(original)


def test_options_of_born_charges_are_left_behind():
    with pytest.warns(UserWarning, match="compute_bec of this MACELES"):
        scfmlip.models.from_mace(les_model({"compute_bec": True}, num_interactions=1))


def test_fields_act_on_the_charges_of_maceles():
    """What is reported as charges has the model's Coulomb energy and feels fields; dE/dF = dipole."""
    torch.set_default_dtype(torch.float64)
    model = scfmlip.models.from_mace(les_model())
    atoms = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.2, 0.9, 0.1]])
    given = batch(model, [atoms])
    given["external_field"] = torch.zeros(1, 3).requires_grad_()
    out, density = model.evaluate_density(given)
    torch.testing.assert_close(density.geometry.energy(out["charges"][:, None]), out["electrostatic_energy"])
    energies = []
    for strength in (-0.1, 0.1):
        given["external_field"] = torch.tensor([[0.0, strength, 0.0]])
        energies.append(model(given)["energy"])
    slope = (energies[1] - energies[0]) / 0.2
    torch.testing.assert_close(slope, out["dipole"][:, 1], rtol=1e-9, atol=1e-10)


def test_convert_command(tmp_path, capsys):
    original = mace_model()
    torch.save(original, tmp_path / "a.model")
    command = ["convert", "--trust-pickle", str(tmp_path / "a.model"), str(tmp_path / "b.safetensors")]
    assert main(command) == 0
    assert main(["convert", str(tmp_path / "b.safetensors"), str(tmp_path / "c.model")]) == 0
    (tmp_path / "d.safetensors").write_text("nothing")
    assert main(["convert", str(tmp_path / "d.safetensors"), str(tmp_path / "e.model")]) == 2
    assert "not a safetensors file" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "a.model"), str(tmp_path / "b.safetensors")]) == 2
    assert "exists" in capsys.readouterr().err
    atoms = Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.2, 0.9, 0.1]])
    energies = []
    for name in ("a.model", "b.safetensors", "c.model"):
        atoms.calc = Calculator(tmp_path / name, trust_pickle=True)
        energies.append(atoms.get_potential_energy())
    assert energies[1:] == pytest.approx(energies[:1] * 2, rel=1e-12)


def test_models_mace_has_no_class_for():
    with pytest.raises(TypeError, match=r"scfmlip\.save"):
        scfmlip.models.to_mace(make_model("qeq"))
    with pytest.raises(TypeError, match="only compat='les' is MACELES"):
        scfmlip.models.to_mace(make_model("latent"))
    with pytest.raises(TypeError, match="from_mace takes"):
        scfmlip.models.from_mace(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("case", ["short_range", "split", "latent", "qeq_widths", "affine_level", "convex"])
def test_calculator(case):
    model = make_model(case)
    calc = Calculator(model, fermi_level=0.3 if case.endswith("_level") else None)
    atoms = water()
    atoms.calc = calc
    out = model(batch(model, [atoms]))
    assert atoms.get_potential_energy() == pytest.approx(float(out["energy"]), rel=1e-9)
    np.testing.assert_allclose(atoms.get_forces(), out["forces"], rtol=1e-6, atol=1e-8)
    if case == "short_range":
        return
    np.testing.assert_allclose(atoms.get_charges(), out["charges"], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(atoms.get_dipole_moment(), out["dipole"][0], rtol=1e-7, atol=1e-9)
    assert calc.get_property("polarizability", atoms).shape == (3, 3)
    assert calc.get_property("born_charges", atoms).shape == (3, 3, 3)
    assert calc.get_property("potential", atoms).shape == (3,)
    other = crystal()
    other.calc = calc
    assert other.get_stress().shape == (6,)


def test_steps_start_from_the_last_densities():
    """Self-consistent runs reach the same energies from extrapolated densities, in fewer iterations."""
    iterations = {}
    energies = {}
    for order in (None, 2):
        atoms = slab()
        atoms.calc = Calculator(make_model("convex"), extrapolation=order)
        found, counts = [], []
        for _ in range(5):
            found.append(atoms.get_potential_energy())
            counts.append(float(atoms.calc.results["scf_iterations"]))
            atoms.positions[-1] += 0.002
        energies[order], iterations[order] = found, counts
    assert energies[2] == pytest.approx(energies[None], abs=1e-9)
    assert sum(iterations[2][1:]) < 0.7 * sum(iterations[None][1:])


def test_constant_potential_of_a_model_trained_at_constant_charge():
    at_charge = Calculator(make_model("qeq"))
    atoms = water(0.3)
    atoms.calc = at_charge
    atoms.get_potential_energy()
    level = at_charge.results["fermi_level"]
    charges = atoms.get_charges()
    del atoms.info["charge"]
    atoms.calc = Calculator(make_model("qeq"), fermi_level=level)
    np.testing.assert_allclose(atoms.get_charges(), charges, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "qeq"}, "no charge rule 'qeq'; there are equilibrated"),
        ({"rule": {"name": "local", "hiden": 3}}, "no option 'hiden'; did you mean 'hidden'"),
        ({"rule": {"name": "fixed", "charges": {"H": 1.0}}}, "no value for O, Al"),
        ({"rule": "equilibrated"}, "does not take constraint='none'; it takes 'charge', 'fermi_level'"),
        ({"elements": ["H", "Xx"]}, "'Xx' is not an element"),
        ({"elements": []}, "at least one"),
        ({"atomic_energies": [1.0]}, "needs 3 numbers, got 1"),
        ({"backbone": {"r_max": -1.0}}, "backbone.r_max must be a positive number"),
        ({"backbone": {"interaction": "Nothing"}}, "no interaction block 'Nothing'"),
        ({"backbone": {"hidden_irreps": "4x0e"}, "rule": "local"}, "add 1o to backbone.hidden_irreps"),
        ({"density": {"l_max": 3}}, "density.l_max must be 0, 1 or 2"),
        ({"dtype": "float16"}, "model.dtype must be one of"),
        ({"colour": "red"}, "no option 'colour'"),
        (
            {"rule": {"name": "equilibrated", "hardness": -1.0}, "constraint": "charge"},
            "hardness must be a positive number",
        ),
        (
            {"rule": {"name": "equilibrated", "hardness": {"H": "soft"}}, "constraint": "charge"},
            "hardness must be a positive number, got {'H': 'soft'}",
        ),
        (
            {"rule": {"name": "equilibrated", "hardness": {"H": "1e3"}}, "constraint": "charge"},
            "rule.hardness has no value for O, Al",
        ),
        (
            {"rule": {"name": "fixed_point", "energy": "variational"}, "constraint": "charge"},
            "needs rule.response='passive'",
        ),
        ({"rule": {"name": "latent", "dl": 1.0}}, "are for compat='les'"),
        ({"rule": {"name": "latent", "compat": "les", "sigma": 0.0}}, "sigma must be a positive number"),
        ({"rule": {"name": "latent", "compat": "les", "channels": 2}}, "one channel, got rule.channels = 2"),
        ({"rule": {"name": "latent", "compat": "les"}}, "set density.l_max = 0"),
        (
            {"rule": {"name": "equilibrated", "screening": [1, 2]}, "constraint": "charge"},
            "screening is for energy='coulomb'",
        ),
    ],
)
def test_bad_configurations(change, message):
    config = {"elements": ["H", "O", "Al"], "rule": "short_range", "backbone": BACKBONE, **change}
    with pytest.raises((ValueError, TypeError), match=message):
        scfmlip.models.build(config)


def test_bad_systems():
    qeq = make_model("qeq")
    atoms = water()
    del atoms.info["charge"]
    with pytest.raises(ValueError, match=r"lacks atoms.info\['charge'\]"):
        batch(qeq, [atoms])
    level = make_model("qeq_level")
    charged = slab()
    charged.info["fermi_level"] = -4.0
    with pytest.raises(ValueError, match="counter-charge"):
        level(batch(level, [charged]))
    given = batch(qeq, [water()])
    given.pop("total_charge")
    with pytest.raises(ValueError, match="lacks total_charge"):
        qeq(given)
    with pytest.raises(TypeError, match=r"batch is torch\.float32 on cpu, the model torch\.float64"):
        qeq(batch(make_model("qeq", "float32"), [water()]))
    affine = make_model("affine")
    with pytest.raises(ValueError, match="scf='direct' must have shape"):
        affine(batch(affine, [water()]), scf="direct")
    with pytest.raises(ValueError, match="scf must be"):
        affine(batch(affine, [water()]), scf="half")


def test_one_step_from_the_solution_is_the_solution():
    model = make_model("affine")
    given = batch(model, [water(0.5), crystal()])
    out = model(given)
    given.update(density_coefficients=out["density_coefficients"], fermi_level=out["fermi_level"])
    direct = model(given, scf="direct")
    torch.testing.assert_close(direct["charges"], out["charges"], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(direct["energy"], out["energy"], rtol=1e-8, atol=1e-9)


def test_potential_at_points():
    """Above a neutral slab the potential is flat, and differs between its sides by the dipole."""
    model = make_model("qeq")
    atoms = slab()
    atoms.set_cell(atoms.cell.array + np.diag([0, 0, 30.0]))
    given = batch(model, [atoms])
    out, density = model.evaluate_density(given)
    z = atoms.positions[:, 2]
    heights = torch.tensor([z.min() - 12, z.min() - 10, z.max() + 10, z.max() + 12])
    points = torch.cat((torch.full((4, 2), 0.3), heights[:, None].float()), 1).double()
    values = density.geometry.at(points, density.rows).potential
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(values[2], values[3], rtol=0, atol=1e-6)
    area = np.linalg.norm(np.cross(*atoms.cell.array[:2]))
    jump = 4 * np.pi * 14.399645 * float(out["dipole"][0, 2]) / area
    assert float(values[2] - values[1]) == pytest.approx(jump, rel=1e-5)
    level = float(out["fermi_level"])
    found = scfmlip.models.work_functions(model, given)[0]
    expected = [-float(values[0]) - level, -float(values[3]) - level]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    atoms.calc = Calculator(model)
    got = atoms.calc.get_property("work_functions", atoms)
    np.testing.assert_allclose(got, found, rtol=0, atol=1e-8)


def test_work_functions_are_refused_where_there_are_none():
    model = make_model("qeq")
    with pytest.raises(ValueError, match="is not a slab"):
        scfmlip.models.work_functions(model, batch(model, [water()]))
    with pytest.raises(ValueError, match="give it a counter-charge"):
        scfmlip.models.work_functions(model, batch(model, [slab(0.2)]))
    local = make_model("local")
    with pytest.raises(ValueError, match="need a Fermi level"):
        scfmlip.models.work_functions(local, batch(local, [slab()]))
