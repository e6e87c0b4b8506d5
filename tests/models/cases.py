"""Small models of every rule, and small systems of every boundary."""

import copy
from functools import cache

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, fcc100, molecule

import scfmlip.models
from scfmlip.mace_torch.batches import make_batch

ELEMENTS = ("H", "O", "Al")
CHARGES = {"H": 0.5, "O": -1.0, "Al": 0.25}
BACKBONE = {
    "r_max": 4.0,
    "hidden_irreps": "4x0e+4x1o",
    "MLP_irreps": "4x0e",
    "max_ell": 2,
    "correlation": 2,
    "num_bessel": 4,
    "radial_MLP": [8],
    "avg_num_neighbors": 8.0,
}
# name of the case: rule, constraint
RULES = {
    "short_range": ("short_range", "none"),
    "fixed": ({"name": "fixed", "charges": CHARGES}, "charge"),
    "local": ("local", "none"),
    "local_charge": ({"name": "local", "hidden": 0}, "charge"),
    "split": ({"name": "local_split", "charges": CHARGES}, "charge"),
    "latent": ({"name": "latent", "channels": 2}, "none"),
    "qeq": ({"name": "equilibrated", "local_hardness": True}, "charge"),
    "qeq_widths": ({"name": "equilibrated", "sigma": {"H": 1.0, "O": 1.0, "Al": 1.5}}, "charge"),
    "qeq_charges": (
        {
            "name": "equilibrated",
            "source": "charge",
            "hardness": {"H": 300.0, "O": 300.0, "Al": 5.0},
            "local_hardness": True,
        },
        "charge",
    ),
    "qeq_level": ("equilibrated", "fermi_level"),
    "qeq_feedback": ({"name": "equilibrated", "feedback": {"hidden_irreps": "4x0e"}}, "charge"),
    "affine": ("fixed_point", "charge"),
    "affine_level": ("fixed_point", "fermi_level"),
    "affine_free": ({"name": "fixed_point", "energy": "none"}, "none"),
    "mlp": ({"name": "fixed_point", "response": "mlp"}, "charge"),
    "many_body": ({"name": "fixed_point", "response": "many_body", "channels": 4}, "charge"),
    "many_body_level": ({"name": "fixed_point", "response": "many_body", "channels": 4}, "fermi_level"),
    "quadratic": ({"name": "functional", "form": "quadratic"}, "charge"),
    "convex": ("functional", "charge"),
    "general": ({"name": "functional", "form": "general"}, "charge"),
    "convex_level": ("functional", "fermi_level"),
    "convex_charges": (
        {"name": "functional", "source": "charge", "hardness": {"H": 300.0, "O": 300.0, "Al": 5.0}},
        "charge",
    ),
    "passive": ({"name": "fixed_point", "response": "passive", "energy": "variational"}, "charge"),
    "passive_elements": (
        {"name": "fixed_point", "response": "passive", "response_scale": {"H": 0.01, "O": 0.01, "Al": 0.1}},
        "charge",
    ),
}
# rules whose density is l = 0 alone
CHARGES_ONLY = {
    "qeq_screened": ({"name": "equilibrated", "energy": "coulomb", "screening": [1.0, 3.5]}, "charge"),
    # hydrogen's 0.31 angstrom are worth a smooth operator and neighbours in cells
    "qeq_narrow": ({"name": "equilibrated", "sigma": "covalent"}, "charge"),
    "local_0": ("local", "charge"),
    "affine_0": ("fixed_point", "charge"),
    "mlp_0": ({"name": "fixed_point", "response": "mlp", "field_feature_max_l": 0}, "charge"),
    "many_body_0": ({"name": "fixed_point", "response": "many_body", "channels": 4}, "charge"),
    "convex_0": ("functional", "charge"),
    "passive_0": ({"name": "fixed_point", "response": "passive"}, "charge"),
}
ALL = [*RULES, *CHARGES_ONLY]
# with the reference's own quirks, which test_convert.py compares with the reference
REFERENCE = {"recursion": ("recursion", "charge_spin")}


@cache
def built(case):
    rule, constraint = {**RULES, **CHARGES_ONLY, **REFERENCE}[case]
    rule = {"name": rule} if isinstance(rule, str) else dict(rule)
    if rule["name"] in ("equilibrated", "fixed_point", "functional"):
        rule["tolerance"] = 1e-11
    config = {
        "elements": ELEMENTS,
        "atomic_energies": {"H": -1.0, "O": -2.0, "Al": -3.0},
        "backbone": BACKBONE,
        "density": {"l_max": 0 if case in CHARGES_ONLY else 1, "sigma": 1.2, "tolerance": 1e-10},
        "rule": rule,
        "constraint": constraint,
        "dtype": "float64",
        "seed": 3,
    }
    return scfmlip.models.build(config)


def make_model(case, dtype="float64", constraint=None):
    """
    The model of a case, shared: do not change it.

    Solves and sums over wave vectors are tight, so that differences show the derivatives and not which wave
    vectors a strained cell has within the cutoff.
    """
    if constraint is not None:
        return make_model(case, dtype).with_constraint(constraint)
    if dtype == "float32":
        return copy.deepcopy(make_model(case)).float()
    return built(case)


def rattled(atoms, seed, amplitude=0.1):
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(seed).normal(scale=amplitude, size=(len(atoms), 3))
    return atoms


def water(charge=0.0):
    atoms = rattled(molecule("H2O"), 1)
    atoms.info["charge"] = charge
    return atoms


def slab(charge=0.0, counter_charge=False):
    atoms = fcc100("Al", (1, 1, 2), vacuum=5.0)
    # what ASE builds carries a note that extended XYZ cannot hold
    atoms.info.clear()
    atoms += Atoms("OH", [[0.3, 0.2, 0.0], [0.5, 0.4, 0.95]])
    atoms.positions[-2:, 2] += atoms.positions[:2, 2].max() + 1.8
    atoms.pbc = (True, True, False)
    atoms.info["charge"] = charge
    if counter_charge:
        atoms.info["counter_charge"] = (atoms.positions[:, 2].max() + 2, atoms.positions[:, 2].max() + 3)
    return rattled(atoms, 2, 0.05)


def crystal(charge=0.0):
    atoms = rattled(bulk("AlO", "rocksalt", a=4.2), 3)
    # triclinic
    atoms.set_cell(atoms.cell.array + 0.1 * np.arange(9).reshape(3, 3), scale_atoms=True)
    atoms.info["charge"] = charge
    return atoms


SYSTEMS = {"open": water, "slab": slab, "counter_charge": lambda: slab(0.3, True), "periodic": crystal}


def batch(model, frames, fermi_level=0.3):
    """The model's input, with a Fermi level for the rules that want one."""
    frames = [atoms.copy() for atoms in frames]
    for atoms in frames:
        atoms.info.setdefault("fermi_level", fermi_level)
        atoms.info.setdefault("spin", 1)
    return make_batch(model, frames, torch.device("cpu"), next(model.parameters()).dtype)
