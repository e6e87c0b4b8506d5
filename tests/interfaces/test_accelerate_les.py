"""accelerate(MACELES) against mace-torch's own with `les` (or the dense stand-in where it is missing)."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mace", reason="needs mace-torch")
try:
    import les  # noqa: F401
except ImportError:
    sys.path.insert(0, str(Path(__file__).parents[1] / "stubs"))

from tolerances import assert_close

from interfaces.polar_models import batch_of, random_frames
from scfmlip import accelerate, restore

T, F = True, False


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


@pytest.fixture(params=[{}, {"sigma": 1.3, "dl": 1.7, "remove_self_interaction": False}])
def model(request):
    from e3nn import o3
    from mace import modules
    from mace.modules.extensions import MACELES

    torch.manual_seed(0)
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    return MACELES(
        les_arguments={"use_atomwise": False, **request.param},
        r_max=3.0,
        num_bessel=6,
        num_polynomial_cutoff=5,
        max_ell=2,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=2,
        num_elements=3,
        hidden_irreps=o3.Irreps("8x0e + 8x1o"),
        MLP_irreps=o3.Irreps("8x0e"),
        atomic_energies=np.zeros(3),
        avg_num_neighbors=10.0,
        atomic_numbers=[1, 6, 8],
        correlation=2,
        gate=torch.nn.functional.silu,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )


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
