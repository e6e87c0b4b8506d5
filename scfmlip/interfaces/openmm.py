"""
OpenMM: a model as a force of a system, alone or beside a force field whose charges its density feels.

Needs ``scfmlip[openmm]`` (OpenMM 8.6 or later, whose `PythonForce` this is). In a mixed system the particles
of the model carry no charge and no forces among themselves; those of the force field are Gaussian charges
around the model (electrostatic embedding): the density answers, and forces come out on both. Lennard-Jones
between the two stays the force field's. OpenMM counts in nm and kJ/mol.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import openmm
from ase import Atoms, units
from numpy.typing import NDArray

from .ase import Calculator

# eV of a kJ/mol
_KJ_PER_MOL = units.kJ / units.mol
_LEVEL = "scfmlip_fermi_level"
# made while it is imported, of which type checkers know nothing
_UNIT: Any = openmm.unit


class ModelForce:
    """
    What a `PythonForce` calls: a state of OpenMM to energy and forces.

    Args:
        calc: `scfmlip.ase.Calculator`.
        atoms: The model's atoms, in the order of ``particles``; their positions do not matter, ``pbc`` and
            ``info`` do.
        particles: Numbers of the model's particles among those that the state holds.
        charges: ``[n_particles]`` e; those of other particles act on the model, 0 on none.

    Raises:
        ValueError: for numbers that do not fit.
    """

    def __init__(
        self, calc: Calculator, atoms: Atoms, particles: Sequence[int], charges: NDArray[np.float64] | None
    ) -> None:
        self.calc, self.atoms = calc, atoms.copy()
        self.particles = np.asarray(particles, dtype=int)
        self.charges, self.outside = None, np.zeros(0, dtype=int)
        if charges is not None:
            acting = charges != 0
            acting[self.particles] = False
            self.outside = np.flatnonzero(acting)
            self.charges = charges[self.outside]

    def __call__(self, state: openmm.State) -> tuple[float, NDArray[np.float64]]:
        """Energy, kJ/mol, and forces ``[n_particles, 3]``, kJ/mol/nm."""
        place: Any = state.getPositions(asNumpy=True)
        positions = 10 * np.asarray(place.value_in_unit(_UNIT.nanometer))
        atoms = self.atoms
        if atoms.pbc.any():
            vectors: Any = state.getPeriodicBoxVectors(asNumpy=True)
            atoms.set_cell(10 * np.asarray(vectors.value_in_unit(_UNIT.nanometer)))
        atoms.positions[:] = positions[self.particles]
        if len(self.outside):
            atoms.info["external_charges"] = self.charges
            atoms.info["external_positions"] = positions[self.outside]
        parameters = state.getParameters()
        if _LEVEL in parameters:
            atoms.info["fermi_level"] = parameters[_LEVEL]
        energy: Any = self.calc.get_property("energy", atoms)
        forces = np.zeros_like(positions)
        forces[self.particles] = self.calc.get_property("forces", atoms)
        if len(self.outside):
            forces[self.outside] = self.calc.results["external_forces"]
        return float(energy) / _KJ_PER_MOL, forces * (10 / _KJ_PER_MOL)


def make_force(
    calc: Calculator,
    atoms: Atoms,
    particles: Sequence[int] | None = None,
    charges: Sequence[float] | NDArray[np.float64] | None = None,
    fermi_level: float | None = None,
) -> openmm.PythonForce:
    """
    A model as a force of OpenMM; add it to a system with ``system.addForce``.

    Args:
        calc: `scfmlip.ase.Calculator` of the model. With charges around, one of `scfmlip.models` with a
            density.
        atoms: The model's atoms: elements, ``pbc``, and ``info`` as for the calculator (charge, spin, ...).
        particles: Their numbers in the system, in order; None for ``0 .. len(atoms) - 1``.
        charges: ``[n_particles]`` e of all particles of the system, for a mixed one, see `mixed_system`.
        fermi_level: eV, for models at constant potential: the value in new contexts of the parameter
            ``scfmlip_fermi_level``, which ``context.setParameter`` changes.

    Raises:
        ValueError: for numbers that do not fit, or charges around a model that cannot feel them.
    """
    chosen = list(range(len(atoms))) if particles is None else [int(i) for i in particles]
    if len(set(chosen)) != len(atoms) or len(chosen) != len(atoms) or min(chosen, default=0) < 0:
        raise ValueError(
            f"particles must be {len(atoms)} different numbers, one for each of the atoms, got {chosen}"
        )
    around = None
    if charges is not None:
        around = np.asarray(charges, dtype=float)
        if around.ndim != 1 or len(around) <= max(chosen) or not np.isfinite(around).all():
            raise ValueError(
                f"charges must be finite numbers of all particles of the system, e, got shape {around.shape}"
            )
        if not calc.ours or not calc.model.has_charges:
            raise ValueError(
                f"charges around the model need one with a density that feels them, of scfmlip.models: a "
                f"{type(calc.model).__name__} has none"
            )
    level = {} if fermi_level is None else {_LEVEL: float(fermi_level)}
    seen = chosen if around is not None else list(range(len(atoms)))
    force = openmm.PythonForce(ModelForce(calc, atoms, seen, around), level)
    if around is None:
        force.setParticles(chosen)
    force.setUsesPeriodicBoundaryConditions(bool(atoms.pbc.any()))
    force.setName("scfmlip")
    return force


def mixed_system(
    system: openmm.System, calc: Calculator, atoms: Atoms, particles: Sequence[int]
) -> openmm.System:
    """
    A force field's system in which a model takes over some particles: electrostatic embedding.

    Of the force field go, among the model's particles: bonds, angles, torsions, constraints, Lennard-Jones
    and Coulomb; and between them and the others: Coulomb, in whose place the model's density feels the
    others' charges, as Gaussians of the density's own width. Lennard-Jones between both stays. In periodic
    cells a background balances the charge of both together.

    Args:
        system: Of all particles; it is copied.
        calc: As `make_force`.
        atoms: As that.
        particles: Numbers of the model's particles, whole molecules.

    Returns:
        The mixed system, with the model's force in it.

    Raises:
        ValueError: for bonds, angles, torsions or constraints between the model's particles and others, which
            have no meaning; for forces of another kind on both, or a system without a NonbondedForce.
    """
    mixed, chosen = copy.deepcopy(system), {int(i) for i in particles}
    if min(chosen, default=0) < 0 or max(chosen, default=0) >= mixed.getNumParticles():
        raise ValueError(f"particles must be numbers below {mixed.getNumParticles()}, got {sorted(chosen)}")
    charges: NDArray[np.float64] | None = None
    for force in mixed.getForces():
        if isinstance(force, openmm.NonbondedForce):
            charges = _uncharge(force, chosen)
        elif isinstance(force, tuple(_BONDED)):
            _unbind(force, chosen)
        elif not isinstance(force, _HARMLESS):
            raise ValueError(
                f"a {type(force).__name__} is no force that can be split between a model and a force field: "
                "remove it, or take the model's particles out of it yourself and use make_force"
            )
    if charges is None:
        raise ValueError(
            "the system has no NonbondedForce whose charges the model could feel: use make_force"
        )
    for i in reversed(range(mixed.getNumConstraints())):
        members = mixed.getConstraintParameters(i)[:2]
        if _inside(members, chosen, "constraint"):
            mixed.removeConstraint(i)
    mixed.addForce(make_force(calc, atoms, list(particles), charges))
    return mixed


_HARMLESS = (
    openmm.CMMotionRemover,
    openmm.MonteCarloBarostat,
    openmm.MonteCarloAnisotropicBarostat,
    openmm.AndersenThermostat,
)
# number of members, name of their terms and the parameter that switches a term off
_BONDED = {
    openmm.HarmonicBondForce: (2, "Bond"),
    openmm.HarmonicAngleForce: (3, "Angle"),
    openmm.PeriodicTorsionForce: (4, "Torsion"),
    openmm.RBTorsionForce: (4, "Torsion"),
}


def _inside(members: Sequence[int], chosen: set[int], what: str) -> bool:
    """Whether a term is the model's, not the force field's."""
    count = sum(i in chosen for i in members)
    if 0 < count < len(members):
        raise ValueError(
            f"a {what} joins particles {list(members)}, some of the model and some of the force field: the "
            "model's particles must be whole molecules"
        )
    return count > 0


def _unbind(force: Any, chosen: set[int]) -> None:
    """Switch a bonded force off among the model's particles."""
    n_members, name = next(value for kind, value in _BONDED.items() if isinstance(force, kind))
    read, write = getattr(force, f"get{name}Parameters"), getattr(force, f"set{name}Parameters")
    for i in range(getattr(force, f"getNum{name}s")()):
        given = read(i)
        if not _inside(given[:n_members], chosen, name.lower()):
            continue
        if isinstance(force, openmm.RBTorsionForce):
            given[n_members:] = [0.0] * 6
        else:
            given[-1] = 0.0
        write(i, *given)


def _uncharge(force: openmm.NonbondedForce, chosen: set[int]) -> NDArray[np.float64]:
    """All charges, e, after the model's particles have lost theirs and their Lennard-Jones pairs."""
    unit = _UNIT.elementary_charge
    charges = np.zeros(force.getNumParticles())
    for i in range(force.getNumParticles()):
        charge, sigma, epsilon = force.getParticleParameters(i)
        charges[i] = charge.value_in_unit(unit)
        if i in chosen:
            force.setParticleParameters(i, 0.0, sigma, epsilon)
    for i in range(force.getNumExceptions()):
        first, second, product, sigma, epsilon = force.getExceptionParameters(i)
        if first in chosen and second in chosen:
            force.setExceptionParameters(i, first, second, 0.0, 1.0, 0.0)
        elif first in chosen or second in chosen:
            force.setExceptionParameters(i, first, second, 0.0 * product, sigma, epsilon)
    listed = {frozenset(force.getExceptionParameters(i)[:2]) for i in range(force.getNumExceptions())}
    inside = sorted(chosen)
    for k, first in enumerate(inside):
        for second in inside[k + 1 :]:
            if frozenset((first, second)) not in listed:
                force.addException(first, second, 0.0, 1.0, 0.0)
    charges[inside] = 0.0
    return charges
