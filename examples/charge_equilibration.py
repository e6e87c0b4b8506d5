"""Charge equilibration without a network: quartz with a vacancy, gradients, fragments, constant potential."""

# %% operator
import numpy as np
import torch
from ase.io import read

import scfmlip
from scfmlip.data import path

atoms = read(path("sio2_vacancy.xyz"), 0)
positions = torch.tensor(atoms.positions, requires_grad=True)
cell, pbc = torch.tensor(np.asarray(atoms.cell)), torch.tensor(atoms.pbc)
coulomb = scfmlip.Coulomb(l_max=0, sigma=1.0)  # Gaussian charges, width in angstrom
geometry = coulomb.prepare(positions, cell, pbc)
print(len(atoms), "atoms of", atoms.get_chemical_formula())

# %% solve
silicon = torch.tensor(atoms.numbers == 14)
chi = torch.where(silicon, 3.0, 12.0).double().requires_grad_()  # electronegativity, V
hardness = torch.where(silicon, 2.0, 4.0).double().requires_grad_()  # V/e, beside the Gaussians' own
solution = scfmlip.charge_equilibration(geometry, chi, hardness, total_charge=1.0)
charges = solution.charges
print(f"Si {charges[silicon].mean():.3f} e, O {charges[~silicon].mean():.3f} e, sum {charges.sum():.6f} e")
print(
    f"energy {solution.energy.item():.4f} eV, chemical potential {solution.chemical_potential.item():.4f} V"
)

# %% forces
(forces,) = torch.autograd.grad(-solution.energy, positions, retain_graph=True)
print(f"largest force {forces.abs().max():.4f} eV/angstrom, sum of forces {forces.sum(0).abs().max():.1e}")
moved, step = positions.detach().clone(), 1e-4
energies = []
for sign in (-1, 1):
    moved[0, 0] = positions[0, 0].detach() + sign * step
    there = coulomb.prepare(moved, cell, pbc)
    energies.append(scfmlip.charge_equilibration(there, chi, hardness, total_charge=1.0).energy.item())
numeric = -(energies[1] - energies[0]) / (2 * step)
print(f"force on atom 0 along x: {forces[0, 0]:.8f}, by differences {numeric:.8f}")

# %% fit
wanted = torch.tensor(atoms.arrays["REF_hirshfeld"])
chi_of = torch.tensor([3.0, 12.0], dtype=torch.float64, requires_grad=True)  # Si, O
log_hardness = torch.zeros(2, dtype=torch.float64, requires_grad=True)
species = torch.where(silicon, 0, 1)
fixed = coulomb.prepare(positions.detach(), cell, pbc)
adam = torch.optim.Adam([chi_of, log_hardness], lr=0.1)
for epoch in range(41):
    adam.zero_grad()
    found = scfmlip.charge_equilibration(
        fixed, chi_of[species], log_hardness.exp()[species], total_charge=atoms.info["charge"]
    )
    loss = ((found.charges - wanted) ** 2).mean()
    loss.backward()
    adam.step()
    if epoch % 20 == 0:
        print(f"epoch {epoch:2d}: charges wrong by {loss.sqrt().item():.4f} e (root mean square)")

# %% batch
doubled = torch.cat([positions.detach(), positions.detach()])
batch_idx = torch.tensor([0, 1]).repeat_interleave(len(atoms))
both = coulomb.prepare(doubled, torch.stack([cell, cell]), torch.stack([pbc, pbc]), batch_idx)
twice = scfmlip.charge_equilibration(
    both, chi.detach().repeat(2), hardness.detach().repeat(2), total_charge=torch.tensor([1.0, 0.0])
)
print("charges of the two systems:", [round(float(q.sum()), 6) for q in twice.charges.chunk(2)])

# %% constant
level = solution.chemical_potential.detach()
held = scfmlip.charge_equilibration(
    fixed, chi.detach(), hardness.detach(), total_charge=None, chemical_potential=level
)
print(f"at {level.item():.4f} V the system takes {held.charges.sum():.6f} e")

# %% failure
try:
    scfmlip.charge_equilibration(fixed, chi.detach(), hardness.detach() - 30.0, total_charge=1.0)
except scfmlip.ConvergenceError as error:
    print(error)

# %% picture
import matplotlib.pyplot as plt

fitted = found.charges.detach()
figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
for kind, name in ((silicon, "Si"), (~silicon, "O")):
    left.plot(wanted[kind], fitted[kind], "o", markersize=4, label=name)
left.axline((0, 0), slope=1, color="0.7", linewidth=1, zorder=0)
left.set(xlabel="Hirshfeld charge of DFT (e)", ylabel="equilibrated (e)")
left.legend()
height = torch.linspace(0, float(cell[2, 2]), 200, dtype=torch.float64)
line = torch.stack([torch.full_like(height, 2.0), torch.full_like(height, 2.0), height], 1)
right.plot(height, fixed.at(line, fitted[:, None]).potential)
right.set(xlabel="z at x = y = 2 Å (Å)", ylabel="potential (V)")
figure.savefig("charge_equilibration.png", dpi=120)
