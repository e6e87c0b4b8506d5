"""Tables, figures and the page about the design space, from the rows and nothing else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path

from scfmlip.files import write_text

from .rows import RESULTS, read_rows
from .rules import RULES
from .sets import SETS

# set, rule, quantity: values of all seeds, and the reference
Table = dict[tuple[str, str, str], tuple[list[float], float, str]]

# columns of each set's table: quantity, heading, factor, decimals
COLUMNS: dict[str, list[tuple[str, str, float, int]]] = {
    "au2_mgo": [
        ("energy RMSE, test", "energy, meV/atom", 1e3, 2),
        ("forces RMSE, test", "forces, meV/A", 1e3, 0),
        ("charges RMSE, test", "charges, me", 1e3, 1),
        ("Au2 charge, undoped", "Au2 undoped, e", 1, 3),
        ("Au2 charge, doped", "Au2 doped, e", 1, 3),
        ("Au charge RMSE, undoped", "Au error undoped, me", 1e3, 0),
        ("Au charge RMSE, doped", "Au error doped, me", 1e3, 0),
    ],
    "carbon_chains": [
        ("energy RMSE, test", "energy, meV/atom", 1e3, 2),
        ("forces RMSE, test", "forces, meV/A", 1e3, 0),
        ("charges RMSE, test", "charges, me", 1e3, 1),
        ("charge of C10H3+", "charge of C10H3+, e", 1, 3),
        ("charge of the far neutral chain", "far neutral chain, e", 1, 3),
        ("energy of far chains - separate", "far chains, eV", 1, 3),
    ],
    "al_water": [
        ("energy RMSE, test", "energy, meV/atom", 1e3, 2),
        ("forces RMSE, test", "forces, meV/A", 1e3, 0),
        ("charges RMSE, test", "charges, me", 1e3, 1),
        ("dipole RMSE, test", "dipole, e mA", 1e3, 0),
        ("fermi_level RMSE after the mean, test", "Fermi level after the mean, meV", 1e3, 0),
        ("slab polarizability", "slab in a field, e A^2/V", 1, 3),
        ("water polarizability", "water in a field, e A^2/V", 1, 3),
        ("water up - down at 4 A", "water up - down at 4 A, eV", 1, 3),
        ("water at 5 A - at 9 A", "water 5 A - 9 A, eV", 1, 4),
        ("image energy at 6 A", "image of an ion at 6 A, eV/e^2", 1, 3),
        ("image plane", "image plane, A", 1, 2),
        ("image energy at 8 A, found / ideal", "image at 8 A over the law", 1, 2),
    ],
    "sio2_vacancy": [
        ("energy RMSE, test", "energy, meV/atom", 1e3, 2),
        ("forces RMSE, test", "forces, meV/A", 1e3, 0),
        ("charges RMSE, test", "charges, me", 1e3, 1),
        ("energy RMSE, unseen charge", "energy at +1, meV/atom", 1e3, 2),
        ("forces RMSE, unseen charge", "forces at +1, meV/A", 1e3, 0),
        ("charges RMSE, unseen charge", "charges at +1, me", 1e3, 1),
        ("mean energy error of charge +1", "shift at +1, eV", 1, 3),
    ],
}

NOTES = {
    "au2_mgo": "Errors are those of frames never seen. The dopants lie 11 A below the gold, beyond the 8 A "
    "that the backbone sees. Charge of soft atoms is screened within an angstrom, as in a metal: from a soft "
    "start everywhere nothing of the dopants reaches the gold, and no gradient says so.",
    "carbon_chains": "The far chains are a neutral and a charged one 60 A apart: nothing should pass between "
    "them.",
    "al_water": "The slab's polarizability is the change of its dipole with a field along z; a metal's is "
    "large. Water at 4 A was held back from the training; water from 5 to 9 A has no reference, a model "
    "that ends at its cutoff gives 0. The ion is a Gaussian charge of +-0.3 e outside the model, above 5 x 3 "
    "cells of the slab: the part of its energy that is even in its charge is its image's. The reference is "
    "an ideal metal that begins where jellium's image plane is (Lang and Kohn, 1973), above the top layer; "
    "the image plane is where an ideal metal of the model's energy would begin, and the last column tells "
    "whether the energy falls with the height as the law of images says.",
    "sio2_vacancy": "Trained on charges 0 and +2 only; +1 is the unseen charge.",
}


def collect(rows: list[dict[str, str]]) -> Table:
    """Rows by set, rule and quantity, seeds together."""
    found: Table = {}
    for row in rows:
        if row["value"] == "":
            continue
        key = row["set"], row["rule"], row["quantity"]
        reference = float(row["reference"]) if row["reference"] else math.nan
        values = found.setdefault(key, ([], reference, row["unit"]))[0]
        values.append(float(row["value"]))
    return found


def _number(values: list[float], factor: float, decimals: int) -> str:
    mean = factor * statistics.fmean(values)
    text = f"{mean:.{decimals}f}"
    if len(values) > 1:
        text += f" ± {factor * statistics.stdev(values):.{decimals}f}"
    return text


def _table(table: Table, name: str) -> list[str]:
    measured = {k[2] for k in table if k[0] == name}
    columns = [c for c in COLUMNS[name] if c[0] in measured]
    rules = [r for r in RULES if any((name, r, quantity) in table for quantity, *_ in columns)]
    if not columns or not rules:
        return ["Not measured yet."]
    lines = ["| rule | " + " | ".join(c[1] for c in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    references = []
    for quantity, _, factor, decimals in columns:
        known = [table[k][1] for k in table if k[0] == name and k[2] == quantity]
        reference = next((r for r in known if not math.isnan(r)), math.nan)
        references.append("" if math.isnan(reference) else f"{factor * reference:.{decimals}f}")
    if any(references):
        lines.append("| *reference* | " + " | ".join(references) + " |")
    for rule in rules:
        cells = [
            _number(table[name, rule, q][0], f, d) if (name, rule, q) in table else "-"
            for q, _, f, d in columns
        ]
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return lines


def _mean(table: Table, *key: str) -> float | None:
    found = table.get(key)  # type: ignore[arg-type]
    return statistics.fmean(found[0]) if found else None


def _share(table: Table, name: str, rule: str, quantity: str) -> float | None:
    """Measured value over reference."""
    found = table.get((name, rule, quantity))
    return statistics.fmean(found[0]) / found[1] if found and found[1] else None


def _far_dopants(table: Table, rule: str) -> str | None:
    share = _share(table, "au2_mgo", rule, "Au2 charge, doped - undoped")
    return None if share is None else f"{_word(abs(share - 1) < 0.25)} ({100 * share:.0f} % of the shift)"


def _keeps_charge(table: Table, rule: str) -> str | None:
    q = _mean(table, "carbon_chains", rule, "charge of C10H3+")
    return None if q is None else f"{_word(abs(q - 1) < 0.01)} ({q:.2f} of 1 e)"


def _size(table: Table, rule: str) -> str | None:
    q = _mean(table, "carbon_chains", rule, "charge of the far neutral chain")
    return None if q is None else f"{_word(abs(q) < 0.02)} ({q:.2f} e leak)"


def _screens(table: Table, rule: str) -> str | None:
    share = _share(table, "al_water", rule, "slab polarizability")
    return None if share is None else f"{_word(abs(share - 1) < 0.25)} ({100 * share:.0f} %)"


def _image(table: Table, rule: str) -> str | None:
    energy = _mean(table, "al_water", rule, "image energy at 6 A")
    if energy is None:
        return None
    share = _mean(table, "al_water", rule, "image energy at 8 A, found / ideal")
    plane = _mean(table, "al_water", rule, "image plane")
    if share is None or plane is None:
        return "no (none)"
    return f"{_word(abs(share - 1) < 0.1 and abs(plane - 1) < 1)} (plane at {plane:.1f} A)"


def _charge_state(table: Table, rule: str) -> str | None:
    shift = _mean(table, "sio2_vacancy", rule, "mean energy error of charge +1")
    return None if shift is None else f"{_word(abs(shift) < 0.2)} ({shift:+.2f} eV)"


def _word(good: bool) -> str:
    return "yes" if good else "no"


VERDICTS: dict[str, tuple[str, Callable[[Table, str], str | None]]] = {
    "far dopants": ("charge of Au2 moves with dopants 11 A away, within 25 % of DFT", _far_dopants),
    "total charge": ("the charges add up to the molecule's, within 0.01 e", _keeps_charge),
    "far fragments": ("a neutral molecule 60 A from an ion stays neutral, within 0.02 e", _size),
    "metal screens": ("polarizability of the Al slab within 25 % of DFT", _screens),
    "image of an ion": (
        "the energy of an ion 6 to 8 A above the metal falls as that of its image within 10 %, with an image "
        "plane 0 to 2 A above the top layer",
        _image,
    ),
    "unseen charge": (
        "mean energy of a vacancy in a charge state never shown, within 0.2 eV a cell",
        _charge_state,
    ),
}


def _verdicts(table: Table) -> list[str]:
    lines = ["| rule | " + " | ".join(VERDICTS) + " |", "|---" * (len(VERDICTS) + 1) + "|"]
    for rule in RULES:
        cells = [judge(table, rule) for _, judge in VERDICTS.values()]
        if any(cell is not None for cell in cells):
            lines.append(f"| {rule} | " + " | ".join(cell or "-" for cell in cells) + " |")
    return [*lines, "", *(f"* {name}: {meaning}." for name, (meaning, _) in VERDICTS.items())]


def _costs(table: Table) -> list[str]:
    quantities = sorted({k[2] for k in table if table[k][2] == "ms"})
    lines = ["| rule | " + " | ".join(f"{q}, ms | x short-range" for q in quantities) + " |"]
    lines.append("|---" * (2 * len(quantities) + 1) + "|")
    for rule in RULES:
        cells = []
        for quantity in quantities:
            value = _mean(table, "au2_mgo", rule, quantity)
            base = _mean(table, "au2_mgo", "short-range", quantity)
            cells += ["-", "-"] if value is None else [f"{value:.0f}", f"{value / base:.2f}" if base else "-"]
        if set(cells) != {"-"}:
            lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return lines if quantities else ["Not measured yet."]


def _figures(table: Table, folder: Path) -> list[str]:
    """Charge of Au2, and errors of every set; names of the files."""
    from matplotlib.figure import Figure

    names = []
    rules = [r for r in RULES if ("au2_mgo", r, "Au2 charge, doped") in table]
    if rules:
        figure = Figure((7, 3.4), layout="constrained")
        panel = figure.subplots()
        for offset, kind, colour in ((-0.2, "undoped", "#0b6e4f"), (0.2, "doped", "#d1495b")):
            found = [table["au2_mgo", r, f"Au2 charge, {kind}"] for r in rules]
            at = [i + offset for i in range(len(rules))]
            panel.bar(at, [statistics.fmean(f[0]) for f in found], 0.36, color=colour, label=kind)
            panel.axhline(found[0][1], color=colour, linestyle="--", linewidth=1)
        panel.axhline(0, color="0.3", linewidth=0.8)
        panel.set_xticks(range(len(rules)), rules, rotation=30, ha="right")
        panel.set(ylabel="charge of Au2 (e)", title="unseen frames; dashed: DFT")
        panel.legend(frameon=False)
        figure.savefig(folder / "au2_charge.png", dpi=120)
        names.append("au2_charge.png")
    for quantity, unit in (("forces RMSE, test", "meV/A"), ("charges RMSE, test", "me")):
        used = [s for s in SETS if any(k[0] == s and k[2] == quantity for k in table)]
        if not used:
            continue
        figure = Figure((3.2 * len(used), 3.4), layout="constrained")
        for panel, name in zip(figure.subplots(1, len(used), squeeze=False)[0], used, strict=True):
            rules = [r for r in RULES if (name, r, quantity) in table]
            values = [1000 * statistics.fmean(table[name, r, quantity][0]) for r in rules]
            colours = ["#8d99ae" if RULES[r].family == "local" else "#0b6e4f" for r in rules]
            panel.barh(range(len(rules)), values, color=colours)
            panel.set_yticks(range(len(rules)), rules, fontsize=7)
            panel.invert_yaxis()
            panel.set(title=name, xlabel=f"{quantity.split()[0]} RMSE ({unit})")
        file = f"{quantity.split()[0]}.png"
        figure.savefig(folder / file, dpi=120)
        names.append(file)
    return names


def write_report(rows_file: Path, page: Path) -> None:
    """The page and its figures."""
    rows = read_rows(rows_file)
    table = collect(rows)
    figures = _figures(table, RESULTS)
    trainings = {(r["set"], r["rule"], r["seed"]): r for r in rows if r["train_s"]}
    seconds = [float(r["train_s"]) for r in trainings.values()]
    lines = [
        "# What each charge rule can and cannot do",
        "",
        "Written by `python -m bench.study --only report` from `bench/study/results/rows.csv` alone. Every "
        "rule has the same MACE backbone (two layers, cutoff 4 A, 16 scalars and 16 vectors), the same "
        "optimizer, epochs and seeds; rules that are trained on charges have a first stage with these alone. "
        "Those that equilibrate or respond start with the hardness of elements in `bench/study/sets.py`, "
        'stiff where no charge should pass; "soft start" is charge equilibration as the library has it: '
        "10 V/e for every element, electronegativities from the network, hardness that does not depend on "
        "the surroundings. The sets are small and so are the models: compare rules with each other, not with "
        "published potentials.",
        "",
    ]
    if seconds:
        epochs = [int(r["epochs"]) for r in trainings.values()]
        devices = ", ".join(sorted({r["device"] for r in trainings.values()}))
        lines += [
            f"{len(trainings)} trainings of {min(epochs)} to {max(epochs)} epochs, {min(seconds):.0f} to "
            f"{max(seconds):.0f} s, on {devices}; with more than one seed, mean ± deviation.",
            "",
        ]
    lines += ["## In short", "", *_verdicts(table), ""]
    for name, which in SETS.items():
        lines += [
            f"## {which.title[0].upper()}{which.title[1:]}",
            "",
            *_table(table, name),
            "",
            NOTES[name],
            "",
        ]
    lines += ["## Cost", "", *_costs(table), ""]
    for file in figures:
        lines += [f"![{file.removesuffix('.png')}](../bench/study/results/{file})", ""]
    failed = [r for r in rows if r["quantity"].startswith(("failed", "not converged"))]
    if failed:
        lines += ["## What failed", ""]
        lines += [f"* {r['set']}, {r['rule']}, seed {r['seed']}: {r['quantity']}" for r in failed]
        lines.append("")
    write_text(page, "\n".join(lines))
