"""A water-covered metal slab: potential, external field, charged slab, work function, constant potential."""

# %% model
import numpy as np
from ase.io import read

import scfmlip
from scfmlip.cli.plot import planar_averages
from scfmlip.data import path

atoms = read(path("al_water.xyz"), 0)  # Al(100) with water on top, periodic in x and y
atoms.info = {"charge": 0}
calc = scfmlip.ase.Calculator(path("models/al_water-equilibrated.safetensors"), dtype="float64")
atoms.calc = calc
print(f"{len(atoms)} atoms, pbc {atoms.pbc.tolist()}, energy {atoms.get_potential_energy():.3f} eV")
print(f"charge of the metal {atoms.get_charges()[atoms.numbers == 13].sum():+.3f} e")
print(f"dipole along z {atoms.get_dipole_moment()[2]:+.3f} e angstrom")

# %% work
below, above = calc.get_property("work_functions", atoms)
level = calc.get_property("fermi_level", atoms)
print(f"Fermi level {level:.3f} eV; work functions {below:.3f} eV below, {above:.3f} eV above")
print(f"difference of the two sides {above - below:.3f} eV")

# %% field
dipoles, energies, fields = [], [], np.array([-0.1, -0.05, 0.0, 0.05, 0.1])
for strength in fields:
    atoms.info["external_field"] = [0.0, 0.0, strength]  # V/angstrom: energy + field . dipole, as in mace
    energies.append(atoms.get_potential_energy())
    dipoles.append(atoms.get_dipole_moment()[2])
del atoms.info["external_field"]
slope = np.polyfit(fields, energies, 2)[1]
answer = np.polyfit(fields, dipoles, 1)[0]
print(f"dE/dfield at 0 is {slope:.4f} e angstrom, the dipole {dipoles[2]:.4f}")
print(f"the dipole changes by {answer:.3f} e angstrom for 1 V/angstrom: polarizability {-answer:.3f} e A^2/V")

# %% charged
electrode = atoms.cell.lengths()[2]  # a plate of the opposite charge above the water
for charge in (-0.2, 0.0, 0.2):
    atoms.info |= {"charge": charge, "counter_charge": (electrode, electrode + 1.0)}
    energy, level = atoms.get_potential_energy(), calc.get_property("fermi_level", atoms)
    print(f"charge {charge:+.1f} e: energy {energy:.4f} eV, Fermi level {level:+.4f} eV")

# %% slope
step = 0.02
near = []
for charge in (-step, step):
    atoms.info["charge"] = charge
    near.append(atoms.get_potential_energy())
atoms.info["charge"] = 0.0
level = calc.get_property("fermi_level", atoms)
print(f"-dE/dQ = {-(near[1] - near[0]) / (2 * step):.5f} eV, Fermi level {level:.5f} eV")

# %% potential
electrodes = scfmlip.ase.Calculator(calc.model, dtype="float64", fermi_level=level)
levels = level + np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
charges = []
for value in levels:
    atoms.info["fermi_level"] = value
    charges.append(electrodes.get_property("charges", atoms).sum())
    print(f"electrons at {value:+.3f} eV: the slab holds {charges[-1]:+.4f} e")
capacitance = -np.polyfit(levels, charges, 1)[0]
area = np.linalg.norm(np.cross(*atoms.cell.array[:2]))
print(f"capacitance {capacitance:.4f} e/V, {1602.2 * capacitance / area:.2f} microfarad/cm^2")
del atoms.info["fermi_level"], atoms.info["counter_charge"]

# %% picture
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
for strength, colour in ((0.0, "tab:blue"), (-0.1, "tab:orange")):
    atoms.info["external_field"] = np.array([0.0, 0.0, strength])
    rows = calc.get_property("density_coefficients", atoms)[:, [0, 3, 1, 2]]  # mace's order to x, y, z
    z, (values,) = planar_averages(atoms, rows, 1.5, ("potential",), 2, 120)
    axes[0].plot(z, values, color=colour, label=f"field {strength:g} V/Å")
axes[0].set(xlabel="z (Å)", ylabel="planar average of the potential (V)")
axes[0].legend(fontsize=8)
axes[1].plot(fields, dipoles, "o-")
axes[1].set(xlabel="external_field along z (V/Å)", ylabel="dipole (e Å)")
axes[2].plot(levels, charges, "o-")
axes[2].set(xlabel="level of the electrons (eV)", ylabel="charge of the slab (e)")
figure.savefig("slab_potentials.png", dpi=120)
