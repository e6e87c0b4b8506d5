"""
Charge against potential along dynamics, and by static solves: `python -m profiling.dynamics`.

Langevin dynamics of the shipped water on Al(100) at several Fermi levels. The slope of the mean charge is
compared with the mean of finite differences of static solves on the frames of the middle run, where only the
level changes; what is left between them is what atoms do when the level does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mace  # noqa: F401  (before e3nn)
import numpy as np
import torch
from ase.io import read

from scfmlip.ase import Calculator
from scfmlip.data import path
from scfmlip.md import config_from_dict, run_md
from scfmlip.md.output import read_log

COUNTER_CHARGE = (17.0, 19.0)


def mean_charge(folder: Path, model: str, level: float, steps: int) -> tuple[float, float]:
    """Mean charge of the second half of a run, e, and the standard error of ten blocks."""
    config = config_from_dict(
        {
            "structure": str(path("al_water.xyz")),
            "model": model,
            "output": str(folder),
            "steps": steps,
            "ensemble": "langevin",
            "temperature": 50,
            "thermostat_time": 20,
            "fermi_level": level,
            "counter_charge": list(COUNTER_CHARGE),
            "trajectory": "run.traj",
        }
    )
    run_md(config, quiet=True)
    charge = read_log(folder / "log.csv")["charge"][steps // 2 :]
    blocks = [block.mean() for block in np.array_split(charge, 10)]
    return float(charge.mean()), float(np.std(blocks) / np.sqrt(len(blocks)))


def static_slope(folder: Path, model: str, level: float, step: float) -> tuple[float, float]:
    """Mean and spread over a run's frames of dQ/d level by central differences, e/V."""
    calc, slopes = Calculator(model, dtype="float64", fermi_level=level, extrapolation=None), []
    for atoms in read(folder / "run.traj", "5:"):
        charges = []
        for sign in (1, -1):
            frame = atoms.copy()
            frame.info["fermi_level"] = level + sign * step
            charges.append(float(calc.get_property("charges", frame).sum()))
        slopes.append((charges[0] - charges[1]) / (2 * step))
    return float(np.mean(slopes)), float(np.std(slopes))


def main() -> None:
    """Print one line per model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--models", nargs="+", default=["fixed_point", "equilibrated"])
    parser.add_argument("--output", type=Path, default=Path("dynamics"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.models:
        model = str(path(f"models/al_water-{name}.safetensors"))
        start = Calculator(model, dtype="float64")
        atoms = read(path("al_water.xyz"), 0)
        atoms.info["counter_charge"] = np.array(COUNTER_CHARGE)
        neutral = round(float(start.get_property("fermi_level", atoms)), 3)
        levels = [neutral - 0.25, neutral, neutral + 0.25]
        means = [
            mean_charge(arguments.output / f"{name}_{i}", model, level, arguments.steps)
            for i, level in enumerate(levels)
        ]
        slope = np.polyfit(levels, [mean for mean, _ in means], 1)[0]
        static, spread = static_slope(arguments.output / f"{name}_1", model, levels[1], 0.02)
        text = ", ".join(
            f"{level:.3f} eV: {mean:+.4f} e (standard error {error:.4f})"
            for level, (mean, error) in zip(levels, means, strict=True)
        )
        print(f"{name}: {text}")
        print(f"  slope of the means {slope:.4f} e/V, static solves {static:.4f} e/V (spread {spread:.4f})")


if __name__ == "__main__":
    main()
