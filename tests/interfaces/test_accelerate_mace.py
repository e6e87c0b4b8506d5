"""accelerate() on plain MACE models: every interaction block, every output, every derivative."""

import copy

import pytest
import torch

pytest.importorskip("mace", reason="needs mace-torch")

from tolerances import assert_close

from interfaces.mace_models import ELEMENTS, copies, frames, mace_batch, mace_model
from scfmlip import accelerate, restore

BLOCKS = (
    "RealAgnosticInteractionBlock",
    "RealAgnosticResidualInteractionBlock",
    "RealAgnosticDensityInteractionBlock",
    "RealAgnosticDensityResidualInteractionBlock",
    "RealAgnosticAttResidualInteractionBlock",
    "RealAgnosticResidualNonLinearInteractionBlock",
)


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


def run(model, batch, **options):
    return model({k: v.clone() if torch.is_tensor(v) else v for k, v in batch.items()}, **options)


def compare(model, fast, batch, tolerance, **options):
    want, got = run(model, batch, **options), run(fast, batch, **options)
    assert want.keys() == got.keys()
    for key, value in want.items():
        if torch.is_tensor(value):
            assert_close(got[key].detach(), value.detach(), tolerance)
        else:
            assert got[key] is None


def swapped(model):
    return {type(m).__name__ for m in model.modules() if hasattr(type(m), "_scfmlip_original")}


@pytest.mark.parametrize("interaction", BLOCKS)
def test_every_interaction_block(interaction):
    if interaction not in __import__("mace.modules", fromlist=["modules"]).interaction_classes:
        pytest.skip("this mace-torch lacks the block")
    first = "RealAgnosticInteractionBlock" if "Att" in interaction else None
    model = mace_model(interaction, first)
    fast = accelerate(model)
    assert {"FastConvolution", "FastSymmetricContraction", f"Fast{interaction}"} <= swapped(fast)
    compare(model, fast, mace_batch(frames(), model), 1e-12, compute_stress=True)


@pytest.mark.parametrize(
    "shape",
    [
        {"hidden": "8x0e", "layers": 1},
        {"correlation": 1},
        {"correlation": 3, "scaled": False},
        {
            "interaction": "RealAgnosticResidualNonLinearInteractionBlock",
            "hidden": "16x0e + 16x1o",
            "edge": "8x0e + 8x1o",
            "agnostic": True,
        },
    ],
    ids=["scalars", "degree1", "degree3", "edge_irreps"],
)
def test_shapes(shape):
    model = mace_model(**shape)
    fast = accelerate(model)
    assert "FastConvolution" in swapped(fast)
    compare(model, fast, mace_batch(frames(), model), 1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("hidden", ["16x0e", "16x0e + 16x1o", "16x0e + 16x1o + 16x2e"])
def test_shapes_of_the_foundation_models(hidden):
    """MACE-MP-0 small, medium and large with fewer channels."""
    model = mace_model(hidden=hidden, first="RealAgnosticInteractionBlock", max_ell=3, correlation=3)
    compare(model, accelerate(model), mace_batch(frames(), model), 1e-12, compute_stress=True)


def test_training_gradients():
    """Of a loss with forces, in every parameter."""
    model = mace_model()
    batch = mace_batch(frames(), model)
    gradients = []
    for m in (model, accelerate(model)):
        out = run(m, batch, training=True)
        loss = (out["energy"] ** 2).sum() + (out["forces"] ** 2).sum()
        gradients.append(torch.autograd.grad(loss, list(m.parameters()), allow_unused=True))
    for want, got in zip(*gradients, strict=True):
        zero = want is None or not bool(want.any())
        assert zero == (got is None or not bool(got.any()))
        if not zero:
            assert_close(got, want, 1e-10)


def test_hessian():
    model = mace_model(hidden="8x0e", layers=1)
    compare(
        model, accelerate(model), mace_batch(frames(1, 3, isolated=False), model), 1e-9, compute_hessian=True
    )


def test_float32():
    model = mace_model()
    single = copy.deepcopy(model).float()
    torch.set_default_dtype(torch.float32)
    batch = mace_batch(frames(), single, torch.float32)
    compare(single, accelerate(single), batch, 1e-5)


def test_no_edges_and_one_atom():
    model = mace_model()
    (lonely,) = frames(1, 1, isolated=False)
    lonely.set_pbc(False)
    compare(model, accelerate(model), mace_batch([lonely], model), 1e-12)


def test_state_dict_and_the_way_back():
    model = mace_model()
    fast = accelerate(model)
    state = model.state_dict()
    assert list(fast.state_dict()) == list(state)
    assert {id(p) for p in fast.parameters()} == {id(p) for p in model.parameters()}
    assert not swapped(model)
    batch = mace_batch(frames(), model)
    want = run(model, batch)["energy"].detach()
    for copied in copies(fast):
        assert_close(run(copied, batch)["energy"].detach(), want, 1e-12)
        with torch.no_grad():
            for p in copied.parameters():
                p.mul_(1.01)
        back = restore(copied)
        assert not swapped(back)
        assert not [k for m in back.modules() for k in vars(m) if k.startswith("_scfmlip")]
        assert_close(run(copied, batch)["energy"].detach(), run(back, batch)["energy"].detach(), 1e-12)
    assert restore(model) is model


def test_attributes_that_are_not_one_hot():
    """Mixtures of elements, as alchemical models use, take the original code."""
    model = mace_model()
    batch = mace_batch(frames(), model)
    batch["node_attrs"] = 0.5 * batch["node_attrs"] + 0.5 / len(ELEMENTS)
    compare(model, accelerate(model), batch, 1e-12)


def test_only_what_was_asked_for():
    model = mace_model()
    assert swapped(accelerate(model)) >= {"FastConvolution", "FastSkipProduct"}
    with pytest.warns(UserWarning, match="nothing to accelerate"):
        assert accelerate(model, tensor_products=False) is model
