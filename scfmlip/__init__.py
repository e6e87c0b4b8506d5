"""Self-consistent electrostatics for interatomic potentials: fast, exact, differentiable."""

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if importlib.util.find_spec("scfmlip_kernels") is None:
    # in a bare checkout, the kernels' source root is next to this package
    _kernels = Path(__file__).parents[1] / "kernels"
    if (_kernels / "scfmlip_kernels").is_dir():
        sys.path.append(str(_kernels))

from . import moved as _moved
from .version import __version__

_moved.install()

# the command line must handle Ctrl-C before torch is imported; otherwise import registers the operators
_argv = getattr(sys, "argv", None) or [""]
_is_command = Path(_argv[0]).stem == "scfmlip" or (_argv[0] == "-m" and "scfmlip" in sys.orig_argv)

if TYPE_CHECKING or not _is_command:
    from .electrostatics import Coulomb, GaussianMultipoles, Geometry
    from .mace_torch import accelerate, is_accelerated, restore
    from .scf import ChargeSolution, ConvergenceError, FixedPointSolution, charge_equilibration, fixed_point
    from .waiting import late_checks

__all__ = [
    "ChargeSolution",
    "ConvergenceError",
    "Coulomb",
    "FixedPointSolution",
    "GaussianMultipoles",
    "Geometry",
    "__version__",
    "accelerate",
    "charge_equilibration",
    "fixed_point",
    "is_accelerated",
    "late_checks",
    "restore",
]

_ROOMS = {
    "electrostatics": ("Coulomb", "GaussianMultipoles", "Geometry"),
    "mace_torch": ("accelerate", "is_accelerated", "restore"),
    "models": ("load", "save"),
    "scf": (
        "ChargeSolution",
        "ConvergenceError",
        "FixedPointSolution",
        "charge_equilibration",
        "fixed_point",
    ),
    "waiting": ("late_checks",),
}


def __getattr__(name: str) -> Any:
    """Import lazily what needs ASE or mace-torch, which may be missing; on the command line, everything."""
    import importlib

    if name in ("ase", "models", "training"):
        return importlib.import_module(f".{name}", __name__)
    for room, names in _ROOMS.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f".{room}", __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "ase", "load", "models", "save", "training"})
