"""Report which data of the training frames are used, and which are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ase import Atoms

from ..mace_torch.inputs import INPUTS, changes_energy, input_of, similar_keys
from .config import DataConfig, TrainConfig
from .data import Frames, GraphDataset
from .frames import PROPERTIES, available_keys, counts, find, iterate
from .losses import TERMS


def check_labels(sets: Mapping[str, Frames], config: TrainConfig) -> dict[str, int]:
    """
    Count the training frames that have each usable label.

    Raises:
        ValueError: if no training frame has the label of a loss term or a key that the user set; for inputs
            as in `find`.
    """
    keys, defaults = config.data, DataConfig(train=("",))
    found = dict.fromkeys(PROPERTIES, 0)
    for i, atoms in enumerate(iterate(sets["train"].frames)):
        try:
            for name in PROPERTIES:
                # the multiplicity is ignored unless the model needs it
                found[name] += _has_spin(atoms, keys) if name == "total_spin" else counts(atoms, keys, name)
        except ValueError as error:
            raise ValueError(f"{sets['train'].names[i]}: {error}") from None
    needed = {
        TERMS[t].label: f"loss term {t!r}"
        for stage in config.stages
        for t, w in stage.loss.items()
        if w and t in TERMS
    }
    # a missing total charge counts as neutral
    needed.pop("total_charge", None)
    for name, (option, _) in PROPERTIES.items():
        if getattr(keys, option) != getattr(defaults, option) and name != "total_spin":
            needed.setdefault(name, "the configuration")
    for name, who in needed.items():
        if not found[name]:
            option = PROPERTIES[name][0]
            unused = _dropped(sets["train"].frames, keys).get(name)
            raise ValueError(
                f"no training frame holds {getattr(keys, option)!r} (data.{option})"
                f"{f' that counts ({unused})' if unused else ''}, which {who} asks for; "
                f"{available_keys(iterate(sets['train'].frames))}"
            )
    return found


def _has_spin(atoms: Atoms, keys: DataConfig) -> bool:
    """Whether a frame has a multiplicity, valid or not."""
    return any(key == keys.total_spin_key or input_of(str(key)) == "total_spin" for key in atoms.info)


def _dropped(frames: Sequence[Atoms], keys: DataConfig) -> dict[str, str]:
    """Labels that exist but are not used, with the reason."""
    n = sum(find(a, keys, "stress") is not None and not counts(a, keys, "stress") for a in iterate(frames))
    return {"stress": f"of {n} frames that are not periodic in three directions"} if n else {}


def describe(
    frames: Sequence[Atoms], found: Mapping[str, int], config: TrainConfig, needed: Sequence[str]
) -> list[str]:
    """
    Lines that report how each quantity in the training frames is used.

    Args:
        frames: Frames of the training.
        found: Counts from `check_labels`.
        config: Options of the training.
        needed: Inputs of the model.
    """
    counted = {TERMS[t].label for s in config.stages for t, w in s.loss.items() if w and t in TERMS}
    labels = {term.label for term in TERMS.values()}
    used, unused = [], [f"stress {why}" for why in _dropped(frames, config.data).values()]
    for name, n in found.items():
        if not n:
            continue
        roles = [r for r, names in (("loss", counted), ("input", needed)) if name in names]
        if roles:
            used.append(f"{name} {n} ({', '.join(roles)})")
        elif name in ("charges", "density_coefficients") and any(s.scf == "direct" for s in config.stages):
            used.append(f"{name} {n} (reference density)")
        else:
            reason = "in no term of the loss" if name in labels else "no input of this model"
            unused.append(f"{name} {n} ({reason})")
    lines = [f"labels of {len(frames)} training frames: {', '.join(used) or 'none'}"]
    if unused:
        lines.append(f"labels that are not trained on: {', '.join(unused)}")
    unread = _unread(frames, config.data)
    if unread:
        lines.append(f"not read: {', '.join(unread)}")
    return lines


def _unread(frames: Sequence[Atoms], keys: DataConfig) -> list[str]:
    """Other quantities in the frames, by their place."""
    named = {getattr(keys, option) for option, _ in PROPERTIES.values()} | {
        "config_type",
        "numbers",
        "positions",
    }
    found: dict[str, None] = {}
    for atoms in iterate(frames):
        stores = {"info": atoms.info, "arrays": atoms.arrays}
        stores["results"] = {} if atoms.calc is None else atoms.calc.results
        for where, store in stores.items():
            for key in store:
                if key not in named and not key.startswith("config_") and not changes_energy(key):
                    found[f"{where} {key}"] = None
    return list(found)


def describe_missing(dataset: GraphDataset, missing: Mapping[str, Sequence[int]]) -> list[str]:
    """
    Lines that report which missing inputs of the model are replaced by defaults.

    Args:
        dataset: The graphs.
        missing: Result of `GraphDataset.check`.
    """
    lines = []
    for which, numbers in missing.items():
        name = INPUTS[which].names[0]
        similar: dict[str, Any] = {}
        for i in numbers:
            similar |= dict.fromkeys(similar_keys(dataset.frames.frames[i].info, name))
        lines.append(
            f"{len(numbers)} of {len(dataset)} frames, first {dataset.frames.names[numbers[0]]}, have no "
            f"{INPUTS[which].meaning} under {', '.join(INPUTS[which].names)}: "
            f"{'they count as neutral' if which == 'total_charge' else 'it counts as 1'}"
            + (
                f" ({', '.join(similar)} of their info is not read: name it by data.{PROPERTIES[which][0]})"
                if similar
                else ""
            )
        )
    return lines
