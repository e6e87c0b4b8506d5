"""accelerate(MACELES) against mace-torch's own with `les` (or the dense stand-in where it is missing)."""

import copy

import numpy as np
import pytest
import torch

pytest.importorskip("mace", reason="needs mace-torch")

from tolerances import assert_close

from mace_torch.les_models import NORM_FACTORS, les_model
from mace_torch.polar_models import batch_of, random_frames
from scfmlip import accelerate, is_accelerated, restore
from scfmlip.mace_torch import les as door
from scfmlip.mace_torch.latent import latent_energy, les_options

T, F = True, False
# older ones are told that their stress stays as it is
pytestmark = pytest.mark.filterwarnings("ignore:.*mace-torch before 0.3.16")
strained = pytest.mark.skipif(not door._HANDED_OVER, reason="needs mace-torch 0.3.16")


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


OTHER = {"sigma": 1.3, "dl": 1.7, "remove_self_interaction": False}


@pytest.fixture(params=[({}, NORM_FACTORS[0]), ({}, NORM_FACTORS[1]), (OTHER, NORM_FACTORS[1])])
def model(request):
    arguments, norm_factor = request.param
    return les_model(arguments, norm_factor=norm_factor)


@pytest.fixture
def sums(monkeypatch):
    """How often our latent sum ran."""
    calls = []
    inner = door.latent_energy

    def counted(*args, **kwargs):
        calls.append(kwargs["norm_factor"])
        return inner(*args, **kwargs)

    monkeypatch.setattr(door, "latent_energy", counted)
    return calls


@pytest.mark.parametrize("pbc", [[(T, T, T)], [(F, F, F)], [(T, T, T), (F, F, F), (T, T, T)]])
def test_equals_the_original(model, pbc, sums):
    batch = batch_of(random_frames(pbc), model)
    theirs = model({k: v.clone() for k, v in batch.items()})
    ours = accelerate(model)({k: v.clone() for k, v in batch.items()})
    assert theirs.keys() == ours.keys()
    for key, want in theirs.items():
        if want is None:
            assert ours[key] is None
        else:
            assert_close(ours[key].detach(), want.detach(), 1e-9)
    assert sums == [model.les.ewald.norm_factor]


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


def stress_by_differences(model, atoms):
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
                energies.append(model(batch_of([strained], model))["energy"].item())
            want[i, j] = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
    return torch.tensor(want)


@strained
def test_stress_is_right_to_finite_differences(model):
    fast = accelerate(model)
    (atoms,) = random_frames([(T, T, T)])
    stress = fast(batch_of([atoms], model), compute_stress=True)["stress"][0]
    assert_close(stress.detach(), stress_by_differences(fast, atoms), 1e-6)  # finite differences


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
    want = {"sigma": 1.3, "dl": 1.7, "remove_self_interaction": True, "norm_factor": 90.4756}
    assert les_options(model.les) == want
    model.les.use_atomwise = True
    for name in ("sigma", "dl", "remove_self_interaction"):
        delattr(model.les, name)
    assert les_options(model.les) == want
    model.les.ewald.norm_factor = 90.0474
    assert les_options(model.les) == {**want, "norm_factor": 90.0474}
    del model.les.ewald.norm_factor
    with pytest.raises(ValueError, match="does not expose its norm_factor, which its energy depends on"):
        les_options(model.les)


@pytest.mark.parametrize(
    ("place", "name", "value", "reason"),
    [
        ("les", "use_epsilon_r_scaling", True, "this les has use_epsilon_r_scaling"),
        ("ewald", "use_epsilon_r_scaling", True, "this les has use_epsilon_r_scaling"),
        ("les", "is_periodic", True, "this les has is_periodic"),
        ("ewald", "N_max", 10, "this les has N_max"),
        ("ewald", "sigma_sq_half", 0.4, "this les has sigma_sq_half = 0.4, but sigma = 1 and dl = 2"),
        ("ewald", "k_sq_max", 8.0, "this les has k_sq_max = 8, but sigma"),
    ],
)
def test_what_is_not_known_keeps_its_own_sum_and_says_so(place, name, value, reason, sums):
    """In one warning, for the true reason; the stress is right all the same."""
    model = les_model()
    setattr(model.les if place == "les" else model.les.ewald, name, value)
    (atoms,) = random_frames([(T, T, T)])
    batch = batch_of([atoms], model)
    want = model(dict(batch))["les_energy"]
    with pytest.warns(
        UserWarning, match=rf"accelerate leaves . modules of this MACELES .*[:;] les \(Les\): {reason}"
    ):
        fast = accelerate(model)
    assert is_accelerated(fast)
    assert f"as mace-torch made it: les (Les): {reason}" in str(fast)
    out = fast(dict(batch), compute_stress=True)
    assert_close(out["les_energy"].detach(), want.detach(), 1e-12)
    if door._HANDED_OVER:
        assert_close(out["stress"][0].detach(), stress_by_differences(fast, atoms), 1e-6)  # differences
    assert sums == []


def test_a_constant_changed_afterwards_counts(sums):
    model = les_model()
    fast = accelerate(model)
    batch = batch_of(random_frames([(T, T, T)]), model)
    before = fast(dict(batch))["les_energy"]
    model.les.ewald.norm_factor = 2 * 90.4756
    assert_close(fast(dict(batch))["les_energy"].detach(), 2 * before.detach())
    model.les.ewald.k_sq_max = 8.0
    with pytest.warns(UserWarning, match="accelerated Les runs mace-torch's own code: this les has k_sq_max"):
        fast(dict(batch))
    assert sums == [90.4756, 2 * 90.4756]


def test_subclasses_say_what_stays(sums):
    model = les_model()
    batch = batch_of(random_frames([(T, T, T)]), model)
    own = copy.deepcopy(model)
    own.__class__ = type("OwnMACELES", (type(model),), {})
    own.les.__class__ = type("OwnLes", (type(model.les),), {})
    with pytest.warns(
        UserWarning, match=r"the model itself \(OwnMACELES\).*les \(OwnLes\): not the class Les"
    ):
        fast = accelerate(own)
    assert_close(fast(dict(batch))["energy"].detach(), model(dict(batch))["energy"].detach(), 1e-12)
    assert sums == []


def test_compiled_it_stays_itself():
    """With mace-torch's own forward, forces of a compiled MACELES lack the latent sum."""
    fast = accelerate(les_model())
    batch = batch_of(random_frames([(T, T, T)], n_atoms=4), fast)
    want = fast(dict(batch), compute_stress=True)
    torch._dynamo.reset()
    got = torch.compile(fast, backend="eager")(dict(batch), compute_stress=True)
    for key in ("energy", "forces", "stress"):
        assert_close(got[key].detach(), want[key].detach(), 1e-12)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="accelerated MACELES runs in eager mode only"):
        torch.compile(fast, backend="eager", fullgraph=True)(dict(batch))


def test_threads_strain_their_own_batches():
    """One model, several evaluations at once."""
    from concurrent.futures import ThreadPoolExecutor

    fast = accelerate(les_model())
    batches = [batch_of(random_frames([(T, T, T)], seed=i), fast) for i in range(4)]
    want = [fast(dict(b), compute_stress=True)["stress"] for b in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda b: fast(dict(b), compute_stress=True)["stress"], 8 * batches))
    for got, stress in zip(found, 8 * want, strict=True):
        assert_close(got.detach(), stress.detach(), 1e-12)


def test_channels_add_up():
    (atoms,) = random_frames([(T, T, T)])
    positions, cell = torch.tensor(atoms.positions), torch.tensor(np.asarray(atoms.cell))[None]
    charges = torch.randn(len(atoms), 2)
    index = torch.zeros(len(atoms), dtype=torch.int64)
    both, first, second = (
        latent_energy(q, positions, cell, index, 1.0, 2.0, True, 90.4756)
        for q in (charges, charges[:, 0], charges[:, 1])
    )
    assert_close(both, first + second)
