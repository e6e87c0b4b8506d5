"""Two slabs in one batch with torch-sim, Python 3.12: python examples/torch_sim_nve.py [steps]"""

import sys

import torch
import torch_sim as ts
from ase import units
from ase.io import read

from scfmlip.data import path
from scfmlip.interfaces.torch_sim import TorchSimModel

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
frames = read(path("al_water.xyz"), ":2")
model = TorchSimModel(path("models/al_water-fixed_point.safetensors"), charge=0.0, compute_stress=False)
state = ts.io.atoms_to_state(frames, model.device, model.dtype)
# the second one in a field of 0.1 V/angstrom along z
state.system_extras["external_E_field"] = torch.tensor([[0, 0, 0], [0, 0, 0.1]], dtype=model.dtype)
# one atom's kinetic energy, eV, and the step, in torch-sim's metal units as in ASE's
temperature, step = torch.tensor(300 * units.kB), torch.tensor(0.5 * units.fs)
state = ts.nve_init(state, model, kT=temperature.to(model.dtype))
for done in range(steps):
    state = ts.nve_step(state, model, dt=step.to(model.dtype))
    if done % 5 == 4:
        kinetic = ts.calc_kinetic_energy(
            momenta=state.momenta, masses=state.masses, system_idx=state.system_idx
        )
        print(f"{0.5 * (done + 1):5.1f} fs  total energies {(state.energy + kinetic).tolist()} eV")
