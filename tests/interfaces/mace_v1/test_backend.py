"""The kernel backend for MACE v1: its entry point, and the contract's own suite where v1 is there."""

# pyright: reportMissingImports=false

import ast
import importlib.util
import tomllib
from pathlib import Path

import pytest
from tolerances import assert_close

ROOT = Path(__file__).parents[3]
LAYOUTS = ("mul_ir", "ir_mul")


def test_the_entry_point_names_a_class():
    """By its text: the module itself needs mace_core."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["mace.kernel_backends.torch"]["scfmlip"].partition(":")
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    tree = ast.parse(Path(found.origin).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


@pytest.fixture(scope="module")
def v1():
    pytest.importorskip("mace_core", reason="needs MACE v1")
    return pytest.importorskip("mace_torch.backends.conformance", reason="needs MACE v1's conformance suite")


def backend():
    from scfmlip.interfaces.mace_v1.backend import Backend

    return Backend()


ALWAYS = {"layout", "values", "gradients"}
WITH_WEIGHTS = {
    "LinearDescriptor": "linear",
    "SymmetricContractionDescriptor": "symmetric_contraction",
    "FullyConnectedTPDescriptor": "fully_connected_tp",
}


def check_conformance(v1, precision, layout, **options):
    found = v1.run_backend_conformance(backend(), precision=precision, layout=layout, **options)
    assert {result.op for result in found} == backend().capabilities().ops
    for result in found:
        assert result.built, result.descriptor
        wanted = ALWAYS | ({"double backward"} if precision == "float64" else set())
        if result.op in WITH_WEIGHTS.values():
            wanted |= {"weights", "weight gradients"}
        assert wanted <= set(result.checks), (result.op, wanted - set(result.checks))
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_conformance(v1, precision, layout):
    check_conformance(v1, precision, layout)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_conformance_compiled(v1, layout):
    for result in check_conformance(v1, "float64", layout, compile_ops=True):
        assert {"compiles", "one compile for every size"} <= set(result.checks), result.op


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_conformance_in_a_cuda_graph(v1, precision):
    for result in check_conformance(v1, precision, "ir_mul", device="cuda", cuda_graphs=True):
        assert "cuda graph" in result.checks, result.op


def test_other_bases_and_outputs(v1):
    """Both bases, several copies, an output that the lowest body order does not reach."""
    from mace_core.kernels.descriptors import SymmetricContractionDescriptor

    cases = [
        SymmetricContractionDescriptor(irreps_in=a, irreps_out=b, correlation=n, basis=basis, num_features=3)
        for a, b, n in [("0e+1o", "0e+1o+2e", 2), ("2x0e+1o", "1o", 2), ("0e+1o+2e", "1o+0e", 3)]
        for basis in ("reduced", "full")
    ]
    for layout in LAYOUTS:
        check = v1.run_backend_conformance(backend(), cases=cases, layout=layout, max_block=1)
        assert all(result.built for result in check)


def test_what_is_declined(v1):
    from mace_core.kernels import descriptors
    from mace_core.kernels.capabilities import UnsupportedDescriptorError

    convolution = descriptors.ChannelwiseTPConvDescriptor
    contraction = descriptors.SymmetricContractionDescriptor
    skip = descriptors.FullyConnectedTPDescriptor
    cases = {
        "channelwise_tp_conv": [
            (convolution(irreps_node="2x0e", irreps_edge="0e", irreps_out="0e"), "one copy"),
            (convolution(irreps_node="0e", irreps_edge="2x0e", irreps_out="0e"), "one copy"),
            (convolution(irreps_node="0e", irreps_edge="0e", irreps_out="1o"), "reaches 1o"),
        ],
        "symmetric_contraction": [(contraction(irreps_in="0e", irreps_out="1o"), "reaches 1o")],
        "fully_connected_tp": [
            (skip(irreps_in1="4x0e", irreps_in2="1x1o", irreps_out="4x1o"), "even scalars"),
            (skip(irreps_in1="4x0e", irreps_in2="1x0o", irreps_out="4x0o"), "even scalars"),
        ],
        "segment_reduce": [(descriptors.SegmentReduceDescriptor(reduction="max"), "not by max")],
        "linear": [(descriptors.LinearDescriptor(precision="bfloat16"), "bfloat16")],
    }
    for op, declined in cases.items():
        for descriptor, reason in declined:
            assert not backend().capabilities().supports(descriptor)
            with pytest.raises(UnsupportedDescriptorError, match=reason):
                getattr(backend(), f"make_{op}")(descriptor)
    assert backend().make_spherical_harmonics(descriptors.SphericalHarmonicsDescriptor()) is None
    assert backend().make_radial_basis(descriptors.RadialBasisDescriptor()) is None
    assert backend().make_interaction_layer(()) is None


def test_the_backend_is_one(v1):
    from mace_core.kernels.canonical import KERNEL_SPEC_VERSION
    from mace_core.kernels.protocol import KernelBackend

    assert isinstance(backend(), KernelBackend)
    assert backend().capabilities().spec_version.split(".")[0] == KERNEL_SPEC_VERSION.split(".")[0]


def test_fresh_weights_are_the_references(v1):
    """The same draw at the same scale where one tensor holds the weights; the size alone in a contraction."""
    from mace_torch.backends.reference import ReferenceBackend

    for number, descriptor in enumerate(v1.conformance_cases()):
        op = WITH_WEIGHTS.get(type(descriptor).__name__)
        if op is not None:
            mine, theirs = (getattr(b, f"make_{op}")(descriptor) for b in (backend(), ReferenceBackend()))
            mine.initialize_weights(number)
            theirs.initialize_weights(number)
            found, wanted = mine.to_canonical()["weight"], theirs.to_canonical()["weight"]
            if op == "symmetric_contraction":
                assert float(found.std()) == pytest.approx(float(wanted.std()), rel=0.2)
            else:
                assert_close(found, wanted)


def test_paths_are_named(v1):
    kind = "SymmetricContractionDescriptor"
    (descriptor,) = [case for case in v1.conformance_cases() if type(case).__name__ == kind]
    built = backend().make_symmetric_contraction(descriptor)
    metadata = built.canonical_metadata()
    assert isinstance(metadata["paths"], list)
    assert len(metadata["paths"]) == built.weight.shape[1] == descriptor.path_count
    assert metadata["basis"] == "reduced"


def test_a_contract_from_before_is_refused(v1, monkeypatch):
    from mace_core.kernels.descriptors import ChannelwiseTPConvDescriptor

    spec = importlib.util.find_spec("scfmlip.interfaces.mace_v1.backend")
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.delattr(ChannelwiseTPConvDescriptor, "num_features")
    with pytest.raises(ImportError, match="install a newer MACE"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
