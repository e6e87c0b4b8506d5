"""What a log of molecular dynamics shows: numbers in one line, and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_whole

Table = Mapping[str, np.ndarray]


def summarise(table: Table) -> dict[str, float]:
    """
    Means over the second half of a log, and the slope of the conserved quantity over all of it.

    Returns:
        ``temperature`` (K), ``charge`` (e), ``scf_iterations``, ``drift`` and ``shadow_drift`` (meV/atom/ps,
        least squares), as far as the log has them.
    """
    found: dict[str, float] = {}
    half = len(table["step"]) // 2
    for name in ("temperature", "charge", "scf_iterations"):
        values = table[name][half:]
        if len(values) and np.isfinite(values).all():
            found[name] = float(values.mean())
    for name in ("drift", "shadow_drift"):
        # the shadow energy is that of a step, of which the first frame has none
        time, values = table["time"], table.get(name, np.zeros(0))
        there = np.isfinite(values)
        if there.sum() > 2 and there[1:].all():
            found[name] = float(np.polyfit(time[there] / 1000, values[there], 1)[0])
    return found


def plot_log(path: Path, table: Table) -> None:
    """Temperature, conserved quantity, charge and Fermi level, and iterations against time."""
    from matplotlib.figure import Figure

    conserved = [("", table["drift"])]
    if "shadow_drift" in table and np.isfinite(table["shadow_drift"]).any():
        conserved = [("total energy", table["drift"]), ("shadow energy", table["shadow_drift"])]
    panels: list[tuple[str, list[tuple[str, np.ndarray]]]] = [
        ("temperature (K)", [("", table["temperature"])]),
        ("conserved quantity (meV/atom)", conserved),
        ("total charge (e)", [("", table["charge"])]),
        ("Fermi level (eV)", [("", table["fermi_level"])]),
        ("pressure (GPa)", [("", table["pressure"])]),
        ("iterations", [("", table["scf_iterations"])]),
    ]
    if not np.isfinite(table["drift"]).any():
        panels[1] = ("potential energy (eV)", [("", table["potential_energy"])])
    shown = [(label, curves) for label, curves in panels if any(np.isfinite(y).any() for _, y in curves)]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure((3.8 * columns, 2.8 * rows), layout="constrained")
    axes: Any = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (label, curves) in zip(axes, shown, strict=False):
        for name, values in curves:
            axis.plot(table["time"] / 1000, values, linewidth=0.9, label=name or None)
        if len(curves) > 1:
            axis.legend(fontsize="small", frameon=False)
        axis.set(xlabel="time (ps)", ylabel=label)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=120))
