"""Self-consistent electrostatics for interatomic potentials: fast, exact, differentiable."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("scfmlip_kernels") is None:
    # a bare checkout: the kernels' source root lies beside this package
    _kernels = Path(__file__).parents[1] / "kernels"
    if (_kernels / "scfmlip_kernels").is_dir():
        sys.path.append(str(_kernels))

from .electrostatics import Coulomb, GaussianMultipoles, Geometry
from .interfaces.mace import accelerate, is_accelerated, restore
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
    "is_accelerated",
    "restore",
]

__version__ = "0.1.0"


def __getattr__(name: str):
    """What needs ASE or mace-torch, on first use: the rest does not."""
    import importlib

    if name in ("ase", "models", "training"):
        return importlib.import_module(f".{name}", __name__)
    if name in ("load", "save"):
        return getattr(importlib.import_module(".models", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
