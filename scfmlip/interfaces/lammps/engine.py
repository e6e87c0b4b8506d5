"""What is asked of a LAMMPS instance, and what has to be so in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# bits of a neighbour's number that say which bond it belongs to
_MASK = 0x1FFFFFFF
# of the atomic mass, relative, that a mass in LAMMPS may differ from
_MASS = 0.03
FIX = "scfmlip"
STATE = "scfmlip_state"


@dataclass(frozen=True)
class Box:
    """
    The simulation box.

    Attributes:
        cell: ``[3, 3]`` angstrom, rows are lattice vectors.
        pbc: ``[3]`` bool.
    """

    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]


@dataclass(frozen=True)
class Atoms:
    """
    Own atoms of this rank and LAMMPS's ghosts behind them.

    Attributes:
        n_owned: Own atoms.
        ids: ``[n]`` int64.
        types: ``[n]`` int64, from 1.
        positions: ``[n, 3]`` angstrom.
    """

    n_owned: int
    ids: NDArray[np.int64]
    types: NDArray[np.int64]
    positions: NDArray[np.float64]


class Engine:
    """
    A LAMMPS instance with a box.

    Args:
        lmp: A ``lammps.lammps``.

    Raises:
        TypeError: for something else.
        ValueError: for other units than metal, or no box yet.
    """

    def __init__(self, lmp: Any) -> None:
        if not hasattr(lmp, "set_fix_external_callback"):
            raise TypeError(f"attach takes a lammps.lammps instance, got {type(lmp).__name__}")
        self.lmp = lmp
        units = lmp.extract_global("units")
        if units != "metal":
            raise ValueError(
                f"LAMMPS runs in units {units}: models are in eV and angstrom. Write 'units metal' at the "
                "start of the input"
            )
        if not lmp.extract_setting("box_exist"):
            raise ValueError(
                "LAMMPS has no simulation box yet: attach the model after create_box, read_data or "
                "read_restart"
            )
        self.n_types = int(lmp.extract_setting("ntypes"))

    def set_pair_style(self, cutoff: float) -> None:
        """
        Neighbours within the model's cutoff, and no forces of LAMMPS's own.

        Raises:
            ValueError: for a pair style that would add its forces to the model's.
        """
        style = self.lmp.extract_global("pair_style")
        if style not in (None, "none", "zero"):
            raise ValueError(
                f"LAMMPS has pair_style {style}, whose forces would be added to the model's: remove it, or "
                "write pair_style zero"
            )
        self.lmp.command(f"pair_style zero {cutoff!r} full")
        self.lmp.command("pair_coeff * *")

    def elements_of_types(self, given: Sequence[str] | None, known: Sequence[int]) -> list[int]:
        """
        The model's number of each type's element.

        Args:
            given: Symbols in the order of the types; recognised by the masses if None.
            known: Atomic numbers of the model.

        Raises:
            ValueError: for types that have no element, or another mass than theirs.
        """
        from ase.data import atomic_masses, atomic_numbers, chemical_symbols

        masses = self.lmp.numpy.extract_atom("mass")
        masses = None if masses is None else [float(m) for m in masses[1 : self.n_types + 1]]
        names = [chemical_symbols[z] for z in known]
        if given is None:
            if masses is None:
                raise ValueError(f"say which elements the {self.n_types} atom types are: elements=[...]")
            given = []
            for kind, mass in enumerate(masses, 1):
                fits = [s for s, z in zip(names, known, strict=True) if _near(mass, atomic_masses[z])]
                if len(fits) != 1:
                    raise ValueError(
                        f"atom type {kind} has the mass {mass:g}, which is that of {len(fits)} elements of "
                        f"the model ({', '.join(names)}): say which elements the types are, elements=[...]"
                    )
                given.append(fits[0])
        if len(given) != self.n_types:
            raise ValueError(
                f"LAMMPS has {self.n_types} atom types, elements names {len(given)}: {list(given)}"
            )
        found = []
        for kind, symbol in enumerate(given, 1):
            if symbol not in names:
                raise ValueError(
                    f"atom type {kind} is {symbol}, which the model was not made for; it knows "
                    f"{', '.join(names)}"
                )
            mass = None if masses is None else masses[kind - 1]
            if mass and not _near(mass, atomic_masses[atomic_numbers[symbol]], 0.5):
                raise ValueError(
                    f"atom type {kind} has the mass {mass:g}, but {symbol} has "
                    f"{atomic_masses[atomic_numbers[symbol]]:g}: are the elements in the order of the types?"
                )
            found.append(names.index(symbol))
        return found

    def box(self) -> Box:
        """The box as it is."""
        low, high, xy, yz, xz, periodic, _ = self.lmp.extract_box()
        x, y, z = np.subtract(high, low)
        cell = np.array([[x, 0.0, 0.0], [xy, y, 0.0], [xz, yz, z]])
        return Box(cell, np.array(periodic, dtype=bool))

    def atoms(self) -> Atoms:
        """Copies of what is known of own atoms and ghosts."""
        n_owned = int(self.lmp.extract_setting("nlocal"))
        n = n_owned + int(self.lmp.extract_setting("nghost"))
        read = self.lmp.numpy.extract_atom
        if n == 0:
            empty = np.zeros(0, dtype=np.int64)
            return Atoms(0, empty, empty, np.zeros((0, 3)))
        return Atoms(
            n_owned,
            np.array(read("id", nelem=n), dtype=np.int64),
            np.array(read("type", nelem=n), dtype=np.int64),
            np.array(read("x", nelem=n), dtype=float),
        )

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Own atoms and their neighbours, skin included, ``[n_pairs]`` each, numbers as in `atoms`."""
        number = self.lmp.find_pair_neighlist("zero")
        if number < 0:
            raise RuntimeError("LAMMPS has no neighbour list of pair_style zero: was pair_style changed?")
        listed = self.lmp.numpy.get_neighlist(number)
        first, second = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for i in range(listed.size):
            atom, near = listed.get(i)
            first.append(np.full(len(near), atom, dtype=np.int64))
            second.append(np.asarray(near, dtype=np.int64) & _MASK)
        return np.concatenate(first), np.concatenate(second)

    def builds(self) -> int:
        """How often LAMMPS has made neighbour lists in this run."""
        return int(self.lmp.get_thermo("nbuild"))

    def per_atom(self, name: str, n_owned: int) -> NDArray[np.float64] | None:
        """LAMMPS's own array of an atom property, to read and write; None without atoms."""
        return None if n_owned == 0 else self.lmp.numpy.extract_atom(name)[:n_owned]


def _near(mass: float, wanted: float, relative: float = _MASS) -> bool:
    return abs(mass - wanted) <= relative * wanted
