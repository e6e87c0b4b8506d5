"""Reference implementations that live outside the environment's own packages."""

import importlib
import importlib.util
import os
import sys
import warnings
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@cache
def _load(folder: Path) -> ModuleType:
    name = "graph_longrange_044"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its docstrings hold invalid escapes
        spec.loader.exec_module(module)
        for part in ("energy", "features", "kspace", "jellium_energy", "jellium_features"):
            importlib.import_module(f"{name}.{part}")
    return module


def graph_longrange_044() -> ModuleType:
    """graph-longrange 0.4.4 under the name graph_longrange_044; skips where it is not installed."""
    pytest.importorskip("mace", reason="graph-longrange needs mace-torch")
    folders = [ROOT / ".venv" / "oracles", Path(os.environ.get("SCFMLIP_ORACLES", ROOT / "none"))]
    for folder in folders:
        if (folder / "graph_longrange").is_dir():
            return _load(folder / "graph_longrange")
    pytest.skip("graph-longrange 0.4.4 is not installed; `make test` puts it into .venv/oracles")
