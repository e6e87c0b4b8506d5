"""Convolutions to test: products, random graphs, and the comparison with the reference."""

import random

import torch
from tolerances import assert_close

from scfmlip_kernels import ChannelwiseProduct, ProductPath, channelwise_conv, sort_edges
from scfmlip_kernels.channelwise_conv.reference import channelwise_conv_reference
from scfmlip_kernels.tuned import tuned

F64 = torch.float64


def radial_inside(monkeypatch, device, dtype, components=4, paths=1):
    """Let the kernels compute a last radial layer, in small blocks and several chunks of edges."""
    blocks = {"edges": 16, "hidden": 16, "channels": 16}
    changes = {
        "radial": {"fused": True, "components": components, **blocks},
        "radial_edges": {"components": components, **blocks},
        "radial_matrix": {"paths": paths, "chunk": 16, "chunks": 2, **blocks},
    }
    for family, values in changes.items():
        for name, value in values.items():
            monkeypatch.setitem(tuned(family, torch.device(device), dtype), name, value)


def random_product(seed, layout="mul_ir", max_channels=5):
    """Segments of any sizes, paths between any of them with random coefficients."""
    choose = random.Random(seed)
    dims = [1, 2, 3, 5]
    x = tuple((choose.randint(1, max_channels), choose.choice(dims)) for _ in range(choose.randint(1, 3)))
    y = tuple(choose.choice(dims) for _ in range(choose.randint(1, 3)))
    paths = []
    for _ in range(choose.randint(1, 5)):
        a, b, dim = choose.randrange(len(x)), choose.randrange(len(y)), choose.choice(dims)
        places = [(i, j, k) for i in range(x[a][1]) for j in range(y[b]) for k in range(dim)]
        kept = choose.sample(places, choose.randint(1, len(places)))
        paths.append(ProductPath(a, b, tuple((*p, choose.gauss(0, 1)) for p in sorted(kept)), dim))
    return ChannelwiseProduct(x, y, tuple(paths), layout)


def plain_product(channels, layout="mul_ir"):
    """Like the second layer of a model: scalars and vectors, a different number of channels each."""
    antisymmetric = [(i, j, k, s) for s in (1.0, -1.0) for i, j, k in _cyclic(s)]
    paths = (
        ProductPath(0, 0, ((0, 0, 0, 0.5),), 1),
        ProductPath(0, 1, tuple((0, i, i, 1.5) for i in range(3)), 3),
        ProductPath(1, 0, tuple((i, 0, i, -0.75) for i in range(3)), 3),
        ProductPath(1, 1, tuple((i, i, 0, 1.25) for i in range(3)), 1),
        ProductPath(1, 1, tuple(antisymmetric), 3),
    )
    return ChannelwiseProduct(((channels[0], 1), (channels[1], 3)), (1, 3), paths, layout)


def _cyclic(sign):
    cycle = [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    return cycle if sign > 0 else [(j, i, k) for i, j, k in cycle]


class Problem:
    """Arguments of a convolution over a random graph; ``hidden`` columns before the matrix, 0 for none."""

    def __init__(self, product, n_nodes, n_edges, generator, hidden=0, dtype=F64, device="cpu", graph=None):
        def random_values(*shape):
            return torch.randn(*shape, generator=generator, dtype=F64).to(dtype).to(device)

        if graph is None:
            graph = torch.randint(n_nodes, (2, n_edges), generator=generator)
        self.product, self.sender, self.receiver = product, *graph.to(device)
        self.edges = sort_edges(self.sender, self.receiver, n_nodes)
        self.x = random_values(n_nodes, product.x_dim)
        self.y = random_values(n_edges, product.y_dim)
        self.weights = random_values(n_edges, hidden or product.weight_numel)
        self.matrix = random_values(hidden, product.weight_numel) if hidden else None
        self.grad = random_values(n_nodes, product.out_dim)

    @property
    def inputs(self):
        given = (self.x, self.y, self.weights, self.matrix)
        return [t for t in given if t is not None]

    def value(self, x, y, weights, matrix=None):
        return channelwise_conv(x, y, weights, self.edges, self.product, matrix)

    def reference(self, x, y, weights, matrix=None):
        ends = (self.sender.cpu(), self.receiver.cpu())
        return channelwise_conv_reference(x, y, weights, *ends, self.product, matrix)

    def leaves(self, dtype=None, device=None):
        return [t.detach().to(device, dtype).requires_grad_() for t in self.inputs]


def assert_right(problem, second=True, tolerance=None):
    """Value, first and second derivatives in every argument."""
    mine, plain = problem.leaves(), problem.leaves(F64, "cpu")
    got, want = problem.value(*mine), problem.reference(*plain)
    assert got.dtype == problem.x.dtype
    assert_close(got, want, tolerance)
    grad = problem.grad.detach().clone().requires_grad_()
    plain_grad = grad.detach().double().cpu().requires_grad_()
    first = torch.autograd.grad(got, mine, grad, create_graph=second)
    wanted = torch.autograd.grad(want, plain, plain_grad, create_graph=second)
    for a, b in zip(first, wanted, strict=True):
        assert_close(a, b, tolerance)
    if second:
        scalar = sum((t.double() ** 2).sum() for t in first)
        plain_scalar = sum((t**2).sum() for t in wanted)
        got = torch.autograd.grad(scalar, [*mine, grad])
        want = torch.autograd.grad(plain_scalar, [*plain, plain_grad])
        for a, b in zip(got, want, strict=True):
            assert_close(a, b)
