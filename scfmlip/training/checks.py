"""Checks that options, model and data of a training fit together."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch

from .. import models
from ..mace_torch.batches import collate
from ..scf import ConvergenceError
from .config import TrainConfig
from .data import Frames, GraphDataset
from .frames import PROPERTIES, available_keys, check_weights, counts, iterate
from .losses import PENALTIES, TERMS
from .optimize import frozen, outputs_for

log = logging.getLogger("scfmlip.training")


def check_stages(config: TrainConfig, model: models.Model, counts: Mapping[str, int]) -> None:
    """
    Check that the model supports the stages.

    Raises:
        ValueError: for a direct stage if the rule does not support it, or without a reference density.
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


def check_counted(sets: Mapping[str, Frames], config: TrainConfig) -> None:
    """
    Check that frames have weights and validation frames have labels, so that the loss is not always 0.

    Raises:
        ValueError: for a weight that is negative or not a number, frames that all have weight 0, or
            validation frames without any label in the loss of a stage.
    """
    for name in ("train", "valid"):
        frames, labels, total = sets[name], {"total_charge"}, 0.0  # a missing one means a neutral system
        for which, atoms in zip(frames.names, iterate(frames.frames), strict=True):
            try:
                check_weights(atoms.info)
                labels |= {
                    label
                    for label in PROPERTIES
                    if label != "total_spin" and counts(atoms, config.data, label)
                }
            except ValueError as error:
                raise ValueError(f"{which}: {error}") from None
            total += float(np.sum(atoms.info.get("config_weight", 1.0)))
        if len(frames) and total == 0:
            raise ValueError(f"config_weight of every frame of data.{name} is 0: no frame counts")
        if "charges" in labels:
            labels.add("density_coefficients")
        for i, stage in enumerate(config.stages if name == "valid" and len(frames) else ()):
            terms = {t for t, weight in stage.loss.items() if weight and t in TERMS}
            missing = sorted(t for t in terms if TERMS[t].label not in labels)
            if terms and len(missing) == len(terms):
                keys = ", ".join(repr(getattr(config.data, TERMS[t].option)) for t in missing)
                raise ValueError(
                    f"no validation frame holds {keys}, which the loss of stages[{i}] counts: it would be "
                    f"always 0; {available_keys(iterate(frames.frames))}"
                )
            if missing:
                log.warning("no validation frame holds labels of %s (stages[%d].loss)", ", ".join(missing), i)


def check_predictions(config: TrainConfig, model: models.Model, dataset: GraphDataset) -> None:
    """
    Check that the model runs on a frame and predicts everything in the loss.

    Raises:
        ValueError: names the term; also errors of the model for the frame.
    """
    batch = collate([dataset[0, True]])
    with frozen(model), torch.random.fork_rng():
        for i, stage in enumerate(config.stages):
            try:
                out = model(batch, scf=stage.scf, **outputs_for(stage.loss))
            except ConvergenceError:  # training may fix that
                continue
            except ValueError as error:
                raise ValueError(f"{dataset.frames.names[0]}: {error}") from error
            for name, weight in stage.loss.items():
                output = PENALTIES[name] if name in PENALTIES else TERMS[name].output
                if weight and out.get(output) is None:
                    raise ValueError(
                        f"stages[{i}].loss.{name} is {weight:g}, but this model predicts no {output}"
                    )
