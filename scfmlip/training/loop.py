"""The training loop: epochs, validation, checkpoints, resuming."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_ema import ExponentialMovingAverage
from tqdm import tqdm

from ..models import Model, save
from ..scf import ConvergenceError
from ..transfers import to_device
from .checkpoints import FILES, generators, restore_generators, save_checkpoint
from .config import TrainConfig, config_to_dict
from .data import EpochBatches, GraphDataset, make_loader
from .losses import TERMS, Errors, loss
from .optimize import Schedule, frozen, make_objective, make_optimizer, wanted
from .processes import Processes
from .report import write_history

log = logging.getLogger("scfmlip.training")

# options that may change when a training is resumed
_FREE = ("device", "output", "checkpoint_interval", "valid_batch_size", "wandb", "patience")
_FREE_DATA = ("num_workers", "cache")


class TrainingError(RuntimeError):
    """
    Raised by a training that cannot continue; its last checkpoint is on disk.

    Example:
        >>> from scfmlip.training import TrainingError
        >>> issubclass(TrainingError, RuntimeError)  # `train` raises it, for instance for a loss of NaN
        True
    """


@dataclasses.dataclass
class Progress:
    """
    The progress of a training at the end of an epoch.

    Attributes:
        epoch: Number of completed epochs in all stages.
        stage, stage_epoch: The stage, and its number of completed epochs.
        best: Lowest validation loss of the stage.
        best_epoch: Epoch of the lowest validation loss.
        bad_epochs: Epochs since then.
        history: One row per epoch.
    """

    epoch: int = 0
    stage: int = 0
    stage_epoch: int = 0
    best: float = math.inf
    best_epoch: int = 0
    bad_epochs: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Trainer:
    """
    A model, its data and the state of its training.

    Args:
        config: Options of the training.
        model: A model of `scfmlip.models` on ``workers.device``.
        sets: Graphs of "train" and, if present, "valid" and "test".
        workers: The processes.
        model_config: Plain configuration of the model, stored in checkpoints.
        quiet: Whether to hide the progress bar.
        data: Digests of the files of frames, stored in checkpoints.

    Example:
        >>> import tempfile
        >>> from scfmlip.data import path
        >>> from scfmlip.training import Trainer, config_from_dict, prepare
        >>> from scfmlip.training.processes import processes
        >>> backbone = {"hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "num_interactions": 1}
        >>> values = {"data": {"train": str(path("al_water.xyz")), "valid_fraction": 0.5}}
        >>> values |= {"model": {"rule": "short_range", "backbone": backbone}, "stages": [{"epochs": 2}]}
        >>> with tempfile.TemporaryDirectory() as folder, processes("cpu") as workers:
        ...     config = config_from_dict({**values, "output": folder})
        ...     model, graphs, full = prepare(config, workers)
        ...     trainer = Trainer(config, model, graphs, workers, full, quiet=True)
        ...     progress = trainer.run()
        ...     trainer.close()
        >>> progress.epoch
        2
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Model,
        sets: Mapping[str, GraphDataset],
        workers: Processes,
        model_config: dict[str, Any],
        quiet: bool = False,
        data: Mapping[str, str] | None = None,
    ) -> None:
        self.config, self.model, self.workers, self.quiet = config, model, workers, quiet
        self.model_config, self.data = model_config, dict(data or {})
        self.folder = Path(config.output)
        self.sets = sets
        self.batches = EpochBatches(
            len(sets["train"]), config.batch_size, config.seed, workers.rank, workers.world
        )
        self.train_loader = make_loader(sets["train"], self.batches, config.data.num_workers)
        self.progress = Progress()
        self.saved = 0
        # (averaged) weights of the best epoch
        self.best: dict[str, Tensor] | None = None
        # called with every row of the history, if set
        self.watch: Callable[[dict[str, Any]], None] | None = None
        # called after the first epoch is on disk
        self.begun: Callable[[], None] = lambda: None
        self.objective = make_objective(model, config, workers.world)
        self.ema = self._new_average()
        self._enter_stage(None)
        steps = config.stages[0].epochs * len(self.batches)
        if config.schedule.warmup_steps >= steps and workers.first:
            log.warning(
                "schedule.warmup_steps is %d, but the first stage has %d steps: it never reaches its lr",
                config.schedule.warmup_steps,
                steps,
            )

    @property
    def checkpoint(self) -> Path:
        """The file to resume from."""
        return self.folder / "checkpoint.pt"

    def _new_average(self) -> ExponentialMovingAverage | None:
        decay = self.config.ema_decay
        return None if decay is None else ExponentialMovingAverage(self.model.parameters(), decay)

    def _enter_stage(self, optimizer: torch.optim.Optimizer | None) -> None:
        """Set optimizer and schedule of the current stage; a given optimizer keeps its moments."""
        stage = self.config.stages[self.progress.stage]
        self.optimizer = optimizer or make_optimizer(self.model, self.config.optimizer, stage.lr)
        first = self.progress.stage == 0
        self.schedule = Schedule(self.optimizer, self.config.schedule, stage.lr, stage.epochs, first)

    def run(self) -> Progress:
        """
        Train until the last stage ends.

        Raises:
            TrainingError: for a loss or gradient that is not finite, or states that never converge.
        """
        progress = self.progress
        while True:
            stage = self.config.stages[progress.stage]
            ended = progress.stage_epoch >= stage.epochs
            patience = self.config.patience
            if patience is not None and progress.bad_epochs >= patience and progress.stage_epoch:
                self.say(f"no better validation loss for {patience} epochs: stage {progress.stage} ends")
                ended = True
            if ended:
                if progress.stage + 1 == len(self.config.stages):
                    return progress
                progress.stage, progress.stage_epoch = progress.stage + 1, 0
                progress.best, progress.bad_epochs = math.inf, 0
                fresh = self.config.stages[progress.stage].reset_optimizer
                if fresh:
                    self.ema = self._new_average()
                self._enter_stage(None if fresh else self.optimizer)
                continue
            self._epoch()

    def _epoch(self) -> None:
        """Run one epoch: training, validation, log row and checkpoint."""
        progress = self.progress
        stage = self.config.stages[progress.stage]
        started = time.perf_counter()
        lr = self.optimizer.param_groups[0]["lr"]
        row: dict[str, Any] = {"epoch": progress.epoch, "stage": progress.stage, "lr": lr}
        row |= self._train_epoch()
        name = "valid" if len(self.sets.get("valid", ())) else "train"
        row |= {f"valid_{k}": v for k, v in self.evaluate(name, stage.loss, stage.scf).items()}
        self.schedule.after_epoch(row["valid_loss"])
        row["seconds"] = time.perf_counter() - started
        progress.history.append(row)
        progress.epoch += 1
        progress.stage_epoch += 1
        better = row["valid_loss"] < progress.best
        if better:
            progress.best, progress.best_epoch, progress.bad_epochs = row["valid_loss"], row["epoch"], 0
            with self._average():
                self.best = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
        else:
            progress.bad_epochs += 1
        if self.workers.first:
            try:
                self._write(better)
            except OSError as error:
                what = f"epoch {row['epoch']} cannot be written: {error.strerror or error}"
                raise TrainingError(f"{what}. {self._kept()}") from error
        if self.watch is not None:
            self.watch(row)
        self.say(_line(row))

    def _write(self, better: bool) -> None:
        """Write the files of an epoch; first the checkpoint, which also holds the best weights."""
        progress, best = self.progress, self.folder / "best.safetensors"
        due = progress.epoch % self.config.checkpoint_interval == 0 or progress.epoch == 1
        if due or progress.stage_epoch == self.config.stages[progress.stage].epochs:
            save_checkpoint(self.checkpoint, self.state())
            self.saved = progress.epoch
        if better:
            with self._average():
                save(self.model, best)
        if progress.epoch == 1:
            # files of an earlier training, which this one replaces now
            for name in FILES[1:]:
                if name != best.name or not better:
                    (self.folder / name).unlink(missing_ok=True)
            self.begun()
        write_history(self.folder / "log.csv", progress.history)

    def _train_epoch(self) -> dict[str, float]:
        """Train on every frame once."""
        progress = self.progress
        stage = self.config.stages[progress.stage]
        self.batches.epoch = progress.epoch
        self.model.train()
        core = getattr(self.objective, "module", self.objective)
        total = torch.zeros(3, dtype=torch.float64)  # loss, norm of the gradient, batches left out
        bar = tqdm(
            self.train_loader,
            desc=f"epoch {progress.epoch}",
            leave=False,
            disable=self._hides,
        )
        for number, host in enumerate(bar):
            batch = self._move(host)
            counted = batch["counts"] > 0
            sizes = (batch["ptr"][1:] - batch["ptr"][:-1])[counted]
            n_systems, n_atoms = self.workers.sum(
                torch.tensor([float(counted.sum()), float(sizes.sum())], dtype=torch.float64)
            ).tolist()
            self.optimizer.zero_grad(set_to_none=True)
            # gradients are averaged over processes; this makes them a sum
            shares = n_systems / self.workers.world, n_atoms / self.workers.world
            try:
                value = self.objective(batch, stage.loss, stage.scf, *shares)
            except ValueError as error:
                # the frames were checked before, so the weights have diverged
                raise TrainingError(self._diverged(str(error), number, batch)) from error
            value.backward()
            if core.unconverged is not None:
                log.debug("%s: %s", self._where(batch), core.unconverged)
            mean, left_out = (
                self.workers.sum(
                    torch.tensor(
                        [float(value.detach()), float(core.unconverged is not None)], dtype=torch.float64
                    )
                )
                / self.workers.world
            ).tolist()
            limit = math.inf if self.config.clip is None else self.config.clip
            norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
            if not (math.isfinite(mean) and math.isfinite(norm)):
                what = f"the loss is {mean}, the norm of its gradient {norm}"
                raise TrainingError(self._diverged(what, number, batch))
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update()
            self.schedule.after_step()
            total += torch.tensor([mean * n_systems, norm, left_out], dtype=torch.float64)
            bar.set_postfix(loss=f"{mean:.3g}", refresh=False)
        batches = len(self.batches)
        if float(total[2]) >= batches:
            raise TrainingError(
                f"epoch {progress.epoch}: no batch converged: {core.unconverged}. {self._kept()} Start "
                "with a stage of scf: direct, lower lr, or start from a model that converges"
            )
        return {
            "train_loss": float(total[0]) / len(self.sets["train"]),
            "gradient": float(total[1]) / batches,
            "unconverged": float(total[2]),
        }

    def evaluate(self, name: str, weights: Mapping[str, float], scf: str = "converged") -> dict[str, float]:
        """
        Loss and errors of a set, with the averaged weights if they exist.

        Returns:
            ``loss`` (infinite if a state did not converge) and the errors of every label.
        """
        dataset = self.sets[name]
        workers = self.workers
        size = self.config.valid_batch_size or self.config.batch_size
        loader = make_loader(dataset, EpochBatches(len(dataset), size, None, workers.rank, workers.world))
        errors = Errors()
        total = torch.zeros(2, dtype=torch.float64)  # loss, batches that did not converge
        self.model.eval()
        with self._average(), frozen(self.model):
            for host in tqdm(loader, desc=name, unit="batch", leave=False, disable=self._hides):
                batch = self._move(host)
                try:
                    out = self.model(batch, training=False, scf=scf, **wanted(batch, weights))
                except ConvergenceError as error:
                    log.debug("%s: %s", self._where(batch, name), error)
                    total[1] += 1
                    continue
                kind, delta = self.config.loss_kind, self.config.huber_delta
                total[0] += float(loss(out, batch, weights, kind, delta, len(dataset), dataset.n_atoms))
                errors.add(out, batch)
        total, errors.sums = workers.sum(total), workers.sum(errors.sums)
        value = math.inf if float(total[1]) else float(total[0])
        if math.isnan(value):
            raise TrainingError(
                f"the loss of the {name} frames is NaN after epoch {self.progress.epoch}. {self._kept()}"
            )
        return {"loss": value, "unconverged": float(total[1]), **errors.result()}

    def state(self) -> dict[str, Any]:
        """Everything needed to resume, as tensors and plain types."""
        return {
            "config": config_to_dict(self.config),
            "model_config": self.model_config,
            "data": self.data,
            "model": self.model.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "generators": generators(),
            "progress": dataclasses.asdict(self.progress),
            "world": self.workers.world,
            "card": self.model.card,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """
        Resume exactly from a checkpoint.

        Raises:
            ValueError: if the configuration belongs to another training.
        """
        check_same(state["config"], config_to_dict(self.config), state["progress"])
        changed = [path for path, digest in state["data"].items() if self.data.get(path) != digest]
        if changed:
            raise ValueError(
                f"{', '.join(changed)} changed since the checkpoint was written: restore it, use "
                "another output folder, or --fresh to start over in this one"
            )
        self.progress = Progress(**state["progress"])
        self.saved = self.progress.epoch
        self.best = state["best"]
        if self.best is not None and self.workers.first:
            # even if the file is gone
            self.model.load_state_dict(self.best)
            save(self.model, self.folder / "best.safetensors")
        self.model.load_state_dict(state["model"])
        self._enter_stage(None)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        restore_generators(state["generators"])

    def close(self) -> None:
        """
        Release the object that exchanges gradients, before the processes end.

        Otherwise its destructor may deadlock: it holds Python's lock and waits for a thread that needs the
            lock.
        """
        for name in ("logger", "reducer"):
            if hasattr(self.objective, name):
                setattr(self.objective, name, None)

    @property
    def _hides(self) -> bool | None:
        """Whether to show no bar; None, tqdm's way to say that only a terminal gets one."""
        return self.quiet or not self.workers.first or None

    def say(self, text: str) -> None:
        """Write a line to the log, from the first process only."""
        if self.workers.first:
            log.info(text)

    def _average(self) -> Any:
        return nullcontext() if self.ema is None else self.ema.average_parameters()

    def _move(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return to_device(batch, self.workers.device)

    def _where(self, batch: dict[str, Tensor], name: str = "train") -> str:
        names = self.sets[name].frames.names
        numbers = batch["frame_number"].tolist()
        shown = [names[i] for i in numbers[:4]]
        return ", ".join(shown) + (f" and {len(numbers) - 4} more" if len(numbers) > 4 else "")

    def _kept(self) -> str:
        if not self.saved:
            return "There is no checkpoint yet."
        best = self.folder / "best.safetensors"
        return f"{self.checkpoint} keeps {self.saved} epochs, {best} the best model."

    def _diverged(self, what: str, number: int, batch: dict[str, Tensor]) -> str:
        return (
            f"batch {number} of epoch {self.progress.epoch} ({self._where(batch)}): {what}. {self._kept()} "
            "Lower lr, set clip, use dtype: float64, or look at those frames"
        )


def check_same(old: dict[str, Any], new: dict[str, Any], progress: Mapping[str, Any]) -> None:
    """
    Check that a configuration continues the training of another one.

    The current stage may be longer, except with a cosine schedule, whose rate depends on the stage's end.
    Later stages may change.

    Raises:
        ValueError: names the options that differ.
    """
    cosine = old["schedule"]["name"] == "cosine"

    def kept(config: dict[str, Any]) -> dict[str, Any]:
        flat = {k: v for k, v in config.items() if k not in (*_FREE, "data", "stages", "model")}
        flat |= {f"data.{k}": v for k, v in config["data"].items() if k not in _FREE_DATA}
        flat |= {f"model.{k}": v for k, v in config["model"].items()}
        for i, stage in enumerate(config["stages"][: progress["stage"] + 1]):
            longer = i == progress["stage"] and stage["epochs"] >= progress["stage_epoch"] and not cosine
            flat |= {f"stages[{i}].{k}": v for k, v in stage.items() if not (longer and k == "epochs")}
        # files do not distinguish tuples and lists
        return json.loads(json.dumps(flat))

    before, after = kept(old), kept(new)
    differing = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
    if differing:
        shown = "; ".join(f"{k} was {before.get(k)!r}, is {after.get(k)!r}" for k in differing[:4])
        raise ValueError(
            f"the checkpoint belongs to another training: {shown}. Use another output folder, or --fresh to "
            "start over in this one"
        )


def _line(row: Mapping[str, Any]) -> str:
    parts = [f"epoch {row['epoch']:4d}  loss {row['train_loss']:.4g} / {row['valid_loss']:.4g}"]
    for name in ("energy", "forces", "charges", "dipole", "fermi_level"):
        value = row.get(f"valid_{name}_rmse")
        if value is not None:
            parts.append(f"{name} {1000 * value:.4g} m{TERMS[name].unit}")
    return "  ".join(parts) + f"  lr {row['lr']:.2g}  {row['seconds']:.1f} s"
