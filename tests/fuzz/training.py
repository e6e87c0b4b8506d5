"""Random training files and options: what reaches a batch is what frames hold, and mistakes have names."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ase import Atoms
from ase.io import write
from training.problems import options, water_frames

from fuzz.calculator import JUNK, NAMES, same
from fuzz.coulomb import PERIODICITIES, random_cell
from fuzz.outcomes import WrongError, check, is_named
from scfmlip.training import config_from_dict, load_config
from scfmlip.training.data import GraphDataset, read_sets
from scfmlip.training.processes import Processes
from scfmlip.training.setup import prepare

HERE = Processes(0, 1, torch.device("cpu"))
ENERGIES = (-13.0, -430.0)


def labelled_frames(rng: np.random.Generator) -> tuple[list[Atoms], list[dict[str, Any]]]:
    """Frames of hydrogen and oxygen with some labels and inputs, these under any name; and what they hold."""
    frames, held = [], []
    for _ in range(int(rng.integers(3, 7))):
        n = int(rng.integers(2, 5))
        cell, pbc = random_cell(rng), np.array(PERIODICITIES[rng.integers(len(PERIODICITIES))])
        atoms = Atoms(rng.choice([1, 8], n), rng.random((n, 3)) @ cell, cell=cell, pbc=pbc)
        values: dict[str, Any] = {"energy": float(rng.normal() * 100)}
        atoms.info["REF_energy"] = values["energy"]
        for name, shape in (
            ("forces", (n, 3)),
            ("charges", (n,)),
            ("potential", (n,)),
            ("multipoles", (n, 4)),
        ):
            if rng.random() < 0.5:
                values[name] = atoms.arrays[f"REF_{name}"] = rng.normal(size=shape)
        if rng.random() < 0.5:
            values["stress"] = rng.normal(size=(3, 3))
            values["stress"] += values["stress"].T
            voigt = values["stress"].flatten()[[0, 4, 8, 5, 2, 1]]
            atoms.info["REF_stress"] = voigt if rng.random() < 0.5 else values["stress"].flatten()
        if rng.random() < 0.5:
            values["dipole"] = atoms.info["REF_dipole"] = rng.normal(size=3)
        if rng.random() < 0.5:
            values["fermi_level"] = atoms.info["REF_fermi_level"] = float(rng.normal())
        for name, key, value in (
            ("charge", "total_charge", float(rng.integers(-2, 3))),
            ("spin", "total_spin", float(rng.integers(1, 4))),
            ("external_field", "external_field", rng.normal(size=3)),
        ):
            if rng.random() < 0.6:
                alias = str(rng.choice(NAMES[name]))
                alias = [alias, alias.upper(), f"REF_{alias}", f"ref_{alias.capitalize()}"][rng.integers(4)]
                values[key] = atoms.info[alias] = value
        if rng.random() < 0.3:
            values["weight"] = atoms.info["config_weight"] = float(rng.uniform(0.1, 3.0))
        frames.append(atoms)
        held.append(values)
    return frames, held


def batches(rng: np.random.Generator) -> str:
    """Every number of a frame is in its graph, with weight 1, and what it lacks has weight 0."""
    frames, held = labelled_frames(rng)
    physical = bool(rng.random() < 0.3)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / ["frames.xyz", "frames.xyz.gz"][rng.integers(2)]
        write(file, frames, format="extxyz")
        data = {"train": str(file), "valid_fraction": 0.0, "field_convention": ["mace", "physical"][physical]}
        config = config_from_dict({"data": data, "model": {"rule": "local"}, "stages": [{"epochs": 1}]})
        found = read_sets(config.data)["train"]
        check(len(found) == len(frames), f"{len(found)} of {len(frames)} frames")
        graphs = GraphDataset(
            found, config.data, (1, 8), ENERGIES, 4.0, torch.float64, 4, needed=("total_charge", "total_spin")
        )
        for i, (atoms, values) in enumerate(zip(frames, held, strict=True)):
            graph = graphs[i, True]
            periodic = bool(atoms.pbc.all())
            weight = values.pop("weight", 1.0)
            same(graph.weight, weight, 1e-12, "config_weight")
            isolated = sum(ENERGIES[int(z == 8)] for z in atoms.numbers)
            values["energy"] = values["energy"] - isolated
            rows = values.pop("multipoles", None)
            if rows is None and "charges" in values:
                rows = np.pad(values["charges"][:, None], ((0, 0), (0, 3)))
            if rows is not None:
                same(graph.density_coefficients, rows, 1e-7, "density_coefficients")
            for name in ("energy", "forces", "stress", "dipole", "charges", "potential", "fermi_level"):
                there = name in values and (name != "stress" or periodic)
                weights = torch.as_tensor(graph[f"{name}_weight"])
                if name == "dipole" and there:
                    lattice = np.abs(atoms.cell.array[atoms.pbc]).sum(0)
                    same(weights.reshape(3), (lattice < 1e-8).astype(float), 0, "weight of the dipole")
                else:
                    check(
                        bool((weights == float(there)).all()),
                        f"{name}: weight {weights.tolist()}, {atoms.info}",
                    )
                if there:
                    wanted = np.asarray(values[name])
                    same(np.asarray(graph[name]).reshape(wanted.shape), wanted, 1e-7, name)
            same(graph.total_charge, values.get("total_charge", 0.0), 1e-9, "total charge")
            same(graph.total_spin, values.get("total_spin", 1.0), 1e-9, "multiplicity")
            field = np.asarray(values.get("external_field", np.zeros(3))) * (-1 if physical else 1)
            same(np.asarray(graph.external_field).reshape(3), field, 1e-7, "field")
    return f"right, {len(frames)} frames"


def _spoil(rng: np.random.Generator, frames: list[Atoms]) -> str:
    """Spoil one frame, and say how."""
    atoms = frames[rng.integers(len(frames))]
    n = len(atoms)
    bad = [np.nan, np.inf, "x", True][rng.integers(4)]
    what = int(rng.integers(12))
    if what == 0:
        atoms.info["REF_energy"] = bad
    elif what == 1:
        atoms.arrays["REF_forces"][rng.integers(n), 1] = [np.nan, np.inf][rng.integers(2)]
    elif what == 2:
        atoms.arrays["REF_charges"] = rng.normal(size=(n, 2))
    elif what == 3:
        atoms.info["REF_dipole"] = [np.ones(2), "x y z", np.full(3, np.nan), 1.0][rng.integers(4)]
    elif what == 4:
        atoms.info[str(rng.choice(NAMES["charge"][2:]))] = ["x", np.nan, 3.0, np.ones(2)][rng.integers(4)]
    elif what == 5:
        atoms.info["external_field"] = ["x", np.ones(2), np.full(3, np.nan)][rng.integers(3)]
    elif what == 6:
        atoms.positions[rng.integers(n), 0] = [np.nan, np.inf, 1e200][rng.integers(3)]
    elif what == 7:
        atoms.numbers[rng.integers(n)] = 0
    elif what == 8:
        atoms.positions[1] = atoms.positions[0]
    elif what == 9:
        key = ["config_weight", "config_energy_weight", "config_forces_weight"][rng.integers(3)]
        atoms.info[key] = [-1.0, "x", np.nan, [1.0, 2.0], True][rng.integers(5)]
    elif what == 10:
        atoms.pbc = True
        atoms.cell = [np.zeros(3), [0.0, 5.0, 5.0], [1e-9, 5.0, 5.0], [np.nan, 5.0, 5.0]][rng.integers(4)]
    else:
        atoms.info["head"] = "none"
    return f"{what}, {bad!r}"


def spoilt_frames(rng: np.random.Generator) -> str:
    """A frame that cannot be trained on is named, with its file."""
    frames = water_frames(int(rng.integers(4, 8)), seed=int(rng.integers(100)))
    what = _spoil(rng, frames)
    with tempfile.TemporaryDirectory() as place:
        values = options(Path(place) / "a", frames=frames)
        try:
            prepare(config_from_dict(values), HERE)
        except Exception as error:
            check("frames.xyz" in str(error) or not is_named(error), f"spoilt {what}: names no file: {error}")
            raise
    raise WrongError(f"spoilt {what} without a word: {frames}")


WRONG: list[Any] = [
    *[j for j in JUNK if isinstance(j, float | str | bool | list)],
    -1,
    0,
    None,
    {"x": 1},
    10**30,
]


def _paths(values: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every option."""
    found = []
    items = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    )
    for key, value in items:
        found += [(*before, key), *_paths(value, (*before, key))]
    return found


def spoilt_options(rng: np.random.Generator) -> str:
    """An option that is wrong is named; one that is accepted gives a model."""
    with tempfile.TemporaryDirectory() as place:
        values = copy.deepcopy(options(Path(place)))
        values |= {
            "optimizer": {"name": "adamw", "betas": [0.9, 0.99]},
            "schedule": {"name": "plateau", "patience": 3},
        }
        values |= {
            "seed": 1,
            "clip": 10.0,
            "ema_decay": 0.9,
            "device": "cpu",
            "loss_kind": "mse",
            "dtype": "float64",
        }
        values["data"] |= {"energy_key": "REF_energy", "cache": True, "num_workers": 0, "split_seed": 1}
        values["model"] |= {"constraint": "none", "atomic_energies": "average", "elements": ["H", "O"]}
        paths = _paths(values)
        path = paths[rng.integers(len(paths))]
        inner: Any = values
        for key in path[:-1]:
            inner = inner[key]
        kind = int(rng.integers(3))
        bad: Any = None
        if kind == 0 and isinstance(inner, dict):
            bad = "another name"
            inner[f"{path[-1]}s"] = inner.pop(path[-1])
        else:
            bad = WRONG[rng.integers(len(WRONG))]
            inner[path[-1]] = bad
        file = Path(place) / "options.yaml"
        file.write_text(yaml.safe_dump(values))
        name = str(next(p for p in reversed(path) if isinstance(p, str)))
        try:
            model, graphs, _ = prepare(load_config(file), HERE)
        except Exception as error:
            text = str(error)
            told = any(str(part) in text for part in path if isinstance(part, str)) or "no such" in text
            check(told or not is_named(error), f"{path} = {bad!r}: names not {name}: {error}")
            raise
        check(len(graphs["train"]) > 0, f"{path} = {bad!r}")
        check(all(bool(torch.isfinite(p).all()) for p in model.parameters()), f"{path} = {bad!r}: weights")
    return "accepted"
