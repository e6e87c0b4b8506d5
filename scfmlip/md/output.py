"""What a run writes while it goes: frames and rows of the log, which a restart cuts back to its step."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.io.trajectory import TrajectoryReader, TrajectoryWriter

from ..files import replacing, write_text
from ..mace_torch.inputs import changes_energy

# results that ASE has a name for
_RESULTS = ("energy", "free_energy", "forces", "stress", "charges", "dipole")
# of models of ours, under the prefix of `scfmlip evaluate`
_OWN = {"info": ("fermi_level", "electrostatic_energy"), "arrays": ("potential",)}
_ROWS = "density_coefficients"

COLUMNS = {
    "step": "",
    "time": "fs",
    "temperature": "K",
    "potential_energy": "eV",
    "kinetic_energy": "eV",
    "total_energy": "eV",
    "conserved": "eV",
    "drift": "meV/atom",
    "shadow_drift": "meV/atom",
    "volume": "angstrom^3",
    "pressure": "GPa",
    "charge": "e",
    "fermi_level": "eV",
    "field_x": "V/angstrom",
    "field_y": "V/angstrom",
    "field_z": "V/angstrom",
    "dipole_x": "e angstrom",
    "dipole_y": "e angstrom",
    "dipole_z": "e angstrom",
    "scf_iterations": "",
    "scf_residual": "",
    "max_force": "eV/angstrom",
}
_HEADER = [f"{name} ({unit})" if unit else name for name, unit in COLUMNS.items()]


def frame_of(atoms: Atoms, results: Mapping[str, Any], step: int, time: float) -> Atoms:
    """
    A frame as it is written: atoms, momenta, what the model was told, and results.

    Energy, forces, stress, charges and dipole are where ASE looks for them; Fermi level, potential and atomic
    dipoles carry the prefix ``scfmlip_`` of `scfmlip evaluate`. ``md_step`` and ``md_time`` (fs) tell when.
    """
    frame = Atoms(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell,
        pbc=atoms.pbc,
        momenta=atoms.get_momenta(),
    )
    frame.set_constraint(atoms.constraints)
    frame.info = {k: v for k, v in atoms.info.items() if changes_energy(k) and v is not None}
    frame.info |= {"md_step": step, "md_time": time}
    for store, names in _OWN.items():
        getattr(frame, store).update({f"scfmlip_{n}": results[n] for n in names if n in results})
    rows = results.get(_ROWS)
    if rows is not None and np.ndim(rows) == 2 and rows.shape[1] == 4:
        frame.arrays["scfmlip_atomic_dipoles"] = rows[:, [3, 1, 2]]
    frame.calc = SinglePointCalculator(frame, **{n: results[n] for n in _RESULTS if n in results})
    return frame


class AppendedText:
    """
    A text file that grows, and is cut back when a run goes on from an earlier step.

    Args:
        path: The file; made empty by `start`.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0

    def start(self, text: str = "") -> None:
        """A new file that holds ``text``."""
        write_text(self.path, text)
        self.size = len(text.encode())

    def resume(self, size: int) -> None:
        """
        Go on behind the first ``size`` bytes.

        Raises:
            ValueError: for a file that is shorter, or missing.
        """
        there = self.path.stat().st_size if self.path.is_file() else -1
        if there < size:
            raise ValueError(
                f"{self.path} has {max(there, 0)} of the {size} bytes that the restart file knows of: put it "
                "back, or start over with --fresh"
            )
        os.truncate(self.path, size)
        self.size = size

    def write(self, text: str) -> None:
        """Append, and leave nothing of it behind after a failure."""
        data = text.encode()
        try:
            with open(self.path, "ab") as file:
                file.write(data)
        except BaseException:
            os.truncate(self.path, self.size)
            raise
        self.size += len(data)

    def sync(self) -> int:
        """See that all is on disk; its size."""
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
        return self.size


class XyzTrajectory(AppendedText):
    """Frames as extended XYZ."""

    def add(self, frame: Atoms) -> None:
        """One more frame."""
        text = io.StringIO()
        write(text, frame, format="extxyz")
        self.write(text.getvalue())


class AseTrajectory:
    """
    Frames in ASE's own format, in full precision.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0

    def start(self) -> None:
        """A new file without frames."""
        self.path.unlink(missing_ok=True)
        self.size = 0

    def resume(self, size: int) -> None:
        """
        Go on behind the first ``size`` frames.

        Raises:
            ValueError: for a file that has fewer, or is missing.
        """
        frames = self._read(size)
        if len(frames) < size:
            raise ValueError(
                f"{self.path} has {len(frames)} of the {size} frames that the restart file knows of: put it "
                "back, or start over with --fresh"
            )
        self.size = size
        if not size:
            return self.start()
        with replacing(self.path) as part:
            part.unlink()
            with TrajectoryWriter(part, "w") as kept:
                for frame in frames:
                    kept.write(frame)
        return None

    def _read(self, size: int) -> list[Atoms]:
        """Up to ``size`` frames of the file."""
        if not size or not self.path.is_file():
            return []
        with TrajectoryReader(self.path) as found:
            frames: list[Any] = [found[i] for i in range(min(size, len(found)))]
        return frames

    def add(self, frame: Atoms) -> None:
        """One more frame."""
        with TrajectoryWriter(self.path, "a" if self.size else "w") as file:
            file.write(frame)
        self.size += 1

    def sync(self) -> int:
        """See that all is on disk; the number of frames."""
        if self.path.is_file():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())
        return self.size


def open_trajectory(path: Path) -> XyzTrajectory | AseTrajectory:
    """The trajectory by its suffix."""
    return AseTrajectory(path) if path.suffix == ".traj" else XyzTrajectory(path)


class Log(AppendedText):
    """Rows of numbers as CSV, one column for each of `COLUMNS`; empty where there is no such number."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.columns = list(COLUMNS)

    def start(self, text: str = "") -> None:
        """A new file with the header."""
        self.columns = list(COLUMNS)
        super().start(_line(_HEADER) + text)

    def resume(self, size: int) -> None:
        """Go on behind the first ``size`` bytes, with the file's columns: an older one may have fewer."""
        super().resume(size)
        with open(self.path, newline="") as file:
            self.columns = _names(next(csv.reader(file)))

    def add(self, row: Mapping[str, Any]) -> None:
        """One more row."""
        self.write(_line(["" if row.get(name) is None else repr(row[name]) for name in self.columns]))


def _line(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _names(header: list[str]) -> list[str]:
    return [name.split(" (")[0] for name in header]


def read_log(path: Path) -> dict[str, np.ndarray]:
    """Columns of a log by name, NaN where a row has nothing."""
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    names = _names(header)
    table = np.array([[float(cell) if cell else np.nan for cell in row] for row in rows])
    table = table.reshape(len(rows), len(names))
    return {name: table[:, i] for i, name in enumerate(names)}
