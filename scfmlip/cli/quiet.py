"""Silences what other packages print while they are imported: it is no part of a command's output."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# mace-torch says there that cuequivariance, which is optional, is missing
_NOISY = "mace.tools.cg"


class _Silencer(MetaPathFinder):
    """Finds one module as usual, once, and catches what it prints while it is executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _NOISY:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def quietly(module: ModuleType) -> None:
            with redirect_stdout(io.StringIO()):
                execute(module)

        spec.loader.exec_module = quietly  # type: ignore[method-assign]
        return spec


def silence_imports() -> None:
    """Keep standard output to the command's own words, also where it is JSON."""
    if _NOISY not in sys.modules and not any(isinstance(f, _Silencer) for f in sys.meta_path):
        sys.meta_path.insert(0, _Silencer())
