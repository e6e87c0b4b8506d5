"""The convolution's kernels that compute a last radial layer themselves."""

import pytest
import torch

from kernels.convolutions import Problem, assert_right, plain_product, radial_inside, random_product
from kernels.problems import DTYPES, submodule
from kernels.test_memory import Largest
from scfmlip_kernels import ChannelwiseProduct, ProductPath

pytestmark = pytest.mark.usefixtures("empty_is_nan")
F64 = torch.float64
LAYOUTS = ["mul_ir", "ir_mul"]
OP = "channelwise_conv"


@pytest.mark.interpreter
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("dtype", "hidden", "most", "paths"),
    [(F64, 5, 4, 1), (F64, 17, 100, 2), (torch.float32, 16, 4, 2), (torch.float32, 33, 100, 1)],
)
def test_radial_layer_inside(dtype, hidden, most, paths, layout, generator, device, monkeypatch):
    """
    Kernels that compute the weights themselves, and keep their derivatives to themselves.

    More edges than a tile, a chunk and a node's tile take, and fewer; cut and whole; channels of two blocks.
    """
    radial_inside(monkeypatch, device, dtype, most, paths)
    product = plain_product((20, 17), layout)
    many = torch.tensor([[0, 1, 2] * 13, [0] * 18 + [1, 1, 1] + [3] * 18])
    many = many[:, torch.randperm(39, generator=generator)]
    problem = Problem(product, 4, 39, generator, hidden, dtype, device, graph=many)
    assert_right(problem, second=False)


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(4))
def test_random_products_with_the_radial_layer_inside(seed, dtype, generator, device, monkeypatch):
    """Segments of x and y that no path has among them."""
    radial_inside(monkeypatch, device, dtype, (1, 100)[seed % 2])
    product = random_product(seed, LAYOUTS[seed // 2], max_channels=20)
    product = product._replace(x=(*product.x, (2, 3)), y=(*product.y, 2))
    assert_right(Problem(product, 3, 7, generator, 3, dtype, device))


def test_chunks_of_edges():
    """Whole tiles, no more chunks than asked for, and none without edges."""
    chunks = submodule(f"{OP}.kernel_radial").edge_chunks
    for n_edges in (1, 511, 512, 513, 100_000, 1_000_003):
        size, n = chunks(n_edges, 32, 512, 128)
        assert size % 32 == 0
        assert size >= 512
        assert n <= 128
        assert (n - 1) * size < n_edges <= n * size
    assert chunks(0, 32, 512, 128)[1] == 0


@pytest.mark.interpreter
def test_weights_are_never_stored(generator, device, monkeypatch):
    """With the radial layer inside, nothing of size edges x weights, up to the second derivative."""
    module, largest = submodule(f"{OP}.op"), []

    def watch(name):
        launch = getattr(module, name)

        def watched(*arguments):
            # a mode does not see what an operator does inside: one of its own for each launch
            with Largest() as inside:
                found = launch(*arguments)
            largest.append(inside.bytes)
            return found

        monkeypatch.setattr(module, name, watched)

    for name in ("conv", "conv_backward", "conv_radial", "conv_radial_backward"):
        watch(f"launch_channelwise_{name}")
    # as in a first layer, weights are many times the features
    paths = [ProductPath(0, 1, ((0, 0, 0, 1.0 + p), (0, 2, 0, 0.5)), 1) for p in range(8)]
    product = ChannelwiseProduct(((16, 1),), (1, 3), tuple(paths))
    problem = Problem(product, 3, 40, generator, 4, torch.float32, device)
    stored = 40 * product.weight_numel * 4

    def run():
        largest.clear()
        with Largest() as outside:
            leaves = problem.leaves()
            grad = problem.grad.clone().requires_grad_()
            value = problem.value(*leaves)
            first = torch.autograd.grad(value, leaves, grad, create_graph=True)
            torch.autograd.grad(sum(g.square().sum() for g in first), [*leaves, grad])
        assert len(largest) == 10  # value and its derivative, then both for each of four cotangents
        return max(outside.bytes, *largest)

    assert run() >= stored
    radial_inside(monkeypatch, device, torch.float32, components=100, paths=8)
    assert run() <= stored / 5
