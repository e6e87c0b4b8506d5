"""
Molecular dynamics with the models of this library and mace-torch's, by ASE's integrators.

`run_md` is the whole of it; ``scfmlip md config.yaml`` calls it. Needs ``scfmlip[md]``.
"""

from .config import MdConfig, Ramp, config_from_dict, config_to_dict, load_config
from .run import MdError, Run, run_md

__all__ = [
    "MdConfig",
    "MdError",
    "Ramp",
    "Run",
    "config_from_dict",
    "config_to_dict",
    "load_config",
    "run_md",
]
