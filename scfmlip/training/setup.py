"""A whole training from its options: data, model, loop, and what is left in the end."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from mace.tools import set_seeds
from safetensors.torch import load_file

from .. import models
from ..models.rules import name_of, rule_class
from ..models.systems import required_inputs
from .checkpoints import load_checkpoint, write_text
from .config import TrainConfig, config_from_dict, config_to_dict
from .data import (
    DTYPES,
    EpochBatches,
    GraphDataset,
    make_loader,
    read_sets,
)
from .labels import check_labels, describe, describe_missing
from .loop import Trainer, frozen, wanted
from .losses import labelled_pairs
from .processes import Processes, processes
from .report import plot_history, plot_parity, write_json
from .statistics import complete_model, fill_statistics

log = logging.getLogger("scfmlip.training")


def prepare(
    config: TrainConfig, workers: Processes, model_config: dict[str, Any] | None = None
) -> tuple[models.Model, dict[str, GraphDataset], dict[str, Any]]:
    """
    Model and graphs of a training.

    Args:
        config: The training.
        workers: The processes; the model goes to their device.
        model_config: The complete dictionary of the model, if an earlier run has worked it out.

    Raises:
        FileNotFoundError, ValueError, TypeError: name the file, frame, label or option that is wrong.
    """
    sets = read_sets(config.data)
    counts = check_labels(sets, config)
    if config.start_from is not None:
        loaded = models.load(config.start_from)
        full = models.config_to_dict(loaded.config)
        if config.dtype not in (None, full["dtype"]):
            full["dtype"] = config.dtype
    else:
        loaded = None
        full = complete_model(config, sets)
    full = full if model_config is None else model_config
    typed = models.make_config(full)
    graphs = {
        name: GraphDataset(
            frames,
            config.data,
            typed.elements,
            typed.atomic_energies,
            typed.backbone.r_max,
            DTYPES[typed.dtype],
            (typed.density.l_max + 1) ** 2,
            typed.backbone.heads,
            rule_class(name_of(typed.rule)).pads_cell(typed.rule),
            required_inputs(typed),
            typed.backbone.options.get("embedding_specs"),
        )
        for name, frames in sets.items()
        if len(frames)
    }
    taken = [line for dataset in graphs.values() for line in describe_missing(dataset, dataset.check())]
    fill_statistics(full, graphs["train"])
    model = models.build(full)
    if loaded is not None:
        model.load_state_dict(loaded.state_dict())
    check_stages(config, model, counts)
    sizes = ", ".join(f"{len(g)} {name}" for name, g in graphs.items())
    if workers.first:
        log.info("frames: %s", sizes)
        # every density answers to a field
        inputs = [*required_inputs(typed), "head"]
        inputs += [] if name_of(typed.rule) == "short_range" else ["external_field"]
        for line in describe(sets["train"].frames, counts, config, inputs):
            log.info(line)
        for line in taken:
            log.warning(line)
        for head, energies in typed.energies_by_head.items():
            log.info("atomic energies of %s (eV): %s", head, dict(zip(typed.elements, energies, strict=True)))
        log.info(
            "neighbours %.2f, RMS force %.4g eV/A, %d weights",
            full["backbone"]["avg_num_neighbors"],
            full["backbone"]["scale"],
            sum(p.numel() for p in model.parameters()),
        )
    return model.to(workers.device), graphs, models.config_to_dict(model.config)


def check_stages(config: TrainConfig, model: models.Model, counts: Mapping[str, int]) -> None:
    """
    Whether the model can be trained so.

    Raises:
        ValueError: for a direct stage of a rule without one, or without a reference density.
    """
    for i, stage in enumerate(config.stages):
        if stage.scf != "direct":
            continue
        if not model.rule.supports_direct:
            raise ValueError(
                f"stages[{i}].scf is direct, but the rule has no state to step from: use scf: converged"
            )
        if not (counts["density_coefficients"] or counts["charges"]):
            raise ValueError(
                f"stages[{i}].scf is direct: it needs a reference density, data.multipoles_key or "
                "data.charges_key"
            )


def train(
    config: TrainConfig | Mapping[str, Any], fresh: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """
    Train a model, or go on with a training that was interrupted.

    In ``config.output`` appear ``config.yaml``, ``log.csv`` (a row per epoch), ``checkpoint.pt``,
    ``best.safetensors`` (`scfmlip.load`; averaged weights of the lowest validation loss of the last stage),
    ``errors.json``, ``loss.png`` and ``parity.png``. A run with the same options in the same folder goes on
    after the last epoch that was completed, bit for bit as if it had never stopped (on one processor type
    and number of processes; CUDA's atomic sums differ from run to run).

    Args:
        config: The options, or their plain dictionary.
        fresh: Start over, whatever the folder holds.
        quiet: No progress bar.

    Returns:
        What ``errors.json`` holds: ``epochs``, ``best_epoch``, ``seconds`` and for each set its errors; and
        ``first``, whether this process wrote it.

    Raises:
        FileNotFoundError, ValueError, TypeError: for options or data that do not fit; nothing was trained.
        TrainingError: for a training that cannot go on.
    """
    if not isinstance(config, TrainConfig):
        config = config_from_dict(config)
    folder = Path(config.output)
    with processes(config.device) as workers:
        set_seeds(config.seed)
        random.seed(config.seed)
        if fresh and workers.first:
            for name in ("checkpoint.pt", "best.safetensors", "log.csv", "errors.json"):
                (folder / name).unlink(missing_ok=True)
        workers.wait()
        checkpoint = folder / "checkpoint.pt"
        state = load_checkpoint(checkpoint) if checkpoint.is_file() else None
        model, graphs, full = prepare(config, workers, None if state is None else state["model_config"])
        trainer = Trainer(config, model, graphs, workers, full, quiet)
        if state is not None:
            trainer.resume(state)
            trainer.say(f"going on after {trainer.progress.epoch} epochs of {checkpoint}")
        if workers.first:
            write_text(
                folder / "config.yaml", yaml.safe_dump(_plain(config_to_dict(config)), sort_keys=False)
            )
        with _wandb(config, workers, full) as trainer.watch:
            progress = trainer.run()
        workers.wait()
        best = folder / "best.safetensors"
        if best.is_file():
            model.load_state_dict(load_file(best))
            trainer.ema = None
        last = config.stages[-1]
        summary: dict[str, Any] = {
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "seconds": sum(row["seconds"] for row in progress.history),
        }
        for name in graphs:
            summary[name] = trainer.evaluate(name, last.loss)
        if workers.first:
            write_json(folder / "errors.json", summary)
            plot_history(folder / "loss.png", progress.history)
            plot_parity(
                folder / "parity.png", {n: parity(model, g, config.batch_size) for n, g in graphs.items()}
            )
        workers.wait()
        return summary | {"first": workers.first}


def parity(
    model: models.Model, dataset: GraphDataset, batch_size: int = 8
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    Predictions and references of every label of a set.

    Args:
        model: The model.
        dataset: Graphs with labels.
        batch_size: Frames evaluated at once.

    Returns:
        By term, flat arrays of the labelled components; energies are interaction energies per atom.
    """
    device = next(model.parameters()).device
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    with frozen(model):
        for host in make_loader(dataset, EpochBatches(len(dataset), batch_size, None)):
            batch = {k: v.to(device) for k, v in host.items()}
            out = model(batch, **wanted(batch))
            for name, pair in labelled_pairs(out, batch).items():
                found.setdefault(name, []).append(pair)
    return {
        name: (np.concatenate([p for p, _ in pairs]), np.concatenate([r for _, r in pairs]))
        for name, pairs in found.items()
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, which YAML writes without tags."""
    return json.loads(json.dumps(values))


@contextmanager
def _wandb(
    config: TrainConfig, workers: Processes, model_config: dict[str, Any]
) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """A function that reports an epoch to Weights & Biases, or None."""
    if config.wandb is None or not workers.first:
        yield None
        return
    try:
        import wandb  # type: ignore[import-not-found]
    except ModuleNotFoundError:
        raise ImportError("the option wandb needs that package: pip install wandb") from None
    run = wandb.init(**config.wandb, config={**_plain(config_to_dict(config)), "model": model_config})
    try:
        yield run.log
    finally:
        run.finish()
