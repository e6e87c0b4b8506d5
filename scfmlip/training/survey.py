"""What files of structures hold: elements, periodicity, and which key is which label."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from ase import Atoms

from ..mace_torch.inputs import EXTERNAL, input_of, read_input, similar_keys
from .frames import PROPERTIES, is_isolated, iterate

# of each label: what its key looks like (without REF_), and its shape for n atoms
_LOOKS: dict[str, tuple[str, Callable[[int], list[tuple[int, ...]]]]] = {
    "energy": (r"(^|_)(total_)?energy(_ev)?$|^e_?(dft|tot|total)$", lambda n: [()]),
    "forces": (r"forces?(_|$)", lambda n: [(n, 3)]),
    "stress": (r"stress", lambda n: [(3, 3), (6,), (9,)]),
    "charges": (r"charges?$|hirshfeld|mulliken|bader|ddec|cm5|mbis|resp$", lambda n: [(n,)]),
    "density_coefficients": (r"multipole|density_coefficients", lambda n: [(n, 4), (n, 9)]),
    "dipole": (r"dipole", lambda n: [(3,)]),
    "potential": (r"potential", lambda n: [(n,)]),
    "fermi_level": (r"fermi", lambda n: [()]),
}
# what looks like a label and is none
_NEVER = re.compile(
    r"^config_|^scfmlip_|^input_|weight|spin|initial_|magmom|(atomization|interaction|cohesive|free)_energy"
)
_KINDS = {0: "molecule", 1: "wire", 2: "slab", 3: "crystal"}


@dataclasses.dataclass
class Label:
    """
    A label that frames hold.

    Attributes:
        key: Its key.
        count: Frames that have it.
        low, high: Smallest and largest number.
        others: Further keys that look like it.
    """

    key: str
    count: int = 0
    low: float = np.inf
    high: float = -np.inf
    others: tuple[str, ...] = ()


@dataclasses.dataclass
class Survey:
    """
    What frames hold.

    Attributes:
        frames: How many.
        atoms: Fewest and most of a frame.
        elements: Atoms of each element, by symbol.
        kinds: Frames that are molecules, wires, slabs, crystals.
        labels: By the names of `frames.PROPERTIES`.
        total_charges: Frames of each total charge, e; those without one are not counted.
        spins: Frames of each multiplicity.
        fields: Frames in an external field.
        heads: Frames of each head.
        external: Frames with charges outside the model.
        isolated: Elements with a reference atom (``config_type=IsolatedAtom``).
        lone: Elements of single atoms that do not say that they are reference atoms.
        charge_of: Mean of the absolute charge label of each element, e.
        charge_gap: Largest difference between the sum of a frame's charge labels and its total charge, e.
        similar: Keys that look like a total charge or a multiplicity and are not read.
        notes: What else there is to say.
    """

    frames: int = 0
    atoms: tuple[int, int] = (0, 0)
    elements: dict[str, int] = dataclasses.field(default_factory=dict)
    kinds: Counter[str] = dataclasses.field(default_factory=Counter)
    labels: dict[str, Label] = dataclasses.field(default_factory=dict)
    total_charges: Counter[float] = dataclasses.field(default_factory=Counter)
    spins: Counter[float] = dataclasses.field(default_factory=Counter)
    fields: int = 0
    heads: Counter[str] = dataclasses.field(default_factory=Counter)
    external: int = 0
    isolated: list[str] = dataclasses.field(default_factory=list)
    lone: list[str] = dataclasses.field(default_factory=list)
    charge_of: dict[str, float] = dataclasses.field(default_factory=dict)
    charge_gap: float = 0.0
    similar: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


def _values(atoms: Atoms) -> Iterator[tuple[str, Any]]:
    """Everything a frame holds beside atoms and cell; its own values come before results of the same name."""
    results = atoms.calc.results if atoms.calc is not None else {}
    found = {**results, **atoms.info, **atoms.arrays}
    for key, value in found.items():
        if isinstance(key, str) and key not in ("numbers", "positions"):
            yield key, value


def _numbers(value: Any) -> np.ndarray | None:
    """As floats; None for what is no number."""
    array = np.asarray(value)
    return array.astype(float) if array.dtype.kind in "iuf" else None


def _rank(key: str, name: str) -> tuple[int, str]:
    """What is taken first: the training's own name, that of ASE, with REF_, anything else."""
    own = {"REF_" + name, f"REF_{PROPERTIES[name][0].removesuffix('_key')}"}
    order = [key in own, key == name, key.startswith("REF_")]
    return next((i for i, is_it in enumerate(order) if is_it), len(order)), key


def _candidates(frames: Sequence[Atoms]) -> dict[str, Counter[str]]:
    """Keys that look like each label and hold numbers of its shape, with the frames that have them."""
    found: dict[str, Counter[str]] = {name: Counter() for name in _LOOKS}
    for atoms in iterate(frames):
        for key, value in _values(atoms):
            if _NEVER.search(key.lower()) or input_of(key) not in (None, "fermi_level") or key in EXTERNAL:
                continue
            array = _numbers(value)
            for name, (pattern, shapes) in _LOOKS.items():
                plain = key.lower().removeprefix("ref_")
                if array is not None and array.shape in shapes(len(atoms)) and re.search(pattern, plain):
                    found[name][key] += 1
                    break
    return found


def _look_at_inputs(found: Survey, atoms: Atoms, where: str) -> None:
    """Counts what a frame says of its charge, multiplicity, field and head."""
    try:
        charge = read_input(atoms.info, "total_charge")
        field, head = read_input(atoms.info, "external_field"), read_input(atoms.info, "head")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    try:
        spin = read_input(atoms.info, "total_spin")
    except ValueError:  # a multiplicity may be anything where the model does not ask for it
        spin = None
    if charge is not None:
        found.total_charges[charge] += 1
    else:
        for name in similar_keys(atoms.info, "charge"):
            found.similar.setdefault("total_charge", []).append(name)
    if spin is not None:
        found.spins[spin] += 1
    found.fields += field is not None and bool(np.any(field))
    found.external += atoms.info.get(EXTERNAL[0]) is not None
    if head is not None:
        found.heads[head] += 1


def find_labels(frames: Sequence[Atoms]) -> dict[str, Label]:
    """The key of each label, by the names of `frames.PROPERTIES`: the training's own first, then ASE's."""
    labels = {}
    for name, keys in _candidates(frames).items():
        if keys:
            first, *others = sorted(keys, key=lambda key: _rank(key, name))
            labels[name] = Label(first, keys[first], others=tuple(others))
    return labels


def survey(frames: Sequence[Atoms], names: Sequence[str]) -> Survey:
    """
    Look at every frame.

    Args:
        frames: The frames.
        names: Of the frames, for messages.

    Raises:
        ValueError: for a charge, field or head that is no number or contradicts itself; names the frame.
    """
    found = Survey(frames=len(frames), labels=find_labels(frames))
    sizes: list[int] = []
    elements: Counter[str] = Counter()
    moved: dict[str, list[float]] = {}
    for atoms, where in zip(iterate(frames), names, strict=True):
        sizes.append(len(atoms))
        symbols = atoms.get_chemical_symbols()
        elements.update(symbols)
        found.kinds[_KINDS[int(atoms.pbc.sum())]] += 1
        if is_isolated(atoms):
            found.isolated.append(symbols[0])
        elif len(atoms) == 1:
            found.lone.append(symbols[0])
        _look_at_inputs(found, atoms, where)
        values = dict(_values(atoms))
        for label in found.labels.values():
            array = _numbers(values[label.key]) if label.key in values else None
            if array is not None and array.size:
                label.low, label.high = min(label.low, array.min()), max(label.high, array.max())
        charges = found.labels.get("charges")
        row = None if charges is None else _numbers(values.get(charges.key))
        if row is not None and row.shape == (len(atoms),):
            total = read_input(atoms.info, "total_charge") or 0.0
            found.charge_gap = max(found.charge_gap, abs(float(row.sum()) - total))
            for symbol, q in zip(symbols, np.abs(row), strict=True):
                moved.setdefault(symbol, []).append(float(q))
    found.atoms = (min(sizes, default=0), max(sizes, default=0))
    found.elements = dict(elements.most_common())
    found.charge_of = {symbol: float(np.mean(values)) for symbol, values in moved.items()}
    found.similar = {name: sorted(set(keys)) for name, keys in found.similar.items()}
    return found
