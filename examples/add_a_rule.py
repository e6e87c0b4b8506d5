"""A charge rule of one's own: local charges, pushed once by the potential of all others."""

# %% rule
from dataclasses import dataclass

import torch
from ase.io import read

import scfmlip
from scfmlip.data import path
from scfmlip.models.config import check_numbers
from scfmlip.models.readouts import MultipoleReadout, ScalarReadout
from scfmlip.models.rules import (
    ChargeRule,
    RuleContext,
    RuleDensity,
    RuleEnergies,
    RuleOutput,
    System,
    make_coulomb,
    register,
)
from scfmlip.models.rules.fixed import spread_charge


@dataclass(frozen=True)
class PushedConfig:
    """
    Options.

    Attributes:
        softness: What 1 V takes from an atom at first, e.
        hidden: Width of the readouts.
    """

    softness: float = 0.01
    hidden: int = 16

    def __post_init__(self) -> None:
        check_numbers("rule", self, "softness", above=0)
        check_numbers("rule", self, "hidden", least=1)


@register("pushed")
class Pushed(ChargeRule):
    """Charges read off the features, and one step in the potential that they make at each atom."""

    Config = PushedConfig
    constraints = ("none", "charge")

    def __init__(self, config: PushedConfig, context: RuleContext) -> None:
        super().__init__(config, context)
        self.coulomb = make_coulomb(context.density, l_max=0)
        irreps, n_elements = context.feature_irreps, len(context.elements)
        self.charges = MultipoleReadout(irreps, n_elements, l_max=0, hidden=config.hidden)
        self.softness = ScalarReadout(irreps, n_elements, hidden=config.hidden)

    def forward(self, system: System) -> RuleOutput:
        """Density and energy of a batch."""
        first = self.charges(system.features, system.node_attrs)[:, 0, 0]
        geometry = system.prepare(self.coulomb)  # external fields included
        potential = geometry.potential(first[:, None])[:, 0]
        soft = self.config.softness * self.softness(system.features, system.node_attrs)[:, 0].exp()
        rows = first - soft * potential
        if self.context.constraint == "charge":
            rows = spread_charge(rows, system)
        rows = rows[:, None]
        return RuleOutput(RuleEnergies(system.coulomb_energy(geometry, rows)), RuleDensity(rows, geometry))


print("rules:", ", ".join(scfmlip.models.rule_names()))

# %% model
config = {
    "elements": ["H", "O", "Al"],
    "rule": {"name": "pushed", "softness": 0.02},
    "constraint": "charge",
    "dtype": "float64",
    "density": {"l_max": 0, "sigma": 1.5},
    "backbone": {
        "r_max": 4.0,
        "hidden_irreps": "8x0e+8x1o",
        "MLP_irreps": "8x0e",
        "max_ell": 1,
        "correlation": 2,
        "radial_MLP": [16],
        "avg_num_neighbors": 12.0,
    },
}
model = scfmlip.models.build(config)
atoms = read(path("al_water.xyz"), 0)
atoms.info = {"charge": 0.0}
atoms.calc = scfmlip.ase.Calculator(model)
print(
    f"charges sum to {atoms.get_charges().sum():.1e} e; {sum(p.numel() for p in model.parameters())} weights"
)

# %% check
moved, step, energies = atoms.copy(), 1e-4, []
moved.calc = atoms.calc
forces = atoms.get_forces()
for sign in (-1, 1):
    moved.positions[5, 2] = atoms.positions[5, 2] + sign * step
    energies.append(moved.get_potential_energy())
print(f"force {forces[5, 2]:.8f}, by differences {-(energies[1] - energies[0]) / (2 * step):.8f} eV/angstrom")

# %% train
frame = read(path("al_water.xyz"), 0)
batch = scfmlip.mace_torch.batches.make_batch(model, [atoms], torch.device("cpu"), torch.float64)
wanted = torch.tensor(frame.arrays["REF_hirshfeld"])
adam = torch.optim.Adam(model.parameters(), lr=0.02)
losses = []
for _ in range(30):
    adam.zero_grad()
    loss = ((model(batch, compute_force=False, training=True)["charges"] - wanted) ** 2).mean()
    loss.backward()
    adam.step()
    losses.append(loss.item() ** 0.5)
print(f"charges of one frame wrong by {losses[0]:.4f} e at first, {losses[-1]:.4f} e after 30 steps")

# %% save
scfmlip.save(model, "pushed.safetensors")
back = scfmlip.load("pushed.safetensors")
same = back(batch, compute_force=False)["energy"] - model(batch, compute_force=False)["energy"]
print(f"{back.config.rule}, energies of the file and the model differ by {same.abs().item():.0e} eV")

# %% picture
import matplotlib.pyplot as plt

figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
axis.semilogy(losses)
axis.set(xlabel="step", ylabel="error of the charges (e)", title="rule 'pushed', one frame")
figure.savefig("add_a_rule.png", dpi=120)
