"""Speed up a MACE model: the same numbers from mace-torch and from scfmlip, and how long each takes."""

# %% model
import time

import numpy as np
import torch
from ase.io import read
from mace import modules
from mace.calculators import MACECalculator
from mace.modules import ScaleShiftMACE

import scfmlip
from scfmlip.data import path

# stands for yours: model = torch.load("my.model", weights_only=False), or mace_mp("medium").models[0]
from e3nn import o3  # after mace, which makes it loadable

torch.manual_seed(0)
block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
model = ScaleShiftMACE(
    r_max=5.0,
    num_bessel=8,
    num_polynomial_cutoff=5,
    max_ell=3,
    interaction_cls=block,
    interaction_cls_first=block,
    num_interactions=2,
    num_elements=2,
    hidden_irreps=o3.Irreps("64x0e+64x1o"),
    MLP_irreps=o3.Irreps("16x0e"),
    atomic_energies=np.zeros(2),
    avg_num_neighbors=30.0,
    atomic_numbers=[8, 14],
    correlation=3,
    gate=torch.nn.functional.silu,
    atomic_inter_scale=1.0,
    atomic_inter_shift=0.0,
    radial_MLP=[64, 64, 64],
)
print(sum(p.numel() for p in model.parameters()), "weights")

# %% accelerate
fast = scfmlip.accelerate(model)
print(scfmlip.is_accelerated(fast), isinstance(fast, ScaleShiftMACE))

# %% compare
atoms = read(path("sio2_vacancy.xyz"), 0)
found = {}
for name, which in (("mace-torch", model), ("scfmlip", fast)):
    atoms.calc = MACECalculator(models=[which], device="cpu", default_dtype="float32")
    atoms.get_potential_energy()  # the first call compiles and fills caches
    start = time.perf_counter()
    for _ in range(2):
        atoms.calc.reset()
        found[name] = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    found[name] += ((time.perf_counter() - start) / 2,)
(e0, f0, s0, t0), (e1, f1, s1, t1) = found.values()
print(f"{len(atoms)} atoms, energies differ by {abs(e0 - e1) / abs(e0):.0e} of the energy,")
print(f"forces by {np.abs(f0 - f1).max() / np.abs(f0).max():.0e} of the largest,")
print(f"stress by {np.abs(s0 - s1).max() / np.abs(s0).max():.0e} of the largest component")
print(f"mace-torch {t0:.2f} s, scfmlip {t1:.2f} s: {t0 / t1:.1f} times as fast here")

# %% calculator
atoms.calc = scfmlip.ase.Calculator(model, dtype="float64")  # accelerates by itself
energy, forces = atoms.get_potential_energy(), atoms.get_forces()
print(f"{energy:.6f} eV, largest force {np.abs(forces).max():.4f} eV/angstrom")

# %% train
step = torch.optim.Adam(fast.parameters(), lr=1e-3)
batch = scfmlip.mace_torch.batches.make_batch(fast, [atoms], torch.device("cpu"), torch.float32)
wanted = torch.as_tensor(atoms.arrays["REF_forces"], dtype=torch.float32)
for i in range(3):
    step.zero_grad()
    loss = ((fast(batch, training=True)["forces"] - wanted) ** 2).mean()
    loss.backward()
    step.step()
    print(f"step {i}: mean squared error of the forces {loss.item():.4f} (eV/angstrom)^2")

# %% back
model = scfmlip.restore(fast)
torch.save(model, "trained.model")  # what mace-torch's own tools read
print(type(model).__module__, scfmlip.is_accelerated(model))

# %% picture
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
left.plot(f0.ravel(), f1.ravel(), ".", markersize=4)
left.axline((0, 0), slope=1, color="0.7", linewidth=1, zorder=0)
left.set(xlabel="force, mace-torch (eV/Å)", ylabel="force, scfmlip (eV/Å)")
right.bar(["mace-torch", "scfmlip"], [t0, t1], color=["0.6", "tab:blue"])
right.set(ylabel="energy, forces and stress (s)", title=f"{len(atoms)} atoms, this machine")
figure.savefig("accelerate_mace.png", dpi=120)
