"""Indexed linear maps: both paths against the reference, with derivatives, at the edges of the blocks."""

import pytest
import torch
import torch._dynamo.testing
from tolerances import assert_close

from kernels.problems import DTYPES, PATHS, derivatives, scattered, submodule
from scfmlip_kernels import indexed_linear
from scfmlip_kernels.indexed_linear.reference import indexed_linear_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64


def random_problem(generator, sizes=(11, 3, 5, 6), n_species=4, device="cpu", dtype=F64):
    """Rows, weights and species; the last species does not occur."""
    n_rows, n_components, n_in, n_out = sizes
    x = torch.randn(n_rows, n_components, n_in, generator=generator, dtype=F64)
    weights = torch.randn(n_species, n_in, n_out, generator=generator, dtype=F64)
    index = torch.randint(0, max(n_species - 1, 1), (n_rows,), generator=generator)
    return x.to(device, dtype), weights.to(device, dtype), index.to(device)


def place(path, device):
    return "cpu" if path == "cpu" else device


SIZES = [
    (11, 3, 5, 6),
    (0, 3, 5, 6),
    (4, 0, 5, 6),
    (4, 3, 0, 6),
    (4, 3, 5, 0),
    (1, 1, 1, 1),
    (31, 1, 33, 16),
    (70, 1, 17, 65),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("path", PATHS)
def test_values_and_derivatives(path, sizes, dtype, generator, device):
    x, weights, index = random_problem(generator, sizes, 3, place(path, device), dtype)
    inputs = (x.requires_grad_(), weights.requires_grad_())
    value = indexed_linear(*inputs, index)
    assert value.dtype == dtype
    got = [value, *derivatives(value, inputs, 2)]
    inputs = tuple(t.detach().to(F64).requires_grad_() for t in inputs)
    value = indexed_linear_reference(*inputs, index)
    for a, b in zip(got, [value, *derivatives(value, inputs, 2)], strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("n_species", [1, 2, 40])
@pytest.mark.parametrize("path", PATHS)
def test_species(path, n_species, generator, device):
    """One species, and many that do not occur, whose gradients are 0."""
    x, weights, index = random_problem(generator, n_species=n_species, device=place(path, device))
    weights.requires_grad_()
    value = indexed_linear(x, weights, index)
    assert_close(value, indexed_linear_reference(x, weights, index))
    value.sum().backward()
    want = torch.zeros_like(weights).index_add(0, index, x.sum(1)[:, :, None].expand(-1, -1, 6))
    assert_close(weights.grad, want)


@pytest.mark.parametrize("path", PATHS)
def test_not_contiguous(path, generator, device):
    x, weights, index = random_problem(generator, device=place(path, device))
    inputs = (scattered(x).requires_grad_(), scattered(weights).requires_grad_())
    got = derivatives(indexed_linear(*inputs, index), inputs, 2)
    inputs = (x.clone().requires_grad_(), weights.clone().requires_grad_())
    for a, b in zip(got, derivatives(indexed_linear_reference(*inputs, index), inputs, 2), strict=True):
        assert_close(a, b)
    # as e3nn stores both: components innermost, weights of one number for all species
    turned, spread = x.mT.contiguous().mT, weights.permute(1, 0, 2).contiguous().permute(1, 0, 2)
    assert_close(indexed_linear(turned, spread, index), indexed_linear_reference(x, weights, index))


@pytest.mark.parametrize("path", PATHS)
def test_the_same_bits_in_every_run(path, generator, device):
    problem = random_problem(generator, (70, 2, 17, 9), 4, place(path, device), torch.float32)

    def run():
        inputs = tuple(t.clone().requires_grad_() for t in problem[:2])
        return derivatives(indexed_linear(*inputs, problem[2]), inputs, 2)

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)


def test_gradcheck(generator):
    x, weights, index = random_problem(generator, (4, 2, 3, 2))
    inputs = (x.requires_grad_(), weights.requires_grad_())
    assert torch.autograd.gradcheck(lambda *t: indexed_linear(*t, index), inputs)
    assert torch.autograd.gradgradcheck(lambda *t: indexed_linear(*t, index), inputs)


def test_opcheck(generator):
    torch.use_deterministic_algorithms(False)
    for dtype in DTYPES:
        x, weights, index = random_problem(generator, dtype=dtype)
        tables = (index, *submodule("indexed_linear.groups").sort_species(index, len(weights)))
        x.requires_grad_()
        weights.requires_grad_()
        grad = torch.randn(11, 3, 6, dtype=dtype, requires_grad=True)
        torch.library.opcheck(torch.ops.scfmlip.indexed_linear.default, (x, weights, *tables))
        torch.library.opcheck(torch.ops.scfmlip.indexed_linear_weights.default, (x, grad, *tables))


def test_compiles_once(generator):
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    function = torch.compile(indexed_linear, fullgraph=True, dynamic=True, backend=counter)
    for n_rows in (7, 9, 14):
        x, weights, index = random_problem(generator, (n_rows, 3, 5, 6))
        inputs = (x.requires_grad_(), weights.requires_grad_())
        got = derivatives(function(*inputs, index), inputs, 1)
        for a, b in zip(got, derivatives(indexed_linear(*inputs, index), inputs, 1), strict=True):
            assert_close(a, b)
    assert counter.frame_count == 1


def test_mace_skip_product(generator):
    """A fully connected product with one-hot species is this map with its weights transposed and scaled."""
    pytest.importorskip("mace")
    import mace.modules  # noqa: F401  (before e3nn)
    from e3nn import o3

    torch.set_default_dtype(F64)
    product = o3.FullyConnectedTensorProduct("4x1o", "3x0e", "5x1o")
    x = torch.randn(6, 12, generator=generator, dtype=F64)
    index = torch.tensor([0, 2, 2, 0, 2, 0])
    want = product(x, torch.nn.functional.one_hot(index, 3).to(F64))
    weights = product.weight.view(4, 3, 5).transpose(0, 1) / 12**0.5
    got = indexed_linear(x.view(6, 4, 3).mT, weights, index)
    assert_close(got.mT.flatten(1), want)


def test_refuses(generator):
    x, weights, index = random_problem(generator)
    with pytest.raises(TypeError, match="weights must be float32 or float64"):
        indexed_linear(x, weights.half(), index)
    with pytest.raises(TypeError, match=r"weights is torch\.float32, x is torch\.float64"):
        indexed_linear(x, weights.float(), index)
    with pytest.raises(TypeError, match="index must be int64"):
        indexed_linear(x, weights, index.int())
    with pytest.raises(ValueError, match="x has 4 columns, weights 5 rows"):
        indexed_linear(x[..., :4], weights, index)
    with pytest.raises(ValueError, match=r"index must be \[11\], got \[10\]"):
        indexed_linear(x, weights, index[:10])
    with pytest.raises(ValueError, match=r"weights must be \[n_species, n_in, n_out\]"):
        indexed_linear(x, weights[0], index)
    with pytest.raises(ValueError, match="one device"):
        indexed_linear(x, weights.to("meta"), index)
    with pytest.raises(ValueError, match="index names species 4 to 4, there are 4"):
        indexed_linear(x, weights, torch.full_like(index, 4))
    with pytest.raises(ValueError, match="index names species -1 to -1"):
        indexed_linear(x, weights, torch.full_like(index, -1))
