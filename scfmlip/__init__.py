"""Self-consistent electrostatics for interatomic potentials: fast, exact, differentiable."""

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if importlib.util.find_spec("scfmlip_kernels") is None:
    # a bare checkout: the kernels' source root lies beside this package
    _kernels = Path(__file__).parents[1] / "kernels"
    if (_kernels / "scfmlip_kernels").is_dir():
        sys.path.append(str(_kernels))

# the command line imports torch when it can already answer Ctrl-C and --help
_arguments = getattr(sys, "argv", None) or [""]
_command = Path(_arguments[0]).stem == "scfmlip" or (_arguments[0] == "-m" and "scfmlip" in sys.orig_argv)

if TYPE_CHECKING or not _command:
    from .electrostatics import Coulomb, GaussianMultipoles, Geometry
    from .interfaces.mace import accelerate, restore
    from .scf import ChargeSolution, ConvergenceError, FixedPointSolution, charge_equilibration, fixed_point

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
    "restore",
]

__version__ = "0.1.0"


def __getattr__(name: str):
    """What needs ASE or mace-torch, on first use: the rest does not. For the command line, all."""
    import importlib

    for module in ("electrostatics", "interfaces.mace", "scf") if name in __all__ else ():
        found = importlib.import_module(f".{module}", __name__)
        if hasattr(found, name):
            return getattr(found, name)
    if name in ("ase", "models", "training"):
        return importlib.import_module(f".{name}", __name__)
    if name in ("load", "save"):
        return getattr(importlib.import_module(".models", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
