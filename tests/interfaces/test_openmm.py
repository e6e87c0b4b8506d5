"""OpenMM: the model alone, at constant potential, and among a force field's charges."""

import numpy as np
import pytest

pytest.importorskip("openmm", reason="needs OpenMM 8.6")
pytest.importorskip("mace", reason="needs mace-torch")

import openmm
from ase import Atoms, units
from models.cases import crystal, make_model, slab, water
from openmm import unit

from scfmlip.ase import Calculator
from scfmlip.interfaces.openmm import make_force, mixed_system

EV = units.kJ / units.mol


def plain_system(atoms):
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    if atoms.pbc.any():
        system.setDefaultPeriodicBoxVectors(*(0.1 * atoms.cell.array))
    return system


def make_context(system, positions):
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.5 * unit.femtosecond), platform)
    context.setPositions(0.1 * np.asarray(positions))
    return context


def energy_forces(context):
    """In eV and eV/angstrom."""
    state = context.getState(getEnergy=True, getForces=True)
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) * EV
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
    return energy, np.asarray(forces) * EV / 10


@pytest.mark.parametrize("make", [water, crystal])
def test_the_model_alone(make):
    """ASE's numbers, in OpenMM's units; one particle more that is not the model's."""
    atoms = make()
    if atoms.pbc.any():
        # OpenMM wants reduced vectors
        atoms.set_cell(np.diag([4.3, 4.5, 4.9]), scale_atoms=True)
    atoms.calc = Calculator(make_model("qeq"), extrapolation=None)
    system = plain_system(atoms)
    system.addParticle(1.0)
    system.addForce(make_force(Calculator(make_model("qeq")), atoms))
    context = make_context(system, [*atoms.positions, [9.0, 9.0, 9.0]])
    energy, forces = energy_forces(context)
    assert energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    np.testing.assert_allclose(forces[:-1], atoms.get_forces(), atol=1e-9)
    assert not forces[-1].any()


def test_constant_potential():
    """The level is a parameter of the context."""
    atoms = slab(0.0, True)
    atoms.set_cell(np.diag([*atoms.cell.lengths()[:2], 20.0]))
    model = make_model("qeq", constraint="fermi_level")
    system = plain_system(atoms)
    system.addForce(make_force(Calculator(model), atoms, fermi_level=0.1))
    context = make_context(system, atoms.positions)
    for level in (0.1, 0.4):
        context.setParameter("scfmlip_fermi_level", level)
        reference = atoms.copy()
        reference.calc = Calculator(model, fermi_level=level)
        assert energy_forces(context)[0] == pytest.approx(reference.get_potential_energy(), abs=1e-9)


def force_field(n_water=3, charges=(-0.8, 0.4, 0.4)):
    """Waters of a force field: the first will be the model's; flexible, with Lennard-Jones."""
    system = openmm.System()
    bonds, angles, pairs = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.NonbondedForce()
    for n in range(n_water):
        for mass, charge, sigma, epsilon in zip(
            (16.0, 1.0, 1.0), charges, (0.3166, 0.1, 0.1), (0.65, 0.05, 0.05), strict=True
        ):
            system.addParticle(mass)
            pairs.addParticle(charge, sigma, epsilon)
        o = 3 * n
        bonds.addBond(o, o + 1, 0.0957, 3e5)
        bonds.addBond(o, o + 2, 0.0957, 3e5)
        angles.addAngle(o + 1, o, o + 2, 1.82, 300.0)
        for a, b in ((o, o + 1), (o, o + 2), (o + 1, o + 2)):
            pairs.addException(a, b, 0.0, 1.0, 0.0)
    for force in (bonds, angles, pairs):
        system.addForce(force)
    return system


def molecules():
    place = np.array([[0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0.05]])
    turned = place[:, [2, 0, 1]]
    return np.concatenate([place, turned + np.array([0, 0, 3.1]), place + np.array([3.0, 0.4, 0.3])])


@pytest.mark.parametrize("case", ["qeq", pytest.param("affine", marks=pytest.mark.slow)])
def test_embedding_by_differences(case):
    """The total energy's slopes at every particle, the model's and the force field's."""
    positions, atoms = molecules(), Atoms("OHH", info={"charge": 0.0})
    system = mixed_system(force_field(), Calculator(make_model(case)), atoms, [0, 1, 2])
    context = make_context(system, positions)
    _, forces = energy_forces(context)
    step, found = 1e-3, np.zeros_like(positions)
    for index in np.ndindex(*positions.shape):
        energies = []
        for sign in (1, -1):
            moved = positions.copy()
            moved[index] += sign * step
            context.setPositions(0.1 * moved)
            energies.append(energy_forces(context)[0])
        found[index] = (energies[1] - energies[0]) / (2 * step)
    np.testing.assert_allclose(forces, found, atol=2e-5)  # finite differences
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-8)
    assert np.abs(forces[3:]).max() > 0.05


def test_who_acts_on_whom():
    """The energy is the others', Lennard-Jones between both, and the embedded model's."""
    positions, atoms = molecules(), Atoms("OHH", info={"charge": 0.0})
    calc = Calculator(make_model("qeq"), extrapolation=None)
    system = mixed_system(force_field(), calc, atoms, [0, 1, 2])
    energy, _ = energy_forces(make_context(system, positions))
    model = atoms.copy()
    model.positions[:] = positions[:3]
    model.info |= {"external_charges": [-0.8, 0.4, 0.4] * 2, "external_positions": positions[3:]}
    model.calc = calc
    others, _ = energy_forces(make_context(force_field(2), positions[3:]))
    bare = force_field(charges=(0.0, 0.0, 0.0))
    alone = force_field(2, (0.0, 0.0, 0.0))
    single = force_field(1)
    lennard = energy_forces(make_context(bare, positions))[0]
    lennard -= energy_forces(make_context(alone, positions[3:]))[0]
    lennard -= energy_forces(make_context(single, positions[:3]))[0]
    assert energy == pytest.approx(model.get_potential_energy() + others + lennard, abs=1e-8)
    assert abs(lennard) > 1e-4


@pytest.mark.slow
def test_dynamics_conserve_energy():
    positions, atoms = molecules(), Atoms("OHH", info={"charge": 0.0})
    system = mixed_system(force_field(), Calculator(make_model("qeq")), atoms, [0, 1, 2])
    context, totals, potentials = make_context(system, positions), [], []
    for _ in range(20):
        context.getIntegrator().step(1)
        state = context.getState(getEnergy=True)
        kinetic = state.getKineticEnergy().value_in_unit(unit.kilojoule_per_mole) * EV
        potentials.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) * EV)
        totals.append(potentials[-1] + kinetic)
    assert np.ptp(totals) < 0.05 * np.ptp(potentials)


def test_what_cannot_be():
    atoms, calc = Atoms("OHH", info={"charge": 0.0}), Calculator(make_model("qeq"))
    with pytest.raises(ValueError, match="must be whole molecules"):
        mixed_system(force_field(), calc, Atoms("OH", info={"charge": 0.0}), [0, 1])
    with pytest.raises(ValueError, match="particles must be numbers below 9"):
        mixed_system(force_field(), calc, atoms, [0, 1, 9])
    with pytest.raises(ValueError, match="particles must be 3 different numbers"):
        make_force(calc, atoms, [0, 1, 1])
    with pytest.raises(ValueError, match="charges must be finite numbers"):
        make_force(calc, atoms, charges=[0.0, np.nan, 0.0])
    with pytest.raises(ValueError, match="a density that feels them"):
        make_force(Calculator(make_model("short_range")), atoms, charges=np.ones(9))
    system = force_field()
    system.addForce(openmm.CustomExternalForce("x"))
    with pytest.raises(ValueError, match="a CustomExternalForce is no force that can be split"):
        mixed_system(system, calc, atoms, [0, 1, 2])
    with pytest.raises(ValueError, match="has no NonbondedForce"):
        mixed_system(plain_system(atoms), calc, atoms, [0, 1, 2])
