"""No kernel costs more registers, instructions or spills than the committed file says."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def static_cost(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = f"{ROOT / 'kernels'}{os.pathsep}{ROOT}"
    command = [sys.executable, "-m", "bench.static_cost", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip(done.stdout.splitlines()[-1])
    return done


def check(*arguments: str) -> None:
    done = static_cost("--check", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_some_on_hopper():
    kernels = ("structure_factor", "radial_basis", "pseudo_inverse")
    check("--anew", "--target", "sm_90", "--kernel", *kernels)


SMALL = ("--kernel", "grouped_dot", "--target", "sm_90", "--variant", "dot")


@pytest.mark.slow
def test_what_did_not_change_is_not_compiled(tmp_path):
    """A row with the kernel's digest is believed; another digest, or --anew, finds what is wrong in it."""
    file = tmp_path / "static_cost.csv"
    done = static_cost(*SMALL, "--file", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 with the recorded source" in done.stdout
    with file.open(newline="") as text:
        mine = list(csv.DictReader(text))
    assert mine
    assert all(len(row["source"]) == 12 for row in mine)

    def recorded(source):
        wrong = [row | {"instructions": "1", "source": source or row["source"]} for row in mine]
        with file.open("w", newline="") as text:
            writer = csv.DictWriter(text, list(mine[0]))
            writer.writeheader()
            writer.writerows(wrong)

    recorded(None)
    done = static_cost("--check", *SMALL, "--file", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"0 compiled, {len(mine)} with the recorded source" in done.stdout
    done = static_cost("--check", "--anew", *SMALL, "--file", str(file))
    assert done.returncode == 1
    assert "instructions 1 -> " in done.stdout
    recorded("0" * 12)
    done = static_cost("--check", *SMALL, "--file", str(file))
    assert done.returncode == 1
    assert "instructions 1 -> " in done.stdout


@pytest.mark.slow
def test_electrostatics_on_hopper():
    check("--anew", "--target", "sm_90", "--kernel", "lattice_field", "charge_solve")


@pytest.mark.slow
def test_tensor_products_on_hopper():
    """Some of each family, in both dtypes: all of them take most of an hour."""
    pytest.importorskip("mace", reason="the shapes are those of MACE models")
    kernels = ("channelwise_conv", "symmetric_contraction", "indexed_linear")
    labels = ["POLAR-1-M: gradients in x y w 1", "POLAR-1-M: values 1", "values, 1 component"]
    labels += [
        "POLAR-1-M: gradients in x y hidden, radial layer inside 1",
        "POLAR-1-M: gradient in the radial layer's matrix 1",
    ]
    check("--anew", "--target", "sm_90", "--kernel", *kernels, "--variant", *labels)


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
    """Every row is of the kernel as it is now, or the kernel got no worse."""
    check()
