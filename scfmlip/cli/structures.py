"""Structures from files, as far as they can be read."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ase import Atoms


def read_frames(
    file: Path, index: str = ":", skip: bool = False
) -> tuple[list[tuple[str, Atoms]], list[str]]:
    """
    The frames of a file.

    Args:
        file: Any format ASE reads.
        index: ASE's: "0", "-1", "10:20", "::5".
        skip: Go on after frames that cannot be read, in extended XYZ.

    Returns:
        Frames with their names, and what was wrong with those left out.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it cannot be read, or has no such frame; says why.
    """
    from ase.io import read
    from ase.io.formats import string2index

    if file.is_dir():
        raise ValueError(f"{file} is a folder: give a file of structures")
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    try:
        wanted = string2index(index)
        assert not isinstance(wanted, str) and (isinstance(wanted, int) or wanted.step != 0)
    except (ValueError, AssertionError):
        raise ValueError(f"the index must be such as 0, -1, 10:20 or ::5, got {index!r}") from None
    where = f"{file}" if index == ":" else f"{file}@{index}"
    bad: list[str] = []
    try:
        found = read(file, index, do_not_split_by_at_sign=True)
        frames = found if isinstance(found, list) else [found]
    except (IndexError, StopIteration):
        frames = []
    except OSError:
        raise
    except Exception as error:  # ASE's readers raise whatever they trip over
        each = list(_each(file)) if skip else []
        chosen = each[wanted] if isinstance(wanted, slice) else each[wanted : wanted + 1 or None]
        if not any(not isinstance(frame, str) for frame in chosen):
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"{file} cannot be read, is it cut off or damaged? {why}") from error
        bad = [f"frame {i} of {where}: {text}" for i, text in enumerate(chosen) if isinstance(text, str)]
        named = [(f"frame {i} of {where}", x) for i, x in enumerate(chosen) if not isinstance(x, str)]
        return named, bad
    if file.suffix in (".xyz", ".extxyz") and not _ends_a_line(file):
        print(
            f"warning: {file} ends within a line: if it is cut off, its last number is wrong", file=sys.stderr
        )
    if not frames:
        raise ValueError(f"{file} holds no frames" if index == ":" else f"{file} has no frame {index}")
    return [(f"frame {i} of {where}", atoms) for i, atoms in enumerate(frames)], bad


def _ends_a_line(file: Path) -> bool:
    with open(file, "rb") as content:
        content.seek(-1, io.SEEK_END)
        return content.read() in (b"\n", b"\r")


def _each(file: Path) -> Iterator[Atoms | str]:
    """Every frame of an extended XYZ file, or what is wrong with it."""
    from ase.io import read
    from ase.io.formats import filetype, open_with_compression

    if filetype(str(file)) != "extxyz":
        return
    with open_with_compression(str(file), "r") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                count = int(line)
            except ValueError:
                yield f"no number of atoms, but {line.strip()[:40]!r}; nothing after it can be read"
                return
            text = line + "".join(next(lines, "") for _ in range(count + 1))
            try:
                yield read(io.StringIO(text), 0, format="extxyz")
            except Exception as error:  # as above
                yield " ".join(f"{type(error).__name__}: {error}".split())


def read_frame(file: Path, index: int) -> Atoms:
    """
    One frame of a file.

    Raises:
        FileNotFoundError, ValueError: as `read_frames`.
    """
    return read_frames(file, str(index))[0][0][1]
