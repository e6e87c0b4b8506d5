"""torch-sim: its own validation, batches, charges and fields from its states, dynamics."""

import numpy as np
import pytest
import torch

pytest.importorskip("torch_sim", reason="needs torch-sim, and with that Python 3.12")
pytest.importorskip("mace", reason="needs mace-torch")

import torch_sim as ts
from models.cases import crystal, make_model, water

from scfmlip.ase import Calculator
from scfmlip.interfaces.torch_sim import TorchSimModel

F64 = torch.float64


def states(frames):
    return ts.io.atoms_to_state(frames, torch.device("cpu"), F64)


@pytest.mark.parametrize("case", ["qeq", "affine", "short_range"])
def test_equals_ase(case):
    """Energies, forces, stress and charges of a batch of crystals of two sizes."""
    frames = [crystal(), crystal().repeat((2, 1, 1))]
    frames[1].positions += np.random.default_rng(0).normal(scale=0.05, size=frames[1].positions.shape)
    model = TorchSimModel(make_model(case), charge=0.0)
    state = states(frames)
    for _ in range(2):  # the second time from the first's densities
        out = model(state)
    start = 0
    for i, atoms in enumerate(frames):
        atoms.info["charge"] = 0.0
        atoms.calc = Calculator(make_model(case), extrapolation=None)
        mine = slice(start, start := start + len(atoms))
        assert float(out["energy"][i]) == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(out["forces"][mine].numpy(), atoms.get_forces(), atol=1e-8)
        np.testing.assert_allclose(out["stress"][i].numpy(), atoms.get_stress(voigt=False), atol=1e-9)
        if case != "short_range":
            np.testing.assert_allclose(out["partial_charges"][mine].numpy(), atoms.get_charges(), atol=1e-8)
    assert not any(value.requires_grad for value in out.values())


def test_charges_and_fields_of_the_state():
    frames = [water(), water()]
    state = states(frames)
    field = torch.tensor([[0.0, 0.0, 0.1], [0.05, 0.0, 0.0]], dtype=F64)
    state.system_extras["total_charge"] = torch.tensor([0.0, 1.0], dtype=F64)
    state.system_extras["external_E_field"] = field
    out = TorchSimModel(make_model("qeq"), compute_stress=False)(state)
    assert "stress" not in out
    for i, atoms in enumerate(frames):
        # mace's sign is the other one
        atoms.info = {"charge": float(i), "external_field": -field[i].numpy()}
        atoms.calc = Calculator(make_model("qeq"))
        assert float(out["energy"][i]) == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(out["dipole"][i].numpy(), atoms.get_dipole_moment(), atol=1e-9)
    with pytest.raises(ValueError, match=r"lacks atoms\.info"):
        TorchSimModel(make_model("qeq"))(states(frames))
    with pytest.raises(ValueError, match="dtype must be"):
        TorchSimModel(make_model("qeq"), dtype=torch.float16)


def test_dynamics():
    """NVE by torch-sim's own integrator conserves energy."""
    model = TorchSimModel(make_model("affine"), charge=0.0)
    state = ts.nve_init(states([crystal()]), model, kT=torch.tensor(300 * 8.617e-5, dtype=F64))
    totals, potentials = [], []
    for _ in range(10):
        state = ts.nve_step(state, model, dt=torch.tensor(0.5 * 0.09822694788, dtype=F64))
        kinetic = ts.calc_kinetic_energy(momenta=state.momenta, masses=state.masses)
        potentials.append(float(state.energy))
        totals.append(float(state.energy + kinetic))
    assert np.ptp(potentials) > 1e-5
    assert np.ptp(totals) < 0.05 * np.ptp(potentials)


def count_iterations(extrapolation, case="passive", steps=12):
    """Of two crystals that move; forces at the end."""
    frames = [crystal(), crystal().repeat((2, 1, 1))]
    model = TorchSimModel(make_model(case), charge=0.0, compute_stress=False, extrapolation=extrapolation)
    state, rng, counts = states(frames), np.random.default_rng(1), []
    speed = torch.tensor(rng.normal(scale=0.004, size=state.positions.shape))
    for _ in range(steps):
        state.positions = state.positions + speed
        out = model(state)
        counts.append(out["scf_iterations"].double().mean().item())
    return np.mean(counts[4:]), out["forces"], model, state


def test_solves_start_from_the_last_ones():
    """Fewer iterations, the same forces; other systems start afresh, the same geometry where it ended."""
    warm, forces, model, state = count_iterations(3)
    cold, reference, _, _ = count_iterations(None)
    assert warm < 0.7 * cold
    np.testing.assert_allclose(forces.numpy(), reference.numpy(), atol=1e-8)
    assert model(state)["scf_iterations"].max() <= 1
    swapped = states([crystal().repeat((2, 1, 1)), crystal()])
    fresh = TorchSimModel(make_model("passive"), charge=0.0, compute_stress=False, extrapolation=None)
    found, want = model(swapped), fresh(swapped)
    np.testing.assert_allclose(found["forces"].numpy(), want["forces"].numpy(), atol=1e-8)
    assert torch.equal(found["scf_iterations"], want["scf_iterations"])
    with pytest.raises(ValueError, match="order of the extrapolation"):
        TorchSimModel(make_model("passive"), charge=0.0, extrapolation=-1)
