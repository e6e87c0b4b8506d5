"""Structures from files, as far as they can be read, and to extended XYZ, as far as it can hold them."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

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
    from ase.utils import string2index

    from ..structures import check_counts, one_frame

    if file.is_dir():
        raise ValueError(f"{file} is a folder: give a file of structures")
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    try:
        wanted = string2index(index)
        assert not isinstance(wanted, str) and (isinstance(wanted, int) or wanted.step != 0)
    except (ValueError, TypeError, AssertionError):
        raise ValueError(f"the index must be such as 0, -1, 10:20 or ::5, got {index!r}") from None
    where = f"{file}" if index == ":" else f"{file}@{index}"
    bad: list[str] = []
    try:
        if is_extxyz(file):
            check_counts(file)
        chosen = one_frame(wanted) if isinstance(wanted, int) else wanted
        found = read(file, chosen, do_not_split_by_at_sign=True)
        frames = found if isinstance(found, list) else [found]
        if is_extxyz(file):
            _check_whole(file, isinstance(wanted, slice))
    except (IndexError, StopIteration):
        frames = []
    except Exception as error:  # ASE's readers raise whatever they trip over
        if isinstance(error, OSError) and error.errno is not None:
            raise
        try:
            each = list(_each(file)) if skip else []
        except Exception:  # a damaged archive
            each = []
        chosen = each[wanted if isinstance(wanted, slice) else one_frame(wanted)]
        if not any(not isinstance(frame, str) for frame in chosen):
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"{file} cannot be read, is it cut off or damaged? {why}") from error
        bad = [f"frame {i} of {where}: {text}" for i, text in enumerate(chosen) if isinstance(text, str)]
        named = [(f"frame {i} of {where}", x) for i, x in enumerate(chosen) if not isinstance(x, str)]
        return named, bad
    if not frames:
        raise ValueError(f"{file} holds no frames" if index == ":" else f"{file} has no frame {index}")
    return [(f"frame {i} of {where}", atoms) for i, atoms in enumerate(frames)], bad


def is_extxyz(file: Path) -> bool:
    """Whether ASE takes a file for extended XYZ."""
    from ase.io.formats import UnknownFileTypeError, filetype

    try:
        return filetype(str(file)) == "extxyz"
    except UnknownFileTypeError:
        return False


def _check_whole(file: Path, several: bool) -> None:
    """
    Look at what ASE does not in an extended XYZ file: periodicity, and where frames and the file end.

    Raises:
        ValueError: for ``pbc`` that is anything but T and F, which ASE takes for T; where ``several`` frames
            are asked for, for frames behind an empty line.
    """
    from ase.io.formats import open_with_compression

    from ..structures import wrong_flags

    number = 0
    with open_with_compression(str(file), "r") as content:
        while line := content.readline():
            if not line.strip():
                if content.read().strip() and several:
                    raise ValueError(f"an empty line stands before frame {number}")
                return
            if line.lstrip().startswith("VEC"):
                continue
            number += 1
            for i in range(int(line) + 1):
                line = content.readline()
                wrong = wrong_flags(line) if i == 0 else None
                if wrong:
                    raise ValueError(f"{wrong} in frame {number - 1}: T or F only")
            if not line.endswith("\n"):
                text = f"warning: {file} ends within a line: if it is cut off, its last number is wrong"
                print(text, file=sys.stderr)


def _each(file: Path) -> Iterator[Atoms | str]:
    """Every frame of an extended XYZ file, or what is wrong with it."""
    from ase.io import read
    from ase.io.formats import open_with_compression

    from ..structures import wrong_flags

    if not is_extxyz(file):
        return
    with open_with_compression(str(file), "rb") as lines:
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
                wrong = wrong_flags(text.split("\n")[1])
                if wrong:
                    raise ValueError(f"{wrong}: T or F only")
                yield cast("Atoms", read(io.StringIO(text), 0, format="extxyz"))
            except Exception as error:  # as above
                yield " ".join(f"{type(error).__name__}: {error}".split())


def frame_text(atoms: Atoms, wanted: Iterable[str]) -> tuple[str, list[str]]:
    """
    A frame as extended XYZ from which it can be read again.

    Empty texts, some backslashes and spaces in columns make ASE's reader lose what stands behind them.

    Args:
        atoms: The frame; what the format cannot hold is taken from it.
        wanted: Names of ``atoms.info`` and ``atoms.arrays`` that must not be lost.

    Returns:
        The text, and the names of what was left out.

    Raises:
        ValueError: if it cannot be written all the same.
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
    """A frame's text if every name in it is there after reading, else None."""
    from ase.io import read, write

    if any(value is None for value in atoms.info.values()):  # would be read as T
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


def read_frame(file: Path, index: int) -> Atoms:
    """
    One frame of a file.

    Raises:
        FileNotFoundError, ValueError: as `read_frames`.
    """
    return read_frames(file, str(index))[0][0][1]
