"""Structures from files, with one kind of error for whatever is wrong with a file."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase import Atoms

_PBC = re.compile(r"""\bpbc=("[^"]*"|'[^']*'|\{[^}]*\}|\[[^]]*\]|\S+)""", re.IGNORECASE)
_XYZ = re.compile(r"\.(ext)?xyz(\.\w+)?$")
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
        if _XYZ.search(path.name.lower()):
            check_counts(path)
        found = read(path, index if isinstance(index, str) else one_frame(index))
    except Exception as error:  # ASE's readers raise whatever they trip over
        if path.stat().st_size == 0:
            reason = "it is empty"
        elif isinstance(error, IndexError):
            reason = f"it has no frame {index}"
        elif isinstance(error, StopIteration) or isinstance(error.__cause__, StopIteration):
            reason = "it ends in the middle of a frame"
            reason = reason if index == ":" else f"it has no frame {index}, or ends in the middle of one"
        else:
            reason = str(error) if isinstance(error, FileError) else f"{type(error).__name__}: {error}"
        raise FileError(f"{before}{path} cannot be read: {reason}") from error
    frames = list(found) if isinstance(found, list) else [found]
    if not frames:
        missing = f"holds no frames {index}" if isinstance(index, str) else f"has no frame {index}"
        raise FileError(f"{before}{path} {'holds no frames' if index == ':' else missing}")
    if _XYZ.search(path.name.lower()):
        _check_flags(path, before)
    return frames


def one_frame(index: int) -> slice:
    """The same frame as a slice: for -6 ASE reads some frame where there are five."""
    return slice(index, index + 1 or None)


def wrong_flags(line: str) -> str | None:
    """What a line of extended XYZ says of periodicity, if that is neither true nor false; None if it is."""
    found = _PBC.search(line) if "pbc" in line.lower() else None
    flags = re.findall(r"[^\s,\"'{}\[\]]+", found.group(1)) if found else []
    wrong = any(flag.lower() not in _FLAGS for flag in flags)
    return f"pbc={found.group(1)}" if found and wrong else None


def _check_flags(path: Path, before: str) -> None:
    from ase.io.formats import open_with_compression

    with open_with_compression(str(path), "rb") as file:
        for i, line in enumerate(file):
            wrong = wrong_flags(line.decode(errors="replace"))
            if wrong:
                raise FileError(f"{before}{path} has {wrong} in line {i + 1}: T or F only")


def check_counts(path: Path) -> None:
    """
    Look at the numbers of atoms in an extended XYZ file, which ASE believes: it would count to a billion.

    Raises:
        FileError: for one that is more than the lines behind it.
    """
    from ase.io.formats import open_with_compression

    with open_with_compression(str(path), "rb") as file:
        for line in file:
            try:
                count = int(line)
            except ValueError:
                continue
            if count > _LARGE and sum(1 for _ in islice(file, count + 1)) < count + 1:
                raise FileError(f"it ends in the middle of a frame of {count} atoms")


# atoms, below which nobody waits
_LARGE = 10**6
