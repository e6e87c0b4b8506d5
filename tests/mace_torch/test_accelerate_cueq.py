"""accelerate() on MACE models in cuequivariance's layouts: built so or converted, fused or not."""

import warnings

import pytest
import torch

pytest.importorskip("mace", reason="needs mace-torch")
pytest.importorskip("cuequivariance_torch", reason="needs cuequivariance_torch")

import cuequivariance_torch as cuet
from tolerances import assert_close

from mace_torch.mace_models import copies, frames, mace_batch, mace_model
from mace_torch.test_accelerate_mace import BLOCKS, compare, run, swapped
from scfmlip import accelerate, restore

PRODUCTS = {"FastChannelWiseTensorProduct", "FastCueqSymmetricContraction"}
LAYOUTS = ("mul_ir", "ir_mul")
NONLINEAR = "RealAgnosticResidualNonLinearInteractionBlock"
WIDE = {"interaction": NONLINEAR, "hidden": "16x0e + 16x1o", "edge": "8x0e + 8x1o", "agnostic": True}


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


def converted(model, layout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mace.cli import convert_e3nn_cueq

        return convert_e3nn_cueq.run(model, device="cpu", layout=layout)


def built(layout="ir_mul", fused=False, **options):
    from mace.modules.wrapper_ops import CuEquivarianceConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = CuEquivarianceConfig(
            enabled=True, layout=layout, group="O3_e3nn", optimize_all=True, conv_fusion=fused
        )
        return mace_model.__wrapped__(cueq_config=config, **options)


@pytest.mark.parametrize(("interaction", "layout"), list(zip(BLOCKS, 3 * LAYOUTS, strict=True)))
def test_every_interaction_block(interaction, layout):
    """A converted model: what it computes, and what the model it came from does."""
    first = "RealAgnosticInteractionBlock" if "Att" in interaction else None
    original = mace_model(interaction, first, max_ell=1)
    model = converted(original, layout)
    fast = accelerate(model)
    assert swapped(fast) >= {*PRODUCTS, f"Fast{interaction}"}
    batch = mace_batch(frames(), model)
    compare(model, fast, batch, 1e-12, compute_stress=True)
    want, got = (run(m, batch, compute_stress=True) for m in (original, fast))
    for key in ("energy", "forces", "stress"):
        assert_close(got[key].detach(), want[key].detach(), 1e-12)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ("mul_ir", {"hidden": "8x0e", "layers": 1}),
        ("mul_ir", {"correlation": 3, "scaled": False, "max_ell": 1}),
        ("mul_ir", WIDE),
        ("ir_mul", WIDE),
        ("ir_mul", {"edge": "8x0e + 4x1o"}),
    ],
    ids=["scalars", "degree3", "edge_irreps", "edge_irreps_ir_mul", "multiplicities"],
)
def test_shapes(shape, layout):
    model = built(layout, **shape)
    fast = accelerate(model)
    assert swapped(fast) >= PRODUCTS
    compare(model, fast, mace_batch(frames(), model), 1e-12, compute_stress=True)


def gradients(model, batch):
    out = run(model, batch, training=True)
    loss = (out["energy"] ** 2).sum() + (out["forces"] ** 2).sum()
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_gradients(layout):
    """Of a loss with forces, in every parameter; the state dict stays."""
    model = built(layout)
    fast = accelerate(model)
    batch = mace_batch(frames(), model)
    assert list(fast.state_dict()) == list(model.state_dict())
    assert {id(p) for p in fast.parameters()} == {id(p) for p in model.parameters()}
    assert "FastCueqSkipProduct" in swapped(fast)
    for want, got in zip(gradients(model, batch), gradients(fast, batch), strict=True):
        zero = want is None or not bool(want.any())
        assert zero == (got is None or not bool(got.any()))
        if not zero:
            assert_close(got, want, 1e-10)


def test_the_way_back():
    model = built()
    fast = accelerate(model)
    batch = mace_batch(frames(), model)
    want = run(model, batch)["energy"].detach()
    for copied in copies(fast):
        assert_close(run(copied, batch)["energy"].detach(), want, 1e-12)
        back = restore(copied)
        assert not swapped(back)
        assert not [k for m in back.modules() for k in vars(m) if k.startswith("_scfmlip")]
        assert_close(run(back, batch)["energy"].detach(), want, 1e-12)


def test_attributes_that_are_not_one_hot():
    """The skip connection takes cuequivariance's own code."""
    model = built()
    skip = next(m for m in accelerate(model).modules() if type(m).__qualname__ == "FastCueqSkipProduct")
    x = torch.randn(4, skip.irreps_in1.dim)
    y = torch.rand(4, skip.irreps_in2.dim)
    with pytest.warns(UserWarning, match="runs mace-torch's own code: node_attrs are not one-hot"):
        got = skip(x, y)
    assert torch.equal(got, cuet.FullyConnectedTensorProduct.forward(skip, x, y))


@pytest.fixture
def _two_attributes_of_the_closed_kernels(monkeypatch):
    """
    What mace-torch reads of a fused polynomial's module: number of weight segments, and their extent.

    cuequivariance's open package has no such module, so that models with ``conv_fusion`` cannot be built
    without its closed one. Their arithmetic is that of the naive method.
    """
    naive = cuet.primitives.segmented_polynomial_naive.SegmentedPolynomialNaive
    start = naive.__init__

    def with_segments(self, polynomial, *arguments, **options):
        start(self, polynomial, *arguments, **options)
        weights = polynomial.inputs[0]
        self.buffer_num_segments = [weights.num_segments]
        self.operand_extent = weights.size // weights.num_segments

    monkeypatch.setattr(naive, "__init__", with_segments)


@pytest.mark.usefixtures("_two_attributes_of_the_closed_kernels")
@pytest.mark.parametrize("interaction", [BLOCKS[1], NONLINEAR])
def test_fused_convolutions(interaction):
    model = built(fused=True, interaction=interaction)
    fast = accelerate(model)
    assert "FastFusedConvolution" in swapped(fast)
    batch = mace_batch(frames(), model)
    compare(model, fast, batch, 1e-12, compute_stress=True)
    for want, got in zip(gradients(model, batch), gradients(fast, batch), strict=True):
        if want is not None:
            assert_close(got, want, 1e-10)
    want = run(model, batch)["energy"].detach()
    for copied in copies(fast):
        assert_close(run(copied, batch)["energy"].detach(), want, 1e-12)
        back = restore(copied)
        assert not swapped(back)
        assert type(back.interactions[0].conv_tp) is cuet.SegmentedPolynomial
        assert_close(run(back, batch)["energy"].detach(), want, 1e-12)
