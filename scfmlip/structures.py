"""
Read structures from files, and write them to extended XYZ.

ASE reads the files. This module adds checks that ASE lacks: invalid flags of periodicity, frames after an
empty line, impossible numbers of atoms, and missing frames.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from ase import Atoms

_PBC = re.compile(r"""\bpbc=("[^"]*"|'[^']*'|\{[^}]*\}|\[[^]]*\]|\S+)""", re.IGNORECASE)
_FLAGS = {"t", "f", "true", "false", "1", "0"}
# files with fewer atoms are read quickly enough
_LARGE = 10**6


class FileError(ValueError):
    """
    Raised for a file without readable structures; the message names the file and the reason.

    Example:
        >>> import pathlib, tempfile
        >>> from scfmlip.structures import FileError, read_structures
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "cut.xyz")
        ...     _ = file.write_text("3 atoms are promised, none is there")
        ...     try:
        ...         frames = read_structures(file)
        ...     except FileError as error:
        ...         print(type(error).__name__, "cut.xyz" in str(error))
        FileError True
    """


def read_structures(path: str | Path, index: str | int = ":", what: str = "") -> list[Atoms]:
    """
    Read the frames of a file with ASE.

    Args:
        path: The file.
        index: ASE's index of the frames: 0, "-1", "10:20", "::5".
        what: The option that gave the file, for messages.

    Raises:
        FileNotFoundError: if there is no such file.
        FileError: for a file that is empty, truncated or of unknown format, that lacks the frames, has frames
            after an empty line, or whose ``pbc`` is anything but T and F (ASE would read that as T).

    Example:
        >>> from scfmlip.data import path
        >>> from scfmlip.structures import read_structures
        >>> frames = read_structures(path("sio2_vacancy.xyz"))
        >>> [(len(atoms), int(atoms.info["charge"])) for atoms in frames]
        [(71, 1), (71, 2), (72, 0)]
    """
    try:
        return _read(Path(path), index)
    except FileError as error:
        raise FileError(f"{what}: {error}" if what else f"{error}") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{what}: {error}" if what else f"{error}") from None


def read_frames(
    path: Path, index: str = ":", skip: bool = False
) -> tuple[list[tuple[str, Atoms]], list[str]]:
    """
    Read the frames of a file with their names; optionally skip unreadable frames.

    Args:
        path: The file.
        index: See `read_structures`.
        skip: Skip frames that cannot be read, in extended XYZ.

    Returns:
        Names and frames, and the errors of skipped frames.

    Raises:
        FileNotFoundError, FileError: as in `read_structures`.

    Example:
        >>> from scfmlip.data import path
        >>> from scfmlip.structures import read_frames
        >>> named, left_out = read_frames(path("al_water.xyz"), ":", skip=True)
        >>> len(named), left_out
        (2, [])
    """
    where = f"{path}" if index == ":" else f"{path}@{index}"
    try:
        found: list[Atoms | str] = [*_read(path, index)]
    except FileError:
        if not skip:
            raise
        try:
            found = [*_each(path)][_wanted(index)]
        except Exception:  # a damaged archive
            found = []
        if all(isinstance(frame, str) for frame in found):
            raise
    named = [(f"frame {i} of {where}", frame) for i, frame in enumerate(found)]
    bad = [f"{name}: {text}" for name, text in named if isinstance(text, str)]
    return [(name, atoms) for name, atoms in named if not isinstance(atoms, str)], bad


def read_frame(path: Path, index: int) -> Atoms:
    """
    Read one frame of a file.

    Raises:
        FileNotFoundError, FileError: as in `read_structures`.

    Example:
        >>> from scfmlip.data import path
        >>> from scfmlip.structures import read_frame
        >>> read_frame(path("al_water.xyz"), 1).get_chemical_formula()
        'H12Al18O6'
    """
    return _read(path, index)[0]


def _wanted(index: str | int) -> slice:
    """
    Convert an index to a slice, because ASE reads some frame for index -6 of five frames.

    Raises:
        FileError: for an invalid index.
    """
    from ase.utils import string2index

    try:
        found = string2index(index) if isinstance(index, str) else index
        assert not isinstance(found, str) and (isinstance(found, int) or found.step != 0)
    except (ValueError, TypeError, AssertionError):
        raise FileError(f"the index must be such as 0, -1, 10:20 or ::5, got {index!r}") from None
    return slice(found, found + 1 or None) if isinstance(found, int) else found


def _read(path: Path, index: str | int) -> list[Atoms]:
    """Read frames, or raise a `FileError` that names the file."""
    from ase.io import read

    if path.is_dir():
        raise FileError(f"{path} is a folder: give a file of structures")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    wanted = _wanted(index)
    one = isinstance(index, int) or ":" not in index
    try:
        if is_extxyz(path):
            _check_counts(path)
        frames = cast("list[Atoms]", read(path, wanted, do_not_split_by_at_sign=True))
        if is_extxyz(path):
            # content after the requested frame, counted from the start, does not matter
            _check_whole(path, not one or wanted.start < 0)
    except Exception as error:  # ASE's readers may raise anything
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if path.stat().st_size == 0:
            reason = "it is empty"
        elif isinstance(error, StopIteration) or isinstance(error.__cause__, StopIteration):
            reason = "it ends in the middle of a frame"
        else:
            reason = str(error) if isinstance(error, FileError) else f"{type(error).__name__}: {error}"
        raise FileError(f"{path} cannot be read: {' '.join(reason.split())}") from error
    if not frames:
        missing = f"has no frame {index}" if one else f"holds no frames {index}"
        raise FileError(f"{path} {'holds no frames' if index == ':' else missing}")
    return frames


def is_extxyz(path: Path) -> bool:
    """
    Whether ASE reads a file as extended XYZ.

    Example:
        >>> from scfmlip.data import path
        >>> from scfmlip.structures import is_extxyz
        >>> is_extxyz(path("al_water.xyz"))
        True
    """
    from ase.io.formats import UnknownFileTypeError, filetype

    try:
        return filetype(str(path)) == "extxyz"
    except UnknownFileTypeError:
        return False


def _check_counts(path: Path) -> None:
    """
    Check the numbers of atoms in an extended XYZ file; ASE would trust a number of a billion.

    Raises:
        FileError: if a number exceeds the lines that follow it.
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


def _wrong_flags(line: str) -> str | None:
    """An invalid ``pbc`` in a line of extended XYZ, as a message; None if it is valid."""
    found = _PBC.search(line) if "pbc" in line.lower() else None
    flags = re.findall(r"[^\s,\"'{}\[\]]+", found.group(1)) if found else []
    wrong = any(flag.lower() not in _FLAGS for flag in flags)
    return f"pbc={found.group(1)}: T or F only" if found and wrong else None


def _check_whole(path: Path, all_count: bool) -> None:
    """
    Check an extended XYZ file for problems that ASE ignores.

    Raises:
        FileError: for ``pbc`` other than T and F, which ASE reads as T; and, if the number of frames matters
            (``all_count``), for frames after an empty line, at which ASE stops.
    """
    from ase.io.formats import open_with_compression

    number = 0
    with open_with_compression(str(path), "r") as content:
        while line := content.readline():
            if not line.strip():
                if content.read().strip() and all_count:
                    raise FileError(f"an empty line stands before frame {number}")
                return
            if line.lstrip().startswith("VEC"):
                continue
            for i in range(int(line) + 1):
                line = content.readline()
                wrong = _wrong_flags(line) if i == 0 else None
                if wrong:
                    raise FileError(f"frame {number} has {wrong}")
            number += 1
            if not line.endswith("\n"):
                text = f"warning: {path} ends within a line: if it is cut off, its last number is wrong"
                print(text, file=sys.stderr)


def _each(path: Path) -> Iterator[Atoms | str]:
    """Every frame of an extended XYZ file, or a message if it cannot be read."""
    from ase.io import read
    from ase.io.formats import open_with_compression

    if not is_extxyz(path):
        return
    with open_with_compression(str(path), "rb") as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                count = int(line)
                assert count >= 0
            except (ValueError, AssertionError):
                begin = line.decode(errors="replace").strip()[:40]
                yield f"no number of atoms, but {begin!r}; nothing after it can be read"
                return
            frame = list(islice(lines, count + 1))
            if len(frame) <= count:
                yield "it ends in the middle"
                return
            try:
                text = b"".join([line, *frame]).decode()
                wrong = _wrong_flags(text.split("\n")[1])
                if wrong:
                    raise FileError(wrong)
                yield cast("Atoms", read(io.StringIO(text), 0, format="extxyz"))
            except Exception as error:  # as above
                yield " ".join(f"{type(error).__name__}: {error}".split())


def frame_text(atoms: Atoms, wanted: Iterable[str]) -> tuple[str, list[str]]:
    """
    Write a frame as extended XYZ that can be read back.

    Empty strings, some backslashes and spaces in columns make ASE's reader lose the values after them.

    Args:
        atoms: The frame; values that the format cannot hold are removed from it.
        wanted: Names of ``atoms.info`` and ``atoms.arrays`` that must not be lost.

    Returns:
        The text, and the names of removed values.

    Raises:
        ValueError: if it cannot be written even so.

    Example:
        >>> import ase.build
        >>> from scfmlip.structures import frame_text
        >>> water = ase.build.molecule("H2O")
        >>> water.info["charge"] = 0
        >>> text, left_out = frame_text(water, ["charge"])
        >>> text.splitlines()[0], left_out
        ('3', [])
    """
    text = _survives(atoms)
    dropped: list[str] = []
    if text is None:
        fixed = {"numbers", "positions", *wanted}
        for store in ("info", "arrays"):
            for key in [k for k in getattr(atoms, store) if k not in fixed]:
                alone = type(atoms)(atoms.numbers, atoms.positions)
                getattr(alone, store)[key] = getattr(atoms, store)[key]
                alone.info["after"] = 1.0
                if _survives(alone) is None:
                    del getattr(atoms, store)[key]
                    dropped.append(key)
        text = _survives(atoms)
    if text is None:
        raise ValueError("extended XYZ cannot hold it")
    return text, dropped


def _survives(atoms: Atoms) -> str | None:
    """A frame's text if every name in it survives reading, else None."""
    from ase.io import read, write

    if any(value is None for value in atoms.info.values()):  # ASE would read it as T
        return None
    content = io.StringIO()
    try:
        write(content, atoms, format="extxyz")
        text = content.getvalue()
        back = cast("list[Atoms]", read(io.StringIO(text), ":", format="extxyz"))
    except Exception:  # as above
        return None
    results = back[0].calc.results if len(back) == 1 and back[0].calc is not None else {}
    found = {*back[0].info, *back[0].arrays, *results} if len(back) == 1 else set()
    return text if {*atoms.info, *atoms.arrays} <= found and "\r" not in text else None
