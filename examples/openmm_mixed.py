"""A model's water molecule among a force field's in OpenMM: python examples/openmm_mixed.py [steps]"""

import sys

import numpy as np
import openmm
from ase import Atoms
from openmm import unit

from scfmlip.ase import Calculator
from scfmlip.data import path
from scfmlip.interfaces.openmm import mixed_system

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
waters = 8

# a force field of flexible water, SPC's charges and Lennard-Jones
system = openmm.System()
bonds, angles, pairs = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.NonbondedForce()
for o in range(0, 3 * waters, 3):
    for mass, charge, epsilon in ((16.0, -0.82, 0.65), (1.008, 0.41, 0.0), (1.008, 0.41, 0.0)):
        system.addParticle(mass)
        pairs.addParticle(charge, 0.3166, epsilon)
    bonds.addBond(o, o + 1, 0.1, 443153.0)
    bonds.addBond(o, o + 2, 0.1, 443153.0)
    angles.addAngle(o + 1, o, o + 2, np.radians(109.5), 317.6)
    for a, b in ((o, o + 1), (o, o + 2), (o + 1, o + 2)):
        pairs.addException(a, b, 0.0, 1.0, 0.0)
for force in (bonds, angles, pairs):
    system.addForce(force)

# molecules on the corners of a cube of 3.1 angstrom
molecule = np.array([[0.0, 0.0, 0.0], [0.82, 0.58, 0.0], [-0.82, 0.58, 0.0]])
corners = 3.1 * np.array(list(np.ndindex(2, 2, 2)), dtype=float)
positions = np.concatenate([molecule + corner for corner in corners])

calc = Calculator(path("models/al_water-fixed_point.safetensors"), dtype="float64")
system = mixed_system(system, calc, Atoms("OH2", info={"charge": 0}), [0, 1, 2])
integrator = openmm.LangevinMiddleIntegrator(300, 5.0 / unit.picosecond, 0.0005 * unit.picoseconds)
context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
context.setPositions(0.1 * positions)
context.setVelocitiesToTemperature(300, 1)
openmm.LocalEnergyMinimizer.minimize(context, 10.0, 5)
for done in range(0, steps, 10):
    integrator.step(min(10, steps - done))
    energy = context.getState(getEnergy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    charges = calc.results["charges"]
    print(
        f"{0.5 * (done + 10):6.1f} fs  {energy:12.2f} kJ/mol  charges of the model's water {charges.round(3)}"
    )
