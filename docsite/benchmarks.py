"""Tables of the benchmarks, from the rows in ``bench/results`` alone."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "bench" / "results"
Row = dict[str, str]
CASES = {
    "mace-medium": "MACE medium, water",
    "mace-medium-solid": "MACE medium, MgO",
    "polar-s": "MACE-POLAR-1-S shape",
    "polar-m": "MACE-POLAR-1-M shape",
}
MODES = {"forces": "energy + forces", "train": "training step"}


def read(name: str) -> list[Row]:
    """
    Rows of a file.

    Raises:
        FileNotFoundError: if it is not there.
    """
    with open(RESULTS / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def number(text: str, digits: int = 3) -> str:
    """A measured number with so many digits, thousands set off; "-" for none."""
    if not text:
        return "-"
    value = float(text)
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ratio(theirs: str, ours: str) -> str:
    """How many times as long theirs took, in bold."""
    return f"**{float(theirs) / float(ours):.2g}x**" if theirs and ours else "-"


def model_pairs() -> list[tuple[Row, Row]]:
    """Runs of whole models: mace-torch's row and ours, which follow each other, in the order of the file."""
    rows = read("models-amd-epyc")
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    same = ("case", "atoms", "mode", "commit", "beside")
    assert all(a["program"] == "mace-torch" and b["program"] == "scfmlip" for a, b in pairs)
    assert all(a[key] == b[key] for a, b in pairs for key in same)
    return pairs


def models() -> str:
    """Whole models beside mace-torch, every run."""
    head = [
        "model",
        "atoms",
        "what",
        "mace-torch, s",
        "scfmlip, s",
        "faster",
        "memory, MiB",
        "energy to",
        "forces to",
        "other processes",
        "date",
    ]
    order = list(CASES)
    pairs = sorted(model_pairs(), key=lambda p: (order.index(p[0]["case"]), int(p[0]["atoms"]), p[0]["mode"]))
    rows = [
        [
            CASES[a["case"]],
            a["atoms"],
            MODES[a["mode"]],
            number(a["seconds"]),
            number(b["seconds"]),
            ratio(a["seconds"], b["seconds"]),
            f"{number(a['peak_mib'])} → {number(b['peak_mib'])}",
            number(b["energy_error"], 1),
            number(b["force_error"], 1),
            a["beside"],
            a["date"],
        ]
        for a, b in pairs
    ]
    return markdown(head, rows)


def field_part() -> str:
    """What is not the MACE backbone in PolarMACE: electrostatics, field updates, readout."""
    rows = []
    for a, b in model_pairs():
        if not a["rest_peak_mib"]:
            continue
        if not a["backbone_seconds"]:
            continue
        theirs, ours = (float(r["seconds"]) - float(r["backbone_seconds"]) for r in (a, b))
        rows.append(
            [
                CASES[a["case"]],
                a["atoms"],
                f"{theirs:.2f}",
                f"{ours:.2f}",
                f"{number(a['rest_peak_mib'])} → {number(b['rest_peak_mib'])}",
                a["date"],
            ]
        )
    return markdown(["model", "atoms", "mace-torch, s", "scfmlip, s", "memory, MiB", "date"], rows)


def coulomb() -> str:
    """The Coulomb operator beside graph-longrange and dense PyTorch, one thread."""
    found: dict[tuple[str, int, int], dict[str, Row]] = {}
    for row in read("amd-epyc"):
        if row["op"] == "polar" and row["mode"] == "forward_backward":
            key = row["dtype"], int(row["systems"]), int(row["atoms"])
            found.setdefault(key, {})[row["provider"]] = row
    rows = []
    for (dtype, systems, atoms), by in sorted(found.items()):
        ours, dense, theirs = (by[name] for name in ("scfmlip", "torch", "graph-longrange"))
        size = f"{systems} x {atoms // systems:,}" if systems > 1 else f"{atoms:,}"
        memory = " / ".join(number(r["peak_mib"]) for r in (ours, dense, theirs))
        error = " / ".join(number(r["error"], 1) for r in (ours, dense, theirs))
        rows.append(
            [
                dtype,
                size,
                number(ours["median_ms"]),
                number(dense["median_ms"]),
                number(theirs["median_ms"]),
                ratio(theirs["median_ms"], ours["median_ms"]),
                memory,
                error,
            ]
        )
    head = [
        "dtype",
        "atoms",
        "scfmlip, ms",
        "dense PyTorch, ms",
        "graph-longrange 0.4.0, ms",
        "graph-longrange over ours",
        "memory, MiB: ours / dense / theirs",
        "error: ours / dense / theirs",
    ]
    return markdown(head, rows)


def equilibration() -> str:
    """Charge equilibration beside two dense loops."""
    found: dict[tuple[int, int], dict[str, Row]] = {}
    for row in read("equilibration-amd-epyc"):
        found.setdefault((int(row["systems"]), int(row["atoms"])), {})[row["program"]] = row
    rows = []
    for (systems, atoms), by in sorted(found.items()):
        size = f"{systems} x {atoms:,}" if systems > 1 else f"{atoms:,}"
        ours, empty = by["scfmlip"], {"seconds": "", "peak_mib": ""}
        tensor, matrix = by.get("tensor", empty), by.get("matrix", empty)
        memory = " / ".join(number(r["peak_mib"]) for r in (ours, matrix, tensor))
        rows.append(
            [
                size,
                number(ours["seconds"]),
                number(matrix["seconds"]),
                ratio(matrix["seconds"], ours["seconds"]),
                number(tensor["seconds"]),
                ratio(tensor["seconds"], ours["seconds"]),
                memory,
            ]
        )
    head = [
        "atoms",
        "scfmlip, s",
        "best dense loop, s",
        "over ours",
        "phases of all pairs, s",
        "over ours",
        "memory, MiB: ours / dense / phases",
    ]
    return markdown(head, rows)


def _plain(name: str, columns: dict[str, str], keep: Callable[[Row], bool] = lambda row: True) -> str:
    rows = [
        [number(r[c]) if _is_number(r[c]) else r[c] or "-" for c in columns] for r in read(name) if keep(r)
    ]
    return markdown(list(columns.values()), rows)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def fixed_points() -> str:
    """Fixed points beside linear mixing."""
    columns = {
        "map": "map",
        "atoms": "atoms",
        "program": "program",
        "mixing": "mixing",
        "evaluations": "evaluations",
        "seconds": "seconds",
        "peak_mib": "memory of a training step, MiB",
        "date": "date",
    }
    return _plain("equilibration-fixed-point-amd-epyc", columns)


def water() -> str:
    """Dynamics of water with charge equilibration."""
    columns = {
        "mode": "first guess",
        "atoms": "atoms",
        "steps": "steps",
        "mean_iterations": "iterations a step",
        "most_iterations": "most",
        "drift_mev_per_atom_ps": "drift, meV/atom/ps",
        "temperature": "temperature, K",
    }
    return _plain("equilibration-water-amd-epyc", columns)


def rules() -> str:
    """Cost of each charge rule beside the same model without charges."""
    columns = {
        "rule": "rule",
        "atoms": "atoms",
        "mode": "what",
        "dtype": "dtype",
        "seconds": "seconds",
        "ratio": "times without charges",
        "iterations": "iterations",
        "date": "date",
    }
    return _plain("rules-amd-epyc", columns)


def molecules() -> str:
    """Small molecules: pair sums kept for solvers and not."""
    columns = {
        "rule": "rule",
        "systems": "systems",
        "mode": "what",
        "recomputed_ms": "recomputed, ms",
        "kept_ms": "kept, ms",
        "ratio": "faster",
    }
    return _plain("molecules-amd-epyc", columns)


def static_cost() -> str:
    """What the compiler says of the GPU kernels: how many variants, and which spill registers."""
    rows = read("static_cost")
    targets = sorted({r["target"] for r in rows})
    out = []
    for target in targets:
        mine = [r for r in rows if r["target"] == target]
        spill = [r for r in mine if float(r["spill_bytes"] or 0) > 0]
        names = sorted({f"{r['kernel']} ({r['dtype']}, {r['spill_bytes']} B)" for r in spill})
        out.append([target, str(len(mine)), str(len(spill)), ", ".join(names) or "none"])
    return markdown(["target", "variants compiled", "that spill", "which, and bytes"], out)


TABLES = {
    "models": models,
    "field_part": field_part,
    "coulomb": coulomb,
    "equilibration": equilibration,
    "fixed_points": fixed_points,
    "water": water,
    "rules": rules,
    "molecules": molecules,
    "static_cost": static_cost,
}
