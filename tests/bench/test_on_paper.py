"""Kernels on paper: every family has a problem, and emulated products err as they should."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from profiling.precision import cut, errors, product, to_tf32

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "static_cost.csv"


def run(*arguments):
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-m", "bench.on_paper", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def test_table():
    """Each family of the results is in the table, with a bound; a family without a problem is named."""
    done = run()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[2:]
    with RESULTS.open(newline="") as file:
        families = {row["kernel"] for row in csv.DictReader(file)}
    assert {line.split("`")[1] for line in lines} == families
    assert all(line.split("|")[9].split(", ")[1].strip() in ("launch", "memory", "compute") for line in lines)


def test_a_family_without_a_problem(tmp_path):
    text = RESULTS.read_text()
    (tmp_path / "costs.csv").write_text(text.replace("gated,values", "something_new,values"))
    done = run("--file", str(tmp_path / "costs.csv"))
    assert done.returncode != 0
    assert "no problem for something_new: add it to WORK" in done.stderr


def test_tf32():
    """11 significant bits, ties away from zero; sums are cut off."""
    one = np.float32(1)
    assert to_tf32(np.array([one + np.float32(2**-11)]))[0] == one + np.float32(2**-10)
    assert to_tf32(np.array([one + np.float32(2**-12)]))[0] == one
    assert cut(np.array([1 + 2.0**-24 + 2.0**-30, -1 - 2.0**-23.5])).tolist() == [1.0, -1.0]
    exact = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    for precision in ("ieee", "tf32x3", "tf32"):
        assert product(exact, exact, precision).tolist() == [[7.0, 10.0], [15.0, 22.0]]


@pytest.mark.parametrize(("depth", "most"), [(64, 5e-7), (512, 3e-6)])
def test_errors_of_products(depth, most):
    """The default keeps float32; three products of TF32 lose some of it in long sums; one loses most."""
    ieee, three, one = (errors(depth, p)[0] for p in ("ieee", "tf32x3", "tf32"))
    assert ieee < 1e-6
    assert ieee <= three < most
    assert 1e-4 < one < 1e-3
