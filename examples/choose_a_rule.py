"""What two charge rules say of a metal and water beside DFT: charges, a field, an ion far away."""

# %% models
import numpy as np
from ase.io import read

import scfmlip
from scfmlip.data import path

MODELS = {
    "equilibrated": "models/al_water-equilibrated.safetensors",
    "fixed point": "models/al_water-fixed_point.safetensors",
}
calculators = {name: scfmlip.ase.Calculator(path(file), dtype="float64") for name, file in MODELS.items()}
atoms = read(path("al_water.xyz"), 0)  # held back from the training of both
metal = atoms.numbers == 13

# %% errors
charges = {}
for name, calc in calculators.items():
    atoms.calc = calc
    error = 1e3 * (atoms.get_potential_energy() - atoms.info["REF_energy"]) / len(atoms)
    forces = atoms.get_forces() - atoms.arrays["REF_forces"]
    charges[name] = atoms.get_charges()
    wrong = charges[name] - atoms.arrays["REF_hirshfeld"]
    print(
        f"{name:12s} energy {error:+.1f} meV/atom, forces {np.sqrt((forces**2).mean()):.3f} eV/angstrom, "
        f"charges {np.sqrt((wrong**2).mean()):.4f} e, dipole {atoms.get_dipole_moment()[2]:+.3f} "
        f"(DFT {atoms.info['REF_dipole'][2]:+.3f}) e angstrom"
    )

# %% field
answers = {}
for name, calc in calculators.items():
    found = []
    for strength in (-0.1, 0.1):
        atoms.info["external_field"] = [0.0, 0.0, strength]
        found.append(calc.get_property("charges", atoms).copy())
    answers[name] = 0.5 * (found[0] - found[1])  # to a field of 0.1 V/angstrom that pushes charge up
    del atoms.info["external_field"]
    top = answers[name][metal][atoms.positions[metal, 2] > atoms.positions[metal, 2].max() - 1.0].sum()
    print(f"{name:12s} top layer of the metal {1e3 * top:+.1f} me in 0.1 V/angstrom")

# %% ion
wide = atoms.repeat((3, 2, 1))
wide.cell[2, 2] = 60.0
bottom = wide.positions[:, 2].min()
place = wide.positions[wide.positions[:, 2].argmin()] * [1, 1, 0]
heights = np.array([5.0, 6.0, 7.0, 9.0])  # below the metal, farther than any network sees
images = {}
print("energy of an ion below the metal beside that at 9 angstrom, eV/e^2:")
for name, calc in calculators.items():
    images[name] = []
    for height in heights:
        energies = []
        for ion in (-0.3, 0.0, 0.3):
            wide.info = {"charge": 0.0}
            if ion:
                wide.info |= {
                    "external_charges": [ion],
                    "external_positions": [place + np.array([0, 0, bottom - height])],
                }
            energies.append(calc.get_property("energy", wide))
        # what is even in the ion's charge comes from what it does to the metal
        images[name].append((0.5 * (energies[0] + energies[2]) - energies[1]) / 0.3**2)
    images[name] = np.array(images[name]) - images[name][-1]
    print(f"{name:12s} " + ", ".join(f"{e:+.4f} at {h:g}" for e, h in zip(images[name], heights)))

# %% picture
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
for name in MODELS:
    axes[0].plot(atoms.arrays["REF_hirshfeld"], charges[name], "o", markersize=4, label=name)
    axes[1].plot(atoms.positions[:, 2], 1e3 * answers[name], "o", markersize=4, label=name)
    axes[2].plot(heights, images[name], "o-", label=name)
axes[0].axline((0, 0), slope=1, color="0.7", linewidth=1, zorder=0)
axes[0].set(xlabel="Hirshfeld charge of DFT (e)", ylabel="charge of the model (e)")
axes[1].set(xlabel="z (Å)", ylabel="change of charge in 0.1 V/Å (10⁻³ e)")
axes[2].set(xlabel="ion below the metal (Å)", ylabel="energy beside that at 9 Å (eV/e²)")
axes[0].legend(fontsize=8)
figure.savefig("choose_a_rule.png", dpi=120)
