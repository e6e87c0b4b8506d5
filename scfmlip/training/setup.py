"""A complete training from its options: data, model, loop and output."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from mace.tools import set_seeds
from tqdm import tqdm

from .. import models
from ..files import locked, write_text
from ..models.rules import name_of, rule_class
from ..models.systems import required_inputs
from .checkpoints import FILES, digests, load_checkpoint
from .checks import check_counted, check_predictions, check_stages
from .config import TrainConfig, config_from_dict, config_to_dict
from .data import (
    DTYPES,
    EpochBatches,
    Frames,
    GraphDataset,
    make_loader,
    read_sets,
)
from .labels import check_labels, describe, describe_missing
from .loop import Trainer
from .losses import LABELS, TERMS, labelled_pairs
from .optimize import frozen, wanted
from .processes import Processes, processes
from .report import plot_history, plot_parity, write_json
from .statistics import complete_model, fill_statistics

log = logging.getLogger("scfmlip.training")


def prepare(
    config: TrainConfig,
    workers: Processes,
    model_config: dict[str, Any] | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
    quiet: bool = True,
) -> tuple[models.Model, dict[str, GraphDataset], dict[str, Any]]:
    """
    Build model and graphs of a training.

    Args:
        config: Options of the training.
        workers: The processes; the model is moved to their device.
        model_config: Complete configuration of the model from an earlier run, if there is one.
        weights: Weights of the model from that run.
        quiet: Whether to hide the progress bar while graphs are built.

    Raises:
        FileNotFoundError, ValueError, TypeError: name the wrong file, frame, label or option.

    Example:
        >>> from scfmlip.data import path
        >>> from scfmlip.training import config_from_dict, prepare
        >>> from scfmlip.training.processes import processes
        >>> backbone = {"hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "num_interactions": 1}
        >>> values = {"data": {"train": str(path("al_water.xyz")), "valid_fraction": 0.5}}
        >>> values |= {"model": {"rule": "short_range", "backbone": backbone}, "stages": [{"epochs": 1}]}
        >>> with processes("cpu") as workers:
        ...     model, graphs, full = prepare(config_from_dict(values), workers)
        >>> {name: len(dataset) for name, dataset in graphs.items()}
        {'train': 1, 'valid': 1}
        >>> full["elements"]  # of the frames
        (1, 8, 13)
    """
    sets = read_sets(config.data)
    counts = check_labels(sets, config)
    check_counted(sets, config)
    loaded, full = None, {}
    if config.start_from is None:
        # also when resuming: it removes isolated atoms from the training set
        full = complete_model(config, sets)
    elif model_config is None:
        loaded = models.load(config.start_from)
        full = models.config_to_dict(loaded.config)
        if config.dtype not in (None, full["dtype"]):
            full["dtype"] = config.dtype
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
    hide = quiet or not workers.first
    taken = [line for g in graphs.values() for line in describe_missing(g, g.check(hide))]
    fill_statistics(full, graphs["train"])
    if weights is None and loaded is not None:
        weights = loaded.state_dict()
    model = models.build(full, weights)
    model.provenance = _provenance(config, sets)
    check_stages(config, model, counts)
    check_predictions(config, model, graphs["train"])
    sizes = ", ".join(f"{len(g)} {name}" for name, g in graphs.items())
    if workers.first:
        log.info("frames: %s", sizes)
        # every density responds to a field
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


def train(
    config: TrainConfig | Mapping[str, Any], fresh: bool = False, quiet: bool = False
) -> dict[str, Any]:
    """
    Train a model, or resume an interrupted training.

    Writes to ``config.output``: ``config.yaml`` (or ``options.yaml`` if you have a file of that name there),
    ``log.csv`` (a row per epoch), ``checkpoint.pt``, ``best.safetensors`` (for `scfmlip.load`: the averaged
    weights with the lowest validation loss of the last stage), ``errors.json``, ``loss.png`` and
    ``parity.png``. A run with the same options and data in the same folder resumes after the last completed
    epoch. The result is bitwise the same as without the interruption, for the same processor type and number
    of processes (except for CUDA's atomic sums, which differ between runs). Only one training at a time may
    use a folder.

    Args:
        config: The options, or their plain dictionary.
        fresh: Start over; files of an earlier training in the folder are replaced after the first epoch.
        quiet: Whether to hide the progress bar.

    Returns:
        The content of ``errors.json``: ``epochs``, ``best_epoch``, ``seconds`` and the errors of each set;
        and ``first``, whether this process wrote the file.

    Raises:
        FileNotFoundError, ValueError, TypeError: for wrong options or data; nothing was trained.
        BlockingIOError: if another training uses the folder.
        TrainingError: for a training that cannot continue.

    Example:
        >>> import pathlib, tempfile
        >>> from scfmlip.data import path
        >>> from scfmlip.training import train
        >>> backbone = {"hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "num_interactions": 1}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     values = {"data": {"train": str(path("al_water.xyz")), "valid_fraction": 0.5}}
        ...     values |= {"model": {"rule": "short_range", "backbone": backbone}, "stages": [{"epochs": 1}]}
        ...     errors = train({**values, "output": folder}, quiet=True)
        ...     print(pathlib.Path(folder, "best.safetensors").is_file())
        True
        >>> sorted(errors["valid"])
        ['energy_mae', 'energy_rmse', 'forces_mae', 'forces_rmse', 'loss', 'unconverged']
    """
    if not isinstance(config, TrainConfig):
        config = config_from_dict(config)
    folder = Path(config.output)
    with processes(config.device) as workers, _alone(folder, workers), ExitStack() as ending:
        set_seeds(config.seed)
        random.seed(config.seed)
        state = None if fresh else _find_state(folder)
        earlier = () if state is None else (state["model_config"], state["model"])
        model, graphs, full = prepare(config, workers, *earlier, quiet=quiet)
        data = digests([*config.data.train, *config.data.valid, *config.data.test])
        trainer = Trainer(config, model, graphs, workers, full, quiet, data)
        ending.callback(trainer.close)
        trainer.begun = partial(_write_options, folder, config, workers)
        if state is not None:
            trainer.resume(state)
            trainer.say(f"going on after {trainer.progress.epoch} epochs of {trainer.checkpoint}")
            trainer.begun()
        with _wandb(config, workers, full) as trainer.watch:
            progress = trainer.run()
        workers.wait()
        if trainer.best is None:
            log.warning("no epoch had a finite validation loss: there is no best model")
        else:
            model.load_state_dict(trainer.best)
            trainer.ema = None
        last = config.stages[-1]
        summary: dict[str, Any] = {
            "epochs": progress.epoch,
            "best_epoch": progress.best_epoch,
            "seconds": sum(row["seconds"] for row in progress.history),
        }
        for name in graphs:
            summary[name] = trainer.evaluate(name, last.loss)
        if workers.first and trainer.best is not None:
            model.provenance["errors"] = _errors(summary)
            models.save(model, folder / "best.safetensors")
        if workers.first:
            write_json(folder / "errors.json", summary)
            plot_history(folder / "loss.png", progress.history)
            plot_parity(
                folder / "parity.png",
                {n: parity(model, g, config.batch_size, quiet) for n, g in graphs.items()},
            )
        workers.wait()
        return summary | {"first": workers.first}


def _provenance(config: TrainConfig, sets: Mapping[str, Frames]) -> dict[str, Any]:
    """What a model's card says of its training: files, frames, keys and terms of the loss."""
    files = [Path(path).name for path in config.data.train]
    terms = list(dict.fromkeys(name for stage in config.stages for name, w in stage.loss.items() if w))
    keys = [getattr(config.data, TERMS[name].option) for name in terms if name in TERMS]
    found: dict[str, Any] = {
        "data": {
            "files": files,
            "frames": {name: len(frames) for name, frames in sets.items() if len(frames)},
        },
        "trained on": {"terms": terms, "labels": list(dict.fromkeys(keys))},
    }
    return found | ({"started from": Path(config.start_from).name} if config.start_from else {})


def _errors(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Root mean square errors of each set, with units."""
    return {
        name: {
            f"{term} ({TERMS[term].unit})": summary[name][f"{term}_rmse"]
            for term in LABELS
            if f"{term}_rmse" in summary[name]
        }
        for name in ("train", "valid", "test")
        if name in summary
    }


@contextmanager
def _alone(folder: Path, workers: Processes) -> Iterator[None]:
    """Lock the folder for these processes."""
    with ExitStack() as stack:
        problem: OSError | None = None
        if workers.first:
            try:
                stack.enter_context(locked(folder, "trains a model", FILES))
            except OSError as error:
                problem = error
        if float(workers.sum(torch.tensor([float(problem is not None)]))):
            raise problem or OSError(f"the first process cannot write to {folder}")
        yield


def _find_state(folder: Path) -> dict[str, Any] | None:
    """
    The state of an earlier training to resume, or None.

    Raises:
        ValueError: for a damaged checkpoint, or results without one, which a new training would replace.
    """
    checkpoint, *others = (folder / name for name in FILES)
    if checkpoint.exists():
        return load_checkpoint(checkpoint)
    found = [path.name for path in others if path.exists()]
    if found:
        raise ValueError(
            f"{folder} holds {', '.join(found)}, but no {checkpoint.name} to resume from: choose another "
            "output folder, or --fresh to replace them"
        )
    return None


_HEAD = "# the options of this training, as scfmlip read them\n"


def _write_options(folder: Path, config: TrainConfig, workers: Processes) -> None:
    """Write ``config.yaml``, or ``options.yaml`` if a user's own file has that name."""
    if not workers.first:
        return
    path = folder / "config.yaml"
    if path.exists() and not path.read_text(errors="replace").startswith(_HEAD):
        path = folder / "options.yaml"
    write_text(path, _HEAD + yaml.safe_dump(_plain(config_to_dict(config)), sort_keys=False))


def parity(
    model: models.Model, dataset: GraphDataset, batch_size: int = 8, quiet: bool = True
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    Predictions and references of every label of a set.

    Args:
        model: The model.
        dataset: Graphs with labels.
        batch_size: Frames evaluated at once.
        quiet: Whether to hide the progress bar, which only a terminal gets.

    Returns:
        Flat arrays of the labelled components by term; energies are interaction energies per atom.

    Example:
        >>> from scfmlip.data import path
        >>> from scfmlip.training import config_from_dict, parity, prepare
        >>> from scfmlip.training.processes import processes
        >>> backbone = {"hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "num_interactions": 1}
        >>> values = {"data": {"train": str(path("al_water.xyz")), "valid_fraction": 0.5}}
        >>> values |= {"model": {"rule": "short_range", "backbone": backbone}, "stages": [{"epochs": 1}]}
        >>> with processes("cpu") as workers:
        ...     model, graphs, _ = prepare(config_from_dict(values), workers)
        >>> predicted, reference = parity(model, graphs["train"])["forces"]
        >>> predicted.shape, reference.shape  # 36 atoms, three components each
        ((108,), (108,))
    """
    device = next(model.parameters()).device
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    with frozen(model):
        loader = make_loader(dataset, EpochBatches(len(dataset), batch_size, None))
        for host in tqdm(loader, desc="parity", unit="batch", leave=False, disable=quiet or None):
            batch = {k: v.to(device) for k, v in host.items()}
            out = model(batch, **wanted(batch))
            for name, pair in labelled_pairs(out, batch).items():
                found.setdefault(name, []).append(pair)
    return {
        name: (np.concatenate([p for p, _ in pairs]), np.concatenate([r for _, r in pairs]))
        for name, pairs in found.items()
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Convert tuples to lists, which YAML writes without tags."""
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
        raise ImportError("the option wandb needs the package wandb: pip install wandb") from None
    run = wandb.init(**config.wandb, config={**_plain(config_to_dict(config)), "model": model_config})
    try:
        yield run.log
    finally:
        run.finish()
