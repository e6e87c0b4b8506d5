"""Physical tests beyond errors on frames like those of the training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ase import Atoms

from scfmlip import Coulomb, units
from scfmlip.mace_torch.graphs import collate, make_graph
from scfmlip.models import Model
from scfmlip.scf import ConvergenceError

# value, reference (nan: none), unit, by name of the quantity
Measured = dict[str, tuple[float, float, str]]
NAN = math.nan


def evaluate(
    model: Model, frames: list[Atoms], field_z: float = 0.0, **options: Any
) -> dict[str, np.ndarray]:
    """Outputs for frames with ``info["total_charge"]``, in a physical field along z, V/angstrom."""
    dtype = next(model.parameters()).dtype
    graphs = []
    for atoms in frames:
        plain = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        plain.info["total_charge"] = float(atoms.info.get("total_charge", 0.0))
        plain.info["total_spin"] = float(atoms.info.get("multiplicity", 1.0))
        # mace's sign: energy + field . dipole
        plain.info["external_field"] = np.array([0.0, 0.0, -field_z])
        plain.info |= {k: v for k, v in atoms.info.items() if k in ("external_charges", "external_positions")}
        numbers = [int(z) for z in model.atomic_numbers]
        graphs.append(make_graph(plain, numbers, float(model.r_max), dtype, pad_cell=model.pads_cell))
    out = model(collate(graphs), **options)
    return {k: v.double().numpy() for k, v in out.items() if isinstance(v, torch.Tensor)}


def total_energy(model: Model, atoms: Atoms) -> float:
    """Energy, eV; atomic energies are added in float64, since float32 would leave 2 meV of 20 000 eV."""
    config = model.config
    (energies,) = config.energies_by_head.values()
    own = dict(zip(config.elements, energies, strict=True))
    interaction = evaluate(model, [atoms], compute_force=False)["interaction_energy"][0]
    return float(interaction) + sum(own[int(z)] for z in atoms.numbers)


def _charge_of_gold(model: Model, parts: dict[str, list[Atoms]]) -> Measured:
    """Charge of Au2 in frames never seen, with and without dopants 11 angstrom below."""
    got: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"doped": [], "undoped": []}
    for atoms in parts["test"]:
        out = evaluate(model, [atoms], compute_force=False)
        if "charges" not in out:
            return {}
        gold = atoms.numbers == 79
        pair = out["charges"][gold], np.asarray(atoms.get_charges())[gold]
        got["doped" if (atoms.numbers == 13).any() else "undoped"].append(pair)
    found: Measured = {}
    means = {}
    for kind, pairs in got.items():
        q = np.array([p.sum() for p, _ in pairs])
        reference = np.array([r.sum() for _, r in pairs])
        means[kind] = float(q.mean()), float(reference.mean())
        found[f"Au2 charge, {kind}"] = (*means[kind], "e")
        error = np.concatenate([p - r for p, r in pairs])
        found[f"Au charge RMSE, {kind}"] = (float(np.sqrt((error**2).mean())), NAN, "e")
        found[f"Au2 sign right, {kind}"] = (float((np.sign(q) == np.sign(reference)).mean()), 1.0, "")
    shift = [means["doped"][i] - means["undoped"][i] for i in (0, 1)]
    found["Au2 charge, doped - undoped"] = (shift[0], shift[1], "e")
    return found


def _far_chains(model: Model, parts: dict[str, list[Atoms]]) -> Measured:
    """A neutral and a charged chain 60 angstrom apart: they should not know of each other."""
    neutral = next(a for a in parts["test"] if not round(a.info["total_charge"]))
    charged = next(a for a in parts["test"] if round(a.info["total_charge"]))
    alone = [evaluate(model, [a], compute_force=False) for a in (neutral, charged)]
    shifted = charged.copy()
    shifted.positions += (60.0, 0, 0) - charged.positions.mean(0) + neutral.positions.mean(0)
    pair = neutral.copy() + shifted
    pair.info["total_charge"] = 1.0
    both = evaluate(model, [pair], compute_force=False)
    gap = float(both["interaction_energy"][0] - sum(a["interaction_energy"][0] for a in alone))
    found: Measured = {"energy of far chains - separate": (gap, 0.0, "eV")}
    if "charges" in both:
        found["charge of the far neutral chain"] = (float(both["charges"][: len(neutral)].sum()), 0.0, "e")
        held = evaluate(model, [charged], compute_force=False)["charges"].sum()
        found["charge of C10H3+"] = (float(held), 1.0, "e")
    return found


def _metal(model: Model, parts: dict[str, list[Atoms]]) -> Measured:
    """A bare slab in a field, and a molecule that moves away."""
    # DFT: the two slabs in opposite fields of 0.2 V/angstrom (their geometry is one)
    slabs = [a for a in parts["field"] if a.info["config_type"] == "al_bare_efield"]
    dipoles = sorted(float(a.info["REF_dipole"][2]) for a in slabs)
    reference = (dipoles[-1] - dipoles[0]) / 0.4
    outs = [evaluate(model, [slabs[0]], field_z=e, compute_force=False) for e in (0.05, -0.05)]
    alpha = float(outs[0]["dipole"][0, 2] - outs[1]["dipole"][0, 2]) / 0.1 if "dipole" in outs[0] else 0.0
    found: Measured = {"slab polarizability": (alpha, reference, "e A^2/V")}
    molecule = next(a for a in parts["train"] if a.info["config_type"] == "isolated_h2o").copy()
    molecule.pbc = False
    if "dipole" in outs[0]:
        response = evaluate(model, [molecule], compute_force=False, compute_response=True)["polarizability"]
        alpha = float(np.trace(response[0])) / 3
    # experiment: 1.45 cubic angstrom
    found["water polarizability"] = (alpha, 1.45 / units.COULOMB_CONSTANT, "e A^2/V")
    probes = {a.info["config_type"]: a for a in parts["probe"]}
    up, down = (probes[f"probe_h2o_{way}"] for way in ("up", "down"))
    energy = [total_energy(model, a) for a in (up, down)]
    wanted = float(up.info["REF_energy"] - down.info["REF_energy"])
    found["water up - down at 4 A"] = (energy[0] - energy[1], wanted, "eV")
    curve = []
    for height in (5.0, 7.0, 9.0):
        atoms = down.copy()
        atoms.positions[atoms.numbers != 13, 2] += height - 4.0
        curve.append(float(evaluate(model, [atoms], compute_force=False)["interaction_energy"][0]))
    found["water at 5 A - at 9 A"] = (curve[0] - curve[2], NAN, "eV")
    found["water at 7 A - at 9 A"] = (curve[1] - curve[2], NAN, "eV")
    if model.rule.feels_external_charges:
        bare = next(a for a in parts["train"] if a.info["config_type"] == "al_bare")
        found |= _image(model, bare)
    return found


# charge of the ion (e), its heights above the top layer (angstrom), and the slab beneath it
ION, HEIGHTS, REPEAT, HEIGHT_OF_CELL = 0.3, (6.0, 8.0, 12.0), (5, 3, 1), 60.0
# of Al: jellium's edge half a layer above the top one, and 1.6 bohr from there, r_s = 2 (Lang and Kohn, Phys.
# Rev. B 7, 3541 (1973))
IMAGE_PLANE = 1.86


def _image(model: Model, slab: Atoms) -> Measured:
    """
    What a metal does to an ion that no atom's surroundings show: the energy of its image.

    The energy that is even in the ion's charge; the odd part is the potential the slab has anyway. The plane
    is where an ideal metal would begin that has the same energy at 6 angstrom; whether the energy also falls
    as an ideal metal's is the ratio at 8.
    """
    large = slab.repeat(REPEAT)
    large.info = {"total_charge": 0.0}
    large.cell[2] = [0.0, 0.0, HEIGHT_OF_CELL]
    top = large.positions[large.positions[:, 2] > large.positions[:, 2].max() - 0.5]
    place = top[np.linalg.norm(top - top.mean(0), axis=1).argmin()]
    energies = []
    for height in HEIGHTS:
        pair = []
        for charge in (ION, -ION):
            frame = large.copy()
            frame.info |= {
                "external_charges": [charge],
                "external_positions": [place + np.array([0.0, 0.0, height])],
            }
            out = evaluate(model, [frame], compute_force=False)
            pair.append(float(out["interaction_energy"][0]))
        energies.append(np.mean(pair))
    near, far = energies[0] - energies[-1], energies[1] - energies[-1]
    sigma = model.config.density.sigma

    def ideal(plane: float) -> np.ndarray:
        values = ideal_image(large, ION, np.array(HEIGHTS) - plane, sigma)
        return values[:-1] - values[-1]

    found: Measured = {
        "image energy at 6 A": (near / ION**2, float(ideal(IMAGE_PLANE)[0]) / ION**2, "eV/e^2"),
    }
    planes = np.linspace(-2.0, 3.0, 26)
    curve = np.array([ideal(z)[0] for z in planes])
    if near < curve.max():  # the nearer the plane, the deeper
        plane = float(np.interp(-near, -curve, planes))
        found["image plane"] = (plane, IMAGE_PLANE, "A")
        found["image energy at 8 A, found / ideal"] = (far / float(ideal(plane)[1]), 1.0, "")
    return found


def ideal_image(atoms: Atoms, charge: float, heights: np.ndarray, sigma: float) -> np.ndarray:
    """
    Energy, eV, of a lattice of Gaussian ions at ``heights`` above a neutral slab of an ideal metal.

    Half that of ions and their mirror images, without the mean fields of the two planes: those polarise a
    neutral slab alike at every height.
    """
    cell = torch.tensor(atoms.cell.array)
    area = float(torch.linalg.cross(cell[0], cell[1]).norm())
    operator = Coulomb(l_max=0, sigma=sigma)
    energies = []
    for height in heights:
        positions = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 2 * height]], dtype=torch.float64)
        geometry = operator.prepare(positions, cell, (True, True, False))
        # three densities: ion and image, and each alone
        rows = charge * torch.tensor([[1.0, 1.0, 0.0], [-1.0, 0.0, -1.0]], dtype=torch.float64)
        both, one, other = geometry.energy(rows[..., None])[0].tolist()
        energies.append(0.5 * (both - one - other - charge**2 * height * units.FIELD_CONSTANT / area))
    return np.array(energies)


def _insulator(model: Model, parts: dict[str, list[Atoms]]) -> Measured:
    """Vacancies of a charge that was never shown."""
    found: Measured = {}
    shifts = []
    for atoms in parts["unseen charge"]:
        shifts.append(total_energy(model, atoms) - float(atoms.info["REF_energy"]))
    found["mean energy error of charge +1"] = (float(np.mean(shifts)), 0.0, "eV")
    found["spread of energy errors of charge +1"] = (float(np.std(shifts)), 0.0, "eV")
    return found


PROBES: dict[str, Callable[[Model, dict[str, list[Atoms]]], Measured]] = {
    "au2_mgo": _charge_of_gold,
    "carbon_chains": _far_chains,
    "al_water": _metal,
    "sio2_vacancy": _insulator,
}


def probe(name: str, model: Model, parts: dict[str, list[Atoms]]) -> Measured:
    """The physical tests of a set; a state that does not converge is one row that says so."""
    try:
        return PROBES[name](model, parts)
    except ConvergenceError as error:
        return {f"not converged: {str(error)[:80]}": (NAN, NAN, "")}
