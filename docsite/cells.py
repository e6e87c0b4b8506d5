"""
Examples in cells: one script, whose parts the pages show with what they print.

A line ``# %% name`` starts a cell, in Python and in shell scripts. ``python -m docsite.cells SCRIPT OUT``
runs one in the current folder, as ``python SCRIPT`` or ``bash -e SCRIPT`` would, and writes what each cell
printed to OUT.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

_START = re.compile(r"^# %% (\w+)$", re.MULTILINE)


def split_cells(text: str) -> dict[str, str]:
    """
    Code of each cell, by name and in order; what stands before the first is "".

    Raises:
        ValueError: for a name that comes twice.
    """
    parts = _START.split(text)
    names = ["", *parts[1::2]]
    if len(set(names)) < len(names):
        raise ValueError(f"cells have the same name: {names}")
    return dict(zip(names, (part.strip("\n") for part in parts[::2]), strict=True))


def _python(cells: dict[str, str], script: Path) -> dict[str, str]:
    printed = {}
    session = {"__name__": "__main__", "__file__": str(script)}
    for name, code in cells.items():
        with redirect_stdout(io.StringIO()) as out:
            exec(compile(code, f"{script.name}, cell {name!r}", "exec"), session)
        printed[name] = out.getvalue()
    return printed


def _shell(cells: dict[str, str]) -> dict[str, str]:
    printed = {}
    # commands of this environment first
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    for name, code in cells.items():
        done = subprocess.run(
            ["bash", "-e", "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PATH": path},
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"cell {name!r} ended with status {done.returncode}:\n{done.stdout}")
        printed[name] = done.stdout
    return printed


def run_cells(script: Path) -> dict[str, str]:
    """
    What each cell of a script prints, run in the current folder and this process.

    Args:
        script: ``*.py``, or ``*.sh``, whose cells are shells of their own.

    Raises:
        RuntimeError: for a shell's cell that fails; Python's cells raise what they raise.
    """
    cells = split_cells(script.read_text())
    return _shell(cells) if script.suffix == ".sh" else _python(cells, script)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run_cells(Path(sys.argv[1]))))
