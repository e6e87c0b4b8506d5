"""Random calls of the ASE calculator: symmetries and slopes of the energy, and batches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.geometry import get_distances
from mace_torch.mace_models import mace_model
from models.cases import BACKBONE, ELEMENTS, make_model

import scfmlip.models
from fuzz.coulomb import random_cell
from fuzz.outcomes import check
from scfmlip.ase import Calculator
from scfmlip.mace_torch.batches import make_batch, split_outputs

MODELS = ("short_range", "local", "qeq", "qeq_level", "affine", "latent", "recursion", "heads", "mace")
QUICK = ("short_range", "qeq")
# no Coulomb energy of ours, which refuses wires
ANY_PBC = ("short_range", "heads", "mace")
ASKS_CHARGE = ("qeq", "affine", "recursion")
ANSWERS_FIELD = ("local", "qeq", "qeq_level", "affine")
PERIODICITIES = [(True,) * 3, (True, True, False), (False, True, True), (True, False, True), (False,) * 3]
WIRES = [(True, False, False), (False, True, False), (False, False, True)]
NAMES = {
    "charge": ["charge", "total_charge", "net_charge", "tot_charge", "overall_charge"],
    "spin": ["spin", "total_spin", "multiplicity", "spin_multiplicity"],
    "external_field": ["external_field"],
    "head": ["head"],
    "fermi_level": ["fermi_level"],
}
JUNK: list[Any] = [
    "x",
    "",
    np.nan,
    np.inf,
    True,
    [1.0, 2.0],
    {},
    1j,
    Ellipsis,
    np.zeros(0),
    b"1",
    [[1.0, 2.0]],
]


def with_heads() -> torch.nn.Module:
    """A model of two heads whose energies differ."""
    backbone = {**BACKBONE, "heads": ["a", "Pbe"], "shift": [0.0, 0.5]}
    energies = {"H": -1.0, "O": -2.0, "Al": -3.0}
    config = {"elements": ELEMENTS, "atomic_energies": energies, "backbone": backbone, "rule": "short_range"}
    return scfmlip.models.build({**config, "dtype": "float64", "seed": 3})


@cache
def calculator(name: str, dtype: str | None = None) -> Calculator:
    """Of a small model; one for all calls, so that what a call leaves behind shows in the next."""
    model = {"mace": mace_model, "heads": with_heads}.get(name, lambda: make_model(name))()
    return Calculator(model, dtype=dtype)


def distances(atoms: Atoms) -> np.ndarray:
    """Of different atoms, to the nearest image."""
    found = get_distances(atoms.positions, cell=atoms.cell, pbc=atoms.pbc)[1]
    return found[~np.eye(len(atoms), dtype=bool)]


def random_atoms(rng: np.random.Generator, name: str) -> Atoms:
    """Up to five atoms that a model of this name evaluates, its inputs under our own names."""
    elements = calculator(name).model.atomic_numbers.tolist()
    kinds = PERIODICITIES + (WIRES if name in ANY_PBC else [])
    # a slab at a level of the electrons is charged without limit
    kinds = [k for k in kinds if name != "qeq_level" or sum(k) != 2]
    pbc = np.array(kinds[rng.integers(len(kinds))])
    while True:
        n = int(rng.integers(1, 6))
        cell = random_cell(rng)
        numbers = rng.choice(elements, n)
        atoms = Atoms(numbers, rng.random((n, 3)) @ cell, cell=cell, pbc=pbc)
        if n == 1 or distances(atoms).min() > 0.8:
            break
    if rng.random() < 0.3 and name != "recursion":  # whose cell grows with coordinates
        atoms.positions += rng.integers(-20, 20, (n, 3)) * pbc @ cell
    charge = float(rng.integers(-1, 2) if rng.random() < 0.5 else rng.normal())
    if name in ASKS_CHARGE:
        atoms.info["charge"] = charge
    if name == "recursion":
        electrons = int(atoms.numbers.sum()) - round(charge)
        atoms.info["spin"] = 1 + electrons % 2 + 2 * int(electrons > 3 and rng.random() < 0.3)
    if name == "qeq_level":
        atoms.info["fermi_level"] = float(rng.normal())
    if name == "heads":
        atoms.info["head"] = ["a", "Pbe"][rng.integers(2)]
    if name in ANSWERS_FIELD and rng.random() < 0.4 and pbc.sum() in (0, 2):
        field = rng.normal(size=3) * 0.1
        if pbc.sum() == 2:
            normal = np.cross(*cell[pbc])
            field = normal / np.linalg.norm(normal) * field[0]
        atoms.info["external_field"] = field
    return atoms


def evaluate(calc: Calculator, atoms: Atoms) -> dict[str, Any]:
    """Copies of all results, by a calculator that other calls have used; the atoms stay what they are."""
    atoms = atoms.copy()
    before = copy.deepcopy((dict(atoms.info), atoms.arrays, atoms.cell.array, atoms.pbc))
    properties = ["energy", "forces", *(["stress"] if atoms.cell.rank == 3 else [])]
    atoms.calc = calc
    for one in properties:
        calc.get_property(one, atoms)
    now = (atoms.info, atoms.arrays, atoms.cell.array, atoms.pbc)
    for old, new in zip(before, now, strict=True):
        np.testing.assert_equal(new, old)
    return copy.deepcopy(calc.results)


def same(got: Any, want: Any, room: float, what: str) -> None:
    """Numbers agree."""
    got, want = np.asarray(got), np.asarray(want)
    check(got.shape == want.shape, f"{what}: shape {got.shape} for {want.shape}")
    size = max(1.0, float(np.abs(want).max(initial=0)))
    off = float(np.abs(got - want).max(initial=0))
    check(off <= room * size, f"{what} off by {off:.2e} of {size:.2e} (allowed {room:.0e})")


def rotation(rng: np.random.Generator) -> np.ndarray:
    """Proper or not."""
    return np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.choice([-1, 1])


def turn(rng, atoms, want):
    """In any orientation."""
    matrix = rotation(rng)
    atoms.positions = atoms.positions @ matrix.T
    atoms.cell = atoms.cell.array @ matrix.T
    if "external_field" in atoms.info:
        atoms.info["external_field"] = matrix @ atoms.info["external_field"]
    if "forces" in want:
        want["forces"] = want["forces"] @ matrix.T
    if "stress" in want:
        xx, yy, zz, yz, xz, xy = want["stress"]
        stress = matrix @ np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]) @ matrix.T
        want["stress"] = stress.flatten()[[0, 4, 8, 5, 2, 1]]
    if "dipole" in want:
        want["dipole"] = matrix @ want["dipole"]


def move(rng, atoms, want):
    """Somewhere else; what is charged wins energy in a field, with mace's sign."""
    step = rng.normal(size=3) * rng.choice([0.1, 5.0, 200.0])
    atoms.positions += step
    if "charges" in want:
        total = float(want["charges"].sum())
        if "dipole" in want:
            want["dipole"] = want["dipole"] + total * step
        if "external_field" in atoms.info:
            shift = total * atoms.info["external_field"] @ step
            want["energy"] += shift
            if "charge" not in atoms.info:  # which moves with the atoms, and is worth energy there
                want.pop("forces")
                want.pop("stress", None)
            if "fermi_level" in atoms.info:  # the charge follows the potential
                want.clear()


def reorder(rng, atoms, want):
    """Atoms in another order."""
    order = rng.permutation(len(atoms))
    moved = atoms[order]
    atoms.numbers, atoms.positions = moved.numbers, moved.positions
    for key in ("forces", "charges", "potential", "energies"):
        if key in want:
            want[key] = want[key][order]


def images(rng, atoms, want):
    """Each atom another of its images."""
    atoms.positions += rng.integers(-30, 30, (len(atoms), 3)) * atoms.pbc @ atoms.cell.array
    want.pop("dipole", None)


def rows(rng, atoms, want):
    """Lattice vectors in another order."""
    order = rng.permutation(3)
    pbc = atoms.pbc[order]
    atoms.cell = atoms.cell.array[order]
    atoms.pbc = pbc


def lattice(rng, atoms, want):
    """Other vectors of the same lattice."""
    first, second = rng.permutation(3)[:2]
    if atoms.pbc[first] and atoms.pbc[second]:
        cell = atoms.cell.array.copy()
        cell[first] += int(rng.choice([-2, -1, 1, 2])) * cell[second]
        if rng.random() < 0.5:
            cell[second] *= -1
        atoms.cell = cell
    want.pop("dipole", None)


def open_vectors(rng, atoms, want):
    """What stands in the cell where nothing is periodic."""
    cell = atoms.cell.array.copy()
    for axis in np.flatnonzero(~atoms.pbc):
        cell[axis] = [cell[axis] * rng.uniform(0.1, 4.0), np.zeros(3), rng.normal(size=3)][rng.integers(3)]
    if atoms.pbc.all() or np.linalg.matrix_rank(cell) < atoms.pbc.sum():
        return
    atoms.cell = cell
    want.pop("stress", None)


def other_names(rng, atoms, want):
    """Inputs under other names, and what nobody reads."""
    for key, names in NAMES.items():
        if key in atoms.info:
            value = atoms.info.pop(key)
            used = rng.choice(names, int(rng.integers(1, min(len(names), 2) + 1)), replace=False)
            for one in used:
                one = str(one)
                one = [one, one.upper(), one.capitalize(), f"REF_{one}"][
                    rng.integers(4 - (key == "fermi_level"))
                ]
                if key in ("charge", "spin") and rng.random() < 0.3:
                    value = [np.float32(value), np.array(value), np.array([value])][rng.integers(3)]
                atoms.info[one] = value
    atoms.info["comment"] = JUNK[rng.integers(len(JUNK))]
    atoms.info["config_type"] = "x"
    if rng.random() < 0.3:
        atoms.info[5] = 3.0  # keys that are no texts


def twice(rng, atoms, want):
    """A supercell has as many times the energy, at as many times the charge."""
    if not atoms.pbc.any() or "external_field" in atoms.info or len(atoms) > 3:
        return
    axis = int(rng.choice(np.flatnonzero(atoms.pbc)))
    times = [1, 1, 1]
    times[axis] = 2
    info = dict(atoms.info)
    bigger = atoms.repeat(times)
    if "spin" in info:
        info["spin"] = 2 * (info["spin"] - 1) + 1
    if "charge" in info:
        info["charge"] = 2 * info["charge"]
    atoms.__dict__.update(bigger.__dict__)
    atoms.info = info
    want["energy"] = 2 * want["energy"]
    for key in ("forces", "charges"):
        if key in want:
            want[key] = np.concatenate([want[key]] * 2)
    want.pop("dipole", None)
    want.pop("potential", None)


CHANGES: list[Callable[..., None]] = [
    turn,
    move,
    reorder,
    images,
    rows,
    lattice,
    open_vectors,
    other_names,
    twice,
]


def symmetry(rng: np.random.Generator, names: tuple[str, ...] = MODELS) -> str:
    """What changes no energy, or by what is known: one or two such changes at once."""
    name = names[rng.integers(len(names))]
    single = rng.random() < 0.15
    calc = calculator(name, "float32" if single else None)
    atoms = random_atoms(rng, name)
    want = evaluate(calc, atoms)
    want = {k: want[k] for k in ("energy", "forces", "stress", "charges", "dipole") if k in want}
    if name in ASKS_CHARGE:
        same(want["charges"].sum(), atoms.info["charge"], 1e-5 if single else 1e-8, "total charge")
    changed = atoms.copy()
    changes = [CHANGES[k] for k in rng.choice(len(CHANGES), int(rng.integers(1, 3)), replace=False)]
    if name == "recursion" and not atoms.pbc.all():
        # the height of mace-torch's cell follows the largest coordinate
        changes = [reorder] if atoms.pbc.any() else [c for c in changes if c is not turn] or [move]
    # the others look for our own names
    for change in sorted(changes, key=lambda change: change is other_names):
        change(rng, changed, want)
        if not want:
            return "not compared"
    far = max(1.0, float(np.abs(changed.positions).max()), float(np.abs(atoms.positions).max()))
    room = (1e-6 * far**2 + 2e-4) if single else 2e-7
    got = evaluate(calc, changed)
    what = f"{name} {'float32 ' * single}{atoms.pbc.tolist()} {[c.__name__ for c in changes]} {atoms.info}"
    for key, value in want.items():
        if key == "dipole" and (atoms.pbc.any() or name == "recursion"):
            continue
        if key == "stress" and "external_field" in atoms.info:
            continue  # of a field that stays while images move with the strain
        same(got[key], value, room, f"{key}, {what}")
    return f"right, {name}"


def slopes(rng: np.random.Generator, names: tuple[str, ...] = MODELS) -> str:
    """Forces and stress are the slopes of the energy in a random direction."""
    name = names[rng.integers(len(names))]
    calc = calculator(name)
    atoms = random_atoms(rng, name)
    found = evaluate(calc, atoms)
    strained = "external_field" not in atoms.info and name != "recursion" and rng.random() < 0.5
    if name == "recursion" and atoms.pbc.sum() in (1, 2):
        return "not compared"
    step = 1e-4
    strain = rng.normal(size=(3, 3))
    strain = 0.5 * (strain + strain.T)
    direction = rng.normal(size=(len(atoms), 3))
    energies = []
    for sign in (-2, -1, 1, 2):
        moved = atoms.copy()
        if strained:
            moved.set_cell(atoms.cell.array @ (np.eye(3) + sign * step * strain), scale_atoms=False)
            moved.positions = atoms.positions @ (np.eye(3) + sign * step * strain)
        else:
            moved.positions += sign * step * direction
        energies.append(evaluate(calc, moved)["energy"])
    slope = (energies[0] - 8 * energies[1] + 8 * energies[2] - energies[3]) / (12 * step)
    if strained:
        stress = found["stress"][[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)
        want = float((stress * strain).sum()) * atoms.get_volume()
    else:
        want = -float((found["forces"] * direction).sum())
    same(want, slope, 2e-5, f"{name}, {'strain' if strained else 'step'}, {atoms.pbc.tolist()} {atoms.info}")
    return f"right, {name}, {'strain' if strained else 'positions'}"


def company(rng: np.random.Generator, names: tuple[str, ...] = MODELS) -> str:
    """A frame in a batch with others has the results it has alone."""
    name = names[rng.integers(len(names))]
    calc = calculator(name)
    frames = [random_atoms(rng, name) for _ in range(int(rng.integers(2, 4)))]
    if name == "recursion":  # mace-torch's is open or not for a whole batch
        frames = [a for a in frames if a.pbc.tolist() == frames[0].pbc.tolist()]
    if any("external_field" in a.info for a in frames):
        for a in frames:
            a.info.setdefault("external_field", np.zeros(3))
    want = [evaluate(calc, atoms) for atoms in frames]
    out = calc.model(make_batch(calc.model, frames, calc.device, calc.dtype), compute_stress=True)
    for got, one, atoms in zip(split_outputs(out, frames), want, frames, strict=True):
        for key in ("energy", "forces", "stress", "charges", "dipole"):
            if key in one:
                same(got[key], one[key], 1e-7, f"{key}, {name} {atoms.pbc.tolist()}")
    return f"right, {name}"
