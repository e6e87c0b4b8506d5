"""The scripts of engines in examples/, as they stand, with few steps."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .test_examples import LONG, QUICK

pytest.importorskip("mace", reason="needs mace-torch")

ROOT = Path(__file__).parents[2]
NEEDS = {"openmm_mixed": "openmm", "torch_sim_nve": "torch_sim", "ipi_client": "ipi", "md": "yaml"}


def test_every_example_is_run():
    """Here, or beside: by their names, so that a new one is not forgotten."""
    known = {*(f"{name}.py" for name in NEEDS), *QUICK, *LONG}
    assert {p.name for p in (ROOT / "examples").glob("*.*")} == known


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NEEDS))
def test_example(name, tmp_path):
    pytest.importorskip(NEEDS[name])
    if name == "ipi_client" and not Path(sys.executable).with_name("i-pi").exists():
        pytest.skip("needs i-PI beside this Python")
    script = tmp_path / f"{name}.py"
    shutil.copy(ROOT / "examples" / script.name, script)
    # a user's Python does not interpret kernels
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, script, "10"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) >= 1
