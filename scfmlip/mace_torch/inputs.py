"""
A system's inputs besides its atoms: the keys under which frames hold them, and their checks.

All interfaces (ASE, evaluate, training, plots) read ``atoms.info`` through this table, so a file means the
same everywhere. Names are case-insensitive and may start with ``REF_``. ``charge`` is the name of the total
charge in scfmlip and mace-torch's calculator, ``total_charge`` the one in mace_run_train.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms


@dataclasses.dataclass(frozen=True)
class Input:
    """
    One input of a model.

    Attributes:
        names: Keys in ``atoms.info``, our own first.
        meaning: Description with unit, for messages.
        example: An example value.
        size: Number of components.
        labelled: Whether ``REF_`` marks a label, which is used as input only if there is no input.
    """

    names: tuple[str, ...]
    meaning: str
    example: Any
    size: int = 1
    labelled: bool = False


# keyed by mace-torch's name in the batch
INPUTS = {
    "total_charge": Input(
        ("charge", "total_charge", "net_charge", "tot_charge", "overall_charge"), "total charge (e)", 0
    ),
    "total_spin": Input(
        ("spin", "total_spin", "multiplicity", "spin_multiplicity"), "spin multiplicity 2S+1", 1
    ),
    "external_field": Input(
        ("external_field",), "external field (V/angstrom, energy + field . dipole)", [0, 0, 0.1], 3
    ),
    "fermi_level": Input(("fermi_level",), "the electrons' Fermi level (eV)", -4.5, labelled=True),
    "head": Input(("head",), "head of the model", "Default"),
}
# charges outside the model
EXTERNAL = ("external_charges", "external_positions")
_BY_NAME = {name: which for which, given in INPUTS.items() for name in given.names}
# largest difference between two values of one number, because files hold few digits
_SAME = 1e-4


def input_of(key: Any) -> str | None:
    """The batch's name of the input that a key of ``atoms.info`` holds; None if it holds no input."""
    return _BY_NAME.get(key.lower().removeprefix("ref_")) if isinstance(key, str) else None


def changes_energy(key: Any) -> bool:
    """Whether models read a key of ``atoms.info``."""
    return input_of(key) is not None or key in (*EXTERNAL, "counter_charge")


def number(value: Any, what: str) -> float:
    """
    Convert a value, or an array with one element, to a finite number.

    Raises:
        ValueError: for anything else, including strings and booleans; names ``what``.
    """
    array = np.asarray(value)
    given = array.item() if array.size == 1 else None
    if isinstance(given, Real) and not isinstance(given, bool) and math.isfinite(given):
        return float(given)
    raise ValueError(f"{what} must be a number, got {value!r}")


def _value(which: str, value: Any, what: str) -> Any:
    """One input as a number, a list of numbers or a name."""
    if which == "head":
        return str(value)
    if INPUTS[which].size == 1:
        return number(value, what)
    found = np.asarray(value)
    found = found.astype(float) if found.dtype.kind in "iuf" else np.array(np.nan)
    if found.size == 1:  # along z
        found = np.array([0.0, 0.0, found.item()])
    if found.shape != (INPUTS[which].size,) or not np.isfinite(found).all():
        raise ValueError(f"{what} must be {INPUTS[which].size} numbers, or one along z, got {value!r}")
    return found


def _keys(info: Mapping[str, Any], which: str, labels: bool = True) -> list[str]:
    """The keys of ``info`` that hold an input."""
    found = [key for key in info if input_of(key) == which and info[key] is not None]
    plain = [key for key in found if not key.lower().startswith("ref_")]
    return plain if INPUTS[which].labelled and (plain or not labels) else found


def read_input(info: Mapping[str, Any], which: str, key: str | None = None) -> Any:
    """
    Read one input of a frame.

    Args:
        info: ``atoms.info``.
        which: Name of the input in `INPUTS`.
        key: The only key to read; None for all of its usual names.

    Returns:
        A number, an array of three for fields, or a name for heads; None if the frame has none.

    Raises:
        ValueError: for a value that is not a number, names that contradict each other, or a usual name if
            ``key`` is missing.

    Example:
        >>> read_input({"total_charge": -1}, "total_charge")
        -1.0
        >>> read_input({"charge": 0, "total_charge": -1}, "total_charge")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: atoms.info['charge'] = 0.0 and atoms.info['total_charge'] = -1.0 are both the total ...
    """
    usual = _keys(info, which)
    found = usual if key is None else [name for name in (key,) if info.get(name) is not None]
    if not found:
        if usual:
            raise ValueError(
                f"atoms.info holds {usual[0]!r} but not {key!r}, which was named as the key of the "
                f"{INPUTS[which].meaning}: rename it, or leave that option out"
            )
        return None
    values = [_value(which, info[name], f"atoms.info[{name!r}]") for name in found]
    for name, value in zip(found[1:], values[1:], strict=True):
        same = value == values[0] if which == "head" else np.allclose(value, values[0], rtol=0, atol=_SAME)
        if not same:
            raise ValueError(
                f"atoms.info[{found[0]!r}] = {values[0]} and atoms.info[{name!r}] = {value} are both the "
                f"{INPUTS[which].meaning}: remove one of them"
            )
    return values[0]


def read_inputs(atoms: Atoms, where: str = "the frame", spin: bool = True) -> dict[str, Any]:
    """
    Read all inputs of a frame except the head, by the batch's names; the multiplicity only if ``spin``.

    Raises:
        ValueError: as in `read_input`; names ``where``.
    """
    names = [which for which in INPUTS if which != "head" and (spin or which != "total_spin")]
    try:
        found = {which: read_input(atoms.info, which) for which in names}
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return {which: value for which, value in found.items() if value is not None}


def read_embedded(atoms: Atoms, specs: Mapping[str, Any], where: str = "the frame") -> dict[str, Any]:
    """
    Read the additional inputs that a mace-torch model embeds.

    Args:
        atoms: The frame.
        specs: mace-torch's ``embedding_specs``, by the batch's names.
        where: Name of the frame in messages.

    Returns:
        Numbers for the system and arrays ``[n_atoms, n]`` for atoms, by the batch's names.

    Raises:
        ValueError: for a value that is missing or not a number.
    """
    found = {}
    for name, spec in specs.items():
        if name in INPUTS:
            continue
        key, per_atom = spec.get("key", name), spec.get("per") == "atom"
        value = (atoms.arrays if per_atom else atoms.info).get(key)
        store = "arrays" if per_atom else "info"
        if value is None:
            raise ValueError(f"{where} lacks atoms.{store}[{key!r}], which this model's energy depends on")
        if per_atom:
            found[name] = np.asarray(value, dtype=float).reshape(len(atoms), -1)
        else:
            found[name] = number(value, f"{where}: atoms.info[{key!r}]")
    return found


def set_default(atoms: Atoms, which: str, value: Any) -> None:
    """Set an input of a frame unless the frame has it under any of its names; None changes nothing."""
    if value is not None and not _keys(atoms.info, which, labels=False):
        atoms.info[INPUTS[which].names[0]] = value


def similar_keys(info: Mapping[str, Any], name: str) -> list[str]:
    """Numeric keys that look like the input "charge" or "spin" but are not read."""
    words = {"charge": ("charge",), "spin": ("spin", "mult")}.get(name, ())
    return [
        key
        for key, value in info.items()
        if input_of(key) is None
        and not key.startswith(("config_", "scfmlip_", "input_"))
        and any(word in key.lower() for word in words)
        and isinstance(value, Real)
    ]


def check_spin(atoms: Atoms, charge: float, spin: float, where: str) -> None:
    """
    Refuse a multiplicity that is impossible for the number of electrons.

    Periodic systems are not checked against the number of electrons: a metal has no multiplicity.

    Raises:
        ValueError: for a multiplicity that is not 1, 2, 3, ..., or, in a molecule of integer charge, does
            not match the number of electrons.
    """
    if spin < 1 or spin != round(spin):
        raise ValueError(
            f"{where}: the spin multiplicity is 2S+1, one more than the number of unpaired electrons: 1, 2, "
            f"3, ...; got {spin:g}"
        )
    if charge != round(charge) or atoms.pbc.any():
        return
    electrons, unpaired = int(atoms.numbers.sum()) - round(charge), round(spin) - 1
    if (electrons - unpaired) % 2 or unpaired > electrons:
        fits = [n + 1 for n in range(electrons % 2, max(electrons, 0) + 1, 2)][:3]
        raise ValueError(
            f"{where}: {electrons} electrons (charge {charge:g}) cannot have the spin multiplicity {spin:g} "
            f"(2S+1, with {unpaired} unpaired electrons); they can have "
            f"{', '.join(map(str, fits)) or 'none'}{', ...' if fits[2:] else ''}"
        )


def resolve_head(heads: Sequence[str], chosen: str | None, info: Mapping[str, Any] | None = None) -> str:
    """
    Choose the head that evaluates a frame.

    Args:
        heads: Heads of the model.
        chosen: The user's argument, which has priority, as in mace-torch.
        info: ``atoms.info``, whose ``head`` is next; then the only head, or the one named "default".

    Raises:
        ValueError: for a head that the model does not have, or if there are several and none is chosen.

    Example:
        >>> resolve_head(["Default"], None)
        'Default'
        >>> resolve_head(["pbe", "scan"], None, {"head": "scan"})
        'scan'
    """
    found = chosen if chosen is not None or info is None else read_input(info, "head")
    if found is None:
        usual = [name for name in heads if len(heads) == 1 or name.lower() == "default"]
        if usual:
            return usual[0]
        raise ValueError(
            f"the model has the heads {', '.join(map(repr, heads))}: choose one by the argument head, or by "
            "atoms.info['head'] for each frame"
        )
    if found not in heads:
        near = difflib.get_close_matches(str(found).lower(), [name.lower() for name in heads], 1)
        hint = next((f"; did you mean {name!r}?" for name in heads if name.lower() in near), "")
        source = "" if chosen is not None else " (atoms.info['head'])"
        raise ValueError(
            f"the model has no head {found!r}{source}; it has {', '.join(map(repr, heads))}{hint}"
        )
    return found
