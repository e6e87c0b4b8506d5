"""What a training is about to do, as tables: frames, labels, elements, model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from ase.data import chemical_symbols

from ..mace_torch.inputs import INPUTS
from ..models import Model
from ..tables import format_table
from .config import TrainConfig
from .data import GraphDataset
from .frames import PROPERTIES, counts, find, iterate
from .losses import TERMS

_KINDS = ("molecules", "wires", "slabs", "crystals")


def describe_training(config: TrainConfig, model: Model, sets: Mapping[str, GraphDataset]) -> str:
    """
    Tables of sets, elements and labels, and the model.

    Args:
        config: The training.
        model: Its model.
        sets: Its graphs, by name.
    """
    parts = [_sets(sets), _elements(model, sets), _labels(config, model, sets), repr(model)]
    stages = [
        f"stage {i + 1}: {stage.epochs} epochs, lr {stage.lr:g}, "
        + ", ".join(f"{name} {weight:g}" for name, weight in stage.loss.items() if weight)
        for i, stage in enumerate(config.stages)
    ]
    return "\n\n".join([*parts, "\n".join(stages)]) + "\n"


def _sets(sets: Mapping[str, GraphDataset]) -> str:
    rows = []
    for name, graphs in sets.items():
        sizes, kinds = [], Counter()
        for atoms in iterate(graphs.frames.frames):
            sizes.append(len(atoms))
            kinds[_KINDS[int(atoms.pbc.sum())]] += 1
        shown = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        rows.append((name, len(graphs), f"{min(sizes)} to {max(sizes)}", sum(sizes), shown))
    return format_table(("set", "frames", "atoms of a frame", "atoms", "kinds"), rows)


def _elements(model: Model, sets: Mapping[str, GraphDataset]) -> str:
    numbers: Counter[int] = Counter()
    for atoms in iterate(sets["train"].frames.frames):
        numbers.update(atoms.numbers.tolist())
    energies = model.config.energies_by_head
    columns = [f"energy (eV), {head}" for head in energies] if len(energies) > 1 else ["energy (eV)"]
    rows = [
        (chemical_symbols[z], numbers[z], *(f"{row[i]:.4f}" for row in energies.values()))
        for i, z in enumerate(model.config.elements)
    ]
    return format_table(("element", "atoms to train on", *columns), rows)


def _labels(config: TrainConfig, model: Model, sets: Mapping[str, GraphDataset]) -> str:
    terms = _terms(config)
    rows = []
    for name, (option, _) in PROPERTIES.items():
        found = {which: _found(graphs, config, name) for which, graphs in sets.items()}
        if not any(n for n, _ in found.values()):
            continue
        low_high = found["train"][1] or next(span for _, span in found.values() if span)
        key = getattr(config.data, option)
        if name in INPUTS and key == PROPERTIES[name][0].removesuffix("_key"):
            key = "/".join(INPUTS[name].names[:2])
        use = ", ".join(terms.get(name, ()))
        if name in INPUTS and INPUTS[name].names[0] in model.required_info:
            use = f"{use}, input" if use else "input"
        span = f"{low_high[0]:.6g} to {low_high[1]:.6g}" if isinstance(low_high, tuple) else str(low_high)
        counted = " + ".join(str(n) for n, _ in found.values())
        rows.append((name.replace("_", " "), key, counted, span, use or "not used"))
    head = ("label", "key", "frames of " + " + ".join(sets), "values to train on", "in the loss")
    return format_table(head, rows)


def _terms(config: TrainConfig) -> dict[str, list[str]]:
    """Terms of the loss of each label, in any stage."""
    found: dict[str, list[str]] = {}
    for stage in config.stages:
        for name, weight in stage.loss.items():
            if weight and name in TERMS and name not in found.setdefault(TERMS[name].label, []):
                found[TERMS[name].label].append(name)
    return found


def _found(
    graphs: GraphDataset, config: TrainConfig, name: str
) -> tuple[int, tuple[float, float] | str | None]:
    """Frames that have a property, and its smallest and largest number, or its names."""
    values: list[np.ndarray] = []
    words: set[str] = set()
    count = 0
    for atoms in iterate(graphs.frames.frames):
        try:
            if not counts(atoms, config.data, name):
                continue
            value = find(atoms, config.data, name)
        except ValueError:  # a multiplicity that no model asks for
            continue
        count += 1
        if name == "head":
            words.add(str(value))
        else:
            values.append(np.asarray(value, dtype=float))
    if words:
        return count, ", ".join(sorted(words))
    if not values:
        return count, None
    return count, (float(min(v.min() for v in values)), float(max(v.max() for v in values)))
