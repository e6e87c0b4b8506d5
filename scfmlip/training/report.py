"""Output of a training: log, errors and figures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import write_text, write_whole
from .losses import LABELS, TERMS

# by label: (predictions, references), flat
Pairs = Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]


def write_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write one row per epoch as CSV; columns of labels that appear later are empty before."""
    columns = list(dict.fromkeys(key for row in history for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def _save(figure: Any, path: Path) -> None:
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=120))


def plot_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Plot losses and validation errors against epochs."""
    from matplotlib.figure import Figure

    labels = [n for n in LABELS if any(f"valid_{n}_rmse" in row for row in history)]
    figure = Figure((4.2 * (1 + bool(labels)), 3.4), layout="constrained")
    panels = figure.subplots(1, 1 + bool(labels), squeeze=False)[0]
    epochs = [row["epoch"] for row in history]
    for key, name in (("train_loss", "training"), ("valid_loss", "validation")):
        panels[0].plot(epochs, [row[key] for row in history], label=name)
    panels[0].set(xlabel="epoch", ylabel="loss", yscale="log")
    for name in labels:
        values = [row.get(f"valid_{name}_rmse", np.nan) for row in history]
        panels[1].plot(epochs, values, label=f"{name} ({TERMS[name].unit})")
    if labels:
        panels[1].set(xlabel="epoch", ylabel="validation RMSE", yscale="log")
    starts = [
        row["epoch"] for row, last in zip(history[1:], history, strict=False) if row["stage"] != last["stage"]
    ]
    for panel in panels:
        for start in starts:
            panel.axvline(start - 0.5, color="0.8", linewidth=1)
        panel.legend(frameon=False, fontsize=8)
    _save(figure, path)


def plot_parity(path: Path, sets: Mapping[str, Pairs]) -> None:
    """Plot predictions against references, with one panel per label and one colour per set."""
    from matplotlib.figure import Figure

    labels = [n for n in LABELS if any(n in pairs for pairs in sets.values())]
    if not labels:
        return
    figure = Figure((3.4 * len(labels), 3.4), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(labels), squeeze=False)[0], labels, strict=True):
        for which, pairs in sets.items():
            if name in pairs:
                predicted, reference = pairs[name]
                error = float(np.sqrt(np.mean((predicted - reference) ** 2)))
                label = f"{which}: RMSE {1000 * error:.3g} m{TERMS[name].unit}"
                panel.plot(reference, predicted, ".", markersize=3, label=label)
        low, high = panel.get_xlim()
        panel.plot([low, high], [low, high], color="0.7", linewidth=1, zorder=0)
        panel.set(title=name, xlabel=f"reference ({TERMS[name].unit})", ylabel="predicted")
        panel.legend(frameon=False, fontsize=7)
    _save(figure, path)
