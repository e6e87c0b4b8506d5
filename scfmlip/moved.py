"""Renamed modules since version 0.1.0: imports and pickles find them under the old and the new name."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

_MOVED = {
    "electrostatics.embedding": "electrostatics.external",
    "interfaces.cueq": "nn.cueq",
    "interfaces.mace": "mace_torch",
    "interfaces.mace.files": "structures",
    "interfaces.mace.neighbours": "neighbours",
    "interfaces.mace.cueq": "mace_torch.cueq_blocks",
    "models.rules.field_features": "models.rules.fixed_point.field_features",
    "models.rules.field_response": "models.rules.fixed_point.response",
    "models.rules.many_body": "models.rules.fixed_point.many_body",
    "models.rules.narrow": "models.rules.equilibrated.range_split",
    "models.rules.screening": "models.rules.equilibrated.screening",
    "models.rules.stability": "models.rules.fixed_point.stability",
    "scf.conjugate_gradients": "scf.solvers.conjugate_gradients",
    "scf.dense": "scf.solvers.dense",
    "scf.extrapolation": "scf.dynamics.extrapolation",
    "scf.krylov": "scf.solvers.gmres",
    "scf.mixing": "scf.solvers.anderson",
    "scf.newton": "scf.solvers.newton",
    "scf.newton_cg": "scf.solvers.newton_cg",
    "scf.preconditioners": "scf.solvers.preconditioners",
    "scf.shadow": "scf.dynamics.shadow",
    "scf.short_range": "electrostatics.range_split",
    "scf.small": "scf.solvers.one_launch",
}
_PACKAGE = f"{__package__}."


def new_name(name: str) -> str | None:
    """The current name of a module, or None if it has not moved."""
    if not name.startswith(_PACKAGE):
        return None
    old = name.removeprefix(_PACKAGE)
    parts = old.split(".")
    for n in range(len(parts), 0, -1):
        new = _MOVED.get(".".join(parts[:n]))
        if new is not None:
            return ".".join([__package__ or "", new, *parts[n:]])
    return None


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module under its old name; it is the same module object as under the new name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec for an old name; None for other names."""
        new = new_name(fullname)
        if new is None:
            return None
        module = importlib.import_module(new)
        return importlib.machinery.ModuleSpec(fullname, self, loader_state=(module, module.__spec__))

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        """Return the module under its new name."""
        return spec.loader_state[0]

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing; the module keeps its own spec."""
        spec = module.__spec__
        assert spec is not None
        module.__spec__ = spec.loader_state[1]


def install() -> None:
    """Install the finder in front of all others."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        # before the file finder, which would load a second copy of modules in a moved package
        sys.meta_path.insert(0, MovedModules())
