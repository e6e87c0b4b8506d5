"""Examples on the pages: their code, what they print, and the pictures they draw; run when sources change."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from .cells import split_cells

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples"
CACHE = ROOT / "build" / "examples"
_SOURCES = ("scfmlip", "kernels", "docsite/cells.py")


def script_of(name: str) -> Path:
    """
    The script of an example.

    Raises:
        FileNotFoundError: for a name without one.
    """
    for suffix in (".py", ".sh"):
        if (FOLDER / f"{name}{suffix}").is_file():
            return FOLDER / f"{name}{suffix}"
    known = sorted(p.stem for p in FOLDER.glob("*.*"))
    raise FileNotFoundError(f"there is no example {name!r}; there are {', '.join(known)}")


@cache
def _sources() -> str:
    digest = hashlib.sha256()
    for part in _SOURCES:
        path = ROOT / part
        files = (
            [path] if path.is_file() else sorted(p for p in path.rglob("*.*") if "__pycache__" not in p.parts)
        )
        for file in files:
            digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()


def run_example(name: str) -> tuple[dict[str, str], Path]:
    """
    What each cell of an example prints, and the folder it ran in, with the files it wrote.

    It runs in an empty folder and a process of its own, on one thread, unless it did with the same sources;
    with ``DOCS_KEEP=1`` in the environment, for those who write pages, unless the same script did before.

    Raises:
        FileNotFoundError: for a name without an example.
        RuntimeError: for one that fails, with what it said.
    """
    script = script_of(name)
    key = hashlib.sha256((_sources() + script.read_text()).encode()).hexdigest()[:16]
    folder = CACHE / f"{name}-{key}"
    result = folder / "printed.json"
    if os.environ.get("DOCS_KEEP") and not result.is_file():
        mark = hashlib.sha256(script.read_bytes()).hexdigest()
        for old in CACHE.glob(f"{name}-*/script.sha256"):
            if old.read_text() == mark and (old.parent / "printed.json").is_file():
                return json.loads((old.parent / "printed.json").read_text()), old.parent
    if not result.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        paths = os.pathsep.join(str(p) for p in (ROOT, ROOT / "kernels"))
        kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        done = subprocess.run(
            [sys.executable, "-m", "docsite.cells", str(script), str(folder / "running.json")],
            cwd=folder,
            env={**kept, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "COLUMNS": "100"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{script.name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        (folder / "script.sha256").write_text(hashlib.sha256(script.read_bytes()).hexdigest())
        (folder / "running.json").replace(result)
    return json.loads(result.read_text()), folder


def show_cell(name: str, cell: str) -> str:
    """
    A cell as Markdown: its code, and what it prints.

    Raises:
        KeyError: for a cell that the example does not have.
    """
    script = script_of(name)
    code = split_cells(script.read_text())[cell]
    printed = run_example(name)[0][cell].rstrip()
    language = "bash" if script.suffix == ".sh" else "python"
    text = f"```{language}\n{code}\n```\n"
    return text + (f'\n```text title="it prints"\n{printed}\n```\n' if printed else "")
