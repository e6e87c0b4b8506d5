"""Measured rows in CSV files: one row per key, replaced when measured again."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from scfmlip.files import write_text

RESULTS = Path(__file__).parent / "results"
KEYS = ("set", "rule", "seed", "quantity")
COLUMNS = (*KEYS, "value", "reference", "unit", "epochs", "train_s", "torch", "device", "commit", "date")


def read_rows(path: Path) -> list[dict[str, str]]:
    """All rows of a file, none if it does not exist."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def put_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows; those with the same set, rule, seed and quantity give way, and notes of earlier failures."""

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[k]) for k in KEYS)

    new = {key(row) for row in rows}
    runs = {k[:3] for k in new}
    kept = [
        row
        for row in read_rows(path)
        if key(row) not in new and not (row["quantity"].startswith("failed") and key(row)[:3] in runs)
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in (*kept, *rows):
        writer.writerow([row.get(column, "") for column in COLUMNS])
    write_text(path, text.getvalue())
