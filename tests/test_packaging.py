"""The wheel holds both packages and works outside the checkout; a bare checkout works too."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
import scfmlip, scfmlip_kernels, torch
print(scfmlip.__file__)
print(scfmlip_kernels.__file__)
from scfmlip.data import path
assert path("al_water.xyz").is_file()
charges = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
positions = torch.tensor([[0.0, 0, 0], [0, 0, 2.0]], dtype=torch.float64)
print(scfmlip.Coulomb(l_max=0).prepare(positions, pbc=False).energy(charges).item())
"""


def run(folder, *options, env_path=""):
    return subprocess.run(
        [sys.executable, *options, "-c", SCRIPT],
        cwd=folder,
        env={"PYTHONPATH": env_path, "PATH": "", "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("build", reason="needs the build package")
    out = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (file,) = out.glob("*.whl")
    return file


def test_wheel_imports_from_an_empty_folder(wheel, tmp_path):
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)],
        check=True,
        capture_output=True,
    )
    assert {
        p.name for p in site.iterdir() if p.is_dir() and "dist-info" not in p.name and p.name != "bin"
    } == {
        "scfmlip",
        "scfmlip_kernels",
    }
    done = run(tmp_path, env_path=str(site))
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(str(site)) for line in done.stdout.splitlines()[:2])
    for file in ("scfmlip/py.typed", "scfmlip_kernels/py.typed", "scfmlip_kernels/tuned/default.json"):
        assert (site / file).is_file()


def test_bare_checkout_imports(tmp_path):
    done = run(ROOT, "-B")
    assert done.returncode == 0, done.stderr


def test_versions_agree():
    import scfmlip

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert scfmlip.__version__ == project["version"]
    assert (
        f"[{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()
        or "[Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
    )
