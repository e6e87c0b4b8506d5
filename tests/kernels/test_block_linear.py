"""Linear maps between blocks: both paths against the reference, with derivatives."""

import pytest
import torch
import torch._dynamo.testing
from tolerances import assert_close

from kernels.compiling import symbolic_descriptions
from kernels.problems import DTYPES, PATHS, derivatives, submodule
from scfmlip_kernels import Block, BlockMap, BlockPath, block_linear, sort_species
from scfmlip_kernels.block_linear.op import parts_of
from scfmlip_kernels.block_linear.reference import block_linear_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64


def some_map(n_species=1, channels=(5, 3, 4), layout="mul_ir"):
    """Scalars and vectors; two paths to one block, one block that leads to two, one that nothing leads to."""
    a, b, c = channels
    x = (Block(0, a, 1, layout), Block(a, b, 3, layout), Block(a + 3 * b, c, 3, layout))
    first = 3 * a + 3 * a
    out = (Block(0, 3 * a, 1, layout), Block(3 * a, a, 3, layout), Block(first, 2, 5, layout))
    out = (*out, Block(first + 10, b, 3, layout))
    paths, begin = [], 0
    for i, o in ((1, 1), (0, 0), (2, 1), (2, 3)):
        n_in, n_out = x[i].channels, out[o].channels
        paths.append(BlockPath(i, o, begin, (n_out, n_species * n_out, 1), 0.5 + begin))
        begin += n_in * n_species * n_out
    return BlockMap(x, out, tuple(paths), begin, n_species)


def problem(generator, linear, n_rows=7, dtype=F64, device="cpu"):
    x = torch.randn(n_rows, linear.x_dim, generator=generator, dtype=F64).to(device, dtype)
    weights = torch.randn(linear.n_weights, generator=generator, dtype=F64).to(device, dtype)
    index = torch.randint(0, linear.n_species, (n_rows,), generator=generator).to(device)
    return x, weights, index


def order_of(linear, index):
    return None if linear.n_species == 1 else sort_species(index, linear.n_species)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["mul_ir", "ir_mul"])
@pytest.mark.parametrize(("n_species", "n_rows"), [(1, 7), (3, 7), (1, 0), (3, 0), (3, 45)])
@pytest.mark.parametrize("path", PATHS)
def test_values_and_derivatives(path, n_species, n_rows, layout, dtype, generator, device):
    linear = some_map(n_species, layout=layout)
    x, weights, index = problem(generator, linear, n_rows, dtype, "cpu" if path == "cpu" else device)
    inputs = (x.requires_grad_(), weights.requires_grad_())
    value = block_linear(*inputs, linear, order_of(linear, index))
    assert value.dtype == dtype
    got = [value, *derivatives(value, inputs, 2)]
    inputs = tuple(t.detach().to(F64).requires_grad_() for t in inputs)
    value = block_linear_reference(*inputs, linear, index)
    for a, b in zip(got, [value, *derivatives(value, inputs, 2)], strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("path", PATHS)
def test_channels_around_the_tiles(path, generator, device):
    linear = some_map(1, (33, 16, 17))
    x, weights, _ = problem(generator, linear, 5, F64, "cpu" if path == "cpu" else device)
    assert_close(block_linear(x, weights, linear), block_linear_reference(x, weights, linear))


@pytest.mark.parametrize("n_species", [1, 2])
@pytest.mark.parametrize("n_rows", [255, 256, 700])
@pytest.mark.parametrize("path", PATHS)
def test_gradients_of_weights(path, n_rows, n_species, generator, device):
    """Sums over so many rows that they are split, and weights that no path uses."""
    linear = some_map(n_species)
    linear = linear._replace(n_weights=linear.n_weights + 5)
    x, weights, index = problem(generator, linear, n_rows, F64, "cpu" if path == "cpu" else device)
    found = torch.autograd.grad(
        block_linear(x, weights.requires_grad_(), linear, order_of(linear, index)).square().sum(), weights
    )
    want = torch.autograd.grad(
        block_linear_reference(x, weights, linear, index).square().sum(), weights.requires_grad_()
    )
    assert_close(found[0], want[0])


@pytest.mark.parametrize("path", PATHS)
def test_weights_that_paths_share(path, generator, device):
    a, b = Block(0, 3, 1), Block(3, 3, 3)
    paths = (BlockPath(0, 0, 0, (0, 3, 1), 0.5), BlockPath(1, 1, 0, (0, 3, 1), 2.0))
    linear = BlockMap((a, b), (a, b), paths, 9)
    x, weights, index = problem(generator, linear, 9, F64, "cpu" if path == "cpu" else device)
    given = (x.requires_grad_(), weights.requires_grad_())
    got = derivatives(block_linear(*given, linear), given, 2)
    want = derivatives(block_linear_reference(*given, linear, index), given, 2)
    for found, right in zip(got, want, strict=True):
        assert_close(found, right)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_species", [1, 3])
@pytest.mark.parametrize("path", PATHS)
def test_biases(path, n_species, dtype, generator, device):
    """Of scalars alone; a block with biases to which no path leads; columns of a wider matrix."""
    linear = some_map(n_species)
    linear = linear._replace(out=(*linear.out, Block(linear.out_dim, 3, 1)), biases=(3, -1, -1, -1, 0))
    where = "cpu" if path == "cpu" else device
    x, weights, index = problem(generator, linear, 9, dtype, where)
    x = torch.cat((x, x[:, :3]), 1)[:, : linear.x_dim].detach()
    bias = torch.randn(linear.n_biases, generator=generator, dtype=F64).to(where, dtype)
    inputs = tuple(t.requires_grad_() for t in (x, weights, bias))
    value = block_linear(*inputs[:2], linear, order_of(linear, index), bias)
    got = [value, *derivatives(value, inputs, 1)]
    inputs = tuple(t.detach().to(F64).requires_grad_() for t in inputs)
    value = block_linear_reference(*inputs[:2], linear, index, inputs[2])
    for a, b in zip(got, [value, *derivatives(value, inputs, 1)], strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_species", "n_rows"), [(1, 9), (3, 9), (1, 0)])
@pytest.mark.parametrize("path", PATHS)
def test_several_matrices(path, n_species, n_rows, dtype, generator, device):
    """X and the output as matrices one behind the other, with derivatives."""
    whole = some_map(n_species)
    widths = (
        tuple(block.channels * block.dim for block in whole.x),
        (
            whole.out[0].channels + 3 * whole.out[1].channels,
            *(block.channels * block.dim for block in whole.out[2:]),
        ),
    )
    linear = whole._replace(x_parts=widths[0], out_parts=widths[1])
    where = "cpu" if path == "cpu" else device
    x, weights, index = problem(generator, whole, n_rows, dtype, where)
    flat = torch.cat([part.flatten() for part in x.split(widths[0], 1)])
    inputs = (flat.requires_grad_(), weights.requires_grad_())
    parts = parts_of(block_linear(*inputs, linear, order_of(linear, index)), widths[1])
    value = torch.cat(parts, 1)
    got = [value, *derivatives(value, inputs, 2)]
    exact = tuple(t.detach().to("cpu", F64).requires_grad_() for t in inputs)
    value = block_linear_reference(torch.cat(parts_of(exact[0], widths[0]), 1), exact[1], whole, index.cpu())
    for a, b in zip(got, [value, *derivatives(value, exact, 2)], strict=True):
        assert_close(a, b)


def test_gradcheck_of_biases(generator):
    linear = some_map(1, (2, 2, 1))
    linear = linear._replace(biases=(0, -1, -1, -1))
    x, weights, _ = problem(generator, linear, 3)
    given = tuple(t.requires_grad_() for t in (x, weights, torch.randn(6, generator=generator, dtype=F64)))
    run = lambda *t: block_linear(*t[:2], linear, None, t[2])  # noqa: E731
    assert torch.autograd.gradcheck(run, given, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, given)


def test_gradcheck(generator):
    linear = some_map(2, (2, 2, 1))
    x, weights, index = problem(generator, linear, 3)
    inputs, order = (x.requires_grad_(), weights.requires_grad_()), order_of(linear, index)
    assert torch.autograd.gradcheck(lambda *t: block_linear(*t, linear, order), inputs)
    assert torch.autograd.gradgradcheck(lambda *t: block_linear(*t, linear, order), inputs)


def test_opcheck(generator):
    torch.use_deterministic_algorithms(False)
    text_of = submodule("registry").describe
    for n_species in (1, 3):
        linear = some_map(n_species)
        x, weights, index = problem(generator, linear)
        order = order_of(linear, index) or (None, None)
        grad = torch.randn(7, linear.out_dim, dtype=F64, requires_grad=True)
        arguments = (x.requires_grad_(), weights.requires_grad_(), None, *order, text_of(linear))
        torch.library.opcheck(torch.ops.scfmlip.block_linear.default, arguments)
        arguments = (x, grad, *order, text_of(linear))
        torch.library.opcheck(torch.ops.scfmlip.block_linear_weights.default, arguments)


@symbolic_descriptions
def test_compiles_once(generator):
    torch.use_deterministic_algorithms(False)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    linear = some_map()
    function = torch.compile(
        lambda x, w: block_linear(x, w, linear), fullgraph=True, dynamic=True, backend=counter
    )
    for n_rows in (7, 9, 14):
        x, weights, _ = problem(generator, linear, n_rows)
        inputs = (x.requires_grad_(), weights.requires_grad_())
        got = derivatives(function(*inputs), inputs, 1)
        for a, b in zip(got, derivatives(block_linear(*inputs, linear), inputs, 1), strict=True):
            assert_close(a, b)
    assert counter.frame_count == 1


def test_refuses(generator):
    linear = some_map(2)
    x, weights, _ = problem(generator, linear)
    with pytest.raises(ValueError, match=r"this map has 2 species: pass sort_species"):
        block_linear(x, weights, linear)
    with pytest.raises(ValueError, match=r"weights must be \["):
        block_linear(x, weights[1:], linear)
    with pytest.raises(TypeError, match="convert"):
        block_linear(x, weights.float(), linear)
    (first, *_), out = linear.x, linear.out
    for wrong, message in (
        (linear._replace(x=linear.x[1:]), "must cover its columns"),
        (linear._replace(n_weights=3), "there are 3"),
        (linear._replace(out_parts=(3, linear.out_dim - 3)), "must consist of whole blocks"),
        (linear._replace(biases=(0, 1, -1, -1)), "blocks of the output with one component"),
        (linear._replace(biases=(0, -1, -1, -1)), "this map has 15 biases: pass as many"),
        (linear._replace(x=(first._replace(layout="rows"), *linear.x[1:])), "layout must be"),
        (linear._replace(paths=(BlockPath(0, 1, 0, (0, 1, 1)),)), "maps 1 components to 3"),
        (linear._replace(paths=(BlockPath(0, 9, 0, (0, 1, 1)),)), "names blocks 0 of x and 9"),
    ):
        with pytest.raises(ValueError, match=message):
            block_linear(x, weights, wrong)
    assert len(out) == 4
