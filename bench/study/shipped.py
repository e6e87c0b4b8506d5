"""
Train the fixed-point model that the package ships: `python -m bench.study.shipped`, minutes on one core.

Water on Al(100) without field; the interface that the demo evaluates is held out. Writes
scfmlip/data/models/al_water-fixed_point.safetensors.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write

from .sets import OURS, ROOT, SETS

RULE = {
    "name": "fixed_point",
    "response": "passive",
    "energy": "variational",
    "response_scale": {element: 1 / value for element, value in SETS["al_water"].hardness.items()},
}
BACKBONE = {
    "r_max": 4.5,
    "hidden_irreps": "24x0e+24x1o",
    "MLP_irreps": "16x0e",
    "max_ell": 2,
    "correlation": 2,
    "num_bessel": 8,
    "radial_MLP": [32, 32],
}
LOSS = {"energy": 100.0, "forces": 2.0, "charges": 1000.0, "dipole": 10.0, "fermi_level": 1.0}
VALID = 3


def frames() -> list[Atoms]:
    """All without a field but the one that is held out."""
    package = ROOT / "scfmlip" / "data"
    held_out = read(package / "al_water.xyz", 0)
    assert isinstance(held_out, Atoms)
    every = read(OURS / "al_water.xyz", ":")
    assert isinstance(every, list)
    return [
        atoms
        for atoms in every
        if "efield" not in atoms.info["config_type"]
        and not (len(atoms) == len(held_out) and np.allclose(atoms.positions, held_out.positions, atol=1e-4))
    ]


def options(folder: Path) -> dict[str, Any]:
    """Of `scfmlip.training.train`."""
    return {
        "output": str(folder / "fixed_point"),
        "data": {
            **SETS["al_water"].keys,
            "train": str(folder / "train.xyz"),
            "valid": str(folder / "valid.xyz"),
        },
        "model": {
            "rule": RULE,
            "constraint": "charge",
            "density": {"l_max": 1, "sigma": 1.5, "tolerance": 1e-4},
            "backbone": BACKBONE,
            "dtype": "float32",
        },
        "stages": [
            {"epochs": 30, "lr": 0.01, "loss": {"charges": LOSS["charges"]}},
            {"epochs": 120, "lr": 0.01, "loss": LOSS},
            {"epochs": 60, "lr": 0.001, "loss": LOSS},
        ],
        "schedule": {"name": "cosine", "warmup_steps": 20},
        "batch_size": 4,
        "ema_decay": 0.98,
        "seed": 1,
        "device": "cpu",
    }


def main() -> None:
    """The command line."""
    from scfmlip.training import train

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "shipped", help="folder of the trainings"
    )
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    every = frames()
    order = np.random.default_rng(5).permutation(len(every))
    for name, chosen in (("valid", order[:VALID]), ("train", order[VALID:])):
        write(arguments.work / f"{name}.xyz", [every[i] for i in sorted(chosen)], format="extxyz")
    settings = options(arguments.work)
    train(settings)
    shutil.copy(
        Path(settings["output"]) / "best.safetensors",
        ROOT / "scfmlip" / "data" / "models" / "al_water-fixed_point.safetensors",
    )


if __name__ == "__main__":
    main()
