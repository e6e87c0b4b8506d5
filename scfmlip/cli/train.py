"""``scfmlip train``: train a model of the design space, or resume a training."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from pathlib import Path


def add_command(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "train",
        help="train a model from a YAML file",
        description="Train a model of scfmlip.models on extended XYZ or HDF5. The same command in the same "
        "folder resumes after the last completed epoch, exactly as if it had not stopped; the options are "
        "in its config.yaml (options.yaml if you have a file of that name). Several processes: "
        "torchrun --nproc-per-node 2 -m scfmlip train config.yaml.",
    )
    parser.add_argument("config", type=Path, help="the options: data, model, stages, ... (YAML)")
    parser.add_argument("-o", "--output", help="folder to write to, instead of the file's")
    parser.add_argument("--device", help="auto, cpu or cuda, instead of the file's")
    parser.add_argument("--fresh", action="store_true", help="start over, replacing an earlier training")
    parser.add_argument(
        "--check",
        action="store_true",
        help="read options and data, build the model, print what was found as a table, stop",
    )
    parser.add_argument("--quiet", action="store_true", help="warnings and the result only")
    parser.add_argument("--verbose", action="store_true", help="also say which batches did not converge")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    from ..training import LABELS, TERMS, load_config, prepare, train
    from ..training.processes import Processes, pick_device
    from ..training.tables import describe_training

    config = load_config(arguments.config)
    given = {"output": arguments.output, "device": arguments.device}
    config = dataclasses.replace(config, **{k: v for k, v in given.items() if v is not None})
    level = logging.WARNING if arguments.quiet else logging.DEBUG if arguments.verbose else logging.INFO
    logging.basicConfig(format="%(message)s")
    logging.getLogger("scfmlip").setLevel(level)
    if arguments.check:
        if not arguments.verbose:  # the table says it
            logging.getLogger("scfmlip").setLevel(logging.WARNING)
        model, sets, _ = prepare(config, Processes(0, 1, pick_device(config.device)), quiet=arguments.quiet)
        if not arguments.quiet:
            print(describe_training(config, model, sets))
        print(f"{arguments.config} is fine")
        return 0
    try:
        summary = train(config, fresh=arguments.fresh, quiet=arguments.quiet)
    except KeyboardInterrupt:
        text = "The same command resumes after the last completed epoch"
        raise KeyboardInterrupt(text) from None
    if summary["first"]:
        print(f"{summary['epochs']} epochs, best {summary['best_epoch']}; {config.output} holds the model:")
        for name in ("train", "valid", "test"):
            errors = summary.get(name, {})
            parts = [
                f"{term} {1000 * errors[f'{term}_rmse']:.4g} m{TERMS[term].unit}"
                for term in LABELS
                if f"{term}_rmse" in errors
            ]
            if parts:
                print(f"  {name:5s} RMSE: {', '.join(parts)}")
    return 0
