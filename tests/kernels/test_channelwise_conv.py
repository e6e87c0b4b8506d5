"""Channel-wise convolution: both paths against the reference, with derivatives, and e3nn's own product."""

import pytest
import torch
from tolerances import assert_close

from kernels.compiling import symbolic_descriptions
from kernels.convolutions import Problem, assert_right, plain_product, radial_inside, random_product
from kernels.problems import DTYPES, PATHS, scattered, submodule
from kernels.test_memory import Largest
from scfmlip_kernels import ChannelwiseProduct, ProductPath, channelwise_conv, sort_edges
from scfmlip_kernels.registry import describe
from scfmlip_kernels.tuned import tuned

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64
LAYOUTS = ["mul_ir", "ir_mul"]
OP = "channelwise_conv"
# the kernels again, those that compute the weights of a last radial layer themselves
RADIAL = pytest.param("radial", marks=pytest.mark.interpreter)


@pytest.fixture(autouse=True)
def _radial(request, monkeypatch):
    """Tests whose path is "radial"."""
    if "path" in request.fixturenames and request.getfixturevalue("path") == "radial":
        for dtype in DTYPES:
            radial_inside(monkeypatch, request.getfixturevalue("device"), dtype)


def place(path, device):
    return "cpu" if path == "cpu" else device


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(25))
def test_random_products(seed, layout, generator):
    product = random_product(seed, layout)
    n_nodes, n_edges = 1 + seed % 11, (7 * seed) % 60
    assert_right(Problem(product, n_nodes, n_edges, generator, hidden=(0, 3)[seed % 2]))


@pytest.mark.parametrize("hidden", [0, 4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("path", PATHS)
def test_values_and_derivatives(path, layout, dtype, hidden, generator, device):
    product = plain_product((40, 33), layout)
    problem = Problem(product, 3, 6, generator, hidden, dtype, place(path, device))
    assert_right(problem, tolerance={torch.float32: 1e-6, F64: None}[dtype])  # few edges, few roundings


@pytest.mark.interpreter
@pytest.mark.parametrize("seed", range(3))
def test_random_products_in_the_kernels(seed, generator, device):
    product = random_product(100 + seed, LAYOUTS[seed % 2], max_channels=40)
    assert_right(Problem(product, 3, 6, generator, device=device), second=False)


@pytest.mark.parametrize("path", [*PATHS, RADIAL])
def test_graphs_with_nothing(path, generator, device):
    """No nodes, no edges, one edge, isolated nodes."""
    product = plain_product((3, 2))
    for n_nodes, ends in ((0, []), (4, []), (1, [(0, 0)]), (5, [(3, 1), (3, 1), (1, 3)])):
        graph = torch.tensor(ends, dtype=torch.int64).reshape(-1, 2).T
        hidden = 3 if path == "radial" else 0
        problem = Problem(
            product, n_nodes, len(ends), generator, hidden, device=place(path, device), graph=graph
        )
        assert_right(problem)


def test_a_node_with_many_neighbours(generator, monkeypatch):
    """More edges than a block takes, beside nodes with few; blocks with padding and without."""
    monkeypatch.setattr(submodule(f"{OP}.cpu"), "_EDGES", 8)
    receiver = torch.tensor([0] * 40 + [1] * 3 + [2] * 4 + [4] * 4 + [5] + [7] * 10 + [8] * 9)
    graph = torch.stack((torch.randint(9, receiver.shape, generator=generator), receiver))
    graph = graph[:, torch.randperm(len(receiver), generator=generator)]
    for hidden in (0, 3):
        assert_right(Problem(plain_product((3, 2)), 9, len(receiver), generator, hidden, graph=graph))


def test_padding_keeps_nan_where_it_is(generator):
    """Padding repeats a node's own edge, so values that are not finite stay at their receivers."""
    graph = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 0, 1, 1]])
    problem = Problem(plain_product((3, 2)), 3, 5, generator, graph=graph)
    problem.weights[0] = float("nan")
    value = problem.value(*problem.inputs)
    assert value[0].isnan().any()
    assert_close(value[1:], problem.reference(*problem.inputs)[1:])


@pytest.mark.parametrize("path", [*PATHS, RADIAL])
def test_only_what_is_needed(path, generator, device):
    """Each choice of arguments that need a derivative, alone and in the second derivative."""
    product = plain_product((3, 2))
    problem = Problem(product, 3, 5, generator, hidden=2, device=place(path, device))
    # the interpreter is slow: of the radial layer each alone, forces' two, and several
    for choice in (1, 2, 4, 8, 6, 13) if path == "radial" else range(1, 16):
        mine, plain = problem.leaves(), problem.leaves(F64, "cpu")
        for tensors in (mine, plain):
            for n, tensor in enumerate(tensors):
                tensor.requires_grad_(bool(choice >> n & 1))
        needed = [[t for t in tensors if t.requires_grad] for tensors in (mine, plain)]
        sums = [problem.value(*mine).square().sum(), problem.reference(*plain).square().sum()]
        first = [torch.autograd.grad(s, n, create_graph=True) for s, n in zip(sums, needed, strict=True)]
        second = [
            torch.autograd.grad(sum(t.square().sum() for t in f), n)
            for f, n in zip(first, needed, strict=True)
        ]
        for got, want in (first, second):
            for a, b in zip(got, want, strict=True):
                assert_close(a, b)


@pytest.mark.parametrize("leaf", [True, False])
def test_computes_what_is_asked_for(leaf, generator, monkeypatch):
    """Forces ask for some derivatives only, though parameters could have theirs."""
    module = submodule(f"{OP}.op")
    asked, compute = [], module.channelwise_conv_backward_cpu
    monkeypatch.setattr(
        module, "channelwise_conv_backward_cpu", lambda *a: asked.append(a[-1]) or compute(*a)
    )
    problem = Problem(plain_product((3, 2)), 3, 5, generator, hidden=2)

    def leaves_and_value():
        leaves = problem.leaves()
        arguments = leaves if leaf else [2 * t for t in leaves]
        return leaves, problem.value(*arguments)

    for n in range(4):
        leaves, value = leaves_and_value()
        torch.autograd.grad(value, leaves[n], problem.grad)
        assert asked.pop() == [m == n for m in range(4)]
    leaves, value = leaves_and_value()
    value.backward(problem.grad)
    assert asked.pop() == [True] * 4
    fresh, value = leaves_and_value()
    for a, b in zip(leaves, torch.autograd.grad(value, fresh, problem.grad), strict=True):
        assert torch.equal(a.grad, b)


@pytest.mark.parametrize("hidden", [0, 2])
def test_gradcheck(hidden, generator):
    product = random_product(3)
    problem = Problem(product, 3, 4, generator, hidden)
    leaves = problem.leaves()
    assert torch.autograd.gradcheck(problem.value, leaves)
    assert torch.autograd.gradgradcheck(problem.value, leaves)


def test_third_derivatives(generator):
    product = random_product(5)
    problem = Problem(product, 3, 4, generator, hidden=2)
    results = []
    for function in (problem.value, problem.reference):
        leaves = problem.leaves()
        sums = function(*leaves).pow(3).sum()
        for _ in range(2):
            sums = sum(g.square().sum() for g in torch.autograd.grad(sums, leaves, create_graph=True))
        results.append(torch.autograd.grad(sums, leaves))
    for a, b in zip(*results, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("hidden", [0, 2])
@pytest.mark.parametrize("path", PATHS)
def test_vmap(path, hidden, generator, device):
    """A batch of values, and the rows of a Jacobian at once."""
    problem = Problem(plain_product((3, 2)), 3, 4, generator, hidden, device=place(path, device))
    first, *rest = problem.inputs
    batch = torch.stack((first, 2 * first, first.flip(0)))
    got = torch.vmap(lambda x: problem.value(x, *rest))(batch)
    for a, x in zip(got, batch, strict=True):
        assert_close(a, problem.value(x, *rest))
    leaves = problem.leaves()
    value = problem.value(*leaves)
    grads = torch.stack((problem.grad, -problem.grad, problem.grad.flip(0)))
    rows = torch.autograd.grad(value, leaves, grads, is_grads_batched=True, retain_graph=True)
    for n, grad in enumerate(grads):
        for a, b in zip(rows, torch.autograd.grad(value, leaves, grad, retain_graph=True), strict=True):
            assert_close(a[n], b)


@pytest.mark.parametrize(
    ("path", "hidden"), [("cpu", 0), ("cpu", 2), pytest.param("radial", 2, marks=RADIAL.marks)]
)
def test_opcheck(path, hidden, generator, device):
    torch.use_deterministic_algorithms(False)
    for dtype in DTYPES[:1] if path == "radial" else DTYPES:
        product, n_edges = (plain_product((3, 2)), 2) if path == "radial" else (random_product(7), 6)
        problem = Problem(product, 3, n_edges, generator, hidden, dtype, place(path, device))
        leaves = [*problem.leaves(), *([] if hidden else [None])]
        tables = (*problem.edges.tables, describe(problem.product))
        torch.library.opcheck(torch.ops.scfmlip.channelwise_conv.default, (*leaves, *tables))
        wanted = [True, False, True, bool(hidden)]
        arguments = (*leaves, problem.grad.requires_grad_(), *tables, wanted)
        torch.library.opcheck(torch.ops.scfmlip.channelwise_conv_backward.default, arguments)


@symbolic_descriptions
@pytest.mark.parametrize("hidden", [0, 2])
def test_compiles_once_for_all_graphs(hidden, generator):
    torch.use_deterministic_algorithms(False)
    product = random_product(9)
    compilations = []

    def backend(graph, _):
        compilations.append(graph)
        return graph

    def both(sender, receiver, x, *rest):
        edges = sort_edges(sender, receiver, x.shape[0])
        return channelwise_conv(x, *rest[:2], edges, product, *rest[2:]).square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend=backend)
    for n_nodes, n_edges in ((3, 7), (4, 9), (10, 50)):
        problem = Problem(product, n_nodes, n_edges, generator, hidden)
        arguments = (problem.sender, problem.receiver)
        mine, plain = problem.leaves(), problem.leaves()
        assert_close(compiled(*arguments, *mine), both(*arguments, *plain))
        got = torch.autograd.grad(compiled(*arguments, *mine), mine)
        for a, b in zip(got, torch.autograd.grad(both(*arguments, *plain), plain), strict=True):
            assert_close(a, b)
    assert len(compilations) == 1


@symbolic_descriptions
def test_compiled_derivatives(generator):
    """Through the whole of the compiler, derivatives included."""
    torch.use_deterministic_algorithms(False)
    problem = Problem(random_product(9), 4, 11, generator, hidden=2)
    torch._dynamo.reset()
    compiled = torch.compile(problem.value, fullgraph=True, dynamic=True, backend="aot_eager")
    mine, plain = problem.leaves(), problem.leaves()
    got, want = compiled(*mine), problem.value(*plain)
    assert_close(got, want)
    first = torch.autograd.grad(got, mine, problem.grad)
    for a, b in zip(first, torch.autograd.grad(want, plain, problem.grad), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("path", [*PATHS, RADIAL])
def test_not_contiguous(path, generator, device):
    problem = Problem(plain_product((3, 2)), 4, 7, generator, hidden=2, device=place(path, device))
    problem.x, problem.y, problem.weights, problem.matrix = (scattered(t) for t in problem.inputs)
    assert not any(t.is_contiguous() for t in problem.inputs)
    value = problem.value(*(leaves := [t.requires_grad_() for t in problem.inputs]))
    plain = problem.leaves(device="cpu")
    want = problem.reference(*plain)
    assert_close(value, want)
    # an expanded gradient has strides of 0
    for a, b in zip(
        torch.autograd.grad(value.sum(), leaves), torch.autograd.grad(want.sum(), plain), strict=True
    ):
        assert_close(a, b)


@pytest.mark.interpreter
@pytest.mark.parametrize("most", [1, 4])
@pytest.mark.parametrize("seed", [None, 3, 11])
def test_large_products_are_cut(most, seed, generator, device, monkeypatch):
    """Into kernels of a few paths, in the middle of a segment of x too; one segment of x has no path."""
    for name in ("forward_components", "backward_components"):
        monkeypatch.setitem(tuned("channelwise", torch.device(device), F64), name, most)
    product = plain_product((3, 2)) if seed is None else random_product(seed)
    product = product._replace(x=(*product.x, (2, 3)))
    assert len(submodule(f"{OP}.generate").pieces(product, most)) > 1
    assert_right(Problem(product, 3, 5, generator, device=device))


@pytest.mark.parametrize("path", ["cpu", RADIAL])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_every_time(dtype, path, generator, device):
    n_nodes, n_edges = (4, 40) if path == "radial" and device == "cpu" else (20, 400)
    problem = Problem(plain_product((16, 8)), n_nodes, n_edges, generator, 4, dtype, device)

    def run():
        leaves = problem.leaves()
        value = problem.value(*leaves)
        return [value, *torch.autograd.grad(value, leaves, problem.grad)]

    first = run()
    for _ in range(1 if path == "radial" else 3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_the_order_of_edges_does_not_matter(generator):
    problem = Problem(plain_product((4, 3)), 6, 40, generator)
    shuffle = torch.randperm(40, generator=generator)
    edges = sort_edges(problem.sender[shuffle], problem.receiver[shuffle], 6)
    value = channelwise_conv(problem.x, problem.y[shuffle], problem.weights[shuffle], edges, problem.product)
    assert_close(value, problem.value(*problem.inputs))


def test_sort_edges(generator, device):
    sender, receiver = torch.randint(9, (2, 50), generator=generator)
    edges = sort_edges(sender.to(device), receiver.to(device), 9)
    assert (edges.n_senders, edges.n_receivers) == (9, 9)
    for nodes, order, ptr in (
        (sender, edges.by_sender, edges.sender_ptr),
        (receiver, edges.by_receiver, edges.receiver_ptr),
    ):
        assert torch.equal(order.cpu(), torch.sort(nodes, stable=True).indices)
        assert torch.equal(
            ptr.cpu(), torch.cat((torch.zeros(1), nodes.bincount(minlength=9).cumsum(0))).long()
        )


def test_memory(generator):
    """With a matrix, neither the weights nor messages are stored: O(nodes) and one block of edges."""
    product = plain_product((128, 128))
    problem = Problem(product, 200, 20_000, generator, hidden=8, dtype=torch.float32)
    cpu = submodule(f"{OP}.cpu")
    edges = problem.edges
    tables = (edges.sender, edges.by_receiver, edges.receiver_ptr, product)
    with Largest() as largest:
        cpu.channelwise_conv_cpu(*problem.inputs, *tables)
        cpu.channelwise_conv_backward_cpu(*problem.inputs, problem.grad, *tables, [True] * 4)
    stored = 20_000 * product.weight_numel * 4
    assert 1e5 < largest.bytes < stored / 10


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_e3nn(layout, generator):
    """Real Clebsch-Gordan coefficients with the product of e3nn, whose layout is "mul_ir"."""
    pytest.importorskip("mace")  # before e3nn: it makes e3nn's constants loadable
    o3 = pytest.importorskip("e3nn.o3")
    torch.set_default_dtype(F64)
    first, second = o3.Irreps("6x0e+4x1o"), o3.Irreps("0e+1o+2e")
    out, instructions = [], []
    for i, (channels, a) in enumerate(first):
        for j, (_, b) in enumerate(second):
            for c in a * b:
                if c.l <= 2:
                    instructions.append((i, j, len(out), "uvu", True))
                    out.append((channels, c))
    tensor_product = o3.TensorProduct(
        first, second, o3.Irreps(out), instructions, internal_weights=False, shared_weights=False
    )
    paths = []
    for made in tensor_product.instructions:
        a, b, c = first[made.i_in1].ir, second[made.i_in2].ir, out[made.i_out][1]
        dense = o3.wigner_3j(a.l, b.l, c.l, dtype=F64) * made.path_weight
        terms = [(i, j, k, float(dense[i, j, k])) for i, j, k in dense.nonzero().tolist()]
        paths.append(ProductPath(made.i_in1, made.i_in2, tuple(terms), c.dim))
    sizes = tuple((channels, ir.dim) for channels, ir in first)
    product = ChannelwiseProduct(sizes, tuple(ir.dim for _, ir in second), tuple(paths), layout)
    assert (product.weight_numel, product.out_dim) == (
        tensor_product.weight_numel,
        tensor_product.irreps_out.dim,
    )
    problem = Problem(product, 7, 30, generator)
    other = product._replace(layout="mul_ir")
    x = exchange(problem.x, other.x) if layout == "ir_mul" else problem.x
    value = problem.value(x=x, y=problem.y, weights=problem.weights)
    messages = tensor_product(problem.x[problem.sender], problem.y, problem.weights)
    want = torch.zeros(7, product.out_dim).index_add(0, problem.receiver, messages)
    assert_close(value, exchange(want, product.out) if layout == "ir_mul" else want)


def exchange(values, segments):
    """From channels outermost to components outermost."""
    parts = values.split([c * d for c, d in segments], 1)
    return torch.cat([p.unflatten(1, s).mT.flatten(1) for p, s in zip(parts, segments, strict=True)], 1)


def test_refuses(generator):
    problem = Problem(plain_product((3, 2)), 4, 6, generator, hidden=2)
    x, y, weights, matrix = problem.inputs
    edges, product = problem.edges, problem.product
    with pytest.raises(TypeError, match=r"x must be float32 or float64, got torch\.float16"):
        channelwise_conv(x.half(), y, weights, edges, product, matrix)
    with pytest.raises(TypeError, match=r"weights is torch\.float32, x is torch\.float64"):
        channelwise_conv(x, y, weights.float(), edges, product, matrix)
    with pytest.raises(ValueError, match=r"x must be \[4, 9\], got \[3, 9\]"):
        channelwise_conv(x[:3], y, weights, edges, product, matrix)
    with pytest.raises(ValueError, match=r"y must be \[6, 4\], got \[6, 3\]"):
        channelwise_conv(x, y[:, :3], weights, edges, product, matrix)
    with pytest.raises(ValueError, match=r"weights must be \[6, 12\], got \[6, 2\]"):
        channelwise_conv(x, y, weights, edges, product)
    with pytest.raises(ValueError, match=r"matrix must be \[n_hidden, 12\], got \[2, 11\]"):
        channelwise_conv(x, y, weights, edges, product, matrix[:, 1:])
    with pytest.raises(ValueError, match=r"y must be \[6, 4\], got \[4\]"):
        channelwise_conv(x, y[0], weights, edges, product, matrix)
    with pytest.raises(ValueError, match="one device, got x on cpu, y on meta"):
        channelwise_conv(x, y.to("meta"), weights, edges, product, matrix)
    with pytest.raises(TypeError, match=r"sender must be int64, got torch\.int32"):
        sort_edges(edges.sender.int(), edges.receiver, 4)
    with pytest.raises(ValueError, match=r"must be \[n_edges\], got \[6\] and \[5\]"):
        sort_edges(edges.sender, edges.receiver[:5], 4)
    with pytest.raises(ValueError, match="receiver names nodes 0 to 4, there are 4"):
        sort_edges(torch.zeros(5, dtype=torch.int64), torch.arange(5), 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": "rows"}, "layout must be 'mul_ir' or 'ir_mul', got 'rows'"),
        ({"paths": ()}, "at least one path"),
        ({"x": ((3, 1),)}, r"path 2 names segments \(1, 0\)"),
        ({"y": (1, 2)}, r"path 1 has a term \(0, 2, 2\), limits are \(1, 2, 3\)"),
        ({"x": ((0, 1), (2, 3))}, "segment of x with 0 channels"),
    ],
)
def test_refuses_products(change, message, generator):
    problem = Problem(plain_product((3, 2)), 2, 2, generator)
    with pytest.raises(ValueError, match=message):
        channelwise_conv(*problem.inputs, problem.edges, problem.product._replace(**change))


def test_refuses_a_term_twice(generator):
    path = ProductPath(0, 0, ((0, 0, 0, 1.0), (0, 0, 0, 2.0)), 1)
    product = ChannelwiseProduct(((2, 1),), (1,), (path,))
    problem = Problem(product, 2, 2, generator)
    with pytest.raises(ValueError, match="two values for one term"):
        problem.value(*problem.inputs)
