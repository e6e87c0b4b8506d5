"""
Module names of version 0.1.0, by which pickles of accelerated models find their classes.

Today they are in `scfmlip.mace_torch`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

from .. import mace_torch
from ..mace_torch import accelerate, is_accelerated, restore

__all__ = ["accelerate", "is_accelerated", "restore"]

for _module in pkgutil.iter_modules(mace_torch.__path__):
    _old = "cueq" if _module.name == "cueq_blocks" else _module.name
    try:
        sys.modules[f"{__name__}.{_old}"] = importlib.import_module(f"{mace_torch.__name__}.{_module.name}")
    except ImportError:  # cuequivariance or les is not installed, nor was it for the pickle
        continue
