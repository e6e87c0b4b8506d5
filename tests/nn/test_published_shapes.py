"""Tensor products of published models, with all their channels: against e3nn and cuequivariance; rotated."""

import warnings

import pytest
import torch

pytest.importorskip("mace", reason="knows the irreps, and is imported before e3nn")

from e3nn import o3
from mace.modules.irreps_tools import tp_out_irreps_with_instructions
from mace.modules.symmetric_contraction import SymmetricContraction as MaceContraction
from tolerances import assert_close

from scfmlip.mace_torch.tensor_products import symmetric_polynomial
from scfmlip.nn import ChannelwiseConv
from scfmlip_kernels import symmetric_contraction

F64 = torch.float64
ATTRIBUTES = "0e + 1o + 2e + 3o"
# irreps that are sent: MP-0 small, POLAR-1-S, OMOL-0's first layer, MP-0 medium and POLAR-1-M, large and -L
SENT = ["128x0e", "512x0e", "1024x0e", "128x0e + 128x1o", "128x0e + 128x1o + 128x2e"]
# channels, irreps of the result, degree: MP-0 small, medium, large; OMOL-0; POLAR-1-M
CONTRACTED = [(128, "0e", 3), (128, "0e + 1o", 3), (128, "0e + 1o + 2e", 3), (1024, "0e + 1o + 2e", 2)]
CONTRACTED += [(512, "0e + 1o", 3)]
TOLERANCE = {F64: 1e-12, torch.float32: 2e-6}


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(F64)


def tensor_product(sent):
    first, second = o3.Irreps(sent), o3.Irreps(ATTRIBUTES)
    out, instructions = tp_out_irreps_with_instructions(first, second, o3.Irreps(ATTRIBUTES))
    return o3.TensorProduct(first, second, out, instructions, shared_weights=False, internal_weights=False)


def twice_differentiated(function, inputs):
    """Value, gradient of a sum of squares, and that gradient's own."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    first = torch.autograd.grad((out**2).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum((g**2).sum() for g in first), leaves)
    return [out, *first, *second]


def random_edges(product, generator, dtype=F64):
    """Three nodes, the last without edges; unsorted."""
    ends = torch.tensor([[0, 1, 1, 2, 0], [1, 0, 1, 0, 1]])
    shapes = ((3, product.irreps_in1.dim), (5, product.irreps_in2.dim), (5, product.weight_numel))
    return ends, [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("sent", SENT)
def test_convolution_equals_e3nn(sent, dtype, generator):
    product = tensor_product(sent)
    module = ChannelwiseConv.from_e3nn(product)
    ends, inputs = random_edges(product, generator)

    def theirs(x, y, w):
        zero = x.new_zeros(3, product.irreps_out.dim)
        return zero.index_add(0, ends[1], product(x[ends[0]], y, w))

    got = twice_differentiated(lambda x, y, w: module(x, y, w, ends), [x.to(dtype) for x in inputs])
    for a, b in zip(got, twice_differentiated(theirs, inputs), strict=True):
        assert a.dtype == dtype
        assert_close(a, b, TOLERANCE[dtype])


@pytest.mark.parametrize("sent", SENT)
def test_convolution_equals_cuequivariance(sent, generator):
    cue = pytest.importorskip("cuequivariance", reason="needs cuequivariance")
    cuet = pytest.importorskip("cuequivariance_torch", reason="its naive method is the witness")
    from scfmlip.nn.cueq import SegmentedPolynomial

    kinds = [cue.Irreps("O3", text) for text in (sent, ATTRIBUTES, ATTRIBUTES)]
    polynomial = cue.descriptors.channelwise_tensor_product(*kinds).polynomial
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        naive = cuet.SegmentedPolynomial(polynomial, method="naive")
    mine = SegmentedPolynomial(polynomial)
    assert mine.path == "channelwise_conv"
    ends, (x, y, w) = random_edges(tensor_product(sent), generator)

    def call(module):
        return lambda x, y, w: module([w, x, y], {1: ends[0]}, {0: x}, {0: ends[1]})[0]

    got, want = (twice_differentiated(call(m), (x, y, w)) for m in (mine, naive))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-12)


def contraction(n_channels, irreps_out, degree):
    out = o3.Irreps([(n_channels, ir) for _, ir in o3.Irreps(irreps_out)])
    into = o3.Irreps([(n_channels, ir) for _, ir in o3.Irreps(ATTRIBUTES)])
    return MaceContraction(into, out, degree, num_elements=2)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(("n_channels", "irreps_out", "degree"), CONTRACTED)
def test_contraction_equals_mace(n_channels, irreps_out, degree, dtype, generator):
    module = contraction(n_channels, irreps_out, degree)
    polynomial = symmetric_polynomial(module)
    index = torch.tensor([1, 0, 1])
    weights = torch.cat([w for c in module.contractions for w in (c.weights_max, *c.weights)], 1).detach()
    x = torch.randn(3, n_channels, 16, generator=generator)

    def theirs(x):
        found = module(x, torch.nn.functional.one_hot(index, 2).to(F64))
        dims = [ir.dim for _, ir in o3.Irreps(irreps_out)]
        parts = found.split([n_channels * dim for dim in dims], 1)
        return torch.cat([p.unflatten(1, (n_channels, d)) for p, d in zip(parts, dims, strict=True)], 2)

    def ours(x):
        return symmetric_contraction(x, weights.to(x.dtype), index, polynomial)

    for a, b in zip(
        twice_differentiated(ours, [x.to(dtype)]), twice_differentiated(theirs, [x]), strict=True
    ):
        assert_close(a, b, TOLERANCE[dtype])


def rotations():
    proper = o3.rand_matrix()
    return {"rotation": proper, "inversion": -torch.eye(3), "both": -proper}


@pytest.mark.parametrize("name", rotations())
@pytest.mark.parametrize("sent", ["8x0e + 8x1o + 8x2e", "4x0e + 6x1o"])
def test_convolution_is_equivariant(sent, name, generator):
    turn = rotations()[name].to(F64)
    product = tensor_product(sent)
    module = ChannelwiseConv.from_e3nn(product)
    ends, (x, y, w) = random_edges(product, generator)
    d_x, d_y, d_out = (
        irreps.D_from_matrix(turn) for irreps in (product.irreps_in1, product.irreps_in2, product.irreps_out)
    )
    turned = module(x @ d_x.mT, y @ d_y.mT, w, ends)
    # e3nn's rotation matrices of degree 3 are exact to 1e-11
    assert_close(turned, module(x, y, w, ends) @ d_out.mT, 1e-10)


@pytest.mark.parametrize("name", rotations())
def test_contraction_is_equivariant(name, generator):
    turn = rotations()[name].to(F64)
    module = contraction(4, "0e + 1o + 2e", 3)
    polynomial = symmetric_polynomial(module)
    weights = torch.randn(2, polynomial.n_weights, 4, generator=generator)
    x, index = torch.randn(3, 4, 16, generator=generator), torch.tensor([1, 0, 1])
    d_x = o3.Irreps(ATTRIBUTES).D_from_matrix(turn)
    d_out = o3.Irreps("0e + 1o + 2e").D_from_matrix(turn)
    turned = symmetric_contraction(x @ d_x.mT, weights, index, polynomial)
    assert_close(turned, symmetric_contraction(x, weights, index, polynomial) @ d_out.mT, 1e-10)
