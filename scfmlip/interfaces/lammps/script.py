"""A LAMMPS input file, run with a model."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from .attach import Attached, attach

# commands that run steps: the model is attached before the first of them
_RUNNING = ("run", "minimize", "rerun", "neb", "prd", "tad", "temper", "hyper")
# a line of its own that says where instead
MARK = "# scfmlip attach"


def split_script(text: str) -> tuple[str, str]:
    """
    What of an input comes before the model is attached, and the rest.

    That is before the first command that runs steps, or at a line ``# scfmlip attach``.

    Args:
        text: The input.

    Raises:
        ValueError: for an input that runs nothing.

    Example:
        >>> split_script("units metal\\nrun 10\\nrun 20\\n")
        ('units metal\\n', 'run 10\\nrun 20\\n')
    """
    lines = text.splitlines(keepends=True)
    marks = [i for i, line in enumerate(lines) if line.strip() == MARK]
    starts = [i for i, line in enumerate(lines) if line.split()[:1] and line.split()[0] in _RUNNING]
    if not (marks or starts):
        raise ValueError(
            f"the input has no {' or '.join(_RUNNING[:2])} at the start of a line: write the line {MARK!r} "
            "where the box and the atoms are there and the first run has not begun"
        )
    at = (marks or starts)[0]
    return "".join(lines[:at]), "".join(lines[at:])


def run_script(lmp: Any, path: str | Path, model: Any, **options: Any) -> Attached:
    """
    Run an input file with a model; every rank calls it.

    Args:
        lmp: A ``lammps.lammps``.
        path: The file.
        model: See `attach`.
        options: Of `attach`.

    Returns:
        The handle.

    Raises:
        As `attach`; FileNotFoundError without such a file; ValueError for one that runs nothing; and what
        LAMMPS or a step of the model raises.
    """
    before, after = split_script(Path(path).read_text())
    lmp.commands_string(before)
    attached = attach(lmp, model, **options)
    # from a file, in which jumps and loops find their labels
    with tempfile.TemporaryDirectory() as folder:
        rest = Path(folder) / Path(path).name
        rest.write_text(after)
        lmp.file(str(rest))
    return attached
