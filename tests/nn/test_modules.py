"""The modules equal what they are made of, train, and move with `to`."""

import pytest
import torch
from tolerances import assert_close

from scfmlip.nn import ChannelwiseConv, IndexedLinear, SymmetricContraction
from scfmlip_kernels import ChannelwiseProduct, ProductPath, SymmetricPolynomial


def test_channelwise_conv(generator):
    """Two channels, a scalar and a vector path: by hand."""
    paths = (
        ProductPath(0, 0, ((0, 0, 0, 2.0),), 1),
        ProductPath(0, 1, ((0, 0, 0, 1.0), (0, 1, 1, 1.0), (0, 2, 2, 1.0)), 3),
    )
    product = ChannelwiseProduct(((2, 1),), (1, 3), paths)
    x, y = torch.randn(4, 2, generator=generator), torch.randn(5, 4, generator=generator)
    hidden = torch.randn(5, 3, generator=generator)
    edge_index = torch.tensor([[0, 1, 2, 3, 0], [1, 1, 0, 0, 0]])
    module = ChannelwiseConv(product, n_hidden=3)
    out = module(x, y, hidden, edge_index)
    assert module.matrix is not None
    w = hidden @ module.matrix
    want = torch.zeros(4, 8)
    for e, (s, r) in enumerate(edge_index.T.tolist()):
        want[r, :2] += 2.0 * w[e, :2] * x[s] * y[e, 0]
        want[r, 2:] += ((w[e, 2:] * x[s])[:, None] * y[e, 1:]).flatten()
    assert_close(out, want.detach(), 1e-6)
    assert_close(ChannelwiseConv(product)(x, y, w, edge_index), out, 1e-6)
    out.sum().backward()
    assert module.matrix.grad is not None
    assert module.double().matrix.dtype == torch.float64


def test_from_e3nn(generator):
    pytest.importorskip("mace", reason="imported before e3nn")
    o3 = pytest.importorskip("e3nn.o3", reason="needs e3nn")
    instructions = [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True)]
    options = {"shared_weights": False, "internal_weights": False}
    product = o3.TensorProduct("4x0e", "0e + 1o", "4x0e + 4x1o", instructions, **options)
    x, y, w = (torch.randn(3, n, generator=generator) for n in (4, 4, 8))
    edge_index = torch.tensor([[0, 1, 2], [0, 1, 2]])
    assert_close(ChannelwiseConv.from_e3nn(product)(x, y, w, edge_index), product(x, y, w), 1e-6)
    other = o3.FullyConnectedTensorProduct("4x0e", "0e", "4x0e")
    with pytest.raises(ValueError, match="not channel-wise"):
        ChannelwiseConv.from_e3nn(other)


def test_symmetric_contraction_and_indexed_linear(generator):
    u = torch.zeros(1, 2, 2, 1, dtype=torch.float64)
    u[0, 0, 1, 0] = 3.0
    polynomial = SymmetricPolynomial.from_dense([(0, u)])
    module = SymmetricContraction(polynomial, n_species=2, n_channels=3)
    x, species = torch.randn(5, 3, 2, generator=generator), torch.tensor([0, 1, 1, 0, 1])
    want = 3.0 * module.weights[species][:, 0] * x[..., 0] * x[..., 1]
    assert_close(module(x, species)[..., 0], want.detach(), 1e-6)
    linear = IndexedLinear(2, 3, 4)
    rows = torch.randn(5, 2, 3, generator=generator)
    want = torch.einsum("nic,nco->nio", rows, linear.weights[species])
    assert_close(linear(rows, species), want.detach(), 1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChannelwiseConv("x"), "ChannelwiseConv needs a ChannelwiseProduct, got str"),
        (lambda: ChannelwiseConv(_product(), n_hidden=0), "n_hidden must be an integer of at least 1, got 0"),
        (lambda: SymmetricContraction(None, 1, 1), "SymmetricContraction needs a SymmetricPolynomial"),
        (lambda: IndexedLinear(2, 3, -1), "IndexedLinear: n_out must be an integer of at least 1, got -1"),
        (lambda: IndexedLinear(2, 1.5, 1), "IndexedLinear: n_in must be an integer of at least 1, got 1.5"),
        (
            lambda: ChannelwiseConv(_product())(*(torch.zeros(4, n) for n in (2, 1, 2)), torch.zeros(4, 2)),
            r"edges must be \[2, n_edges\], senders and receivers, got \[4, 2\]",
        ),
    ],
)
def test_refuses(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def _product():
    return ChannelwiseProduct(((2, 1),), (1,), (ProductPath(0, 0, ((0, 0, 0, 2.0),), 1),))


def test_autocast(generator):
    """Between layers of low precision: float32 out, gradients in the parameters' dtype."""
    module = IndexedLinear(2, 3, 4)
    x, species = torch.randn(5, 2, 3, generator=generator), torch.tensor([0, 1, 1, 0, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(x.bfloat16(), species)
    assert out.dtype == torch.float32
    assert torch.equal(out, module(x.bfloat16().float(), species))
    out.sum().backward()
    assert module.weights.grad.dtype == torch.float32
