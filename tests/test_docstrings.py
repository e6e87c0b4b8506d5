"""The examples in docstrings run and print what they say, and every public name has one."""

import doctest
import importlib
import importlib.util
import pkgutil
import sys
from types import ModuleType
from typing import Any, get_origin

import pytest

import scfmlip
import scfmlip_kernels

# modules whose public names are those of `__all__`
PACKAGES = (
    "scfmlip",
    "scfmlip.electrostatics",
    "scfmlip.interfaces.graph_longrange",
    "scfmlip.mace_torch",
    "scfmlip.models",
    "scfmlip.nn",
    "scfmlip.nn.cueq",
    "scfmlip.scf",
    "scfmlip.training",
    "scfmlip.types",
    "scfmlip_kernels",
)
# modules without `__all__`: every function and class that they define and do not hide
MODULES = (
    "scfmlip.data",
    "scfmlip.interfaces.ase",
    "scfmlip.interfaces.loading",
    "scfmlip.neighbours",
    "scfmlip.segments",
    "scfmlip.structures",
)
# `scfmlip.interfaces.mace_v1` is not listed: MACE v1 makes and calls its classes, users do not

WITHOUT_MACE = importlib.util.find_spec("mace") is None


def modules():
    for package in (scfmlip, scfmlip_kernels):
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.endswith("__main__"):
                continue
            try:
                yield importlib.import_module(found.name)
            except ModuleNotFoundError:  # of an extra that is not installed
                continue


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for module in modules():
        yield from (test for test in finder.find(module) if test.examples)


EXAMPLES = list(examples())


@pytest.fixture
def _rules(monkeypatch):
    """Rules that an example registers are forgotten after it."""
    registry = sys.modules.get("scfmlip.models.rules.registry")
    if registry is not None:
        monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))


@pytest.mark.usefixtures("_rules")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda test: test.name)
def test_examples(example):
    printed = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    failed = runner.run(example, out=printed.append).failed
    text = "".join(printed)
    if failed and WITHOUT_MACE and ("ModuleNotFoundError:" in text or "ImportError:" in text):
        pytest.skip("needs scfmlip[mace]")
    assert failed == 0, text


def is_documented(value: Any) -> bool:
    """Whether a public name has a docstring of its own: constants, types and modules have none."""
    return callable(value) and get_origin(value) is None and not isinstance(value, ModuleType)


def public_names():
    for name in PACKAGES:
        module = importlib.import_module(name)
        yield from ((f"{name}.{key}", getattr(module, key)) for key in module.__all__)
    for name in MODULES:
        module = importlib.import_module(name)
        for key, value in vars(module).items():
            if not key.startswith("_") and getattr(value, "__module__", None) == name:
                yield f"{name}.{key}", value


def test_every_public_name_has_an_example():
    """And one that runs: in `EXAMPLES`, under the name of the module that defines it."""
    pytest.importorskip("mace", reason="half of the public names need scfmlip[mace]")
    run = {test.name for test in EXAMPLES}
    names = [(name, value) for name, value in public_names() if is_documented(value)]
    # what PyTorch defines is documented there
    names = [(name, value) for name, value in names if value.__module__.partition(".")[0] != "torch"]
    missing = [name for name, value in names if f"{value.__module__}.{value.__qualname__}" not in run]
    assert len(names) > 100
    assert not missing
