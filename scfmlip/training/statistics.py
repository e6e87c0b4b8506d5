"""Statistics of the training frames for a model: elements, atomic energies, neighbours, size of forces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from ..mace_torch.inputs import resolve_head
from ..models.config import atomic_number
from .config import DataConfig, TrainConfig
from .data import DTYPES, Frames, GraphDataset
from .frames import available_keys, check_label, find, is_isolated, iterate

# eV by symbol, per head
Energies = dict[str, dict[str, float]]


def _by_head(frames: Frames, keys: DataConfig, heads: Sequence[str]) -> dict[str, list[Atoms]]:
    """The frames with an energy that belong to each head."""
    found: dict[str, list[Atoms]] = {head: [] for head in heads}
    for i, atoms in enumerate(iterate(frames.frames)):
        energy = find(atoms, keys, "energy")
        if energy is None:
            continue
        try:
            check_label(energy, f"{keys.energy_key!r} (data.energy_key)")
            named = find(atoms, keys, "head")
            found[resolve_head(heads, None, {} if named is None else {"head": named})].append(atoms)
        except ValueError as error:
            raise ValueError(f"{frames.names[i]}: {error}") from None
    return found


def _of(head: str, heads: Sequence[str]) -> str:
    return f" of head {head!r}" if len(heads) > 1 else ""


def average_energies(
    frames: Frames, elements: Sequence[int], keys: DataConfig, heads: Sequence[str]
) -> Energies:
    """
    Energy of each element, eV, per head: minimum-norm least squares of its frames' energies.

    Raises:
        ValueError: for a head for which no frame has an energy.
    """
    energies: Energies = {}
    for head, members in _by_head(frames, keys, heads).items():
        if not members:
            raise ValueError(
                f"atomic_energies: average needs energies, but no training frame{_of(head, heads)} holds "
                f"{keys.energy_key!r} (data.energy_key); {available_keys(iterate(frames.frames))}"
            )
        rows = np.array([[np.count_nonzero(a.numbers == z) for z in elements] for a in members], dtype=float)
        values = np.array([float(find(a, keys, "energy")) for a in members])
        solution = np.linalg.lstsq(rows, values, rcond=None)[0]
        energies[head] = {chemical_symbols[z]: float(e) for z, e in zip(elements, solution, strict=True)}
    return energies


def isolated_energies(
    frames: Frames, elements: Sequence[int], keys: DataConfig, heads: Sequence[str]
) -> Energies:
    """
    Energy of each element, eV, per head, from single atoms with ``config_type=IsolatedAtom``.

    Raises:
        ValueError: names the elements without one.
    """
    energies: Energies = {}
    for head, members in _by_head(frames, keys, heads).items():
        found = {
            a.get_chemical_symbols()[0]: float(find(a, keys, "energy")) for a in members if is_isolated(a)
        }
        missing = [chemical_symbols[z] for z in elements if chemical_symbols[z] not in found]
        if missing:
            raise ValueError(
                "atomic_energies: isolated needs a frame of one atom with config_type=IsolatedAtom and "
                f"{keys.energy_key!r} of every element; there is none of {', '.join(missing)}"
                f"{_of(head, heads)}"
            )
        energies[head] = {chemical_symbols[z]: found[chemical_symbols[z]] for z in elements}
    return energies


def _elements(frames: Frames) -> list[int]:
    """
    The elements of the frames.

    Raises:
        ValueError: names the frame with an invalid element.
    """
    found: set[int] = set()
    for i, atoms in enumerate(iterate(frames.frames)):
        numbers = set(atoms.numbers.tolist())
        try:
            found |= {atomic_number(z) for z in numbers - found}
        except ValueError as error:
            raise ValueError(f"{frames.names[i]}: {error}") from None
    return sorted(found)


def complete_model(config: TrainConfig, sets: dict[str, Frames]) -> dict[str, Any]:
    """
    Complete the model's configuration with everything that the training frames determine.

    Reference atoms are removed from the training set if they give the atomic energies.
    """
    model = {**config.model, "backbone": dict(config.model.get("backbone") or {})}
    train = sets["train"]
    if config.dtype is not None:
        if model.get("dtype", config.dtype) != config.dtype:
            raise ValueError(f"dtype is {config.dtype}, but model.dtype is {model['dtype']}: set only one")
        model["dtype"] = config.dtype
    model.setdefault("dtype", "float32")
    if model["dtype"] not in DTYPES:
        raise ValueError(f"dtype must be one of {list(DTYPES)}, got {model['dtype']!r}")
    model.setdefault("seed", config.seed)
    try:
        elements = [atomic_number(e) for e in model.get("elements") or ()]
    except ValueError as error:
        raise ValueError(f"model.elements: {error}") from None
    model["elements"] = elements or _elements(train)
    heads = model["backbone"].get("heads") or ["Default"]
    energies = model.get("atomic_energies", "average")
    if energies == "average":
        energies = average_energies(train, model["elements"], config.data, heads)
    elif energies == "isolated":
        energies = isolated_energies(train, model["elements"], config.data, heads)
        keep = [i for i in range(len(train)) if not is_isolated(train.frames[i])]
        if not keep:
            raise ValueError("the training frames are reference atoms only")
        sets["train"] = train.part(keep)
    elif isinstance(energies, str):
        raise ValueError(
            f"model.atomic_energies must be 'average', 'isolated' or eV by element, got {energies!r}"
        )
    model["atomic_energies"] = energies
    return model


def fill_statistics(model: dict[str, Any], dataset: GraphDataset) -> None:
    """Fill in mean number of neighbours and RMS force (eV/angstrom), if the configuration lacks them."""
    backbone = model["backbone"]
    if "avg_num_neighbors" not in backbone:
        # over atoms with neighbours, as in mace-torch
        numbers = torch.cat(
            [torch.unique(dataset[i, True].edge_index[1], return_counts=True)[1] for i in range(len(dataset))]
        )
        backbone["avg_num_neighbors"] = float(numbers.double().mean()) if len(numbers) else 1.0
    if "scale" not in backbone:
        squares = [
            dataset[i, True].forces.double().square().flatten()
            for i in range(len(dataset))
            if float(dataset[i, True].forces_weight) > 0
        ]
        rms = float(torch.cat(squares).mean().sqrt()) if squares else 0.0
        backbone["scale"] = rms if rms > 1e-6 else 1.0
