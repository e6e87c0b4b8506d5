"""Random calls of every public operator: a right result, or an error that names operator and argument."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from tolerances import assert_close

import scfmlip_kernels as kernels
from kernels.convolutions import random_product
from kernels.problems import pointers, random_cells, scattered, system_of
from kernels.test_symmetric_contraction import random_blocks
from scfmlip_kernels.channelwise_conv.reference import channelwise_conv_reference
from scfmlip_kernels.charge_solve.reference import charge_solve_reference
from scfmlip_kernels.gaussian_pairs.reference import gaussian_pairs_reference
from scfmlip_kernels.indexed_linear.reference import indexed_linear_reference
from scfmlip_kernels.lattice_field.reference import lattice_field_reference
from scfmlip_kernels.structure_factor.reference import structure_factor_reference
from scfmlip_kernels.symmetric_contraction.reference import symmetric_contraction_reference

F64 = torch.float64
# none, one, and the edges of blocks
SIZES = [0, 1, 2, 3, 7, 15, 16, 17, 31, 33]


class Call(NamedTuple):
    """
    A call that is right.

    Attributes:
        function: Public function.
        arguments: By their names.
        real: Those that are differentiated.
        reference: Of the same real arguments.
        spoilable: Those an error must name.
        weight: Multiplies values that are not specified with 0.
    """

    function: Callable[..., Any]
    arguments: dict[str, Any]
    real: tuple[str, ...]
    reference: Callable[..., torch.Tensor]
    spoilable: tuple[str, ...]
    weight: torch.Tensor | float = 1.0


class Maker:
    """Random numbers in random layouts."""

    def __init__(self, seed):
        self.choose, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.dtype = self.choose.choice([torch.float32, F64])

    def real(self, *shape, dtype=None):
        values = torch.randn(*shape, generator=self.generator, dtype=F64).to(dtype or self.dtype)
        layout = self.choose.choice(["plain", "plain", "scattered", "transposed"])
        if layout == "scattered" and values.ndim:
            return scattered(values)
        if layout == "transposed" and values.ndim > 1:
            return values.transpose(0, -1).contiguous().transpose(0, -1)
        return values

    def size(self, most=33):
        return self.choose.choice([n for n in SIZES if n <= most])

    def sizes(self, most):
        return [self.size(most) for _ in range(self.choose.randint(1, 3))]

    def index(self, n, limit):
        return torch.randint(limit, (n,), generator=self.generator)


def segment_sum(m):
    sizes = m.sizes(17)
    index = system_of(sizes)
    arguments = {"values": m.real(sum(sizes), m.size(3)), "ptr": pointers(sizes), "index": index}
    return Call(
        kernels.segment_sum,
        arguments,
        ("values",),
        lambda v: v.new_zeros(len(sizes), v.shape[1]).index_add(0, index, v),
        ("values", "ptr", "index"),
    )


def segment_expand(m):
    sizes = m.sizes(17)
    index = system_of(sizes)
    arguments = {"values": m.real(len(sizes), m.size(3)), "ptr": pointers(sizes), "index": index}
    return Call(
        kernels.segment_expand, arguments, ("values",), lambda v: v[index], ("values", "ptr", "index")
    )


def _lattice(m):
    sizes = m.sizes(7)
    cells = random_cells(len(sizes), m.generator, 5.0)
    grid = kernels.build_lattice_grid(cells, 1.5, pointers(sizes))
    return sizes, grid, 3 * m.real(sum(sizes), 3, dtype=F64)


def structure_factor(m):
    sizes, grid, frac = _lattice(m)
    arguments = {
        "frac": frac,
        "moments": m.real(sum(sizes), m.size(2), m.choose.choice([1, 4])),
        "grid": grid,
    }
    weight = (grid.weight > 0)[:, None, None]

    def reference(u, values):
        return structure_factor_reference(u, values, grid.miller, grid.system, system_of(sizes)) * weight

    names = ("frac", "moments", "grid")
    return Call(kernels.structure_factor, arguments, ("frac", "moments"), reference, names, weight)


def lattice_field(m):
    sizes, grid, frac = _lattice(m)
    weight = (grid.weight > 0)[:, None, None]
    values = m.real(grid.n_points, m.size(2), 2, dtype=F64) * weight
    rank = m.choose.choice([0, 1, 2])
    arguments = {"frac": frac, "coefficients": values, "grid": grid, "rank": rank, "dtype": m.dtype}

    def reference(u, p):
        return lattice_field_reference(u, p, grid.miller, grid.system, system_of(sizes), rank)

    names = ("frac", "coefficients", "grid", "rank", "dtype")
    return Call(kernels.lattice_field, arguments, ("frac", "coefficients"), reference, names)


def gaussian_pairs(m):
    sizes, n_widths, rank = m.sizes(3), m.size(2), m.choose.choice([0, 1])
    arguments = {
        "positions": 2 * m.real(sum(sizes), 3),
        "moments": m.real(sum(sizes), m.size(2), n_widths, m.choose.choice([1, 4])),
        "widths": 0.5 + torch.rand(n_widths, generator=m.generator, dtype=F64),
        "atom_ptr": pointers(sizes),
        "rank": rank,
        "softening": m.choose.choice([0.0, 0.0, 0.1]),
        "group_size": m.choose.choice([1, 1, 2]),
    }
    rest = (arguments["widths"], system_of(sizes), rank, arguments["softening"], arguments["group_size"])
    # the reference has no derivatives of its own
    return Call(
        kernels.gaussian_pairs,
        arguments,
        (),
        lambda: gaussian_pairs_reference(arguments["positions"], arguments["moments"], *rest),
        tuple(arguments),
    )


def indexed_linear(m):
    n_rows, n_in, n_out, n_species = m.size(), m.size(), m.size(), m.choose.randint(1, 5)
    index = m.index(n_rows, n_species)
    arguments = {
        "x": m.real(n_rows, m.size(3), n_in),
        "weights": m.real(n_species, n_in, n_out),
        "index": index,
    }
    reference = lambda x, w: indexed_linear_reference(x, w, index)  # noqa: E731
    return Call(kernels.indexed_linear, arguments, ("x", "weights"), reference, ("x", "weights", "index"))


def channelwise_conv(m):
    product = random_product(m.choose.randrange(1000), m.choose.choice(["mul_ir", "ir_mul"]))
    n_nodes, n_edges, hidden = m.choose.choice([1, 2, 9]), m.size(), m.choose.choice([None, 0, 3])
    sender, receiver = m.index(n_edges, n_nodes), m.index(n_edges, n_nodes)
    arguments = {
        "x": m.real(n_nodes, product.x_dim),
        "y": m.real(n_edges, product.y_dim),
        "weights": m.real(n_edges, product.weight_numel if hidden is None else hidden),
        "edges": kernels.sort_edges(sender, receiver, n_nodes),
        "product": product,
    }
    real = ("x", "y", "weights")
    if hidden is not None:
        arguments["matrix"] = m.real(hidden, product.weight_numel)
        real = (*real, "matrix")

    def reference(x, y, w, matrix=None):
        return channelwise_conv_reference(x, y, w, sender, receiver, product, matrix)

    return Call(kernels.channelwise_conv, arguments, real, reference, (*real, "edges"))


def symmetric_contraction(m):
    blocks = random_blocks(m.generator, m.choose.randint(1, 4), degree=m.choose.randint(1, 3))
    polynomial = kernels.SymmetricPolynomial.from_dense(blocks)
    n_rows, n_channels, n_species = m.size(), m.size(), m.choose.randint(1, 4)
    index = m.index(n_rows, n_species)
    arguments = {
        "x": m.real(n_rows, n_channels, polynomial.n_inputs),
        "weights": m.real(n_species, polynomial.n_weights, n_channels),
        "index": index,
        "polynomial": polynomial,
    }
    reference = lambda x, w: symmetric_contraction_reference(x, w, index, polynomial)  # noqa: E731
    names = ("x", "weights", "index")
    return Call(kernels.symmetric_contraction, arguments, ("x", "weights"), reference, names)


def charge_solve(m):
    sizes, constrained = m.sizes(17), m.choose.random() < 0.5
    forms = [m.real(n, n + 2, dtype=F64) for n in sizes]
    matrices = torch.cat([(a @ a.T + torch.eye(len(a))).flatten() for a in forms]).to(m.dtype)
    arguments = {
        "matrices": matrices,
        "source": m.real(sum(sizes), dtype=F64),
        "totals": m.real(len(sizes), dtype=F64),
        "atom_ptr": pointers(sizes),
    }
    rest = {"constrained": constrained, "tolerance": 1e-12}
    return Call(
        lambda **given: kernels.charge_solve(**given, **rest).state,
        arguments,
        (),
        lambda: charge_solve_reference(*arguments.values(), constrained)[0],
        tuple(arguments),
    )


MAKERS = [
    segment_sum,
    segment_expand,
    structure_factor,
    lattice_field,
    gaussian_pairs,
    indexed_linear,
    channelwise_conv,
    symmetric_contraction,
    charge_solve,
]


def by_name(make):
    return make.__name__


def close(got, want, dtype):
    """To the rounding of sums of up to 1,000 products of numbers of about 1, which may cancel."""
    assert got.shape == want.shape
    scale = max(float(want.detach().abs().max()), 1.0) if want.numel() else 1.0
    error = float((got.detach().double() - want.detach()).abs().max()) if want.numel() else 0.0
    assert error <= {torch.float32: 5e-5, F64: 1e-10}[dtype] * scale


def assert_right(call, dtype):
    mine = {**call.arguments}
    leaves = [mine[name].detach().requires_grad_() for name in call.real]
    plain = [leaf.detach().double().requires_grad_() for leaf in leaves]
    mine.update(zip(call.real, leaves, strict=True))
    got, want = call.function(**mine) * call.weight, call.reference(*plain)
    close(got, want, dtype)
    if call.real and want.requires_grad:
        first = torch.autograd.grad(got.square().sum(), leaves)
        for a, b in zip(first, torch.autograd.grad(want.square().sum(), plain), strict=True):
            close(a, b, dtype)


@pytest.mark.parametrize("make", MAKERS, ids=by_name)
def test_right_calls(make):
    for seed in range(25):
        m = Maker(seed)
        assert_right(make(m), m.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKERS, ids=by_name)
def test_more_right_calls(make):
    for seed in range(1000, 1600):
        m = Maker(seed)
        assert_right(make(m), m.dtype)


@pytest.mark.interpreter
@pytest.mark.parametrize("make", MAKERS, ids=by_name)
def test_right_calls_of_the_kernels(make):
    for seed in (3, 4):
        m = Maker(seed)
        call = make(m)
        got = call.function(**call.arguments) * call.weight
        with kernels.backend("cpu"):
            assert_close(got, (call.function(**call.arguments) * call.weight).to(got.dtype), 2e-5)


def is_right(operator, name, way, value):
    """
    Another number of species, one more system where all are empty, a single row of more dimensions.

    Any values can be expanded, and the index of segments, which says what their pointers do, is not read.
    """
    if name in ("ptr", "atom_ptr"):
        return way == "rows" and int(value[-1]) == 0
    if "segment" in operator and name == "values":
        return way == "dimensions" or (operator == "segment_expand" and way == "dtype")
    if "segment" in operator and name == "index":
        return way in ("negative", "too large")
    return (name, way) == ("weights", "rows")


def spoiled(value, m):
    """A value that is wrong in some way, and the way."""
    if isinstance(value, torch.Tensor):
        ways: dict[str, Callable[[], Any]] = {
            "dtype": lambda: value.to(torch.complex64 if m.choose.random() < 0.5 else torch.int16),
            "device": lambda: value.to("meta"),
            "dimensions": lambda: value[None],
            "rows": lambda: torch.cat((value, value.new_zeros(1, *value.shape[1:]))),
            "no tensor": value.tolist,
        }
        if not value.is_floating_point() and value.numel():
            ways["negative"] = lambda: value.clone().index_fill_(0, torch.tensor([-1]), -7)
            ways["too large"] = lambda: value.clone().index_fill_(0, torch.tensor([-1]), 10**9)
        way = m.choose.choice(list(ways))
        return ways[way](), way
    return m.choose.choice([None, "text", -1.5, [1]]), "kind"


def assert_refused(make, seed):
    m = Maker(seed)
    call = make(m)
    name = m.choose.choice(call.spoilable)
    value, way = spoiled(call.arguments[name], m)
    if is_right(make.__name__, name, way, call.arguments[name]):
        return
    try:
        call.function(**{**call.arguments, name: value})
    except (TypeError, ValueError) as error:
        text = str(error)
    else:
        pytest.fail(f"accepted: {name} of another {way}, seed {seed}")
    # shapes that do not fit together name one of two arguments
    assert make.__name__ in text, (name, way, text)
    assert name in text or any(other in text for other in call.arguments), (name, way, text)


@pytest.mark.parametrize("make", MAKERS, ids=by_name)
def test_wrong_calls_are_refused(make):
    for seed in range(200):
        assert_refused(make, seed)


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKERS, ids=by_name)
def test_more_wrong_calls_are_refused(make):
    for seed in range(1000, 6000):
        assert_refused(make, seed)
