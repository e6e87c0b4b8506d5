"""No kernel costs more registers, instructions or spills than the committed file says."""

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


def test_electrostatics_on_hopper():
    check("--target", "sm_90", "--kernel", "structure_factor", "lattice_field", "charge_solve")


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


@pytest.mark.slow
def test_every_kernel_everywhere():
    check()
