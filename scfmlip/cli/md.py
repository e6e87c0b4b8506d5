"""``scfmlip md``: run molecular dynamics, or go on with a run."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path


def add_command(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "md",
        help="run molecular dynamics from a YAML file",
        description="Molecular dynamics of a structure with a model, by ASE's integrators: NVE, thermostats, "
        "constant pressure, constant potential, fields, ramps of both. The same command in the same folder "
        "goes on after the last restart file, exactly as if it had not stopped. The folder gets trajectory, "
        "log.csv, md.png and restart.pt.",
    )
    parser.add_argument("config", type=Path, help="the options: structure, model, steps, ... (YAML)")
    parser.add_argument("-o", "--output", help="folder to write to, instead of the file's")
    parser.add_argument("--steps", type=int, help="number of steps in all, instead of the file's")
    parser.add_argument("--device", help="auto, cpu or cuda, instead of the file's")
    parser.add_argument("--fresh", action="store_true", help="start over")
    parser.add_argument(
        "--check",
        action="store_true",
        help="evaluate the first frame, say how much memory a step takes, and stop",
    )
    parser.add_argument("--quiet", action="store_true", help="the result only, no progress bar")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    from ..devices import free_memory
    from ..md import Run, load_config, run_md

    config = load_config(arguments.config)
    given = {name: getattr(arguments, name) for name in ("output", "steps", "device")}
    config = dataclasses.replace(config, **{k: v for k, v in given.items() if v is not None})
    if arguments.check:
        calc = Run(config, fresh=arguments.fresh).calc
        needed, free = calc.memory_check.needed, free_memory(calc.device)
        print(f"{arguments.config} is fine")
        if needed is not None:
            there = f", {free / 2**20:,.0f} MiB are free" if free < math.inf else ""
            print(f"a step takes about {math.ceil(needed / 2**20):,} MiB of memory on {calc.device}{there}")
        return 0
    try:
        summary = run_md(config, fresh=arguments.fresh, quiet=arguments.quiet)
    except KeyboardInterrupt:
        text = f"The same command goes on from {Path(config.output) / 'restart.pt'}"
        raise KeyboardInterrupt(text) from None
    done = summary["steps"] - summary["first"]
    parts = [f"{summary['steps']} steps, {summary['steps'] * config.timestep:g} fs"]
    if done:
        parts.append(f"{1000 * summary['seconds'] / done:.1f} ms a step")
    for name, text in (
        ("temperature", "mean temperature {:.1f} K"),
        ("drift", "drift {:+.3g} meV/atom/ps"),
        ("shadow_drift", "of the shadow energy {:+.3g}"),
        ("charge", "mean charge {:+.4f} e"),
        ("scf_iterations", "{:.1f} iterations a step"),
    ):
        if name in summary:
            parts.append(text.format(summary[name]))
    print("; ".join(parts))
    print(f"{config.output} holds {config.trajectory}, log.csv, md.png and restart.pt")
    return 0
