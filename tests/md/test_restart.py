"""A run that was killed ends as one that was not, bit for bit."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("mace", reason="needs mace-torch")
pytest.importorskip("ase", reason="needs ASE")

from ase.io import read

import scfmlip.md.run as md_run
from md.problems import config, options, same, share_models, write_yaml
from scfmlip.md import Run, run_md


@pytest.fixture(autouse=True)
def _shared(monkeypatch):
    share_models(monkeypatch)


class Killed(BaseException):
    """What a kill is to the code that it hits."""


def kill_at(patch, step):
    """Stop in the middle of a step, after the positions have moved."""
    check = Run._check_finite

    def stop(self):
        if self.step == step - 1 and self.step > 0:
            raise Killed
        check(self)

    patch.setattr(Run, "_check_finite", stop)


QUICK = [
    (
        "affine",
        "molecule",
        {"ensemble": "nve", "warm_start": "extended_lagrangian", "trajectory": "run.traj"},
    ),
    ("qeq", "molecule", {"ensemble": "langevin", "fixed_atoms": [0], "dtype": "float32"}),
    ("qeq", "crystal", {"ensemble": "npt", "barostat_cell": "axes", "barostat_axes": [2]}),
]
SLOW = [
    ("affine", "molecule", {"ensemble": "nve"}),
    ("affine", "molecule", {"ensemble": "nve", "warm_start": "none", "skin": 0.0}),
    ("affine", "molecule", {"ensemble": "baoab"}),
    ("qeq", "molecule", {"ensemble": "bussi"}),
    ("qeq", "molecule", {"ensemble": "nose_hoover", "dtype": "float32"}),
    ("affine", "crystal", {"ensemble": "npt"}),
    ("qeq", "crystal", {"ensemble": "npt", "barostat_cell": "full"}),
]


def outputs(run):
    folder = run.folder
    frames = read(folder / run.config.trajectory, ":")
    return {
        "positions": run.atoms.positions,
        "momenta": run.atoms.get_momenta(),
        "cell": run.atoms.cell.array,
        "forces": run.calc.results["forces"],
        "log": (folder / "log.csv").read_text(),
        "frames": [frame.positions for frame in frames],
        "steps": [frame.info["md_step"] for frame in frames],
    }


@pytest.mark.parametrize(
    ("case", "frame", "changes"),
    [*QUICK, *(pytest.param(*given, marks=pytest.mark.slow) for given in SLOW)],
    ids=lambda given: "-".join(map(str, given.values())) if isinstance(given, dict) else given,
)
def test_bit_for_bit(tmp_path, monkeypatch, case, frame, changes):
    """Killed in the fifth of six steps, after the restart file: a frame and rows go, and come again."""
    whole = Run(config(tmp_path, case, frame, **changes))
    whole.go(quiet=True)
    want = outputs(whole)
    given = dataclasses.replace(whole.config, output=str(tmp_path / "killed"))
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        first = Run(given)
        with pytest.raises(Killed):
            first.go(quiet=True)
    assert first.step == 4
    again = Run(given)
    assert again.step == 3
    again.go(quiet=True)
    got = outputs(again)
    assert got["steps"] == want["steps"] == [0, 2, 4, 6]
    for name, value in want.items():
        assert value == got[name] if isinstance(value, str) else same(value, got[name]), name
    assert not same(want["frames"][0], want["frames"][-1]), "nothing moved"
    if frame == "crystal":
        assert not same(want["cell"], read(whole.config.structure).cell.array), "the cell did not move"


def test_ramps_go_on(tmp_path, monkeypatch):
    """Field and Fermi level of a slab are those of the time."""
    drive = {
        "fermi_level": {"times": [0, 3], "values": [0.0, 0.3]},
        "external_field": {"times": [0, 3], "values": [[0, 0, 0], [0, 0, 0.05]]},
    }
    made = config(tmp_path, "qeq", "slab", "fermi_level", temperature=50, **drive)
    whole = Run(made)
    whole.go(quiet=True)
    given = dataclasses.replace(made, output=str(tmp_path / "killed"))
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            Run(given).go(quiet=True)
    again = Run(given)
    again.go(quiet=True)
    assert outputs(again)["log"] == outputs(whole)["log"]
    assert same(again.atoms.positions, whole.atoms.positions)


def test_a_finished_run_goes_on_when_steps_are_raised(tmp_path):
    made = config(tmp_path, "qeq")
    summary = run_md(made, quiet=True)
    assert (summary["first"], summary["steps"]) == (0, 6)
    assert run_md(made, quiet=True)["first"] == 6
    longer = dataclasses.replace(made, steps=9)
    run_md(longer, quiet=True)
    straight = dataclasses.replace(longer, output=str(tmp_path / "straight"))
    run_md(straight, quiet=True)
    for name in ("log.csv", "trajectory.xyz"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "straight" / name).read_text()


def test_other_runs_are_refused(tmp_path):
    made = config(tmp_path, "qeq", steps=1)
    run_md(made, quiet=True)
    with pytest.raises(ValueError, match=r"other options \(timestep was 0.5 and is 0.25\).*--fresh"):
        Run(dataclasses.replace(made, timestep=0.25))
    with open(made.structure, "a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match="belongs to a run of another structure"):
        Run(made)
    assert Run(made, fresh=True).step == 0
    (tmp_path / "run" / "restart.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no restart file, or damaged"):
        Run(made)
    (tmp_path / "run" / "restart.pt").unlink()
    with pytest.raises(FileExistsError, match="without a restart file"):
        Run(made)


@pytest.mark.parametrize("name", ["trajectory.xyz", "run.traj"])
def test_a_trajectory_that_is_too_short_is_refused(tmp_path, name):
    made = config(tmp_path, "qeq", trajectory=name, steps=2)
    run_md(made, quiet=True)
    (tmp_path / "run" / name).unlink()
    with pytest.raises(ValueError, match="that the restart file knows of: put it back"):
        run_md(made, quiet=True)


def test_a_look_changes_nothing(tmp_path):
    """`scfmlip md --check` leaves log and trajectory to the run that goes."""
    made = config(tmp_path, "qeq", steps=4, restart_interval=3)
    run = Run(made)
    run.go(quiet=True)
    folder = tmp_path / "run"
    for name in ("log.csv", "trajectory.xyz"):
        with open(folder / name, "a") as file:
            file.write("rows of a run that goes on\n")
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert Run(made).step == 4
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


@pytest.mark.slow
def test_a_process_that_is_killed(tmp_path):
    """SIGKILL at any time."""
    given = options(tmp_path, steps=60, restart_interval=5, trajectory_interval=1)
    path = write_yaml(tmp_path, given)
    command = [sys.executable, "-m", "scfmlip", "md", str(path), "--quiet"]
    subprocess.run([*command, "-o", str(tmp_path / "whole")], check=True)
    folder = tmp_path / "run"
    for _ in range(2):
        process = subprocess.Popen(command)
        seen = (folder / "log.csv").stat().st_size if (folder / "log.csv").exists() else 0
        while process.poll() is None:
            time.sleep(0.05)
            if (folder / "restart.pt").exists() and (folder / "log.csv").stat().st_size > seen + 2500:
                os.kill(process.pid, signal.SIGKILL)
                break
        process.wait()
        assert process.returncode == -signal.SIGKILL
    subprocess.run(command, check=True)
    one, other = folder / "trajectory.xyz", tmp_path / "whole" / "trajectory.xyz"
    assert one.read_text() == other.read_text()
    # the first evaluation in a new process may round a force otherwise: one number of the log was seen to
    # differ in its last digit at the first step after a restart, none after it
    rows = [np.genfromtxt(path.with_name("log.csv"), delimiter=",", skip_header=1) for path in (one, other)]
    np.testing.assert_allclose(*rows, rtol=1e-14)


def test_the_restart_file_holds_every_number(tmp_path):
    """Of what a step changes nothing is left out, whatever attributes ASE's integrator has."""
    made = config(tmp_path, "qeq", steps=3, ensemble="nose_hoover", restart_interval=3)
    run = Run(made)
    run.go(quiet=True)
    other = Run(made)

    def numbers(owner, path=""):
        found = {}
        for name, value in vars(owner).items():
            if isinstance(value, (float, np.ndarray)):
                found[path + name] = value
            elif name in ("_thermostat", "_barostat"):
                found |= numbers(value, f"{path}{name}.")
        return found

    mine, theirs = numbers(run.dynamics), numbers(other.dynamics)
    assert mine.keys() == theirs.keys()
    assert len(mine) > 6
    for name, value in mine.items():
        assert same(value, theirs[name]), name
    assert md_run.method_of(made).state
