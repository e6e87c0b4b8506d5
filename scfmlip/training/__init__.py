"""
Training of the models of `scfmlip.models`: data, losses, loop, checkpoints.

Needs ``scfmlip[train]``. `train` runs a complete training; ``scfmlip train config.yaml`` calls it.
"""

from .config import (
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
    StageConfig,
    TrainConfig,
    config_from_dict,
    config_to_dict,
    load_config,
)
from .loop import Trainer, TrainingError
from .losses import LABELS, PENALTIES, TERMS, Errors, Term, loss
from .setup import parity, prepare, train

__all__ = [
    "LABELS",
    "PENALTIES",
    "TERMS",
    "DataConfig",
    "Errors",
    "OptimizerConfig",
    "ScheduleConfig",
    "StageConfig",
    "Term",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "config_from_dict",
    "config_to_dict",
    "load_config",
    "loss",
    "parity",
    "prepare",
    "train",
]
