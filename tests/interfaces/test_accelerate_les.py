"""accelerate(MACELES) against mace-torch's own with `les` (or the dense stand-in where it is missing)."""

import numpy as np
import pytest
import torch

pytest.importorskip("mace", reason="needs mace-torch")

from tolerances import assert_close

from interfaces.les_models import les_model
from interfaces.polar_models import batch_of, random_frames
from scfmlip import accelerate, restore
from scfmlip.interfaces.mace.latent import latent_energy, les_options

T, F = True, False


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


@pytest.fixture(params=[{}, {"sigma": 1.3, "dl": 1.7, "remove_self_interaction": False}])
def model(request):
    return les_model(request.param)


@pytest.mark.parametrize("pbc", [[(T, T, T)], [(F, F, F)], [(T, T, T), (F, F, F), (T, T, T)]])
def test_equals_the_original(model, pbc):
    batch = batch_of(random_frames(pbc), model)
    theirs = model({k: v.clone() for k, v in batch.items()})
    ours = accelerate(model)({k: v.clone() for k, v in batch.items()})
    assert theirs.keys() == ours.keys()
    for key, want in theirs.items():
        if want is None:
            assert ours[key] is None
        else:
            assert_close(ours[key].detach(), want.detach(), 1e-9)


def test_training_gradients_equal_the_original(model):
    batch = batch_of(random_frames([(T, T, T), (F, F, F)], n_atoms=5), model)
    gradients = []
    for m in (model, accelerate(model)):
        out = m({k: v.clone() for k, v in batch.items()}, training=True)
        loss = (out["energy"] ** 2).sum() + (out["forces"] ** 2).sum()
        gradients.append(torch.autograd.grad(loss, list(m.parameters()), allow_unused=True))
    for want, got in zip(*gradients, strict=True):
        assert (want is None) == (got is None)
        if want is not None:
            assert_close(got, want, 1e-8)


def test_stress_is_right_to_finite_differences(model):
    fast = accelerate(model)
    (atoms,) = random_frames([(T, T, T)])
    stress = fast(batch_of([atoms], model), compute_stress=True)["stress"][0]
    step, want = 1e-5, np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            energies = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[i, j] += sign * step / 2
                strain[j, i] += sign * step / 2
                strained = atoms.copy()
                strained.set_cell(np.asarray(atoms.cell) @ strain, scale_atoms=True)
                energies.append(fast(batch_of([strained], model))["energy"].item())
            want[i, j] = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
    assert_close(stress.detach(), torch.tensor(want), 1e-6)  # finite differences


def test_flags_by_position(model):
    """The strain is found wherever it is asked for."""
    fast = accelerate(model)
    batch = batch_of(random_frames([(T, T, T)]), model)
    want = fast(dict(batch), compute_stress=True)["stress"]
    assert_close(fast(dict(batch), False, True, False, True)["stress"].detach(), want.detach(), 1e-12)


def test_keeps_the_state_dict_and_restores(model):
    fast = accelerate(model)
    assert list(fast.state_dict()) == list(model.state_dict())
    back = restore(fast)
    assert [type(m).__name__ for m in back.modules()] == [type(m).__name__ for m in model.modules()]


def test_options_of_every_version():
    """Where its Ewald module alone holds them, and a network that nobody asks."""
    model = les_model({"sigma": 1.3, "dl": 1.7})
    want = {"sigma": 1.3, "dl": 1.7, "remove_self_interaction": True}
    assert les_options(model.les) == want
    for name in ("sigma", "dl", "remove_self_interaction"):
        delattr(model.les, name)
    model.les.use_atomwise = True
    model.les.ewald = torch.nn.Module()
    vars(model.les.ewald).update(sigma=1.3, dl=1.7, norm_factor=90.0474)
    assert les_options(model.les) == want
    model.les.ewald.norm_factor = 90.4756
    with pytest.raises(ValueError, match="norm_factor"):
        les_options(model.les)


@pytest.mark.parametrize("option", ["use_epsilon_r_scaling", "is_periodic"])
def test_more_than_charges_keeps_its_own_code(option, monkeypatch):
    from scfmlip.interfaces.mace import les

    model = les_model()
    setattr(model.les, option, True)
    batch = batch_of(random_frames([(T, T, T)]), model)
    want = model(dict(batch))["les_energy"]
    monkeypatch.setattr(les, "latent_energy", None)
    fast = accelerate(model, tensor_products=False)
    assert torch.equal(fast(dict(batch))["les_energy"], want)


def test_channels_add_up():
    (atoms,) = random_frames([(T, T, T)])
    positions, cell = torch.tensor(atoms.positions), torch.tensor(np.asarray(atoms.cell))[None]
    charges = torch.randn(len(atoms), 2)
    index = torch.zeros(len(atoms), dtype=torch.int64)
    both, first, second = (
        latent_energy(q, positions, cell, index, 1.0, 2.0, True)
        for q in (charges, charges[:, 0], charges[:, 1])
    )
    assert_close(both, first + second)
