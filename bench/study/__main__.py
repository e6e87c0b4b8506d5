"""
Train, test and write up every charge rule on every set: `python -m bench.study`.

Interrupted or repeated, it goes on where it was: trainings resume after their last epoch, finished ones are
only read. ``--only report`` rewrites tables, figures and docs/design-space.md from the rows alone.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.progress import Bar, say
from bench.record import commit, device_name

from .report import write_report
from .rows import RESULTS, put_rows
from .rules import RULES, Rule, training_options
from .sets import FOREIGN, ROOT, SETS, Set, write_parts


def stamp(which: str, rule: str, seed: int, **more: Any) -> dict[str, Any]:
    """What every row says about where it comes from."""
    return {
        "set": which,
        "rule": rule,
        "seed": seed,
        "torch": torch.__version__,
        "device": device_name(torch.device("cpu")),
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        **more,
    }


def train_and_test(which: Set, rule: Rule, seed: int, work: Path, foreign: Path, epochs: int | None) -> None:
    """One training and everything measured with its model."""
    from scfmlip.models import load
    from scfmlip.models.systems import required_inputs
    from scfmlip.training import TERMS, config_from_dict, parity, train
    from scfmlip.training.data import DTYPES, Frames, GraphDataset

    from .probes import probe

    folder = work / which.name
    parts = write_parts(which, folder, foreign)
    options = training_options(rule, which, seed, folder, epochs)
    summary = train(options)
    model = load(Path(options["output"]) / "best.safetensors")
    config, typed = config_from_dict(options), model.config
    base = stamp(which.name, rule.name, seed, epochs=summary["epochs"], train_s=f"{summary['seconds']:.1f}")
    rows = [
        {
            **base,
            "quantity": "seconds per epoch",
            "value": summary["seconds"] / summary["epochs"],
            "unit": "s",
        }
    ]
    for name, frames in parts.items():
        if not frames or name == "valid":
            continue
        graphs = GraphDataset(
            Frames(frames, [f"{name} {i}" for i in range(len(frames))]),
            config.data,
            typed.elements,
            typed.atomic_energies,
            typed.backbone.r_max,
            DTYPES[typed.dtype],
            (typed.density.l_max + 1) ** 2,
            pad_cell=model.pads_cell,
            needed=required_inputs(typed),
        )
        for label, (predicted, reference) in parity(model, graphs, which.batch_size).items():
            error = predicted - reference
            values = {"RMSE": np.sqrt((error**2).mean()), "RMSE after the mean": error.std()}
            for kind, value in values.items():
                if kind == "RMSE" or label in ("energy", "fermi_level"):
                    quantity = f"{label} {kind}, {name}"
                    rows.append(
                        base | {"quantity": quantity, "value": float(value), "unit": TERMS[label].unit}
                    )
    for quantity, (value, reference, unit) in probe(which.name, model, parts).items():
        rows.append(base | {"quantity": quantity, "value": value, "reference": reference, "unit": unit})
    put_rows(RESULTS / "rows.csv", rows)


def measure_cost(which: Set, rules: list[Rule], foreign: Path, work: Path, repeats: int) -> None:
    """
    Time of energy and forces, and of a training step, of untrained models on 2 x 2 cells of a frame.

    The least of ``repeats`` rounds, in which all rules take turns: another program's load meets every rule.
    """
    from scfmlip.mace_torch.graphs import collate
    from scfmlip.training import config_from_dict, prepare
    from scfmlip.training.optimize import Objective
    from scfmlip.training.processes import Processes

    folder = work / which.name
    parts = write_parts(which, folder, foreign)
    large = parts["test"][0].repeat((2, 2, 1))
    large.info["total_charge"] = 4 * float(parts["test"][0].info["total_charge"])
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for rule in rules:
        options = training_options(rule, which, 0, folder)
        model, graphs, _ = prepare(config_from_dict(options), Processes(0, 1, torch.device("cpu")))
        graphs["test"].frames.frames = [large]
        batch = collate([graphs["test"][0, True]])
        objective, weights = Objective(model, "mse", 0.01), options["stages"][-1]["loss"]

        def step(objective: Any = objective, batch: Any = batch, weights: Any = weights) -> None:
            objective.zero_grad()
            objective(batch, weights, "converged", 1.0, float(len(large))).backward()

        calls[rule.name, "energy and forces"] = partial(model, batch)
        calls[rule.name, "training step"] = step
    least: dict[tuple[str, str], float] = {}
    for _ in Bar(range(repeats), "round"):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            taken = time.perf_counter() - start
            least[key] = min(least.get(key, taken), taken)
    rows = [
        stamp(which.name, rule, 0)
        | {"quantity": f"{name}, {len(large)} atoms", "value": 1000 * value, "unit": "ms"}
        for (rule, name), value in least.items()
    ]
    put_rows(RESULTS / "rows.csv", rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, help="of the stage with everything, not each set's own")
    parser.add_argument("--only", choices=("train", "cost", "report"), help="one part of the work")
    parser.add_argument("--data", type=Path, default=FOREIGN, help="folder of the sets that are not ours")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "study", help="folder of the trainings")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="of timings")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message="The TorchScript type system")
    rules = [RULES[name] for name in arguments.rules]
    if arguments.only in (None, "train"):
        for seed, name, rule in Bar(
            list(itertools.product(arguments.seeds, arguments.sets, rules)), "training"
        ):
            start = time.perf_counter()
            try:
                train_and_test(SETS[name], rule, seed, arguments.work, arguments.data, arguments.epochs)
                said = "done"
            except (ValueError, FileNotFoundError, RuntimeError) as error:
                # one rule that fails is a result, and no reason to leave the others out
                said = f"{type(error).__name__}: {error}"
                row = stamp(name, rule.name, seed, quantity=f"failed: {said[:300]}")
                put_rows(RESULTS / "rows.csv", [row])
            say(f"{name}, {rule.name}, seed {seed}: {said} ({time.perf_counter() - start:.0f} s)")
    if arguments.only in (None, "cost"):
        measure_cost(SETS["au2_mgo"], rules, arguments.data, arguments.work, arguments.repeats)
    if arguments.only in (None, "report"):
        write_report(RESULTS / "rows.csv", ROOT / "docs" / "design-space.md")


if __name__ == "__main__":
    main()
