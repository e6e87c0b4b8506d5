"""Read frames, and find their labels under the user's keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ..mace_torch.inputs import EXTERNAL, INPUTS, read_input
from ..structures import FileError, read_structures
from .config import DataConfig

_DEFAULTS = DataConfig(train=("",))
# by mace's name of a property: (option that sets its key, "info" or "arrays")
PROPERTIES = {
    "energy": ("energy_key", "info"),
    "forces": ("forces_key", "arrays"),
    "stress": ("stress_key", "info"),
    "charges": ("charges_key", "arrays"),
    "density_coefficients": ("multipoles_key", "arrays"),
    "dipole": ("dipole_key", "info"),
    "potential": ("potential_key", "arrays"),
    "fermi_level": ("fermi_key", "info"),
    "total_charge": ("total_charge_key", "info"),
    "total_spin": ("total_spin_key", "info"),
    "external_field": ("field_key", "info"),
    "head": ("head_key", "info"),
}


class Hdf5Frames(Sequence[Atoms]):
    """
    Frames of a file that mace_prepare_data wrote, read one by one.

    Properties appear under the keys in ``keys``, so that both kinds of files look the same.
    """

    def __init__(self, path: Path, keys: DataConfig) -> None:
        self.path, self.keys = path, keys
        self._file: Any = None
        with self._open() as file:
            self.names = [
                f"{batch}/{frame}"
                for batch in sorted(file, key=_trailing_number)
                for frame in sorted(file[batch], key=_trailing_number)
            ]

    def _open(self) -> Any:
        try:
            import h5py
        except ModuleNotFoundError:
            raise ImportError(f"reading {self.path} needs h5py: pip install 'scfmlip[train]'") from None
        return h5py.File(self.path, "r")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}  # an open file cannot be sent to another process

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Atoms:  # type: ignore[override]
        self._file = self._file or self._open()
        try:
            return self._read(self.names[index])
        except KeyError as error:
            raise FileError(f"{self.path} lacks a part of {self.names[index]}: {error}") from error

    def _read(self, name: str) -> Atoms:
        group = self._file[name]
        cell, pbc = _value(group["cell"]), _value(group["pbc"])
        if pbc is not None and not np.isin(pbc, (0, 1)).all():
            raise ValueError(f"{self.path} has pbc={np.asarray(pbc).tolist()} in {name}: T or F only")
        atoms = Atoms(
            group["atomic_numbers"][()],
            group["positions"][()],
            cell=cell,
            pbc=False if pbc is None else pbc,
        )
        for label, stored in group["properties"].items():
            value = _value(stored)
            if value is None:
                continue
            option, where = PROPERTIES.get(label, (None, "info"))
            getattr(atoms, where)[label if option is None else getattr(self.keys, option)] = value
        for label, stored in group.get("property_weights", {}).items():
            atoms.info[f"config_{label}_weight"] = _value(stored)
        head = _value(group["head"]) if "head" in group else None
        if head not in (None, "Default"):  # mace writes "Default" for no head
            atoms.info.setdefault(self.keys.head_key, head)
        if "weight" in group:
            atoms.info["config_weight"] = _value(group["weight"])
        if "config_type" in group:
            atoms.info["config_type"] = _value(group["config_type"])
        return atoms


def _trailing_number(name: str) -> int:
    return int(name.rsplit("_", 1)[-1])


def _value(stored: Any) -> Any:
    """A stored value; mace writes None as a string."""
    value = stored[()]
    value = value.decode() if isinstance(value, bytes) else value
    return None if isinstance(value, str) and value == "None" else value


def read_frames(path: str | Path, keys: DataConfig, what: str = "data.train") -> Sequence[Atoms]:
    """
    Read the frames of a file.

    Args:
        path: HDF5 as mace_prepare_data writes it (``.h5``, ``.hdf5``), or any file that ASE reads.
        keys: Keys of the labels.
        what: The option that gave the file, for messages.

    Raises:
        FileNotFoundError: if there is no such file.
        FileError: if the file cannot be read, or holds no frames.
    """
    path = Path(path)
    if path.suffix not in (".h5", ".hdf5"):
        return read_structures(path, what=what)
    if not path.is_file():
        raise FileNotFoundError(f"{what}: there is no file {path}")
    try:
        frames = Hdf5Frames(path, keys)
    except (OSError, ValueError, TypeError) as error:  # not HDF5, or without mace's groups
        raise FileError(
            f"{what}: {path} cannot be read as what mace_prepare_data writes: {type(error).__name__}: {error}"
        ) from error
    if not len(frames):
        raise FileError(f"{what}: {path} holds no frames")
    return frames


def find(atoms: Atoms, keys: DataConfig, name: str) -> Any:
    """
    A frame's value of one of `PROPERTIES`, or None.

    The value is under its key in info or arrays, or among ASE's results. Inputs of the model are found under
    all their usual names, unless the user set another key.

    Raises:
        ValueError: for an input that is not a number, or two that contradict each other.
    """
    option, where = PROPERTIES[name]
    key = getattr(keys, option)
    if name in INPUTS:
        # a label of that name has priority over an input without REF_
        named = key != getattr(_DEFAULTS, option) or (
            INPUTS[name].labelled and atoms.info.get(key) is not None
        )
        return read_input(atoms.info, name, key if named else None)
    store = atoms.info if where == "info" else atoms.arrays
    if key in store:
        return store[key]
    return None if atoms.calc is None else atoms.calc.results.get(key)


def counts(atoms: Atoms, keys: DataConfig, name: str) -> bool:
    """Whether a frame has a property that a model can be compared with, see `labelled`."""
    defined = name != "stress" or bool(atoms.pbc.all() and atoms.cell.rank == 3)
    return defined and find(atoms, keys, name) is not None


def labelled(atoms: Atoms, keys: DataConfig, spin: bool = True) -> Atoms:
    """
    The frame with its labels under mace's names and conventions; the multiplicity only if ``spin``.

    Fields are converted to mace's sign (energy + field.dipole). The dipole along a periodic direction is not
    an observable, so its component counts only if ``config_dipole_weight`` says so. A stress needs three
    periodic directions, because codes differ in the volume of a slab.

    Raises:
        ValueError: for a label of the wrong shape or one that is not finite, for inputs as in `find`, and for
            weights that are negative or not numbers.
    """
    frame = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    check_weights(atoms.info)
    for key, value in atoms.info.items():
        if (key.startswith("config_") and value is not None) or key in ("counter_charge", *EXTERNAL):
            frame.info[key] = value
    for name, (option, where) in PROPERTIES.items():
        if (name == "total_spin" and not spin) or not counts(atoms, keys, name):
            continue
        value = find(atoms, keys, name)
        if name == "head":
            frame.info[name] = value
            continue
        value = check_label(value, f"{getattr(keys, option)!r} (data.{option})", _SHAPES[name](len(atoms)))
        if name == "external_field" and keys.field_convention == "physical":
            value = -value
        if where == "info":
            frame.info[name] = value if value.ndim else float(value)
        else:
            frame.arrays[name] = value
    if "dipole" in frame.info and "config_dipole_weight" not in frame.info:
        periodic = np.asarray(atoms.cell)[np.asarray(atoms.pbc)]
        frame.info["config_dipole_weight"] = (np.abs(periodic).sum(0) < 1e-8).astype(float)
    return frame


def check_label(value: Any, what: str, shapes: Sequence[tuple[int, ...]] = ((),)) -> NDArray[np.float64]:
    """
    Convert a label to finite numbers and check its shape.

    Raises:
        ValueError: for anything else, including booleans; names ``what``.
    """
    found = np.asarray(value)
    try:
        found = np.asarray("x" if found.dtype == bool else value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{what} must be numbers, got {value!r}") from None
    if found.shape not in shapes:
        raise ValueError(
            f"{what} has shape {list(found.shape)}; it must be {' or '.join(str(list(s)) for s in shapes)}"
        )
    if not np.isfinite(found).all():
        raise ValueError(f"{what} is not finite")
    return found


def check_weights(info: Mapping[str, Any]) -> None:
    """
    Refuse weights of a frame that are negative or not numbers.

    Raises:
        ValueError: names the key.
    """
    for key, value in info.items():
        if not (key.startswith("config_") and key.endswith("weight")) or value is None:
            continue
        try:
            numbers = np.asarray(value, dtype=float)
        except (TypeError, ValueError):
            numbers = np.array(np.nan)
        size = {"config_dipole_weight": 3, "config_polarizability_weight": 9}.get(key, 1)
        good = (np.isfinite(numbers) & (numbers >= 0)).all() and numbers.size in (1, size)
        if not good or np.asarray(value).dtype == bool:
            raise ValueError(f"{key!r} must be a number >= 0, got {value!r}")


_SHAPES = {
    "energy": lambda n: [()],
    "forces": lambda n: [(n, 3)],
    "stress": lambda n: [(3, 3), (6,), (9,)],
    "charges": lambda n: [(n,)],
    "density_coefficients": lambda n: [(n, 4), (n, 1), (n, 9)],
    "dipole": lambda n: [(3,)],
    "potential": lambda n: [(n,)],
    "fermi_level": lambda n: [()],
    "total_charge": lambda n: [()],
    "total_spin": lambda n: [()],
    "external_field": lambda n: [(3,)],
}


def available_keys(frames: Iterable[Atoms]) -> str:
    """The keys that the frames hold, for messages."""
    info, arrays, results = set(), set(), set()
    for atoms in frames:
        info |= set(atoms.info)
        arrays |= set(atoms.arrays) - {"numbers", "positions"}
        results |= set(atoms.calc.results if atoms.calc is not None else ())
    return (
        f"the frames hold info: {', '.join(sorted(info)) or 'nothing'}; "
        f"arrays: {', '.join(sorted(arrays)) or 'nothing'}; "
        f"results: {', '.join(sorted(results)) or 'nothing'}"
    )


def iterate(frames: Sequence[Atoms]) -> Iterator[Atoms]:
    """Iterate over frames with one in memory at a time."""
    return (frames[i] for i in range(len(frames)))


def is_isolated(atoms: Atoms) -> bool:
    """Whether a frame is an isolated reference atom."""
    return len(atoms) == 1 and atoms.info.get("config_type") == "IsolatedAtom"
