"""Wheel and sdist: what they hold, that indexes take them, that others' type checkers see us; one version."""

import json
import re
import subprocess
import sys
import tarfile
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
        [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """The wheel, installed in a folder of its own."""
    site = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(wheel)],
        check=True,
        capture_output=True,
    )
    return site


def test_wheel_imports_from_an_empty_folder(site, tmp_path):
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


def test_indexes_take_wheel_and_sdist(wheel):
    """Metadata and the long description, strictly; the sdist holds what the wheel is built from."""
    pytest.importorskip("twine", reason="needs the twine package")
    files = sorted(wheel.parent.iterdir())
    assert [f.name.endswith(end) for f, end in zip(files, (".whl", ".tar.gz"), strict=True)] == [True, True]
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2
    with tarfile.open(files[1]) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "scfmlip/py.typed"} <= names
    assert "kernels/scfmlip_kernels/py.typed" in names


CONSUMER = """
import torch
import scfmlip
from scfmlip.scf import FixedPointSolution

coulomb = scfmlip.Coulomb(l_max=0, sigma=1.0)
geometry = coulomb.prepare(torch.zeros(2, 3), pbc=False)
reveal_type(geometry.energy(torch.zeros(2, 1)))
reveal_type(scfmlip.charge_equilibration(geometry, torch.zeros(2), torch.ones(2)).charges)
solution: FixedPointSolution = scfmlip.fixed_point(torch.cos, torch.zeros(2, 1))
reveal_type(solution.evaluations)
scfmlip.Coulomb(l_max="one")
"""


def test_type_checkers_of_others_see_us(site, tmp_path):
    """Pyright on a script against the installed package: types come through, and a wrong one is found."""
    script = tmp_path / "consumer.py"
    script.write_text(CONSUMER)
    settings = {"extraPaths": [str(site)], "pythonVersion": "3.11", "include": [str(script)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pyright",
            "--outputjson",
            "--pythonpath",
            sys.executable,
            "-p",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)["generalDiagnostics"]
    told = [d["message"] for d in found if d["severity"] == "information"]
    assert [re.findall(r'is "(\w+)"', text)[0] for text in told] == ["Tensor", "Tensor", "int"]
    wrong = [d["message"] for d in found if d["severity"] == "error"]
    assert len(wrong) == 1, wrong
    assert "l_max" in wrong[0]


def test_versions_agree():
    """One number in every file that states it, and a heading for it in the change log."""
    import scfmlip

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    version = project["version"]
    assert scfmlip.__version__ == version
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f'version: "{version}"' in (ROOT / "recipe" / "recipe.yaml").read_text()


def test_citation():
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    for key in ("cff-version", "message", "title", "authors", "license"):
        assert cited[key]
    assert all("name" in author or "family-names" in author for author in cited["authors"])


def test_requirements_of_conda_are_those_of_pip():
    """What the environment and the recipe ask for is what pyproject.toml does, no older."""
    yaml = pytest.importorskip("yaml")
    recipe = yaml.safe_load((ROOT / "recipe" / "recipe.yaml").read_text())["requirements"]["run"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split("[>=;]", text)[0]: text for text in project["dependencies"]}
    names = {"torch": "pytorch"}
    for name, text in wanted.items():
        (line,) = [r for r in recipe if r.split()[0] == names.get(name, name)]
        least = re.search(r">=([\d.]+)", text)
        assert least is None or f">={least[1]}" in line, line
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in environment if isinstance(entry, dict))
    assert "-c constraints.txt" in pip


def environment():
    """Packages that the environment asks conda for."""
    yaml = pytest.importorskip("yaml")
    values = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert values["name"]
    assert values["channels"] == ["conda-forge"]
    return [entry for entry in values["dependencies"] if isinstance(entry, str)]


def recipe_as_rendered():
    """The recipe, after rattler-build's own rendering."""
    tool = pytest.importorskip("rattler_build", reason="needs scfmlip[release]")
    (variant,) = tool.Stage0Recipe.from_file(str(ROOT / "recipe" / "recipe.yaml")).render()
    return variant.recipe.to_dict()


def test_recipe_renders():
    recipe = recipe_as_rendered()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert recipe["package"] == {"name": "scfmlip", "version": version}
    assert recipe["build"]["noarch"] == "python"
    assert recipe["build"]["python"]["entry_points"] == ["scfmlip = scfmlip.cli:main"]
    # the folder of sources, and the licence in it
    (source,) = recipe["source"]
    folder = (ROOT / "recipe" / source["path"]).resolve()
    assert folder == ROOT
    assert all((folder / name).is_file() for name in recipe["about"]["license_file"])


@pytest.mark.parametrize("asks", ["environment", "recipe"])
def test_conda_understands_every_requirement(asks):
    """Each one is a specification of a package with a version, in conda's strict reading."""
    rattler = pytest.importorskip("rattler", reason="needs scfmlip[release]")
    wanted = environment()
    if asks == "recipe":
        requirements = recipe_as_rendered()["requirements"]
        wanted = [text for kind in ("host", "run", "run_constraints") for text in requirements[kind]]
    for text in wanted:
        spec = rattler.MatchSpec(text, strict=True)
        assert text.split()[0] in str(spec.name)
        assert (spec.version is None) == (len(text.split()) == 1)


def test_nothing_claims_an_address():
    """No public address of this project is known: metadata, citation and recipe give none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "urls" not in project
    for file in ("CITATION.cff", "recipe/recipe.yaml", "environment.yml"):
        assert "://" not in (ROOT / file).read_text()
    assert not re.search(r"^(site_url|repo_url|edit_uri):", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
