"""Atoms and arguments of the ASE calculator that are spoilt: named errors, and nothing left behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from models.cases import make_model

from fuzz.calculator import (
    ANSWERS_FIELD,
    JUNK,
    MODELS,
    NAMES,
    QUICK,
    WIRES,
    calculator,
    evaluate,
    random_atoms,
    same,
)
from fuzz.outcomes import WrongError, check
from scfmlip.ase import Calculator


def _numbers(rng, atoms, name):
    atoms.numbers[rng.integers(len(atoms))] = rng.choice([0, 2, 79, 118, 119, 500, -1, -5])


def _positions(rng, atoms, name):
    atoms.positions[rng.integers(len(atoms)), rng.integers(3)] = rng.choice([np.nan, np.inf, -np.inf])


def _cell(rng, atoms, name):
    atoms.pbc = True
    if name == "recursion" or rng.random() < 0.5:
        atoms.cell = atoms.cell.array
    atoms.cell[rng.integers(3)] = [np.zeros(3), np.full(3, np.nan), atoms.cell[0] + atoms.cell[1]][
        rng.integers(2)
    ]


def _flat(rng, atoms, name):
    atoms.pbc = True
    atoms.cell[2] = atoms.cell[0] - 2 * atoms.cell[1]


def _overlap(rng, atoms, name):
    atoms.extend(atoms[:1])
    atoms.positions[-1] += rng.integers(-2, 3, 3) * atoms.pbc @ atoms.cell.array
    if "spin" in atoms.info:
        electrons = int(atoms.numbers.sum()) - round(atoms.info["charge"])
        atoms.info["spin"] = 1 + electrons % 2


def _nothing(rng, atoms, name):
    del atoms[:]


def _charge(rng, atoms, name):
    key = str(rng.choice(NAMES["charge"]))
    atoms.info.pop("charge", None)
    atoms.info[key] = JUNK[rng.integers(len(JUNK))]


def _spin(rng, atoms, name):
    if name != "recursion":
        return _charge(rng, atoms, name)
    key = str(rng.choice(NAMES["spin"]))
    good = atoms.info.pop("spin")
    whole = [good + 1, 99] if not atoms.pbc.any() and atoms.info["charge"] % 1 == 0 else []
    bad: list[Any] = [0, -1, 1.5, *whole, *JUNK]
    atoms.info[key] = bad[rng.integers(len(bad))]
    return None


def _missing(rng, atoms, name):
    keys = [k for k in ("charge", "spin", "fermi_level", "head") if k in atoms.info]
    if not keys:
        return _numbers(rng, atoms, name)
    key = str(rng.choice(keys))
    del atoms.info[key]
    if rng.random() < 0.5:
        atoms.info[key] = None
    if key == "charge" and rng.random() < 0.5:
        atoms.set_initial_charges(np.ones(len(atoms)))
    return None


def _contradiction(rng, atoms, name):
    first, second = rng.choice(NAMES["charge"], 2, replace=False)
    atoms.info.pop("charge", None)
    atoms.info |= {str(first): 0.0, str(second): 1.0}


def _field(rng, atoms, name):
    bad = [*JUNK[:-6], np.zeros(2), np.zeros((3, 3)), np.full(3, np.nan), ["a", "b", "c"], "0 0 0.1", True]
    atoms.info["external_field"] = bad[rng.integers(len(bad))]


def _field_along(rng, atoms, name):
    if name not in ANSWERS_FIELD:
        return _field(rng, atoms, name)
    atoms.pbc = True
    atoms.info["external_field"] = rng.normal(size=3)
    return None


def _head(rng, atoms, name):
    atoms.info["head"] = [*JUNK, "pbe", "A", 0, ["a"], "default"][rng.integers(len(JUNK) + 5)]


def _outside(rng, atoms, name):
    charges: list[Any] = [np.ones(2), [0.5], "x", np.full(1, np.nan), None, 1.0, [[1.0, 2.0]], object()]
    places: list[Any] = [
        np.full((2, 3), 50.0),
        None,
        "x",
        np.ones(3),
        np.full((1, 3), np.inf),
        np.ones((3, 2)),
    ]
    atoms.info["external_charges"] = charges[rng.integers(len(charges))]
    atoms.info["external_positions"] = places[rng.integers(len(places))]


def _counter(rng, atoms, name):
    bad: list[Any] = [*JUNK, (30.0, 20.0), (1.0, 1.0), (np.nan, 1.0), (1.0, 2.0, 3.0), "T"]
    atoms.info["counter_charge"] = bad[rng.integers(len(bad))]


def _level(rng, atoms, name):
    if name != "qeq_level":
        return _contradiction(rng, atoms, name)
    atoms.info["fermi_level"] = JUNK[rng.integers(len(JUNK))]
    return None


def _wire(rng, atoms, name):
    atoms.pbc = WIRES[rng.integers(3)]
    atoms.info.pop("external_field", None)


def _far(rng, atoms, name):
    atoms.positions[rng.integers(len(atoms))] += rng.normal(size=3) * 10.0 ** rng.uniform(5, 300)


def _short(rng, atoms, name):
    atoms.pbc = True
    atoms.cell[0] *= 10.0 ** rng.uniform(-8, -2)


# what is spoilt, and whether a model of any kind has to refuse it
SPOILT: dict[Callable[..., None], Callable[[str], bool]] = {
    _numbers: lambda name: True,
    _positions: lambda name: True,
    _cell: lambda name: True,
    _flat: lambda name: True,
    _overlap: lambda name: True,
    _nothing: lambda name: True,
    _charge: lambda name: True,
    _spin: lambda name: True,
    _missing: lambda name: name not in ("qeq_level",),
    _contradiction: lambda name: True,
    _field: lambda name: True,
    _field_along: lambda name: True,
    _head: lambda name: name == "heads",
    _outside: lambda name: False,
    _counter: lambda name: False,
    _level: lambda name: True,
    _wire: lambda name: False,
    _far: lambda name: False,
    _short: lambda name: False,
}


def spoilt_atoms(rng: np.random.Generator, names: tuple[str, ...] = MODELS) -> str:
    """Refused, every time they are asked for; what is accepted is finite, and the next good call is right."""
    name = names[rng.integers(len(names))]
    calc = calculator(name)
    good = random_atoms(rng, name)
    want = evaluate(calc, good)["energy"]
    bad = good.copy()
    which = list(SPOILT)[rng.integers(len(SPOILT))]
    which(rng, bad, name)
    what = f"{name}, {which.__name__[1:]}, {bad.numbers}, {bad.pbc}, {bad.info}"
    error: Exception | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of fields, and of float32
        for _ in range(2):
            bad.calc = calc
            try:
                forces, energy = bad.get_forces(), bad.get_potential_energy()
            except Exception as found:
                check(error is None or type(error) is type(found), f"{what}: then {found}")
                error = found
                continue
            check(error is None, f"{what}: refused once, then {energy}")
            check(np.isfinite(energy) and np.isfinite(forces).all(), f"{what}: energy {energy}")
    same(evaluate(calc, good)["energy"], want, 1e-8, f"the next good call, after {what}")
    if error is not None:
        raise error
    check(not SPOILT[which](name), f"{what}: energy {energy} without a word")
    return f"accepted, {which.__name__[1:]}"


def spoilt_arguments(rng: np.random.Generator) -> str:
    """Arguments of the calculator itself."""
    models: list[Any] = [None, 3, "none.model", "", ".", {}, torch.nn.Linear(2, 2), [], b"x"]
    values: dict[str, list[Any]] = {
        "model": models,
        "device": ["tpu", "", 3.5, "cuda:99", None, [], "meta"],
        "dtype": ["half", "float16", torch.float64, 64, "", []],
        "head": ["x", 3, "", [], True],
        "charge": JUNK,
        "spin": JUNK,
        "fermi_level": JUNK,
        "extrapolation": [-1, "x", 1.5, np.nan, [], True],
    }
    name = list(values)[rng.integers(len(values))]
    bad = values[name][rng.integers(len(values[name]))]
    given: dict[str, Any] = {"model": make_model(QUICK[rng.integers(2)])} | {name: bad}
    atoms = random_atoms(rng, "qeq")
    atoms.info.pop("external_field", None)
    atoms.calc = Calculator(**given)
    energy = atoms.get_potential_energy()
    raise WrongError(f"{name}={bad!r}: energy {energy} without a word")
