"""The scripts of the tutorials run as they are, in an empty folder, print and draw."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICK = ("charge_equilibration.py", "fixed_point.py", "quickstart.py", "raw_operators.py")
LONG = (
    "accelerate_mace.py",
    "add_a_rule.py",
    "choose_a_rule.py",
    "dynamics.sh",
    "install.sh",
    "slab_potentials.py",
    "train_on_my_data.sh",
)
PICTURES = {
    "train_on_my_data.sh": ("parity.png", "potential.png"),
    "dynamics.sh": ("md/md.png", "potential.png"),
    "install.sh": (),
    "quickstart.py": (),
}


def run(script, folder):
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    source = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    command = [sys.executable] if script.endswith(".py") else ["bash", "-e"]
    done = subprocess.run(
        [*command, str(ROOT / "examples" / script)],
        cwd=folder,
        env={**kept, "PATH": path, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for picture in PICTURES.get(script, (script.replace(".py", ".png"),)):
        assert (folder / picture).read_bytes()[:4] == b"\x89PNG"
    return done.stdout


def numbers(text, before):
    """The number behind some words."""
    return float(text.split(before, 1)[1].split()[0].rstrip(",;:"))


@pytest.mark.parametrize("script", QUICK)
def test_quick(script, tmp_path):
    printed = run(script, tmp_path)
    if script == "charge_equilibration.py":
        # a force, and that by differences
        pair = numbers(printed, "along x: "), numbers(printed, "by differences ")
        assert pair[0] == pytest.approx(pair[1], abs=1e-6)
        assert numbers(printed, "the system takes ") == pytest.approx(1.0, abs=1e-5)
    elif script == "fixed_point.py":
        pair = numbers(printed, "with the stiffness "), numbers(printed, "by differences ")
        assert pair[0] == pytest.approx(pair[1], rel=1e-5)
    elif script == "quickstart.py":
        assert abs(numbers(printed, ", charge ")) < 1e-5
        assert "ChargeSolution(1 converged" in printed
    else:
        assert numbers(printed, "plain PyTorch ") < 1e-12
        assert numbers(printed, "energy ") == pytest.approx(numbers(printed, "scfmlip.Coulomb "), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("script", LONG)
def test_long(script, tmp_path):
    printed = run(script, tmp_path)
    if script == "accelerate_mace.py":
        assert numbers(printed, "energies differ by ") < 1e-5
    elif script == "slab_potentials.py":
        assert numbers(printed, "-dE/dQ = ") == pytest.approx(
            numbers(printed.split("-dE/dQ")[1], "Fermi level "), abs=1e-3
        )
    elif script == "add_a_rule.py":
        assert numbers(printed, "force ") == pytest.approx(numbers(printed, "by differences "), abs=1e-5)
    elif script == "train_on_my_data.sh":
        assert "proposed rule: equilibrated" in printed
        assert "7 epochs" in printed
        assert "of a training, after 7 epochs" in printed
    elif script == "dynamics.sh":
        assert "60 steps, 30 fs" in printed
        assert "80 steps, 40 fs" in printed
        assert "step 80: " in printed
    elif script == "install.sh":
        assert "no known bad combination" in printed


def test_every_example_is_run():
    mine = {p.name for p in (ROOT / "examples").iterdir() if p.is_file() and p.read_text().count("\n# %% ")}
    assert mine == {*QUICK, *LONG}
