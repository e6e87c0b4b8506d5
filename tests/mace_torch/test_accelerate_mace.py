"""accelerate() on plain MACE models: every interaction block, every output, every derivative."""

import copy
import warnings

import pytest
import torch

pytest.importorskip("mace", reason="needs mace-torch")

from tolerances import assert_close

from mace_torch.mace_models import ELEMENTS, copies, frames, mace_batch, mace_model, with_lora
from scfmlip import accelerate, is_accelerated, restore
from scfmlip.mace_torch.accelerate import accelerate_blocks

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
    return {type(m).__qualname__ for m in model.modules() if hasattr(type(m), "_scfmlip_original")}


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
    """Mixtures of elements, as alchemical models use, take the original code, and are told so once."""
    model = mace_model()
    batch = mace_batch(frames(), model)
    batch["node_attrs"] = 0.5 * batch["node_attrs"] + 0.5 / len(ELEMENTS)
    fast = accelerate(model)
    with pytest.warns(UserWarning, match="runs mace-torch's own code: node_attrs are not one-hot") as told:
        compare(model, fast, batch, 1e-12)
    n_products = sum(
        type(m).__qualname__ in ("FastSkipProduct", "FastSymmetricContraction") for m in fast.modules()
    )
    assert len(told) == n_products == 4
    compare(model, fast, batch, 1e-12)


def test_only_what_was_asked_for():
    model = mace_model()
    assert swapped(accelerate(model)) >= {"FastConvolution", "FastSkipProduct"}
    with pytest.warns(UserWarning, match="nothing to accelerate"):
        assert accelerate(model, tensor_products=False) is model


def test_derivatives_in_the_attributes():
    """One-hot, yet asked for a derivative in the elements: the index has none, the original code has."""
    model = mace_model()

    def derivative(m):
        batch = mace_batch(frames(), model)
        attributes = batch["node_attrs"].requires_grad_()
        return torch.autograd.grad(m(dict(batch), compute_force=False)["energy"].sum(), attributes)[0]

    fast = accelerate(model)
    with pytest.warns(UserWarning, match="node_attrs require a gradient"):
        got = derivative(fast)
    assert_close(got, derivative(model), 1e-12)


@pytest.mark.parametrize("interaction", [BLOCKS[1], BLOCKS[-1]])
@pytest.mark.parametrize("first", ["lora", "accelerate"])
def test_lora(interaction, first):
    """mace-torch's low-rank layers, put there before or afterwards; their gradients too."""
    model = mace_model(interaction)
    adapted, fast = with_lora(model, first, 0.3)
    assert "FastConvolution" in swapped(fast)
    assert not swapped(adapted)
    assert {id(p) for p in fast.parameters()} == {id(p) for p in adapted.parameters()}
    batch = mace_batch(frames(), model)
    compare(adapted, fast, batch, 1e-11)
    gradients = []
    for m in (adapted, fast):
        loss = (run(m, batch, training=True)["forces"] ** 2).sum()
        named = [(n, p) for n, p in m.named_parameters() if p.requires_grad]
        assert named
        found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
        gradients.append({n: g for (n, _), g in zip(named, found, strict=True) if g is not None and g.any()})
    assert gradients[0].keys() == gradients[1].keys()
    assert any("conv_tp_weights" in name for name in gradients[0])
    for name, want in gradients[0].items():
        assert_close(gradients[1][name], want, 1e-9)


def test_mace_torchs_tools_see_the_original():
    """They look at a model's class names and build the next model of what they find: accelerated as well."""
    from mace.tools.scripts_utils import extract_config_mace_model, extract_model

    model = mace_model()
    fast = accelerate(model)
    assert [type(m).__name__ for m in fast.modules()] == [type(m).__name__ for m in model.modules()]
    assert "FastSymmetricContraction" in str(fast)
    batch = mace_batch(frames(), model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = extract_model(fast)
        assert not swapped(extract_model(restore(fast)))
    assert swapped(built) == swapped(fast)
    assert not {id(p) for p in built.parameters()} & {id(p) for p in fast.parameters()}
    compare(model, built, batch, 1e-12)
    assert extract_config_mace_model(fast)["correlation"] == 2


def test_conversion_to_cuequivariance():
    pytest.importorskip("cuequivariance_torch")
    from mace.cli import convert_e3nn_cueq

    model = mace_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = convert_e3nn_cueq.run(accelerate(model), device="cpu")
    assert {"FastCueqSymmetricContraction", "FastScaleShiftMACE"} <= swapped(built)
    batch = mace_batch(frames(), model)
    assert_close(run(built, batch)["energy"].detach(), run(model, batch)["energy"].detach(), 1e-11)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused():
    from e3nn.util import jit
    from mace.calculators import LAMMPS_MACE

    fast = copy.deepcopy(accelerate(mace_model()))
    for script, module in ((torch.jit.script, fast), (jit.compile, LAMMPS_MACE(copy.deepcopy(fast)))):
        with pytest.raises(TypeError, match=r"accelerated models: script scfmlip\.restore\(model\)"):
            script(module)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("interaction", [BLOCKS[1], BLOCKS[-1]])
def test_compiled_in_one_graph(interaction):
    """As mace-torch compiles its models: prepared, forces inside the graph."""
    from mace.tools import compile as mace_compile

    if not hasattr(mace_compile, "configure_autograd_for_compile"):
        pytest.skip("mace-torch before 0.3.16 does not compile with this torch")
    prepare = mace_compile.prepare

    options = {"interaction": interaction, "hidden": "8x0e", "layers": 2}
    model = prepare(lambda: mace_model.__wrapped__(**options))()
    batch = mace_batch(frames(), model)
    want = run(model, batch, training=True, compute_stress=True)
    torch._dynamo.reset()
    compiled = torch.compile(accelerate(model), fullgraph=True, backend="aot_eager")
    batch["positions"].requires_grad_()
    got = compiled(dict(batch), training=True, compute_stress=True)
    for key in ("energy", "forces", "stress"):
        assert_close(got[key].detach(), want[key].detach(), 1e-11)


def test_a_block_that_is_given_its_weights(generator):
    model = mace_model("RealAgnosticInteractionBlock")
    block = copy.deepcopy(model.interactions[1])
    radial, block.conv_tp_weights = block.conv_tp_weights, torch.nn.Identity()
    fast = accelerate_blocks(block)
    assert {"FastConvolution", "FastRealAgnosticInteractionBlock"} <= swapped(fast)
    assert not swapped(block)
    edges = torch.randint(0, 6, (2, 30), generator=generator)
    rows = {
        "node_attrs": torch.eye(len(ELEMENTS))[torch.arange(6) % len(ELEMENTS)],
        "node_feats": torch.randn(6, block.node_feats_irreps.dim, generator=generator),
        "edge_attrs": torch.randn(30, block.edge_attrs_irreps.dim, generator=generator),
    }
    basis = torch.randn(30, block.edge_feats_irreps.dim, generator=generator)
    want, _ = model.interactions[1](**rows, edge_feats=basis, edge_index=edges)
    weights = radial(basis).detach().requires_grad_()

    def derivative(module):
        out, _ = module(**rows, edge_feats=weights, edge_index=edges)
        assert_close(out, want, 1e-12)
        return torch.autograd.grad(out.square().sum(), weights)[0]

    for module in (fast, restore(fast)):
        assert_close(derivative(module), derivative(block), 1e-12)


def calculator(model, **options):
    from mace.calculators import MACECalculator

    return MACECalculator(models=[copy.deepcopy(model)], device="cpu", default_dtype="float64", **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("backend", [{"compile_mode": "default"}, {"enable_cueq": True}], ids=str)
def test_mace_torchs_calculator_keeps_it_accelerated(backend):
    """It rebuilds the model, and traces contractions before it compiles."""
    if "enable_cueq" in backend:
        pytest.importorskip("cuequivariance_torch")
    model = mace_model()
    fast = accelerate(model)
    inner = calculator(fast, **backend).models[0]
    assert is_accelerated(inner)
    inner = getattr(inner, "_orig_mod", inner)
    # cuEquivariance has linear maps of its own, and its layout needs no reshaping
    theirs = {"FastLinear", "FastReshape"} if "enable_cueq" in backend else set()
    # and mace-torch writes activations in its own way before it compiles
    theirs |= {"FastActivation"} if "compile_mode" in backend else set()
    assert len(swapped(inner)) == len(swapped(fast) - theirs)
    assert not is_accelerated(calculator(model, **backend).models[0])
    batch = mace_batch(frames(), model)
    want = run(model, batch, compute_stress=True)
    for module in (inner, restore(inner)):
        got = run(module, batch, compute_stress=True)
        for key in ("energy", "forces", "stress"):
            assert_close(got[key].detach(), want[key].detach(), 1e-11)
    assert not is_accelerated(restore(inner))


def test_says_whether_it_is_accelerated():
    model = mace_model()
    fast = accelerate(model)
    assert is_accelerated(fast)
    assert is_accelerated(torch.nn.Sequential(fast))
    assert not is_accelerated(model)
    assert not is_accelerated(restore(fast))
    count = sum(hasattr(type(m), "_scfmlip_original") for m in fast.modules())
    assert f"accelerated by scfmlip: {count} modules" in str(fast)
    assert "scfmlip" not in str(model)


class OwnBlock(__import__("mace.modules", fromlist=["blocks"]).blocks.RealAgnosticResidualInteractionBlock):
    """Somebody's own, which may do anything."""


def test_what_stays_is_named_once():
    """Block, class and reason of each, in one warning and in the model's repr; the numbers are right."""
    from e3nn import o3

    model = copy.deepcopy(mace_model())
    model.interactions[1].__class__ = OwnBlock
    radial = model.interactions[0].conv_tp_weights
    model.interactions[0].conv_tp_weights = torch.nn.Sequential(radial, torch.nn.Identity())
    model.products[1].symmetric_contractions.__class__ = type(
        "OwnContraction", (type(model.products[1].symmetric_contractions),), {}
    )
    model.interactions[0].skip_tp.__class__ = type("OwnProduct", (o3.FullyConnectedTensorProduct,), {})
    with pytest.warns(UserWarning, match="accelerate leaves 4 modules of this ScaleShiftMACE") as told:
        fast = accelerate(model)
    assert len(told) == 1
    for line in (
        "interactions.0 (RealAgnosticResidualInteractionBlock): its radial network, Sequential, does not",
        "interactions.1 (OwnBlock): not a known interaction block",
        "products.1.symmetric_contractions (OwnContraction): not mace-torch's own class",
        "interactions.0.skip_tp (OwnProduct): not e3nn's own class",
    ):
        assert line in str(told[0].message)
        assert f"as mace-torch made it: {line}" in str(fast)
    small = {"FastLinear", "FastReshape", "FastSphericalHarmonics", "FastRadialEmbedding", "FastActivation"}
    assert swapped(fast) == {"FastScaleShiftMACE", "FastSkipProduct", "FastSymmetricContraction", *small}
    compare(model, fast, mace_batch(frames(), model), 1e-12)


@pytest.mark.parametrize("edge", ["8x0e + 4x1o", "8x0e + 0x1o"])
def test_multiplicities(edge):
    """That differ, or are zero."""
    model = mace_model.__wrapped__(edge=edge)
    fast = accelerate(model)
    assert "FastConvolution" in swapped(fast)
    compare(model, fast, mace_batch(frames(), model), 1e-12, compute_stress=True)


def test_the_rest_of_a_model_is_accelerated_later():
    model = mace_model()
    half = accelerate(model)
    half._modules["interactions"] = torch.nn.ModuleList(restore(b) for b in half.interactions)
    assert "FastConvolution" not in swapped(half)
    whole = accelerate(half)
    assert swapped(whole) == swapped(accelerate(model))
    compare(model, whole, mace_batch(frames(), model), 1e-12)
    assert accelerate(whole) is whole


def test_coefficients_follow_the_state_dict_and_the_dtype():
    """Generalised Clebsch-Gordan coefficients are buffers: another file's, or rounded ones, count."""
    model = copy.deepcopy(mace_model())
    fast = accelerate(copy.deepcopy(model))
    batch = mace_batch(frames(), model)
    other = {k: 1.1 * v if "U_matrix" in k else v for k, v in model.state_dict().items()}
    want = run(model, batch)["energy"].detach()
    for m in (model, fast):
        m.load_state_dict(other)
    assert float((run(model, batch)["energy"].detach() - want).abs().max()) > 1e-3
    compare(model, fast, batch, 1e-12)
    compare(model.float().double(), fast.float().double(), batch, 1e-10)  # unrounded ones: 2e-8 wrong


def test_averaged_weights():
    """torch-ema's copies go in and out in place."""
    ema = pytest.importorskip("torch_ema")
    model = copy.deepcopy(mace_model())
    fast = accelerate(model)
    average = ema.ExponentialMovingAverage(fast.parameters(), decay=0.5)
    with torch.no_grad():
        for p in fast.parameters():
            p.mul_(1.1)
    average.update()
    batch = mace_batch(frames(), model)
    with average.average_parameters():
        compare(model, fast, batch, 1e-12)
    compare(model, fast, batch, 1e-12)


@pytest.mark.filterwarnings("ignore")
def test_one_head_of_several_stays_accelerated():
    from mace.tools.scripts_utils import remove_pt_head

    from mace_torch.les_models import les_model

    model = les_model(heads=("pt_head", "own"))
    assert is_accelerated(remove_pt_head(accelerate(model)))
    assert not is_accelerated(remove_pt_head(restore(accelerate(model))))
