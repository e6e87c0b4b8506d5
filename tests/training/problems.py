"""Frames with labels from a formula, and trainings of a few seconds on them."""

import os
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.io import write

import scfmlip
from scfmlip.training import config_from_dict

ENERGIES = {1: -13.0, 8: -430.0}


def label(atoms: Atoms) -> Atoms:
    """Morse pairs, charges from distances: REF_energy, REF_forces, REF_charges, REF_dipole."""
    positions = torch.tensor(atoms.positions, requires_grad=True)
    oxygen = torch.tensor(atoms.numbers == 8)
    distance = (positions[:, None] - positions[None] + torch.eye(len(atoms))[..., None]).norm(dim=-1)
    kinds = oxygen[:, None].long() + oxygen[None].long()
    depth, length = torch.tensor([0.1, 4.0, 0.1])[kinds], torch.tensor([1.5, 0.97, 2.8])[kinds]
    pairs = depth * ((1 - torch.exp(-2 * (distance - length))) ** 2 - 1)
    energy = 0.5 * (pairs * (1 - torch.eye(len(atoms)))).sum()
    (gradient,) = torch.autograd.grad(energy, positions)
    with torch.no_grad():
        flow = 0.4 * torch.exp(-((distance / 1.2) ** 4)) * (oxygen[None].double() - oxygen[:, None].double())
        charges = flow.sum(1)
    atoms.info["REF_energy"] = float(energy.detach()) + sum(ENERGIES[int(z)] for z in atoms.numbers)
    atoms.arrays["REF_forces"] = -gradient.numpy()
    atoms.arrays["REF_charges"] = charges.numpy()
    atoms.info["REF_dipole"] = charges.numpy() @ atoms.positions
    atoms.info["total_charge"] = 0.0
    return atoms


def water_frames(count: int = 10, seed: int = 0, shake: float = 0.08) -> list[Atoms]:
    """One or two shaken water molecules."""
    generator = np.random.default_rng(seed)
    molecule = np.array([[0, 0, 0], [0.97, 0, 0], [-0.24, 0.94, 0]])
    found = []
    for i in range(count):
        copies = 1 + i % 2
        positions = np.concatenate([molecule + np.array([0, 0, 2.9 * k]) for k in range(copies)])
        positions = positions + shake * generator.normal(size=positions.shape)
        found.append(label(Atoms("OHH" * copies, positions)))
    return found


def environment() -> dict[str, str]:
    """For a process of its own: one thread, and no Triton interpreter, which computes very slowly."""
    root = Path(scfmlip.__file__).parents[1]
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}{os.pathsep}{root / 'kernels'}"}


def options(folder, epochs: int = 2, frames: list[Atoms] | None = None, **changes) -> dict:
    """Plain options of a small training in ``folder``, its frames written there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "frames.xyz"
    if not path.exists():
        write(path, water_frames() if frames is None else frames)
    values = {
        "output": str(folder / "run"),
        "data": {"train": str(path), "valid_fraction": 0.2},
        "model": {
            "rule": "local",
            "dtype": "float64",
            "density": {"l_max": 0, "sigma": 1.0},
            "backbone": {
                "r_max": 5.0,
                "num_interactions": 1,
                "hidden_irreps": "4x0e",
                "MLP_irreps": "4x0e",
                "max_ell": 1,
                "correlation": 1,
                "num_bessel": 4,
                "radial_MLP": [8],
            },
        },
        "stages": [{"epochs": epochs, "lr": 0.01, "loss": {"energy": 1, "forces": 10, "charges": 10}}],
        "batch_size": 3,
    }
    return values | changes


def configuration(folder, epochs: int = 2, **changes):
    """Typed options of a small training."""
    return config_from_dict(options(folder, epochs, **changes))
