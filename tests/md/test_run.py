"""Runs: what they write, conserve and say when they fail."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

pytest.importorskip("mace", reason="needs mace-torch")
pytest.importorskip("ase", reason="needs ASE")

from ase.io import read

from md.problems import FRAMES, config, share_models
from scfmlip.ase import Calculator
from scfmlip.md import MdError, Run, run_md
from scfmlip.md.output import COLUMNS, read_log
from scfmlip.scf import ConvergenceError

md_run = sys.modules["scfmlip.md.run"]


@pytest.fixture(autouse=True)
def _shared(monkeypatch):
    share_models(monkeypatch)


def test_what_a_run_writes(tmp_path):
    made = config(tmp_path, "qeq", steps=4, trajectory_interval=2)
    summary = run_md(made, quiet=True)
    folder = tmp_path / "run"
    assert sorted(p.name for p in folder.iterdir()) == ["log.csv", "md.png", "restart.pt", "trajectory.xyz"]
    table = read_log(folder / "log.csv")
    assert list(table) == list(COLUMNS)
    np.testing.assert_array_equal(table["step"], range(5))
    np.testing.assert_allclose(table["time"], 0.5 * np.arange(5))
    np.testing.assert_allclose(table["total_energy"], table["potential_energy"] + table["kinetic_energy"])
    assert np.isnan(table["pressure"]).all(), "a molecule has none"
    assert summary["steps"] == 4
    assert summary["temperature"] == pytest.approx(table["temperature"][2:].mean())
    frames = read(folder / "trajectory.xyz", ":")
    assert [f.info["md_step"] for f in frames] == [0, 2, 4]
    frame = frames[-1]
    assert frame.get_potential_energy() == pytest.approx(table["potential_energy"][-1], abs=1e-7)
    assert frame.get_charges().sum() == pytest.approx(table["charge"][-1], abs=1e-6)
    assert frame.has("momenta")
    # a frame can be evaluated as it stands
    frame.calc = Calculator(md_run.make_calculator(made).model)
    np.testing.assert_allclose(
        frame.get_forces(), frames[-1].get_forces(), atol=1e-5
    )  # 8 digits of positions


def test_velocity_verlet_conserves_energy(tmp_path):
    """By the square of the time step, whatever starts the solves."""
    spread = {}
    for step in (0.5, 0.25):
        made = config(
            tmp_path, "qeq", timestep=step, steps=round(10 / step), output=str(tmp_path / f"{step}")
        )
        run_md(made, quiet=True)
        table = read_log(tmp_path / f"{step}" / "log.csv")
        assert np.ptp(table["potential_energy"]) > 1e-3
        spread[step] = np.ptp(table["total_energy"])
    assert spread[0.5] < 0.1 * np.ptp(table["potential_energy"])
    assert spread[0.5] / spread[0.25] == pytest.approx(4, rel=0.4)


def test_drawn_velocities(tmp_path):
    run = Run(config(tmp_path, "qeq", steps=0))
    np.testing.assert_allclose(run.atoms.get_momenta().sum(0), 0, atol=1e-12)
    assert run.atoms.get_temperature() > 10
    same = Run(config(tmp_path, "qeq", steps=0, output=str(tmp_path / "again")))
    np.testing.assert_array_equal(same.atoms.get_momenta(), run.atoms.get_momenta())
    other = Run(config(tmp_path, "qeq", steps=0, seed=1, output=str(tmp_path / "other")))
    assert not np.array_equal(other.atoms.get_momenta(), run.atoms.get_momenta())
    still = Run(config(tmp_path, "qeq", velocities="zero", output=str(tmp_path / "zero")))
    assert not still.atoms.get_momenta().any()
    with pytest.raises(ValueError, match="holds no momenta"):
        Run(config(tmp_path, "qeq", velocities="file", output=str(tmp_path / "file")))
    with pytest.raises(ValueError, match="give temperature"):
        Run(config(tmp_path, "qeq", temperature=None, output=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="bussi scales velocities"):
        Run(config(tmp_path, "qeq", ensemble="bussi", velocities="zero", output=str(tmp_path / "b")))


def test_fixed_atoms_stay(tmp_path):
    run = Run(config(tmp_path, "qeq", ensemble="langevin", fixed_atoms=[1], steps=3))
    run.go(quiet=True)
    moved = np.abs(run.atoms.positions - read(run.config.structure).positions).max(1)
    assert moved[1] == 0
    assert moved[0] > 1e-4


def test_the_drive_is_that_of_the_time(tmp_path):
    """Each row's charge is the static one at that geometry, Fermi level and field."""
    drive = {
        "fermi_level": {"times": [0, 2], "values": [0.0, 0.4]},
        "external_field": {"times": [0, 2], "values": [[0, 0, 0], [0, 0, 0.1]]},
        "field_convention": "physical",
    }
    made = config(
        tmp_path, "qeq", "slab", "fermi_level", steps=4, trajectory_interval=1, trajectory="run.traj", **drive
    )
    run_md(made, quiet=True)
    table, frames = read_log(tmp_path / "run" / "log.csv"), read(tmp_path / "run" / "run.traj", ":")
    np.testing.assert_allclose(table["fermi_level"], [0, 0.1, 0.2, 0.3, 0.4], atol=1e-12)
    np.testing.assert_allclose(table["field_z"], [0, -0.025, -0.05, -0.075, -0.1], atol=1e-12)
    model = md_run.make_calculator(made).model
    for i in (1, 4):
        atoms = frames[i].copy()
        atoms.calc = Calculator(model)
        assert atoms.get_charges().sum() == pytest.approx(table["charge"][i], abs=1e-9)
        assert atoms.get_potential_energy() == pytest.approx(table["potential_energy"][i], abs=1e-9)
    assert table["charge"][-1] < table["charge"][0] - 1e-3, "more electrons at a higher level"


def fail_at(monkeypatch, step, how):
    """Let the model's forces of a step be ``how`` makes them."""
    calculate = Calculator.calculate

    def spoil(self, *arguments, **options):
        calculate(self, *arguments, **options)
        if self.time == step * 0.5:
            how(self.results)

    monkeypatch.setattr(Calculator, "calculate", spoil)


def not_a_number(results):
    results["forces"] = results["forces"].copy()
    results["forces"][1, 2] = np.nan


def not_converged(results):
    raise ConvergenceError("fixed point: system(s) 0 did not reach the tolerance", torch.tensor([1]))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            not_a_number,
            r"step 3 \(1.5 fs\): forces are, first on atom 1 \(H\) NaN or infinite.*shorten timestep",
        ),
        (not_converged, r"step 3 \(1.5 fs\): fixed point: .*ramp more slowly"),
    ],
)
def test_a_step_that_fails(tmp_path, monkeypatch, how, message):
    """The last good frame is on disk, and the run goes on from its restart file."""
    made = config(tmp_path, "qeq", steps=4, restart_interval=2)
    with monkeypatch.context() as patch:
        fail_at(patch, 3, how)
        with pytest.raises(MdError, match=message + r".* The frame of step 2 is in .*last_good.xyz"):
            run_md(made, quiet=True)
    good = read(tmp_path / "run" / "last_good.xyz")
    assert good.info["md_step"] == 2
    assert np.isfinite(good.get_forces()).all()
    assert read(tmp_path / "run" / "trajectory.xyz", -1).info["md_step"] == 2
    assert run_md(made, quiet=True)["first"] == 2


def test_a_first_frame_without_forces(tmp_path, monkeypatch):
    fail_at(monkeypatch, 0, not_a_number)
    with pytest.raises(MdError, match="forces are, first on atom 1"):
        Run(config(tmp_path, "qeq"))


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (("qeq",), {"fixed_atoms": [7]}, "fixed_atoms names atom 7, there are 3"),
        (("qeq",), {"fixed_atoms": [0, 1, 2]}, "every atom is fixed"),
        (("qeq",), {"ensemble": "npt"}, "npt changes lattice vectors"),
        (("qeq", "slab"), {"ensemble": "npt"}, "take barostat_cell: axes with the periodic ones"),
        (("short_range",), {"external_field": 0.1}, "this model has no charges that could feel it"),
        (("short_range",), {"fermi_level": 0.1}, "does not take constraint='fermi_level'"),
        (("qeq",), {"device": "abacus"}, "device must be auto, cpu or cuda"),
        (("qeq",), {"model": "nowhere"}, "there is no model file nowhere"),
        (("qeq",), {"structure": "nowhere"}, "there is no file nowhere"),
    ],
)
def test_what_cannot_run(tmp_path, arguments, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Run(config(tmp_path, *arguments, **changes))


def test_constraints_of_the_file(tmp_path):
    from ase.constraints import FixAtoms
    from ase.io import write

    made = config(tmp_path, "qeq", "crystal", steps=2, ensemble="npt")
    atoms = FRAMES["crystal"]()
    atoms.set_constraint(FixAtoms([0]))
    write(made.structure, atoms, format="extxyz")
    with pytest.raises(ValueError, match=r"holds constraints \(move_mask\)"):
        Run(made)
    run = Run(dataclasses.replace(made, ensemble="nve"))
    run.go(quiet=True)
    assert not (run.atoms.positions - read(made.structure).positions)[0].any()


def test_the_shadow_energy_stays(tmp_path):
    """Where the total energy moves by the square of the time step, it does by the fourth power."""
    spread = {}
    for step in (0.5, 0.25):
        made = config(
            tmp_path, "qeq", timestep=step, steps=round(10 / step), output=str(tmp_path / f"{step}")
        )
        summary = run_md(made, quiet=True)
        table = read_log(tmp_path / f"{step}" / "log.csv")
        assert np.isnan(table["shadow_drift"][0]), "it is that of a step"
        shadow = table["shadow_drift"][1:]
        assert summary["shadow_drift"] == pytest.approx(np.polyfit(table["time"][1:] / 1000, shadow, 1)[0])
        spread[step] = np.ptp(shadow)
        assert spread[step] < 0.1 * np.ptp(table["drift"])
    assert spread[0.5] / spread[0.25] == pytest.approx(16, rel=0.4)


def test_no_shadow_energy_without_velocity_verlet(tmp_path):
    summary = run_md(config(tmp_path, "qeq", steps=3, ensemble="langevin"), quiet=True)
    assert np.isnan(read_log(tmp_path / "run" / "log.csv")["shadow_drift"]).all()
    assert "shadow_drift" not in summary


def test_a_log_of_an_older_version_goes_on(tmp_path):
    """It keeps the columns that it has."""
    made = config(tmp_path, "qeq", steps=2, restart_interval=2)
    run_md(made, quiet=True)
    path = tmp_path / "run" / "log.csv"
    lines = [line.split(",") for line in path.read_text().splitlines()]
    column = list(COLUMNS).index("shadow_drift")
    old = "".join(",".join([*cells[:column], *cells[column + 1 :]]) + "\n" for cells in lines)
    path.write_text(old)
    run = Run(dataclasses.replace(made, steps=4))
    run._written["log"] = len(old)
    run.go(quiet=True)
    table = read_log(path)
    assert list(table) == [name for name in COLUMNS if name != "shadow_drift"]
    np.testing.assert_array_equal(table["step"], range(5))
    assert np.isfinite(table["drift"]).all()
    md_run.plot_log(tmp_path / "old.png", table)
    assert set(md_run.summarise(table)) >= {"drift", "temperature"}
