"""The four sets, what of them is held back, and how each is trained."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write

from scfmlip.files import write_text

ROOT = Path(__file__).parents[2]
OURS = Path(__file__).parent / "data"
FOREIGN = ROOT.parent / "shared" / "data"


@dataclasses.dataclass(frozen=True)
class Set:
    """
    Frames that compare rules.

    Attributes:
        name, title: In files and in text.
        file: Of the frames.
        foreign: Whether it lies beside the project, not in it.
        keys: Data options of `scfmlip.training`.
        part: Of a frame: "train", the name of an extrapolation test, or "by lot": a tenth for validation, a
            quarter to test, the rest to train on.
        charges: Formal charge of each element, e, for the rules that start from them.
        hardness: To start from, V/e: where no charge should pass between atoms, stiff.
        sigma: Width of the Gaussians, angstrom.
        loss: Weights.
        charge_epochs: Of a first stage with the charges alone, by rules that are trained on them.
        epochs: Of each stage with everything, and the learning rate it starts from.
        batch_size: Frames of a step.
    """

    name: str
    title: str
    file: str
    foreign: bool
    keys: dict[str, Any]
    part: Callable[[Atoms], str]
    charges: dict[str, float]
    hardness: dict[str, float]
    sigma: float
    loss: dict[str, float]
    charge_epochs: int
    epochs: tuple[tuple[int, float], ...]
    batch_size: int

    def path(self, foreign: Path) -> Path:
        """Where its file is."""
        return (foreign if self.foreign else OURS) / self.file


def _by_lot(atoms: Atoms) -> str:
    return "by lot"


def _al_water(atoms: Atoms) -> str:
    kind = atoms.info["config_type"]
    if "efield" in kind:
        return "field"
    if kind.startswith("probe") and atoms.info["probe_height"] == 4.0:
        return "probe"
    return "by lot" if kind == "al_water_md" else "train"


def _sio2(atoms: Atoms) -> str:
    return "unseen charge" if atoms.info["total_charge"] == 1 else "by lot"


_FOREIGN_KEYS = {"energy_key": "energy", "forces_key": "forces", "charges_key": "charges"}
_OWN_KEYS = {"charges_key": "REF_hirshfeld", "total_spin_key": "multiplicity"}
_LOSS = {"energy": 100.0, "forces": 1.0, "charges": 1000.0}

SETS = {
    s.name: s
    for s in (
        Set(
            name="au2_mgo",
            title="Au2 on MgO(001), with and without Al far below",
            file="au2_mgo.xyz",
            foreign=True,
            keys=_FOREIGN_KEYS,
            part=_by_lot,
            charges={"O": -2.0, "Mg": 2.0, "Al": 3.0, "Au": 0.0},
            hardness={"O": 1000.0, "Mg": 1000.0, "Al": 1000.0, "Au": 5.0},
            sigma=1.2,
            loss=_LOSS,
            charge_epochs=100,
            epochs=((30, 0.01), (60, 0.005)),
            batch_size=2,
        ),
        Set(
            name="carbon_chains",
            title="C10H2 and C10H3+",
            file="carbon_chains.xyz",
            foreign=True,
            keys=_FOREIGN_KEYS,
            part=_by_lot,
            charges={"H": 1.0, "C": -0.2},
            hardness={"H": 20.0, "C": 20.0},
            sigma=1.0,
            loss=_LOSS,
            charge_epochs=60,
            epochs=((80, 0.01),),
            batch_size=8,
        ),
        Set(
            name="al_water",
            title="water on Al(100)",
            file="al_water.xyz",
            foreign=False,
            keys=_OWN_KEYS | {"fermi_key": "REF_fermi_eV"},
            part=_al_water,
            charges={"H": 1.0, "O": -2.0, "Al": 0.0},
            hardness={"H": 200.0, "O": 200.0, "Al": 10.0},
            sigma=1.5,
            loss=_LOSS | {"dipole": 1.0},
            charge_epochs=30,
            epochs=((80, 0.01),),
            batch_size=4,
        ),
        Set(
            name="sio2_vacancy",
            title="oxygen vacancies of charge 0, +1, +2 in quartz",
            file="sio2_vacancy.xyz",
            foreign=False,
            keys=_OWN_KEYS,
            part=_sio2,
            charges={"O": -2.0, "Si": 4.0},
            hardness={"O": 200.0, "Si": 200.0},
            sigma=1.2,
            loss=_LOSS,
            charge_epochs=60,
            epochs=((300, 0.01),),
            batch_size=4,
        ),
    )
}


def split(which: Set, foreign: Path = FOREIGN) -> dict[str, list[Atoms]]:
    """
    Frames of every part.

    Raises:
        FileNotFoundError: where the set is not there.
    """
    path = which.path(foreign)
    if not path.is_file():
        raise FileNotFoundError(f"{which.name}: there is no {path}; --data says where foreign sets are")
    parts: dict[str, list[Atoms]] = {"train": [], "valid": [], "test": []}
    frames = read(path, ":")
    assert isinstance(frames, list)
    drawn = []
    for atoms in frames:
        part = which.part(atoms)
        (drawn if part == "by lot" else parts.setdefault(part, [])).append(atoms)
    order = np.random.default_rng(11).permutation(len(drawn))
    ends = [round(0.1 * len(drawn)), round(0.35 * len(drawn))]
    for part, chosen in zip(("valid", "test", "train"), np.split(order, ends), strict=True):
        parts[part] += [drawn[i] for i in sorted(chosen)]
    return parts


def write_parts(which: Set, folder: Path, foreign: Path = FOREIGN) -> dict[str, list[Atoms]]:
    """
    Frames of every part, those to train with also as files in ``folder``.

    Raises:
        ValueError: if the folder holds another split, which trainings there have begun with.
    """
    parts = split(which, foreign)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "valid", "test"):
        path, text = folder / f"{name}.xyz", io.StringIO()
        write(text, parts[name], format="extxyz")
        if path.exists() and path.read_text() != text.getvalue():
            raise ValueError(f"{path} holds other frames: remove {folder}, or choose another --work")
        write_text(path, text.getvalue())
    return parts
