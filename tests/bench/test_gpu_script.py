"""`bench/gpu.sh` from end to end: on the CPU, and on the simulated GPU, with the smallest sizes."""

import csv
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

PYTHON = """#!/bin/sh
TRITON_INTERPRET=1 AS_GPU={folder}/python3 PYTHONPATH={root}/tests:{root}/kernels:{root} \\
  exec {python} -m simulated_gpu.as_gpu "$@"
"""


def run(tmp_path, device, **environment):
    out = tmp_path / "out"
    # times are not what is tested
    options = {"QUICK": "1", "DEVICE": device, "COMMIT": "tried", "LIMIT": "9000", "STRETCH": "30"}
    done = subprocess.run(
        ["bash", "bench/gpu.sh", str(out)],
        cwd=ROOT,
        env={**os.environ, **options, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    parts = [line for line in done.stdout.splitlines() if ": exit " in line]
    return out, dict(line.split(": exit ") for line in parts), done.stdout + done.stderr


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_part_runs_and_leaves_rows(tmp_path, device):
    environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    if device == "cuda":
        pytest.importorskip("mace")
        program = tmp_path / "bin" / "python3"
        program.parent.mkdir()
        program.write_text(PYTHON.format(folder=program.parent, root=ROOT, python=sys.executable))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        environment["PATH"] = f"{program.parent}{os.pathsep}{environment['PATH']}"
    out, parts, text = run(tmp_path, device, **environment)
    # no driver, and nothing that counts in hardware
    wrong = {
        name: how
        for name, how in parts.items()
        if not how.startswith("0 ") and name not in ("versions", "ncu")
    }
    assert not wrong, text[-6000:]
    for name in ("ceiling", "models", "equilibration", "fixed-point", "rules"):
        assert rows(out / f"{name}.csv"), name
    models = {row["case"] for row in rows(out / "models.csv") if row["program"] == "scfmlip"}
    assert models == {"mace-tiny", "polar-tiny"}
    assert all(row["commit"] == "tried" for row in rows(out / "ceiling.csv"))
