"""Structures from files, with one kind of error for whatever is wrong with a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase import Atoms

_PBC = re.compile(r"""\bpbc=("[^"]*"|'[^']*'|\{[^}]*\}|\[[^]]*\]|\S+)""", re.IGNORECASE)
_FLAGS = {"t", "f", "true", "false", "1", "0"}


class FileError(ValueError):
    """A file that is no file of structures; the message names it and says why."""


def read_structures(path: str | Path, index: str | int = ":", what: str = "") -> list[Atoms]:
    """
    The frames of a file, as ASE reads it.

    Args:
        path: The file.
        index: ASE's index of the frames.
        what: What named the file, for messages.

    Raises:
        FileNotFoundError: if there is none.
        FileError: for one that is empty, cut off or of no known format, that holds no such frame, or whose
            ``pbc`` is anything but T and F, which ASE takes for T.
    """
    from ase.io import read

    path, before = Path(path), f"{what}: " if what else ""
    if not path.is_file():
        raise FileNotFoundError(f"{before}there is no file {path}")
    try:
        found = read(path, index)
    except Exception as error:  # ASE's readers raise whatever they trip over
        if path.stat().st_size == 0:
            reason = "it is empty"
        elif isinstance(error, IndexError):
            reason = f"it has no frame {index}"
        elif isinstance(error, StopIteration) or isinstance(error.__cause__, StopIteration):
            reason = "it ends in the middle of a frame"
            reason = reason if index == ":" else f"it has no frame {index}, or ends in the middle of one"
        else:
            reason = f"{type(error).__name__}: {error}"
        raise FileError(f"{before}{path} cannot be read: {reason}") from error
    frames = list(found) if isinstance(found, list) else [found]
    if not frames:
        raise FileError(f"{before}{path} holds no frames" + ("" if index == ":" else f" {index}"))
    if path.suffix.lower() in (".xyz", ".extxyz"):
        _check_flags(path, before)
    return frames


def _check_flags(path: Path, before: str) -> None:
    """Refuse directions of periodicity that are neither true nor false."""
    with path.open(errors="replace") as file:
        for i, line in enumerate(file):
            found = _PBC.search(line) if "pbc" in line.lower() else None
            flags = re.findall(r"[^\s,\"'{}\[\]]+", found.group(1)) if found else []
            wrong = [flag for flag in flags if flag.lower() not in _FLAGS]
            if wrong:
                raise FileError(
                    f"{before}{path} has pbc={found and found.group(1)} in line {i + 1}: T or F only"
                )
