"""A self-consistent field of one's own: charges that answer the potential they make, and saturate."""

# %% system
import torch

import scfmlip

torch.manual_seed(0)
n_atoms, edge = 64, 8.6
grid = torch.cartesian_prod(*[torch.arange(4.0, dtype=torch.float64)] * 3) * edge / 4
positions = grid + 0.3 * torch.randn(n_atoms, 3, dtype=torch.float64)
cell = edge * torch.eye(3, dtype=torch.float64)
coulomb = scfmlip.Coulomb(l_max=0, sigma=1.0, self_interaction=True)
geometry = coulomb.prepare(positions, cell, True)

# %% update
bias = 3.0 * torch.randn(n_atoms, dtype=torch.float64)  # V, what a network would give
largest = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)  # e: no atom holds more
stiffness = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)  # V/e


def update(charges, level, largest, stiffness):
    """Charges that atoms take in the potential of all charges, at the level that makes them add up."""
    felt = geometry.potential(charges)[:, 0] + bias
    return (largest * torch.tanh((level - felt) / (stiffness * largest)))[:, None]


# %% solve
start = torch.zeros(n_atoms, 1, dtype=torch.float64)
solution = scfmlip.fixed_point(update, start, (largest, stiffness), total_charge=0.0, tolerance=1e-10)
charges = solution.state[:, 0]
again = update(solution.state, solution.chemical_potential, largest, stiffness)
print(f"largest charge {charges.abs().max():.4f} e, sum {charges.sum():.1e} e")
print(f"the map moves the solution by {(again[:, 0] - charges).abs().max():.1e} e")
print(f"{solution.evaluations} evaluations, level {solution.chemical_potential.item():.4f} V")

# %% mixing
mixed, history = start.clone(), []
with torch.no_grad():
    for _ in range(200):
        # the level that makes the charges of this step add up, by bisection
        low, high = torch.tensor(-50.0).double(), torch.tensor(50.0).double()
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (
                (middle, high) if update(mixed, middle, largest, stiffness).sum() < 0 else (low, middle)
            )
        new = update(mixed, middle, largest, stiffness)
        history.append(float((new - mixed).norm()))
        if history[-1] < 1e-8:
            break
        mixed = mixed + 0.2 * (new - mixed)
print(f"mixing a fifth of every step: {len(history)} steps, change of the last one {history[-1]:.1e} e")

# %% gradient
energy = 0.5 * (charges * geometry.potential(solution.state)[:, 0]).sum()
slope = torch.autograd.grad(energy, stiffness)[0]
energies = []
for shift in (-1e-4, 1e-4):
    found = scfmlip.fixed_point(
        update, start, (largest, stiffness + shift), total_charge=0.0, tolerance=1e-12
    ).state
    energies.append(0.5 * (found * geometry.potential(found)).sum().item())
numeric = (energies[1] - energies[0]) / 2e-4
print(f"slope of the energy with the stiffness {slope.item():.8f}, by differences {numeric:.8f}")

# %% picture
import matplotlib.pyplot as plt

figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4), layout="constrained")
left.semilogy(history)
left.axvline(
    solution.evaluations, color="tab:orange", label=f"fixed_point: {solution.evaluations} evaluations"
)
left.set(xlabel="step of mixing", ylabel="change of the charges (e)")
left.legend()
right.plot(bias, charges.detach(), "o", markersize=4)
right.set(xlabel="bias of an atom (V)", ylabel="its charge (e)")
figure.savefig("fixed_point.png", dpi=120)
