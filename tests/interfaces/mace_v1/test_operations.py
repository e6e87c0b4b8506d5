"""The operations behind MACE v1's kernel contract against those of e3nn and mace-torch."""

import pytest
import torch
from tolerances import assert_close

from scfmlip.interfaces.mace_v1.linear import Linear, SkipProduct
from scfmlip.interfaces.mace_v1.products import Contraction, Convolution, SegmentSum
from scfmlip.interfaces.mace_v1.weighted import from_blocks, to_blocks
from scfmlip.nn.descriptors import channelwise_product

LAYOUTS = ("mul_ir", "ir_mul")
NODE, EDGE = "4x0e + 4x1o", "1x0e + 1x1o + 1x2e"


@pytest.fixture
def o3():
    pytest.importorskip("mace", reason="imported before e3nn")
    # in which e3nn keeps its constants
    torch.set_default_dtype(torch.float64)
    return pytest.importorskip("e3nn.o3", reason="needs e3nn")


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def terms(irreps):
    return tuple((mul, ir.l, ir.p) for mul, ir in irreps)


def moved(x, irreps, before, after):
    return from_blocks(to_blocks(x, terms(irreps), before), after)


def compare(ours, theirs, leaves):
    """Values, first and second derivatives by all leaves."""
    found, wanted = ours(*leaves), theirs(*leaves)
    assert_close(found, wanted)
    g = torch.randn_like(wanted)
    first = [torch.autograd.grad(y, leaves, g, create_graph=True) for y in (found, wanted)]
    for mine, reference in zip(*first, strict=True):
        assert_close(mine, reference)
    h = [torch.randn_like(x) for x in leaves]
    sums = [torch.cat([(a * b).flatten() for a, b in zip(grads, h, strict=True)]).sum() for grads in first]
    second = [torch.autograd.grad(s, leaves, allow_unused=True, materialize_grads=True) for s in sums]
    for mine, reference in zip(*second, strict=True):
        assert_close(mine, reference)


def canonical(paths, irreps_out, leading=()):
    """Weights of e3nn's paths, ``(output, [..., copies in, copies out])``, in the contract's order."""
    found = []
    for n in range(len(irreps_out)):
        mine = [w for out, w in paths if out == n]
        if mine:
            found.append(torch.cat(mine, -2).mT.reshape(*leading, -1))
    return torch.cat(found, -1)


def called(module, weights, *arguments):
    return torch.func.functional_call(module, weights, arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_linear_map_of_e3nn(o3, layout):
    irreps_in, irreps_out = o3.Irreps("4x0e + 3x1o + 2x0e + 2x2e"), o3.Irreps("5x0e + 2x1e + 2x1o + 3x2e")
    e3nn = o3.Linear(irreps_in, irreps_out, biases=True, internal_weights=False, shared_weights=True)
    ours = Linear(terms(irreps_in), terms(irreps_out), True, layout)

    def mine(x, w, b):
        paths, n = [], 0
        for ins in e3nn.instructions:
            if ins.i_in >= 0:
                size = ins.path_shape[0] * ins.path_shape[1]
                paths.append((ins.i_out, w[n : n + size].view(ins.path_shape) * ins.path_weight))
                n += size
        weights = {"weight": canonical(paths, irreps_out), "bias": b}
        out = called(ours, weights, moved(x, irreps_in, "mul_ir", layout))
        return moved(out, irreps_out, layout, "mul_ir")

    compare(mine, e3nn, [draw(7, irreps_in.dim), draw(e3nn.weight_numel), draw(5)])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["any", "species"])
def test_product_with_scalars_of_e3nn(o3, layout, kind):
    irreps_in, irreps_out = o3.Irreps("4x0e + 3x1o"), o3.Irreps("2x0e + 2x1o + 1x1e")
    e3nn = o3.FullyConnectedTensorProduct(
        irreps_in, "3x0e", irreps_out, internal_weights=False, shared_weights=True
    )
    ours = SkipProduct(terms(irreps_in), 3, terms(irreps_out), layout)
    species = torch.nn.functional.one_hot(torch.tensor([0, 2, 1, 1, 0]), 3).double()

    def mine(x, w, y=species):
        paths, n = [], 0
        for ins in e3nn.instructions:
            a, s, b = ins.path_shape
            scale = ins.path_weight / irreps_in[ins.i_in1].ir.dim ** 0.5
            paths.append((ins.i_out, w[n : n + a * s * b].view(a, s, b).transpose(0, 1) * scale))
            n += a * s * b
        weights = {"weight": canonical(paths, irreps_out, (3,))}
        out = called(ours, weights, moved(x, irreps_in, "mul_ir", layout), y)
        return moved(out, irreps_out, layout, "mul_ir")

    leaves = [draw(5, irreps_in.dim), draw(e3nn.weight_numel)]
    if kind == "any":
        compare(mine, lambda x, w, y: e3nn(x, y, w), [*leaves, draw(5, 3)])
    else:
        compare(mine, lambda x, w: e3nn(x, species, w), leaves)


@pytest.mark.parametrize(
    "rows", [[[1, 0], [2, 0]], [[1, 0], [0, 0]], [[1, 0], [1, 1]], [[1, 0], [1, -1]], [[0, 1], [1, 0]]]
)
def test_only_one_hot_attributes_are_species(rows):
    module = SkipProduct(((3, 0, 1), (3, 1, -1)), 2, ((3, 0, 1), (3, 1, -1)))
    module.initialize_weights(0)
    x, y = draw(2, 12), torch.tensor(rows, dtype=torch.float64)
    assert_close(module(x, y), module(x, y.clone().requires_grad_()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_convolution_of_e3nn(o3, layout):
    irreps_in, irreps_edge = o3.Irreps(NODE), o3.Irreps(EDGE)
    found = [
        (i, j, ir)
        for i, (_, a) in enumerate(irreps_in)
        for j, (_, b) in enumerate(irreps_edge)
        for ir in a * b
        if ir.l <= 2
    ]
    irreps_out = o3.Irreps([(4, ir) for *_, ir in found])
    instructions = [(i, j, n, "uvu", True) for n, (i, j, _) in enumerate(found)]
    e3nn = o3.TensorProduct(
        irreps_in, irreps_edge, irreps_out, instructions, shared_weights=False, internal_weights=False
    )
    product = channelwise_product(e3nn)
    assert product is not None
    ours = Convolution(product._replace(layout=layout))
    assert ours.num_paths == len(found)
    sender, receiver = torch.tensor([0, 1, 2, 3, 0, 2, 1]), torch.tensor([1, 0, 3, 2, 2, 0, 0])

    def mine(x, y, w):
        out = ours(moved(x, irreps_in, "mul_ir", layout), y, w, sender, receiver, 5)
        return moved(out, irreps_out, layout, "mul_ir")

    def theirs(x, y, w):
        messages = e3nn(x[sender], y, w.flatten(1))
        return messages.new_zeros(5, irreps_out.dim).index_add(0, receiver, messages)

    compare(mine, theirs, [draw(5, irreps_in.dim), draw(7, irreps_edge.dim), draw(7, len(found), 4)])
    no_edges = torch.zeros(0, dtype=torch.int64)
    out = ours(
        draw(5, irreps_in.dim), draw(0, irreps_edge.dim), draw(0, len(found), 4), no_edges, no_edges, 5
    )
    assert_close(out, torch.zeros(5, irreps_out.dim, dtype=torch.float64))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_contraction_of_mace(o3, layout):
    from mace.modules.symmetric_contraction import SymmetricContraction

    irreps_in, irreps_out = o3.Irreps("4x0e + 4x1o + 4x2e"), o3.Irreps("4x0e + 4x1o")
    mace = SymmetricContraction(irreps_in, irreps_out, correlation=3, num_elements=3)
    blocks, first = [], 0
    for c in mace.contractions:
        for degree in (3, 2, 1):
            u = c.U_tensors(degree).double()
            blocks.append((first, u if u.ndim == degree + 2 else u[None]))
        first += blocks[-1][1].shape[0]
    one = tuple((1, l, p) for _, l, p in terms(irreps_in))
    ours = Contraction(one, tuple((1, l, p) for _, l, p in terms(irreps_out)), blocks, 3, 4, layout)
    element = torch.tensor([0, 2, 1, 1, 0])
    species = torch.nn.functional.one_hot(element, 3).double()
    names = [f"contractions.{n}.{w}" for n in range(2) for w in ("weights_max", "weights.0", "weights.1")]

    def mine(x, *w):
        grouped = torch.cat([p.flatten(1) for p in x.split([1, 3, 5], 2)], 1)
        moved_in = moved(grouped, irreps_in, "mul_ir", layout)
        out = called(ours, {"weight": torch.cat(w, 1)}, moved_in, element)
        return moved(out, irreps_out, layout, "mul_ir")

    def theirs(x, *w):
        return called(mace, dict(zip(names, w, strict=True)), x, species)

    compare(mine, theirs, [draw(5, 4, 9), *(draw(*mace.get_parameter(n).shape) for n in names)])


def test_several_copies_in_a_channel():
    """Copy u of channel c stands at c * copies + u."""
    u = torch.zeros(1, 3, 3, 2, dtype=torch.float64)
    u[0, 0, 1, 0], u[0, 2, 2, 1] = 1.0, 2.0
    irreps = ((2, 0, 1), (1, 0, -1))
    module = Contraction(irreps, ((1, 0, 1),), [(0, u)], 1, 4)
    module.initialize_weights(1)
    x, w = draw(5, 12), module.weight[0]
    even, odd = x[:, :8].view(5, 4, 2), x[:, 8:]
    wanted = w[0] * even[..., 0] * even[..., 1] + w[1] * 2 * odd**2
    assert_close(module(x, torch.zeros(5, dtype=torch.int64)), wanted)


def test_sums_into_segments():
    values, index = draw(7, 3), torch.tensor([0, 3, 1, 0, 3, 3, 1])
    wanted = values.new_zeros(5, 3).index_add(0, index, values)
    assert_close(SegmentSum()(values, index, 5), wanted)
    assert torch.autograd.gradcheck(lambda v: SegmentSum()(v, index, 5), values)
    assert torch.autograd.gradgradcheck(lambda v: SegmentSum()(v**2, index, 5), values)
    assert_close(SegmentSum()(values[:0], index[:0], 2), torch.zeros(2, 3, dtype=torch.float64))


WEIGHTED = {
    "linear": lambda: Linear(((4, 0, 1), (2, 1, -1)), ((3, 0, 1), (2, 1, -1)), True),
    "skip": lambda: SkipProduct(((4, 0, 1), (2, 1, -1)), 3, ((3, 0, 1), (2, 1, -1))),
    "contraction": lambda: Contraction(
        ((1, 0, 1),), ((1, 0, 1),), [(0, torch.ones(1, 1, 1, 2, dtype=torch.float64))], 3, 4
    ),
}


@pytest.mark.parametrize("kind", WEIGHTED)
def test_weights_go_there_and_back(kind):
    written, read = WEIGHTED[kind](), WEIGHTED[kind]()
    written.initialize_weights(3)
    state = {name: value.clone() for name, value in written.to_canonical().items()}
    read.load_canonical(state)
    back = read.to_canonical()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert not any(value.requires_grad for value in back.values())
    again = WEIGHTED[kind]()
    again.initialize_weights(3)
    assert torch.equal(again.weight, written.weight)
    with pytest.raises(KeyError):
        read.load_canonical({name: state[name] for name in state if name != "weight"})
    with pytest.raises(ValueError, match="weight must be"):
        read.load_canonical({**state, "weight": state["weight"][..., :1]})


def test_paths_of_another_contraction_are_refused():
    module = WEIGHTED["contraction"]()
    state = module.to_canonical()
    with pytest.raises(ValueError, match=r"path_counts must be \[2\], got \[1, 1\]"):
        module.load_canonical({**state, "path_counts": torch.tensor([1, 1])})


def test_fresh_weights_have_the_size_of_their_inputs():
    linear = Linear(((64, 0, 1), (36, 0, 1)), ((50, 0, 1),), True)
    skip = SkipProduct(((25, 0, 1), (100, 1, -1)), 4, ((20, 0, 1), (20, 1, -1)))
    for module in (linear, skip):
        module.initialize_weights(0)
    assert float(linear.to_canonical()["weight"].std()) == pytest.approx(0.1, rel=0.05)
    assert not linear.bias.any()
    scalars, vectors = skip.to_canonical()["weight"].split([500, 2000], 1)
    assert float(scalars.std()) == pytest.approx(0.1, rel=0.1)
    assert float(vectors.std()) == pytest.approx(0.05, rel=0.1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["linear", "skip"])
def test_float32_and_no_rows(kind, layout):
    irreps = ((4, 0, 1), (4, 1, -1))
    if kind == "linear":
        double, single = (Linear(irreps, irreps, True, layout, t) for t in (torch.float64, torch.float32))
        inputs = [draw(6, 16)]
    else:
        double, single = (SkipProduct(irreps, 2, irreps, layout, t) for t in (torch.float64, torch.float32))
        inputs = [draw(6, 16), draw(6, 2)]
    double.initialize_weights(0)
    single.load_canonical(double.to_canonical())
    found = single(*(x.float() for x in inputs))
    assert found.dtype == torch.float32
    assert_close(found, double(*inputs))
    assert single(*(x[:0].float() for x in inputs)).shape == (0, 16)
