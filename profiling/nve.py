"""
Whether NVE conserves energy over 2 ps: `python -m profiling.nve`, ten minutes a system and start on one core.

Each system comes to its temperature by Langevin dynamics, then velocity Verlet goes on from there, with every
kind of start of the charge solves. Water and water on Al(100), with the shipped models; `equilibrated` never
saw bulk water, so that it is trained on frames which the fixed-point model labels. Systems as small as these
are solved densely by that rule: "dense" is that, with the other starts it iterates. A run that was stopped
goes on; a finished stage is not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import mace  # noqa: F401  (before e3nn)
import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from ase.optimize import FIRE
from scipy.spatial.transform import Rotation

from scfmlip.ase import Calculator
from scfmlip.data import path
from scfmlip.md import config_from_dict, run_md
from scfmlip.md.output import read_log
from scfmlip.scf import equilibration
from scfmlip.training import train

STARTS = ("polynomial", "none", "extended_lagrangian", "dense")
DENSE_UP_TO = equilibration.DENSE_UP_TO


@dataclasses.dataclass(frozen=True)
class System:
    """
    What is run.

    Attributes:
        water: Bulk water, else water on Al(100).
        rule: Of the shipped model.
        temperature: K, of the thermostat.
        heat: Steps with the thermostat.
    """

    water: bool
    rule: str
    temperature: float
    heat: int


SYSTEMS = {
    "water-fixed_point": System(True, "fixed_point", 250, 6000),
    "slab-fixed_point": System(False, "fixed_point", 100, 4000),
    "water-equilibrated": System(True, "equilibrated", 250, 1000),
    "slab-equilibrated": System(False, "equilibrated", 100, 4000),
}


def water_box(edge: float = 7.8, count: int = 16) -> Atoms:
    """Turned molecules on a grid, at the density of water."""
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3) * edge / 3
    box = Atoms(cell=[edge] * 3, pbc=True, info={"charge": 0.0})
    for place in grid[rng.permutation(27)[:count]]:
        one = molecule("H2O")
        turn = Rotation.from_quat(rng.normal(size=4))
        one.positions = turn.apply(one.positions - one.positions[0]) + place
        box += one
    box.wrap()
    return box


def thermal(folder: Path, system: System, model: str) -> Path:
    """A file of the thermalised structure; one that is there is taken."""
    last = folder / "thermal.xyz"
    if last.is_file():
        return last
    start = folder / "relaxed.xyz"
    if not start.is_file():
        atoms = water_box() if system.water else read(path("al_water.xyz"), 0)
        assert isinstance(atoms, Atoms)
        atoms.calc = Calculator(model, dtype="float64")
        FIRE(atoms, logfile="-").run(fmax=1.0 if system.water else 0.05, steps=300)
        atoms.calc = None
        write(start, atoms, format="extxyz")
    heat = {"ensemble": "langevin", "temperature": system.temperature, "thermostat_time": 50}
    run_md(options(folder / "heat", start, model, system.heat, **heat))
    frame = read(folder / "heat" / "trajectory.traj", -1)
    assert isinstance(frame, Atoms)
    frame.calc = None
    write(last, frame, format="extxyz")
    return last


def options(output: Path, structure: Path, model: str, steps: int, **others: Any) -> Any:
    """Of one run."""
    values = {"output": str(output), "structure": str(structure), "model": model, "steps": steps}
    common = {"trajectory": "trajectory.traj", "trajectory_interval": 25, "restart_interval": 500}
    return config_from_dict({**values, **common, "device": "cpu", "timestep": 0.5, **others})


def teach(folder: Path) -> str:
    """`equilibrated` after lessons in water from the fixed-point model, whose structure it starts from."""
    best = folder / "lessons" / "best.safetensors"
    if best.is_file():
        return str(best)
    shutil.copy(folder.parent / "water-fixed_point" / "thermal.xyz", folder / "relaxed.xyz")
    frames: Any = read(folder.parent / "water-fixed_point" / "heat" / "trajectory.traj", "1::2")
    teacher = Calculator(path("models/al_water-fixed_point.safetensors"), dtype="float64")
    lessons = []
    for i, frame in enumerate(frames):
        atoms = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=True, info={"charge": 0.0})
        # a third of them hotter than the run: of places next to those that it sees
        atoms.rattle(0.05 * (i % 3 == 2), seed=i)
        atoms.calc = teacher
        atoms.arrays |= {"REF_forces": atoms.get_forces(), "REF_charges": atoms.get_charges()}
        atoms.calc = None
        lessons.append(atoms)
    write(folder / "lessons.xyz", lessons, format="extxyz")
    loss = {"forces": 100.0, "charges": 10.0}
    train(
        {
            "data": {"train": str(folder / "lessons.xyz"), "valid_fraction": 0.1},
            "start_from": str(path("models/al_water-equilibrated.safetensors")),
            "stages": [{"epochs": 12, "lr": 0.004, "loss": loss}],
            "schedule": {"name": "cosine", "min_lr": 1e-5, "warmup_steps": 20},
            "batch_size": 4,
            "output": str(best.parent),
            "device": "cpu",
        }
    )
    return str(best)


def fit(time: np.ndarray, values: np.ndarray, blocks: int = 20) -> tuple[float, float]:
    """Slope by least squares, and its standard error from means of the residuals over blocks."""
    line = np.polyfit(time, values, 1)
    left = [part.mean() for part in np.array_split(values - np.polyval(line, time), blocks)]
    middle = np.array([part.mean() for part in np.array_split(time, blocks)])
    error = np.sqrt(np.square(left).sum() / (blocks - 2) / np.square(middle - middle.mean()).sum())
    return float(line[0]), float(error)


def line_of(name: str, start: str, log: dict[str, np.ndarray]) -> str:
    """A row of the table: temperatures of the first and last quarter, slopes in meV/atom/ps, iterations."""
    time, drift, shadow = log["time"][1:] / 1000, log["drift"][1:], log["shadow_drift"][1:]
    quarters = [part.mean() for part in np.array_split(log["temperature"], 4)]
    (slope, error), (kept, kept_error) = fit(time, drift), fit(time, shadow)
    cells = [
        name,
        start,
        f"{time[-1]:g}",
        f"{quarters[0]:.0f}, {quarters[-1]:.0f}",
        f"{slope:+.4f} ± {error:.4f}",
        f"{kept:+.5f} ± {kept_error:.5f}",
        f"{np.std(drift):.3f}",
        f"{np.nanmean(log['scf_iterations'][10:]):.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print one row per system and start."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--timestep", type=float, default=0.5, help="fs")
    parser.add_argument("--output", type=Path, default=Path("nve"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.systems:
        system, folder = SYSTEMS[name], arguments.output / name
        folder.mkdir(parents=True, exist_ok=True)
        model = str(path(f"models/al_water-{system.rule}.safetensors"))
        if system.water and system.rule == "equilibrated":
            model = teach(folder)
        equilibration.DENSE_UP_TO = DENSE_UP_TO
        frame = thermal(folder, system, model)
        for start in arguments.starts:
            if start == "dense" and system.rule == "fixed_point":
                continue
            equilibration.DENSE_UP_TO = DENSE_UP_TO if start == "dense" else 0
            run = folder / f"{start}-{arguments.timestep:g}"
            more: dict[str, Any] = {"velocities": "file", "timestep": arguments.timestep}
            more["warm_start"] = "none" if start == "dense" else start
            run_md(options(run, frame, model, arguments.steps, **more))
            print(line_of(name, start, read_log(run / "log.csv")), flush=True)


if __name__ == "__main__":
    main()
