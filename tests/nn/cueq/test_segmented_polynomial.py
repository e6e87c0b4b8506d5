"""SegmentedPolynomial against cuequivariance_torch's naive method: values, two derivatives, every call."""

import copy
import io
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

from nn.cueq.polynomials import F64, contraction, convolution, cue, cuet, irreps, linear, naive, numbers
from scfmlip.nn.cueq import SegmentedPolynomial


def assert_same(polynomial, rows, n_rows, indexed=(), n_out=None, method=""):
    """
    Value, first and second derivatives in all inputs.

    ``rows`` of each input; ``indexed`` inputs get random indices; ``n_out`` is None, an integer for an
    indexed output, or "sum".
    """
    mine, other = SegmentedPolynomial(polynomial, method), naive(polynomial)
    sizes = [operand.size for operand in polynomial.inputs]
    inputs = [numbers(r, size, 1 + n) for n, (r, size) in enumerate(zip(rows, sizes, strict=True))]
    generator = torch.Generator().manual_seed(9)
    index = {n: torch.randint(rows[n], (n_rows,), generator=generator) for n in indexed}
    shapes, out_index = {}, {}
    if n_out == "sum":
        shapes = {0: torch.empty(1, 1)}
    elif n_out is not None:
        shapes, out_index = (
            {0: torch.empty(n_out, 1)},
            {0: torch.randint(n_out, (n_rows,), generator=generator)},
        )
    found = []
    for module in (mine, other):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = module(list(leaves), dict(index), shapes, out_index)
        assert len(out) == polynomial.num_outputs
        probes = [numbers(*o.shape, 5 + n).requires_grad_() for n, o in enumerate(out)]
        value = sum((o * p).sum() for o, p in zip(out, probes, strict=True))
        first = torch.autograd.grad(value, leaves, create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), [*leaves, *probes], allow_unused=True)
        zeros = [*leaves, *probes]
        second = [torch.zeros_like(z) if s is None else s for s, z in zip(second, zeros, strict=True)]
        found.append([*out, *first, *second])
    for a, b in zip(*found, strict=True):
        assert_close(a, b)
    return mine


FORMS = {
    "plain": lambda e: e,
    "flat": lambda e: e.flatten_coefficient_modes(),
    "squeezed": lambda e: e.flatten_coefficient_modes().squeeze_modes(),
}


@pytest.mark.parametrize("form", FORMS)
def test_convolution_as_mace_calls_it(form):
    polynomial = FORMS[form](convolution()).polynomial
    mine = assert_same(polynomial, (11, 5, 11), 11, indexed=(1,), n_out=5)
    assert mine.path == "channelwise_conv"


@pytest.mark.parametrize(
    ("rows", "indexed", "n_out"),
    [
        ((7, 7, 7), (), None),
        ((1, 7, 7), (), None),
        ((7, 1, 7), (), 3),
        ((7, 7, 1), (), "sum"),
        ((2, 3, 4), (0, 1, 2), 6),
        ((7, 3, 7), (1,), None),
        ((1, 1, 1), (), None),
    ],
)
def test_other_calls_of_a_convolution(rows, indexed, n_out):
    n_rows = 7 if max(rows) > 1 else 1
    mine = assert_same(convolution().polynomial, rows, n_rows, indexed, n_out)
    assert mine.path == "channelwise_conv"


@pytest.mark.parametrize("x", ["4x0e + 2x1o", "1x0e + 1x1o", "1x0e + 3x1o", "2x1o + 3x1o"])
@pytest.mark.parametrize("form", FORMS)
def test_multiplicities(x, form):
    """Different ones, and 1, which squeezing takes away."""
    polynomial = FORMS[form](convolution(x)).polynomial
    assert assert_same(polynomial, (6, 3, 6), 6, (1,), 4).path == "channelwise_conv"


def test_inputs_in_another_order():
    """A polynomial is known by what it computes."""
    polynomial = convolution().polynomial.permute_inputs([2, 0, 1])
    assert assert_same(polynomial, (6, 6, 3), 6, (2,), 4).path == "channelwise_conv"


@pytest.mark.parametrize("out", ["3x0e", "3x0e + 3x1o"])
@pytest.mark.parametrize("degrees", [(1,), (2,), (1, 2, 3)])
def test_contraction(out, degrees):
    polynomial = contraction(out=out, degrees=degrees).polynomial
    mine = assert_same(polynomial, (4, 7), 7, (0,))
    assert mine.path == "symmetric_contraction"
    assert_same(polynomial, (1, 7), 7)
    assert_same(polynomial, (4, 3), 7, (0, 1), 5)
    # weights of every row: the general path, from the same module
    assert_same(polynomial, (7, 7), 7, (), "sum")


@pytest.mark.parametrize("x", ["4x0e + 3x1o", "4x0e + 4x1o", "1x0e + 1x2e"])
def test_linear(x):
    polynomial = linear(x, "2x0e + 5x1o + 2x2e").polynomial
    mine = assert_same(polynomial, (3, 7), 7, (0,))
    assert mine.path == "indexed_linear"
    assert_same(polynomial, (1, 7), 7, (), 4)
    assert_same(polynomial, (7, 7), 7)


@pytest.mark.parametrize(
    "polynomial",
    [
        cue.descriptors.spherical_harmonics(cue.O3(1, -1), [0, 1, 2]).polynomial,
        cue.descriptors.fully_connected_tensor_product(
            irreps("2x0e + 3x1o"), irreps("2x0e + 1x1o"), irreps("3x0e + 2x1o")
        ).polynomial,
        cue.descriptors.full_tensor_product(irreps("2x0e + 3x1o"), irreps("0e + 2x1o")).polynomial,
        cue.descriptors.elementwise_tensor_product(irreps("2x0e + 3x1o"), irreps("2x0e + 3x1o")).polynomial,
    ],
    ids=["spherical harmonics", "fully connected", "full", "elementwise"],
)
def test_general(polynomial):
    mine = assert_same(polynomial, [5] * polynomial.num_inputs, 5)
    assert mine.path == "general"
    assert_same(polynomial, [5] * polynomial.num_inputs, 5, n_out=3)


@pytest.mark.parametrize("make", [convolution, contraction, linear])
def test_naive_is_the_general_path(make):
    polynomial = make().polynomial
    rows = [3] * polynomial.num_inputs
    assert assert_same(polynomial, rows, 3, method="naive").path == "general"


def test_two_outputs():
    """The derivative of a contraction: two operations, two outputs."""
    polynomial = contraction(degrees=(1, 2)).polynomial
    backward = polynomial.backward([True, True], [True])[0]
    assert backward.num_outputs == 2
    assert assert_same(backward, [5] * backward.num_inputs, 5).path == "general"


@st.composite
def products(draw):
    """A random channel-wise or general product of segments."""
    n_x, n_y, n_w = (draw(st.integers(1, 3)) for _ in range(3))
    extent = draw(st.integers(1, 3))
    dims = st.sampled_from([1, 2, 3])
    x = [draw(dims) for _ in range(n_x)]
    y = [draw(dims) for _ in range(n_y)]
    out = [draw(dims) for _ in range(n_w)]
    product = cue.SegmentedTensorProduct.from_subscripts("u,iu,j,ku+ijk")
    product.add_segments(0, n_w * [(extent,)])
    product.add_segments(1, [(d, extent) for d in x])
    product.add_segments(2, [(d,) for d in y])
    product.add_segments(3, [(d, extent) for d in out])
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    shared = draw(st.booleans())
    for w in range(n_w):
        a, b = draw(st.integers(0, n_x - 1)), draw(st.integers(0, n_y - 1))
        # a second path into one result, or a weight used twice, may or may not be a convolution
        for _ in range(1 + draw(st.integers(0, 1)) if shared else 1):
            c = generator.normal(size=(x[a], y[b], out[w])) * (generator.random((x[a], y[b], out[w])) < 0.6)
            product.add_path(w, a, b, w, c=c)
            if shared:
                a, b = draw(st.integers(0, n_x - 1)), draw(st.integers(0, n_y - 1))
    return cue.SegmentedPolynomial.eval_last_operand(product)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(products(), st.booleans())
def test_random_products(polynomial, flat):
    if flat:
        polynomial = polynomial.flatten_coefficient_modes()
    if polynomial.operations:
        assert_same(polynomial, (6, 3, 6), 6, (1,), 4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_random_contractions(data):
    """Terms of any degree, any weights and results, and the same term twice."""
    n_w, n_x, n_out, extent = (data.draw(st.integers(1, 3)) for _ in range(4))
    operations = []
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    for degree in range(1, 1 + data.draw(st.integers(1, 3))):
        operands = ",".join(["u"] * (degree + 2))
        product = cue.SegmentedTensorProduct.from_subscripts(operands)
        for operand, n in enumerate((n_w, *[n_x] * degree, n_out)):
            product.add_segments(operand, n * [(extent,)])
        for _ in range(data.draw(st.integers(1, 4))):
            indices = (
                generator.integers(n_w),
                *generator.integers(n_x, size=degree),
                generator.integers(n_out),
            )
            product.add_path(*map(int, indices), c=generator.normal())
        operations.append((cue.Operation((0, *[1] * degree, 2)), product))
    segments = [cue.SegmentedOperand(ndim=1, segments=n * [(extent,)]) for n in (n_w, n_x, n_out)]
    polynomial = cue.SegmentedPolynomial(segments[:2], segments[2:], operations)
    assert assert_same(polynomial, (3, 5), 5, (0,)).path == "symmetric_contraction"


@pytest.mark.parametrize("method", ["", "auto", "naive", "uniform_1d", "fused_tp", "indexed_linear"])
def test_methods(method):
    polynomial = linear().polynomial
    x, w = numbers(5, polynomial.inputs[1].size, 1), numbers(1, polynomial.inputs[0].size, 2)
    assert_close(SegmentedPolynomial(polynomial, method)([w, x])[0], naive(polynomial)([w, x])[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype):
    polynomial = convolution().polynomial
    inputs = [numbers(4, o.size, n).to(dtype) for n, o in enumerate(polynomial.inputs)]
    want = naive(polynomial)([x.double() for x in inputs])[0]
    got = SegmentedPolynomial(polynomial)(inputs)[0]
    assert got.dtype == dtype
    # of bfloat16 only the result is rounded
    assert_close(got, want, 1e-6 if dtype == torch.float32 else 4e-3)
    wide = SegmentedPolynomial(polynomial, math_dtype="float64", output_dtype_map=[-1])(inputs)[0]
    assert wide.dtype == F64
    assert_close(wide, want)


def test_int32_indices_and_modules():
    """Copies, files and `to` keep it working; nothing is in its state dict."""
    polynomial = convolution().polynomial
    module = SegmentedPolynomial(polynomial, math_dtype=F64)
    inputs = [
        numbers(r, o.size, n) for n, (r, o) in enumerate(zip((6, 3, 6), polynomial.inputs, strict=True))
    ]
    sender, receiver = torch.tensor([[0, 1, 2, 2, 1, 0], [1, 1, 0, 3, 3, 3]], dtype=torch.int32)
    arguments = (inputs, {1: sender}, {0: torch.empty(4, 1)}, {0: receiver})
    want = naive(polynomial)(list(inputs), {1: sender.long()}, {0: torch.empty(4, 1)}, {0: receiver.long()})[
        0
    ]
    assert not module.state_dict()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for m in (module, copy.deepcopy(module), loaded, module.float()):
        assert_close(m(*arguments)[0], want)


def test_compiled():
    polynomial = convolution().polynomial
    module = SegmentedPolynomial(polynomial)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for n_edges, n_nodes in ((6, 3), (9, 4)):
        inputs = [
            numbers(r, o.size, n)
            for n, (r, o) in enumerate(zip((n_edges, n_nodes, n_edges), polynomial.inputs, strict=True))
        ]
        ends = torch.randint(n_nodes, (2, n_edges))
        arguments = (inputs, {1: ends[0]}, {0: inputs[1]}, {0: ends[1]})
        assert_close(compiled(*arguments)[0], module(*arguments)[0])


@pytest.mark.interpreter
@pytest.mark.parametrize("make", [convolution, contraction, linear])
def test_in_the_kernels(make):
    """Not only the CPU path."""
    polynomial = make().polynomial
    rows = {3: (4, 2, 4), 2: (2, 3)}[polynomial.num_inputs]
    indexed = (1,) if make is convolution else (0,)
    assert_same(polynomial, rows, 4 if make is convolution else 3, indexed, 3)


def test_no_rows():
    polynomial = convolution().polynomial
    inputs = [torch.zeros(r, o.size) for r, o in zip((0, 3, 0), polynomial.inputs, strict=True)]
    nobody = torch.zeros(0, dtype=torch.int64)
    out = SegmentedPolynomial(polynomial)(inputs, {1: nobody}, {0: inputs[1]}, {0: nobody})[0]
    assert out.shape == (3, polynomial.outputs[0].size)
    assert not out.any()


@pytest.mark.parametrize("method", ["", "naive"])
@pytest.mark.parametrize("make", [convolution, contraction, linear])
def test_no_rows_without_indices(make, method):
    polynomial = make().polynomial
    inputs = [torch.zeros(0, o.size, requires_grad=True) for o in polynomial.inputs]
    module = SegmentedPolynomial(polynomial, method)
    (out,) = module(inputs)
    assert out.shape == (0, polynomial.outputs[0].size)
    assert all(
        g.shape == x.shape for g, x in zip(torch.autograd.grad(out.sum(), inputs), inputs, strict=True)
    )
    (total,) = module(inputs, output_shapes={0: torch.empty(1, 1)})
    assert total.shape == (1, polynomial.outputs[0].size)
    assert not total.any()


@pytest.mark.parametrize("method", ["", "naive"])
@pytest.mark.parametrize("make", [convolution, contraction, linear])
def test_inputs_of_one_row_for_every_row_of_the_output(make, method):
    """No input says how large the batch is: the output's shape does."""
    polynomial = make().polynomial
    inputs = [numbers(1, o.size, 1 + n).requires_grad_() for n, o in enumerate(polynomial.inputs)]
    shapes = {0: torch.empty(5, 1)}
    found = []
    for module in (SegmentedPolynomial(polynomial, method), naive(polynomial)):
        (out,) = module(inputs, output_shapes=shapes)
        assert out.shape == (5, polynomial.outputs[0].size)
        found.append((out, *torch.autograd.grad((out**2).sum(), inputs)))
    for a, b in zip(*found, strict=True):
        assert_close(a, b)


def test_refuses():
    polynomial = linear().polynomial
    with pytest.raises(TypeError, match=r"got EquivariantPolynomial; .* \.polynomial"):
        SegmentedPolynomial(linear())
    with pytest.raises(ValueError, match=r"method must be one of .* got 'cuda'"):
        SegmentedPolynomial(polynomial, "cuda")
    with pytest.raises(ValueError, match="no dtype 'float31'"):
        SegmentedPolynomial(polynomial, math_dtype="float31")
    with pytest.raises(ValueError, match="output_dtype_map has 2 entries, the polynomial 1"):
        SegmentedPolynomial(polynomial, output_dtype_map=[0, 0])
    module = SegmentedPolynomial(polynomial)
    w, x = (torch.zeros(n, o.size) for n, o in zip((1, 4), polynomial.inputs, strict=True))
    with pytest.raises(ValueError, match="1 inputs given, there are 2"):
        module([w])
    with pytest.raises(ValueError, match=r"input 1 must be \[rows, 13\], got \[4, 12\]"):
        module([w, x[:, 1:]])
    with pytest.raises(ValueError, match="rows differ: input 0 has 3, input 1 has 4"):
        module([w.expand(3, -1), x])
    for n_out in (3, 5):
        with pytest.raises(ValueError, match=f"rows differ: input 1 has 4, output 0 has {n_out}"):
            module([w, x], output_shapes={0: torch.empty(n_out, 1)})
    with pytest.raises(TypeError, match=r"index of input 0 must be int32 or int64, got torch\.float32"):
        module([w, x], {0: torch.zeros(4)})
    with pytest.raises(ValueError, match=r"index of input 0 must be \[batch\], got \[4, 1\]"):
        module([w, x], {0: torch.zeros(4, 1, dtype=torch.int64)})
    with pytest.raises(ValueError, match="there is no output 1"):
        module([w, x], None, None, {1: torch.zeros(4, dtype=torch.int64)})
    with pytest.raises(ValueError, match="output 0 has an index and no shape"):
        module([w, x], None, None, {0: torch.zeros(4, dtype=torch.int64)})


def test_the_naive_method_and_ours_share_a_signature():
    """Whoever builds cuequivariance's module builds ours with the same arguments."""
    import inspect

    pairs = itertools.zip_longest(
        inspect.signature(cuet.SegmentedPolynomial.__init__).parameters,
        inspect.signature(SegmentedPolynomial.__init__).parameters,
    )
    assert all(a == b for a, b in pairs)


@pytest.mark.parametrize("method", ["", "naive"])
@pytest.mark.parametrize(
    ("make", "irreps"),
    [
        ("linear", ("2x0e + 0x1o", "2x0e + 0x1o")),
        ("linear", ("1x0e + 0x0e + 3x1o", "2x0e + 0x1o")),
        ("fully_connected_tensor_product", ("2x0e + 0x1o", "2x0e + 0x1o", "2x0e + 0x1o")),
        ("fully_connected_tensor_product", ("0x0e + 2x1o", "1x0e + 1x1o", "3x0e + 0x1o + 2x1o")),
        ("channelwise_tensor_product", ("0x0e + 3x1o + 0x2e", "0e + 1o", "0e + 1o + 2e")),
        ("channelwise_tensor_product", ("3x0e + 0x1o", "0x0e + 1x1o", "0e + 1o")),
    ],
)
def test_multiplicity_zero(make, irreps, method):
    """Segments without columns add nothing, whichever path runs; nor do paths to them."""
    of = [cue.Irreps("O3", text) for text in irreps]
    polynomial = getattr(cue.descriptors, make)(*of).polynomial
    assert_same(polynomial, [1] + [4] * (polynomial.num_inputs - 1), 4, method=method)
    assert_same(polynomial, [0] * polynomial.num_inputs, 0, method=method)


@pytest.mark.parametrize("method", ["", "naive"])
@pytest.mark.parametrize(("x", "out"), [("0x0e + 3x1o", "2x0e + 0x1o"), ("0x0e", "2x0e"), ("2x0e", "0x0e")])
def test_nothing_is_left(x, out, method):
    """Without any path the result is 0; the naive method has no word on it."""
    polynomial = linear(x, out).polynomial
    inputs = [numbers(n, o.size, 1) for n, o in zip((1, 4), polynomial.inputs, strict=True)]
    got = SegmentedPolynomial(polynomial, method)(inputs)[0]
    assert torch.equal(got, torch.zeros(4, polynomial.outputs[0].size, dtype=F64))


def test_a_convolution_of_multiplicity_zero_is_one():
    polynomial = convolution("0x0e + 3x1o + 0x2e").polynomial
    assert SegmentedPolynomial(polynomial).path == "channelwise_conv"
