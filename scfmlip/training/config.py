"""Typed options of a training, read from YAML; errors name every mistake."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from ..models.config import check_numbers, from_dict
from .losses import PENALTIES, TERMS, LossKind
from .plain import read_options


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """
    Where frames come from and under which keys they hold their labels.

    Each key is looked up in ``atoms.info`` or ``atoms.arrays``, then among the results that ASE read
    (``energy``, ``forces``, ``stress``, ``charges``, ``dipole``). Total charge, multiplicity, field and head
    are inputs; they are found under all their usual names (``charge``, ``total_charge``, ``spin``, ...)
    unless another key is set here. Paths are relative to the working directory.

    Attributes:
        train, valid, test: Files that ASE reads (extended XYZ, ...) or HDF5 as mace_prepare_data writes.
        valid_fraction, test_fraction: Fractions of the training frames to set aside if no files are named;
            single atoms with ``config_type=IsolatedAtom`` stay in the training set.
        split_seed: Seed of that random split.
        energy_key: Energy, eV.
        forces_key: Forces, eV/angstrom.
        stress_key: Stress, eV/angstrom^3, with ASE's sign, for frames that are periodic in three directions.
        charges_key: Atomic charges, e.
        multipoles_key: Density coefficients, rows [q, d_y, d_z, d_x].
        dipole_key: Dipole, e angstrom.
        potential_key: Potential at the atoms, V.
        fermi_key: Fermi level, V: label under a charge constraint, input under a Fermi-level constraint.
        total_charge_key, total_spin_key: Total charge (e) and multiplicity 2S+1. Missing values count as 0
            and 1, and are reported if the model needs them.
        field_key: External field, V/angstrom, three components or one along z.
        field_convention: "mace": energy gains + field.dipole; "physical": it gains - field.dipole.
        head_key: Name of the model's head, needed if it has several.
        num_workers: Number of processes that prepare batches.
        cache: Whether to keep every graph in memory.

    Example:
        >>> from scfmlip.training import DataConfig
        >>> data = DataConfig(train=("water.xyz",), valid_fraction=0.2, energy_key="energy")
        >>> data.forces_key  # all other keys keep their defaults
        'REF_forces'
    """

    train: tuple[str, ...]
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    valid_fraction: float = 0.1
    test_fraction: float = 0.0
    split_seed: int = 0
    energy_key: str = "REF_energy"
    forces_key: str = "REF_forces"
    stress_key: str = "REF_stress"
    charges_key: str = "REF_charges"
    multipoles_key: str = "REF_multipoles"
    dipole_key: str = "REF_dipole"
    potential_key: str = "REF_potential"
    fermi_key: str = "REF_fermi_level"
    total_charge_key: str = "total_charge"
    total_spin_key: str = "total_spin"
    field_key: str = "external_field"
    field_convention: Literal["mace", "physical"] = "mace"
    head_key: str = "head"
    num_workers: int = 0
    cache: bool = True

    def __post_init__(self) -> None:
        check_numbers("data", self, "valid_fraction", "test_fraction", least=0, below=1)
        check_numbers("data", self, "split_seed", "num_workers", least=0)
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError("data.valid_fraction and data.test_fraction leave no frame to train on")


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """
    A number of epochs with one objective.

    Attributes:
        epochs: Number of epochs.
        lr: Initial learning rate of the schedule.
        loss: Weight of each term. `scfmlip.training.TERMS` has the names, and `scfmlip.training.PENALTIES`
            those of terms without labels: "scf_stability" keeps the update of a fixed point from amplifying
            perturbations, so that codes with plain iterations converge too.
        scf: "direct" for one update at the reference density, or "converged".
        reset_optimizer: Whether to reset the optimizer's moments and the averaged weights before the stage.

    Example:
        >>> from scfmlip.training import StageConfig
        >>> first = StageConfig(epochs=100, lr=0.01, loss={"energy": 1.0, "forces": 100.0})
        >>> then = StageConfig(epochs=50, lr=0.001, loss={"energy": 100.0, "forces": 10.0, "charges": 1.0})
        >>> StageConfig(epochs=0)
        Traceback (most recent call last):
            ...
        ValueError: epochs must be a number of at least 1, got 0
    """

    epochs: int
    lr: float = 0.01
    loss: dict[str, float] = dataclasses.field(default_factory=lambda: {"energy": 1.0, "forces": 100.0})
    scf: Literal["direct", "converged"] = "converged"
    reset_optimizer: bool = False

    def __post_init__(self) -> None:
        check_numbers("", self, "epochs", least=1)
        check_numbers("", self, "lr", above=0)
        for name, value in self.loss.items():
            if name not in TERMS and name not in PENALTIES:
                names = ", ".join([*TERMS, *PENALTIES])
                raise ValueError(f"there is no loss term {name!r}; there are {names}")
            if not isinstance(value, int | float | str):
                raise ValueError(f"loss.{name} must be a number of at least 0, got {value!r}")
            check_numbers("loss", SimpleNamespace(**{name: value}), name, least=0)
            self.loss[name] = float(value)
        if not any(self.loss.values()):
            raise ValueError("a stage needs a loss term with a weight above 0")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """
    Options of the optimizer.

    Attributes:
        name: "adamw" or "adam".
        betas, amsgrad: As in torch.
        weight_decay: Decay of the weights that mix features only (interactions and products, as in mace).

    Example:
        >>> from scfmlip.training import OptimizerConfig
        >>> OptimizerConfig(name="adam", weight_decay=0.0).betas
        (0.9, 0.999)
    """

    name: Literal["adamw", "adam"] = "adamw"
    betas: tuple[float, ...] = (0.9, 0.999)
    amsgrad: bool = True
    weight_decay: float = 5e-7

    def __post_init__(self) -> None:
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"optimizer.betas must be two numbers in [0, 1), got {list(self.betas)}")
        check_numbers("optimizer", self, "weight_decay", least=0)


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """
    How the learning rate changes within a stage, once per epoch.

    Attributes:
        name: "constant"; "exponential" (times ``factor`` each epoch); "plateau" (times ``factor`` after more
            than ``patience`` epochs in a row without a relative decrease of the validation loss by 1e-4); or
            "cosine" (to ``min_lr`` at the end).
        factor, patience, min_lr: See ``name``.
        warmup_steps: Optimizer steps of the first stage over which the rate rises linearly from nearly 0.

    Example:
        >>> from scfmlip.training import ScheduleConfig
        >>> ScheduleConfig(name="cosine", min_lr=1e-5, warmup_steps=100).name
        'cosine'
    """

    name: Literal["constant", "exponential", "plateau", "cosine"] = "plateau"
    factor: float = 0.8
    patience: int = 50
    min_lr: float = 0.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_numbers("schedule", self, "factor", above=0, below=1)
        check_numbers("schedule", self, "patience", "warmup_steps", "min_lr", least=0)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """
    All options of a training.

    Attributes:
        data, stages, optimizer, schedule: See `DataConfig`, `StageConfig`, `OptimizerConfig`,
            `ScheduleConfig`.
        model: The configuration for `scfmlip.models.build`. If missing, these come from the training frames:
            ``elements``, ``backbone.avg_num_neighbors``, ``backbone.scale`` (RMS force), and
            ``atomic_energies`` (per head: "average" for least squares over its training frames, the default,
            or "isolated" for its single atoms with ``config_type=IsolatedAtom``).
        start_from: A file of `scfmlip.save` to start from, instead of ``model``.
        output: Output folder.
        loss_kind: "mse", "huber" (with ``huber_delta``) or "l1".
        huber_delta: Delta of the Huber loss, in the unit of each term.
        batch_size: Frames per optimizer step, over all processes.
        valid_batch_size: Frames evaluated at once; ``batch_size`` if 0.
        seed: Seed of the order of frames, and of the model unless ``model.seed`` is set.
        dtype: dtype of weights and graphs; the model's own if None.
        device: "auto", "cpu", "cuda", ...
        ema_decay: Decay of the averaged weights, which are validated and saved; None for no averaging.
        clip: Largest norm of the gradient; None for no limit.
        patience: End a stage after this number of epochs without a better validation loss; None for never.
        checkpoint_interval: Epochs between checkpoints; the first and last epoch of a stage always write one.
        wandb: Arguments of ``wandb.init``; None for no logging there.

    Example:
        >>> from scfmlip.training import DataConfig, StageConfig, TrainConfig
        >>> data, stages = DataConfig(train=("water.xyz",)), (StageConfig(epochs=100),)
        >>> config = TrainConfig(data, stages, model={"rule": "local"}, output="water")
        >>> config.batch_size, config.optimizer.name
        (8, 'adamw')
    """

    data: DataConfig
    stages: tuple[StageConfig, ...]
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    start_from: str | None = None
    output: str = "training"
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    loss_kind: LossKind = "mse"
    huber_delta: float = 0.01
    batch_size: int = 8
    valid_batch_size: int = 0
    seed: int = 0
    dtype: Literal["float32", "float64"] | None = None
    device: str = "auto"
    ema_decay: float | None = 0.99
    clip: float | None = 10.0
    patience: int | None = None
    checkpoint_interval: int = 1
    wandb: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages: a training needs at least one stage")
        if bool(self.model) == bool(self.start_from):
            raise ValueError("set either model (a new model) or start_from (a saved one)")
        kinds = {
            "backbone": (Mapping, "a mapping of options"),
            "elements": (list, "a list"),
            "dtype": (str, "a name"),
        }
        for name, (kind, text) in kinds.items():
            given = self.model.get(name)
            if given is not None and not isinstance(given, kind):
                raise TypeError(f"model.{name} must be {text}, got {given!r}")
        if not self.output:
            raise ValueError("output must be the name of a folder, got ''")
        check_numbers("", self, "batch_size", "checkpoint_interval", "patience", least=1)
        check_numbers("", self, "valid_batch_size", least=0)
        check_numbers("", self, "seed", least=0, below=2**32)
        check_numbers("", self, "ema_decay", above=0, below=1)
        check_numbers("", self, "clip", "huber_delta", above=0)
        low = min(stage.lr for stage in self.stages)
        if self.schedule.min_lr > low:
            text = f"at most the lr of every stage, {low:g}, got {self.schedule.min_lr:g}"
            raise ValueError(f"schedule.min_lr must be {text}")
        mine = Path(self.output) / "best.safetensors"
        if self.start_from and Path(self.start_from).resolve() == mine.resolve():
            raise ValueError(
                f"start_from is {mine}, which this training writes: choose another output folder"
            )


def config_from_dict(values: Mapping[str, Any]) -> TrainConfig:
    """
    Make a training's options from a plain mapping.

    Raises:
        ValueError, TypeError: name the option that is unknown, missing or wrong.

    Example:
        >>> from scfmlip.training import config_from_dict
        >>> values = {"data": {"train": "water.xyz"}, "model": {"rule": "local"}, "stages": [{"epochs": 100}]}
        >>> config = config_from_dict(values)
        >>> config.data.train, config.stages[0].loss
        (('water.xyz',), {'energy': 1.0, 'forces': 100.0})
        >>> config_from_dict({**values, "batch_size": 0})
        Traceback (most recent call last):
            ...
        ValueError: batch_size must be a number of at least 1, got 0
    """
    values = dict(values)
    data = values.get("data")
    if isinstance(data, Mapping):
        # a single file need not be a list
        lists = {k: [v] for k, v in data.items() if k in ("train", "valid", "test") and isinstance(v, str)}
        values["data"] = {**data, **lists}
    stages = values.get("stages")
    if isinstance(stages, (list, tuple)):
        values["stages"] = [_stage(stage, f"stages[{i}]") for i, stage in enumerate(stages)]
    return from_dict(TrainConfig, values, "the training")


def _stage(values: Any, where: str) -> StageConfig:
    try:
        return from_dict(StageConfig, values, where)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(where) else f"{where}: {text}") from None


def load_config(path: str | Path) -> TrainConfig:
    """
    Read a training's options from a YAML file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError, TypeError: as in `config_from_dict`; also if the file is not YAML, or sets an option
            twice.

    Example:
        >>> import pathlib, tempfile
        >>> from scfmlip.training import load_config
        >>> text = "{data: {train: water.xyz}, model: {rule: local}, stages: [{epochs: 100}]}"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "train.yaml")
        ...     _ = path.write_text(text)
        ...     config = load_config(path)
        >>> config.stages[0].epochs
        100
    """
    return config_from_dict(read_options(path, "data, model and stages"))


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """
    Convert a training's options to a plain dictionary.

    Example:
        >>> from scfmlip.training import config_from_dict, config_to_dict
        >>> values = {"data": {"train": "water.xyz"}, "model": {"rule": "local"}, "stages": [{"epochs": 100}]}
        >>> config_to_dict(config_from_dict(values))["schedule"]["name"]
        'plateau'
    """
    return dataclasses.asdict(config)
