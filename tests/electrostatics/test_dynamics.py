"""Dynamics of ions with fixed Gaussian charges through the mesh, in float32."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.units import fs, kB

from scfmlip import Coulomb
from scfmlip.neighbours import SkinList

CUTOFF, STRENGTH, LENGTH = 5.5, 1200.0, 0.33  # of the repulsion: angstrom, eV, angstrom


def repulsion(positions, cell, neighbours):
    """``A exp(-r / rho)``, shifted so that it and its slope are 0 at the cutoff: energy and forces."""
    (i, j), images = neighbours(positions, cell, np.ones(3, dtype=bool), CUTOFF)
    vectors = positions[j] - positions[i] + images @ cell
    r = np.sqrt((vectors**2).sum(1))
    at, end = STRENGTH * np.exp(-r / LENGTH), STRENGTH * np.exp(-CUTOFF / LENGTH)
    slope = -at / LENGTH + end / LENGTH
    energy = 0.5 * (at - end + end / LENGTH * (r - CUTOFF)).sum()
    pull = (slope / r)[:, None] * vectors  # each pair occurs twice, once from either end
    forces = np.stack([np.bincount(i, pull[:, axis], len(positions)) for axis in range(3)], 1)
    return energy, forces


@pytest.mark.slow
def test_energy_of_3136_ions_in_float32_is_conserved():
    torch.set_num_threads(1)
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat((7, 7, 8))
    assert len(atoms) == 3136
    generator = np.random.default_rng(0)
    masses = atoms.get_masses()[:, None]
    momenta = generator.normal(size=(len(atoms), 3)) * np.sqrt(masses * kB * 600)
    momenta -= momenta.mean(0)
    positions, cell, neighbours = atoms.get_positions(), np.array(atoms.cell), SkinList(0.5)
    charges = torch.tensor(np.where(atoms.numbers == 11, 1.0, -1.0), dtype=torch.float32)[:, None]
    coulomb = Coulomb(l_max=0, sigma=1.0, method="mesh", tolerance=1e-4)
    box = torch.tensor(cell, dtype=torch.float32)
    plan = coulomb.plan(box, True, None, len(atoms))

    def evaluate():
        r = torch.tensor(positions, dtype=torch.float32, requires_grad=True)
        energy = coulomb.prepare(r, box, True, plan=plan).energy(charges)
        (gradient,) = torch.autograd.grad(energy.sum(), r)
        short, forces = repulsion(positions, cell, neighbours)
        return float(energy.detach()) + short, forces - gradient.double().numpy()

    step, energies, temperatures = 1.0 * fs, [], []
    potential, forces = evaluate()
    for _ in range(1000):
        momenta = momenta + 0.5 * step * forces
        positions = positions + step * momenta / masses
        potential, forces = evaluate()
        momenta = momenta + 0.5 * step * forces
        kinetic = 0.5 * (momenta**2 / masses).sum()
        energies.append((potential + kinetic) / len(atoms))
        temperatures.append(2 * kinetic / (3 * len(atoms) * kB))
    times = np.arange(len(energies)) / 1000  # ps
    drift = np.polyfit(times[100:], np.array(energies)[100:], 1)[0]
    print(f"drift {drift:.2e} eV/atom/ps, {np.std(energies):.1e} eV/atom around it, {temperatures[-1]:.0f} K")
    assert 200 < temperatures[-1] < 600  # it moves, and is not the lattice it was
    assert abs(drift) < 1e-6
