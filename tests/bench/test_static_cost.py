"""No kernel costs more registers, instructions or spills than the committed file says."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check(*arguments: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = f"{ROOT / 'kernels'}{os.pathsep}{ROOT}"
    done = subprocess.run(
        [sys.executable, "-m", "bench.static_cost", "--check", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout + done.stderr


def test_some_on_hopper():
    check("--target", "sm_90", "--kernel", "structure_factor", "radial_basis", "pseudo_inverse")


@pytest.mark.slow
def test_electrostatics_on_hopper():
    check("--target", "sm_90", "--kernel", "lattice_field", "charge_solve")


@pytest.mark.slow
def test_tensor_products_on_hopper():
    """Some of each family, in both dtypes: all of them take minutes."""
    pytest.importorskip("mace", reason="the shapes are those of MACE models")
    kernels = ("channelwise_conv", "symmetric_contraction", "indexed_linear")
    labels = ["POLAR-1-M: gradients in x y w 1", "POLAR-1-M: values 1", "values, 1 component"]
    labels += [
        "POLAR-1-M: gradients in x y hidden, radial layer inside 1",
        "POLAR-1-M: gradient in the radial layer's matrix 1",
    ]
    check("--target", "sm_90", "--kernel", *kernels, "--variant", *labels)


def rows(version):
    code = "import sys; from bench.static_cost import results_of; print(results_of(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'kernels'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", code, version]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    with Path(done.stdout.strip()).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("version", ["3.6.0", "3.9.0"])
def test_what_was_recorded(version):
    """Each compiler has its file of every family; these have no memory of their own under any."""
    found = rows(version)
    assert {row["triton"] for row in found} == {version}
    assert {row["kernel"] for row in found} == {row["kernel"] for row in rows("3.9.0")}
    families = ("structure_factor", "lattice_field", "gaussian_pairs", "mesh_spread", "radial_basis")
    mine = [row for row in found if row["kernel"] in families]
    assert len(mine) == 234
    assert all(row["spill_bytes"] == "0" for row in mine)


@pytest.mark.slow
def test_every_kernel_everywhere():
    check()
