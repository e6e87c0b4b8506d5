"""The first five minutes: a model of a file, and the Coulomb operator."""

# %% model
from ase.io import read

import scfmlip
from scfmlip.data import path

model = scfmlip.load(path("models/al_water-equilibrated.safetensors"))
print(model)

# %% calculator
atoms = read(path("al_water.xyz"), 0)
atoms.info["charge"] = 0
atoms.calc = scfmlip.ase.Calculator(model)
print(f"energy {atoms.get_potential_energy():.3f} eV, charge {atoms.get_charges().sum():.6f} e")
print("dipole", atoms.get_dipole_moment().round(3), "e angstrom")

# %% coulomb
import torch

generator = torch.Generator().manual_seed(0)
positions = 6 * torch.rand(20, 3, generator=generator, dtype=torch.float64)
cell = 6 * torch.eye(3, dtype=torch.float64)
charges = torch.randn(20, 1, generator=generator, dtype=torch.float64)
charges -= charges.mean()

coulomb = scfmlip.Coulomb(l_max=0, sigma=1.0)  # Gaussian charges 1 angstrom wide
geometry = coulomb.prepare(positions, cell, True)  # periodic in three directions
print(coulomb, geometry, sep="\n")
print(geometry.energy(charges), "eV")
print(geometry.at(positions[:3] + 0.5, charges).potential, "V")

# %% equilibrate
electronegativity = torch.randn(20, generator=generator, dtype=torch.float64)
hardness = torch.full((20,), 8.0, dtype=torch.float64)
print(scfmlip.charge_equilibration(geometry, electronegativity, hardness, total_charge=0.0))
