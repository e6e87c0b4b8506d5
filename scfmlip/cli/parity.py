"""Predictions beside the labels of a file: errors as a table, and parity plots."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms

    from ..training import DataConfig

# of labels that an evaluation predicts: in info or arrays of its frames
_PREDICTED = ("energy", "forces", "stress", "charges", "dipole", "potential", "fermi_level")


def find_keys(frames: Sequence[Atoms], given: Sequence[str]) -> DataConfig:
    """
    Where the labels of frames stand: as `scfmlip init` finds them, or as the user says.

    Args:
        frames: The frames.
        given: "OPTION=KEY" each, with the data options of a training: ``charges_key=REF_hirshfeld``.

    Raises:
        ValueError: for an option that is none, or a key that no frame has.
    """
    from ..models.config import from_dict
    from ..training import DataConfig
    from ..training.frames import PROPERTIES, available_keys
    from ..training.survey import find_labels

    options = {PROPERTIES[name][0]: label.key for name, label in find_labels(frames).items()}
    for text in given:
        option, equals, key = text.partition("=")
        if not equals or not key or not option.endswith("_key"):
            raise ValueError(f"--keys takes OPTION=KEY, for instance charges_key=REF_hirshfeld, got {text!r}")
        options[option] = key
        held = any(
            key in atoms.info or key in atoms.arrays or (atoms.calc is not None and key in atoms.calc.results)
            for atoms in frames
        )
        if not held:
            raise ValueError(f"--keys {text}: no frame has {key!r}; {available_keys(frames)}")
    return from_dict(DataConfig, {"train": [""], **options}, "--keys")


class Parity:
    """
    Labels and predictions, frame by frame.

    Args:
        keys: Under which the labels stand.
        prefix: Of the predictions' names.
    """

    def __init__(self, keys: DataConfig, prefix: str) -> None:
        self.keys, self.prefix = keys, prefix
        self.pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        self.frames: dict[str, int] = {}
        self.warned = False

    def add(self, name: str, atoms: Atoms, predicted: Atoms) -> None:
        """Count a frame; one whose labels cannot be read is named once and left out."""
        from ..training.frames import labelled

        try:
            labels = labelled(atoms, self.keys, spin=False)
        except ValueError as error:
            if not self.warned:
                print(f"labels of {name} and maybe others do not count: {error}", file=sys.stderr)
            self.warned = True
            return
        for which in _PREDICTED:
            pair = self._pair(which, labels, predicted)
            if pair is not None:
                self.pairs.setdefault(which, []).append(pair)
                self.frames[which] = self.frames.get(which, 0) + 1

    def _pair(self, which: str, labels: Atoms, predicted: Atoms) -> tuple[np.ndarray, np.ndarray] | None:
        """Predicted and reference numbers of one frame, flat; energies by atom."""
        store = {**labels.info, **labels.arrays}
        found = {**predicted.info, **predicted.arrays}
        if which not in store or self.prefix + which not in found:
            return None
        reference = np.asarray(store[which], dtype=float)
        value = np.asarray(found[self.prefix + which], dtype=float)
        if which == "stress":
            reference, value = _voigt(reference), _voigt(value)
        elif which == "energy":
            reference, value = reference / len(labels), value / len(labels)
        elif which == "dipole":
            counted = np.asarray(labels.info["config_dipole_weight"], dtype=float) > 0
            reference, value = reference[counted], value[counted]
        return (value.ravel(), reference.ravel()) if value.size else None

    def joined(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Predictions and references of each label, of all frames."""
        return {
            name: (np.concatenate([p for p, _ in pairs]), np.concatenate([r for _, r in pairs]))
            for name, pairs in self.pairs.items()
        }

    def table(self) -> str:
        """Errors of each label."""
        from ..tables import format_table
        from ..training import TERMS
        from ..training.frames import PROPERTIES

        rows: list[tuple[Any, ...]] = []
        for name, (predicted, reference) in self.joined().items():
            error = np.abs(predicted - reference)
            rms, mean, most = np.sqrt((error**2).mean()), error.mean(), error.max()
            key = getattr(self.keys, PROPERTIES[name][0])
            numbers = (f"{1000 * value:.4g}" for value in (rms, mean, most))
            rows.append((name.replace("_", " "), key, self.frames[name], *numbers, f"m{TERMS[name].unit}"))
        return format_table(("label", "key", "frames", "RMSE", "MAE", "largest", "unit"), rows)

    def draw(self, path: Path, title: str) -> None:
        """Parity plots, a panel for each label."""
        from ..training.report import plot_parity

        plot_parity(path, {title: self.joined()})


def _voigt(stress: np.ndarray) -> np.ndarray:
    """Six components xx, yy, zz, yz, xz, xy."""
    if stress.size == 6:
        return stress.ravel()
    full = stress.reshape(3, 3)
    return np.array([full[0, 0], full[1, 1], full[2, 2], full[1, 2], full[0, 2], full[0, 1]])
