"""Symmetric contractions: both paths against the reference, with derivatives; MACE's own as a witness."""

import itertools

import pytest
import torch
import torch._dynamo.testing
from tolerances import assert_close

from kernels.compiling import symbolic_descriptions
from kernels.problems import DTYPES, PATHS, derivatives, scattered, submodule
from scfmlip_kernels import SymmetricPolynomial, symmetric_contraction
from scfmlip_kernels.registry import describe
from scfmlip_kernels.symmetric_contraction.reference import symmetric_contraction_reference
from scfmlip_kernels.tuned import tuned

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64
polynomial = submodule("symmetric_contraction.polynomial")


def random_blocks(generator, n_inputs, outputs=(1, 2), degree=3, n_paths=2, density=0.3):
    """Coefficients without any symmetry, most of them 0; one block for each output and degree."""
    blocks, first = [], 0
    for n_components in outputs:
        for d in range(1, degree + 1):
            shape = (n_components, *[n_inputs] * d, n_paths)
            u = torch.randn(shape, generator=generator, dtype=F64)
            blocks.append((first, u * (torch.rand(shape, generator=generator) < density)))
        first += n_components
    return blocks


def random_problem(generator, p, n_atoms=7, n_channels=5, n_species=4, device="cpu", dtype=F64):
    """Features, weights and species; the last species occurs only if there are many atoms."""
    x = torch.randn(n_atoms, n_channels, p.n_inputs, generator=generator, dtype=F64)
    weights = torch.randn(n_species, p.n_weights, n_channels, generator=generator, dtype=F64)
    index = torch.randint(0, max(n_species - 1, 1), (n_atoms,), generator=generator)
    return x.to(device, dtype), weights.to(device, dtype), index.to(device)


def place(path, device):
    return "cpu" if path == "cpu" else device


def test_from_dense_merges_permutations():
    u = torch.zeros(2, 3, 3, 2, dtype=F64)
    u[1, 0, 2, 1], u[1, 2, 0, 1], u[0, 1, 1, 0] = 2.0, 0.5, 3.0
    u[0, 0, 1, 0], u[0, 1, 0, 0] = 1.0, -1.0
    p = SymmetricPolynomial.from_dense([(0, torch.ones(1, 3, 1, dtype=F64)), (1, u)])
    linear = tuple(((i,), 0, 0, 1.0) for i in range(3))
    assert p == SymmetricPolynomial(3, 3, 3, (*linear, ((1, 1), 1, 1, 3.0), ((0, 2), 2, 2, 2.5)))
    assert hash(p) == hash(SymmetricPolynomial(*p))
    assert p.degree == 2


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_reference_is_the_dense_contraction(degree, generator):
    blocks = random_blocks(generator, 4, degree=degree)
    p = SymmetricPolynomial.from_dense(blocks)
    x, weights, index = random_problem(generator, p)
    want, first = torch.zeros(7, 5, p.n_outputs, dtype=F64), 0
    for output, u in blocks:
        w = weights[index, first : first + u.shape[-1]]
        first += u.shape[-1]
        for factors in itertools.product(range(4), repeat=u.ndim - 2):
            power = x[..., list(factors)].prod(-1)
            want[..., output : output + len(u)] += torch.einsum("mw,nwc,nc->ncm", u[:, *factors], w, power)
    assert_close(symmetric_contraction_reference(x, weights, index, p), want)
    assert_close(symmetric_contraction(x, weights, index, p), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("degree", [1, 2, 3])
@pytest.mark.parametrize("path", PATHS)
def test_values(path, degree, dtype, generator, device):
    p = SymmetricPolynomial.from_dense(random_blocks(generator, 5, degree=degree))
    problem = random_problem(generator, p, device=place(path, device), dtype=dtype)
    got = symmetric_contraction(*problem, p)
    assert got.dtype == dtype
    assert_close(got, symmetric_contraction_reference(*problem, p))


@pytest.mark.parametrize("n_channels", [32, 40])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
def test_derivatives(path, dtype, n_channels, generator, device):
    """First and second derivatives, against autograd of the reference."""
    p = SymmetricPolynomial.from_dense(random_blocks(generator, 4, density=0.2))
    where = place(path, device)
    x, weights, index = random_problem(generator, p, 3, n_channels, 3, where, dtype)
    inputs = (x.requires_grad_(), weights.requires_grad_())
    got = derivatives(symmetric_contraction(*inputs, index, p), inputs, 2)
    inputs = tuple(t.detach().to(F64).requires_grad_() for t in inputs)
    want = derivatives(symmetric_contraction_reference(*inputs, index, p), inputs, 2)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        assert_close(a, b)


@pytest.mark.parametrize("order", [["x", "x", "x"], ["x", "weights", "x"], ["weights", "x", "x", "x"]])
def test_higher_derivatives(order, generator):
    """Each derivative in one argument alone, up to the fourth."""
    p = SymmetricPolynomial.from_dense(random_blocks(generator, 4))
    x, weights, index = random_problem(generator, p)
    inputs = {"x": x.requires_grad_(), "weights": weights.requires_grad_()}

    def chain(function):
        value = function(*inputs.values(), index, p)
        for n, name in enumerate(order):
            total = (torch.cos(torch.arange(value.numel(), dtype=F64) + n).view(value.shape) * value).sum()
            (value,) = torch.autograd.grad(total + (value**2).sum(), inputs[name], create_graph=True)
        return value

    assert_close(chain(symmetric_contraction), chain(symmetric_contraction_reference))


@pytest.mark.parametrize("chunk", [1, 600, 3000])
def test_chunks(chunk, generator, monkeypatch):
    """Chunks of the CPU path that start and stop anywhere in a species."""
    cpu = submodule("symmetric_contraction.cpu")
    monkeypatch.setattr(cpu, "_MIN_ROWS", 1)
    monkeypatch.setattr(cpu, "_CHUNK", chunk)
    p = SymmetricPolynomial.from_dense(random_blocks(generator, 4))
    x, weights, index = random_problem(generator, p, 23, 3, 9)
    inputs = (x.requires_grad_(), weights.requires_grad_())
    got = derivatives(symmetric_contraction(*inputs, index, p), inputs, 2)
    want = derivatives(symmetric_contraction_reference(*inputs, index, p), inputs, 2)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)


def test_without_sparse_products(generator, monkeypatch):
    """Builds of torch that have no products with sparse matrices on the CPU."""
    cpu = submodule("symmetric_contraction.cpu")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    cpu._plan.cache_clear()
    p = SymmetricPolynomial.from_dense(random_blocks(generator, 4))
    x, weights, index = random_problem(generator, p)
    inputs = (x.requires_grad_(), weights.requires_grad_())
    got = derivatives(symmetric_contraction(*inputs, index, p), inputs, 2)
    cpu._plan.cache_clear()
    want = derivatives(symmetric_contraction_reference(*inputs, index, p), inputs, 2)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)


@pytest.mark.interpreter
@pytest.mark.parametrize("terms", [1, 12])
def test_large_polynomials_are_cut(terms, generator, device, monkeypatch):
    """Into kernels that write outputs or weights of their own, or add to the first one's gradients."""
    for name in ("terms", "terms_inputs"):
        monkeypatch.setitem(tuned("symmetric_contraction", torch.device(device), F64), name, terms)
    p = SymmetricPolynomial.from_dense(random_blocks(generator, 3, density=0.2))
    p = SymmetricPolynomial(p.n_inputs, p.n_outputs + 1, p.n_weights + 1, p.terms)
    generate = submodule("symmetric_contraction.generate")
    assert generate.n_pieces(describe(p), "values", terms) > 1
    x, weights, index = random_problem(generator, p, 3, device=device)
    inputs = (x.requires_grad_(), weights.requires_grad_())
    value = symmetric_contraction(*inputs, index, p)
    got = [value, *derivatives(value, inputs, 2)]
    value = symmetric_contraction_reference(*inputs, index, p)
    for a, b in zip(got, [value, *derivatives(value, inputs, 2)], strict=True):
        assert_close(a, b)


def dependent_blocks(generator, dtype=F64):
    """Five paths of degree 2; three are combinations of the others, once permutations are merged."""
    u = torch.randn(2, 4, 4, 2, generator=generator, dtype=F64)
    mixed = torch.einsum("mijp,pq->mijq", u, torch.randn(2, 3, generator=generator, dtype=F64))
    u = torch.cat((u, mixed.transpose(1, 2)), -1).to(dtype).to(F64)
    return [(0, u), (0, torch.randn(2, 4, 1, generator=generator, dtype=F64))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_dependent_weights_are_merged(dtype, generator):
    p = SymmetricPolynomial.from_dense(dependent_blocks(generator))
    text = describe(p)
    assert polynomial.polynomial_of(polynomial.reduced_polynomial(text, dtype)).n_weights == 3
    x, weights, index = random_problem(generator, p, dtype=dtype)
    inputs = (x.requires_grad_(), weights.requires_grad_())
    got = derivatives(symmetric_contraction(*inputs, index, p), inputs, 2)
    inputs = tuple(t.detach().to(F64).requires_grad_() for t in inputs)
    want = derivatives(symmetric_contraction_reference(*inputs, index, p), inputs, 2)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, {torch.float32: 5e-6, F64: 1e-12}[dtype])  # weights are mixed in float32


def test_rounded_coefficients(generator):
    """Coefficients that went through float32: float32 merges weights, float64 keeps them."""
    p = SymmetricPolynomial.from_dense(dependent_blocks(generator, torch.float32))
    text = describe(p)
    assert polynomial.polynomial_of(polynomial.reduced_polynomial(text, torch.float32)).n_weights == 3
    assert polynomial.reduced_polynomial(text, F64) == text
    for dtype in DTYPES:
        problem = random_problem(generator, p, dtype=dtype)
        assert_close(symmetric_contraction(*problem, p), symmetric_contraction_reference(*problem, p))


def test_gradcheck(generator):
    p = SymmetricPolynomial.from_dense(random_blocks(generator, 2, n_paths=1, density=0.8))
    x, weights, index = random_problem(generator, p, 3, 2, 2)
    inputs = (x.requires_grad_(), weights.requires_grad_())
    assert torch.autograd.gradcheck(lambda *t: symmetric_contraction(*t, index, p), inputs)
    assert torch.autograd.gradgradcheck(lambda *t: symmetric_contraction(*t, index, p), inputs)


def test_opcheck(generator):
    torch.use_deterministic_algorithms(False)
    p = SymmetricPolynomial.from_dense(dependent_blocks(generator))
    text = describe(p)
    ops = torch.ops.scfmlip
    for dtype in DTYPES:
        x, weights, index = random_problem(generator, p, dtype=dtype)
        order, ptr = submodule("indexed_linear.groups").sort_species(index, len(weights))
        x.requires_grad_()
        weights.requires_grad_()
        grad = torch.randn(7, 5, p.n_outputs, dtype=dtype, requires_grad=True)
        tables = (index, order, ptr, text)
        torch.library.opcheck(ops.symmetric_contraction.default, (x, weights, *tables))
        fewer = polynomial.weight_reduction(text, dtype)
        torch.library.opcheck(ops.symmetric_contraction_reduce.default, (weights, fewer, False))
        for wanted in ([True, True], [True, False], [False, True]):
            arguments = (x, weights, grad, *tables, wanted)
            torch.library.opcheck(ops.symmetric_contraction_backward.default, arguments)
        for along in (None, torch.randn_like(weights)):
            arguments = (x, weights, grad, torch.randn_like(x), along, *tables, [True] * 3)
            # compiled third derivatives are out of reach for torch itself
            checks = ("test_schema", "test_autograd_registration", "test_faketensor")
            torch.library.opcheck(ops.symmetric_contraction_second.default, arguments, test_utils=checks)


@symbolic_descriptions
def test_compiles_once(generator):
    torch.use_deterministic_algorithms(False)
    p = SymmetricPolynomial.from_dense(dependent_blocks(generator))
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, dynamic=True, backend=counter)
    def function(x, weights, index):
        return symmetric_contraction(x, weights, index, p)

    for n_atoms in (7, 9, 14):
        x, weights, index = random_problem(generator, p, n_atoms)
        inputs = (x.requires_grad_(), weights.requires_grad_())
        got = derivatives(function(*inputs, index), inputs, 1)
        for a, b in zip(got, derivatives(symmetric_contraction(*inputs, index, p), inputs, 1), strict=True):
            assert_close(a, b)
    assert counter.frame_count == 1


@pytest.mark.parametrize("path", PATHS)
def test_not_contiguous(path, generator, device):
    p = SymmetricPolynomial.from_dense(random_blocks(generator, 3))
    x, weights, index = random_problem(generator, p, device=place(path, device))
    inputs = (scattered(x).requires_grad_(), scattered(weights).requires_grad_())
    got = derivatives(symmetric_contraction(*inputs, index, p), inputs, 2)
    inputs = (x.clone().requires_grad_(), weights.clone().requires_grad_())
    want = derivatives(symmetric_contraction_reference(*inputs, index, p), inputs, 2)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("sizes", [(0, 3, 2), (3, 0, 2), (4, 3, 1), (1, 1, 1), (2, 3, 40)])
@pytest.mark.parametrize("path", PATHS)
def test_sizes(path, sizes, generator, device):
    """No atoms, no channels, one species, one atom, many species that do not occur."""
    p = SymmetricPolynomial.from_dense(random_blocks(generator, 3))
    x, weights, index = random_problem(generator, p, *sizes, place(path, device))
    inputs = (x.requires_grad_(), weights.requires_grad_())
    got = derivatives(symmetric_contraction(*inputs, index, p), inputs, 2)
    want = derivatives(symmetric_contraction_reference(*inputs, index, p), inputs, 2)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("path", PATHS)
def test_outputs_and_weights_without_terms(path, generator, device):
    p = SymmetricPolynomial(2, 3, 3, (((0, 1, 1), 1, 1, 2.0), ((0,), 1, 1, -1.0)))
    x, weights, index = random_problem(generator, p, device=place(path, device))
    inputs = (x.requires_grad_(), weights.requires_grad_())
    got = symmetric_contraction(*inputs, index, p)
    assert_close(got, symmetric_contraction_reference(*inputs, index, p))
    assert not got[..., [0, 2]].any()
    d_x, d_weights = torch.autograd.grad(got.sum(), inputs)
    assert not d_weights[:, [0, 2]].any()
    assert d_x.any()


@pytest.mark.parametrize("path", PATHS)
def test_no_terms_at_all(path, generator, device):
    p = SymmetricPolynomial.from_dense([(0, torch.zeros(2, 3, 3, 2, dtype=F64))])
    x, weights, index = random_problem(generator, p, device=place(path, device))
    inputs = (x.requires_grad_(), weights.requires_grad_())
    value = symmetric_contraction(*inputs, index, p)
    assert value.shape == (7, 5, 2)
    for found in (value, *torch.autograd.grad(value.sum(), inputs)):
        assert not found.any()


@pytest.mark.parametrize("path", PATHS)
def test_the_same_bits_in_every_run(path, generator, device):
    p = SymmetricPolynomial.from_dense(random_blocks(generator, 3))
    problem = random_problem(generator, p, 20, 8, 3, place(path, device), torch.float32)

    def run():
        inputs = tuple(t.clone().requires_grad_() for t in problem[:2])
        value = symmetric_contraction(*inputs, problem[2], p)
        return [value.detach(), *derivatives(value, inputs, 2)]

    for a, b in zip(run(), run(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("outputs", "degree"), [(("0e",), 3), (("0e", "1o"), 3), (("0e", "2e"), 2)])
def test_mace(outputs, degree, generator):
    """MACE's module with its own coupling coefficients, values and gradients."""
    pytest.importorskip("mace")
    import mace.modules  # noqa: F401  (before e3nn)
    from e3nn import o3
    from mace.modules.symmetric_contraction import SymmetricContraction

    torch.set_default_dtype(F64)
    n_channels, n_species = 4, 3
    irreps = o3.Irreps(f"{n_channels}x0e+{n_channels}x1o+{n_channels}x2e")
    target = o3.Irreps("+".join(f"{n_channels}x{ir}" for ir in outputs))
    module = SymmetricContraction(irreps, target, degree, num_elements=n_species)
    blocks, weights, first = [], [], 0
    for contraction, (_, ir) in zip(module.contractions, target, strict=True):
        for d in range(degree, 0, -1):
            u = contraction.U_tensors(d)
            blocks.append((first, u if u.ndim == d + 2 else u[None]))
        weights += [contraction.weights_max, *contraction.weights]
        first += ir.dim
    p = SymmetricPolynomial.from_dense(blocks)
    w = torch.cat(weights, 1)
    x = torch.randn(6, n_channels, 9, generator=generator, dtype=F64, requires_grad=True)
    index = torch.tensor([0, 2, 2, 0, 2, 0])
    want = module(x, torch.nn.functional.one_hot(index, n_species).to(F64))
    parts = symmetric_contraction(x, w, index, p).split([ir.dim for _, ir in target], -1)
    got = torch.cat([part.flatten(1) for part in parts], 1)
    assert_close(got, want)
    for a, b in zip(derivatives(got, (x,), 2), derivatives(want, (x,), 2), strict=True):
        assert_close(a, b)


def test_refuses(generator):
    p = SymmetricPolynomial.from_dense(random_blocks(generator, 3))
    x, weights, index = random_problem(generator, p)
    with pytest.raises(TypeError, match="x must be float32 or float64"):
        symmetric_contraction(x.half(), weights, index, p)
    with pytest.raises(TypeError, match=r"weights is torch\.float32, x is torch\.float64"):
        symmetric_contraction(x, weights.float(), index, p)
    with pytest.raises(TypeError, match="index must be int64"):
        symmetric_contraction(x, weights, index.int(), p)
    with pytest.raises(ValueError, match=r"index must be \[7\], got \[6\]"):
        symmetric_contraction(x, weights, index[:6], p)
    with pytest.raises(ValueError, match=r"x must be \[n_atoms, n_channels, 3\], got \[7, 5, 2\]"):
        symmetric_contraction(x[..., :2], weights, index, p)
    with pytest.raises(ValueError, match=r"weights must be \[n_species, 12, n_channels\], got \[4, 11, 5\]"):
        symmetric_contraction(x, weights[:, :11], index, p)
    with pytest.raises(ValueError, match="x has 4 channels, weights have 5"):
        symmetric_contraction(x[:, :4], weights, index, p)
    with pytest.raises(ValueError, match=r"x must be \[n_atoms, n_channels, 3\], got \[5, 3\]"):
        symmetric_contraction(x[0], weights, index, p)
    with pytest.raises(ValueError, match="one device"):
        symmetric_contraction(x.to("meta"), weights, index, p)
    with pytest.raises(ValueError, match="species 0 to 4, there are 4"):
        symmetric_contraction(x, weights, index.clone().fill_(4).index_fill_(0, index[:1] * 0, 0), p)


@pytest.mark.parametrize(
    "terms",
    [
        (((3,), 0, 0, 1.0),),
        (((), 0, 0, 1.0),),
        (((1, 0), 0, 0, 1.0),),
        (((0,), 2, 0, 1.0),),
        (((0,), 0, 1, 1.0),),
        (((0,), 0, 0, 1.0), ((0,), 0, 0, 2.0)),
    ],
)
def test_refuses_polynomials(terms, generator):
    p = SymmetricPolynomial(3, 1, 2, terms)
    with pytest.raises(ValueError, match="SymmetricPolynomial"):
        symmetric_contraction(*random_problem(generator, p), p)


def test_refuses_blocks():
    with pytest.raises(ValueError, match="at least one block"):
        SymmetricPolynomial.from_dense([])
    with pytest.raises(ValueError, match=r"got \[1, 3, 2, 1\]"):
        SymmetricPolynomial.from_dense([(0, torch.zeros(1, 3, 2, 1))])
