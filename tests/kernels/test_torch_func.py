"""`torch.func`, forward mode and inference of every operator: finite differences, and `torch.autograd`."""

import pytest
import torch
from tolerances import assert_close
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from kernels.convolutions import Problem, plain_product
from kernels.problems import lattice_problem, pointers, system_of
from kernels.test_symmetric_contraction import random_blocks, random_problem
from scfmlip_kernels import (
    SymmetricPolynomial,
    charge_solve,
    gaussian_pairs,
    indexed_linear,
    lattice_field,
    segment_expand,
    segment_sum,
    structure_factor,
    symmetric_contraction,
)

F64 = torch.float64
NAMES = [
    "structure_factor",
    "lattice_field",
    "gaussian_pairs",
    "segment_sum",
    "segment_expand",
    "indexed_linear",
    "channelwise_conv",
    "channelwise_conv with a matrix",
    "symmetric_contraction",
]


def operator(name, generator, device="cpu"):
    """As a function of its real arguments, and these."""

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=F64).to(device)

    if name in ("structure_factor", "lattice_field"):
        problem = lattice_problem([2, 0, 1], 1, generator, device, channels=1, cutoff=1.3)
        grid, weight = problem.grid, problem.grid.weight[:, None, None]
        if name == "structure_factor":
            return lambda u, m: weight * structure_factor(u, m, grid), (problem.frac, problem.moments)
        return lambda u, p: lattice_field(u, weight * p, grid, 1, F64), (problem.frac, problem.coefficients)
    sizes = [2, 0, 1]
    ptr, index = pointers(sizes), system_of(sizes).to(device)
    if name == "gaussian_pairs":
        widths = torch.tensor([1.3], dtype=F64)
        return lambda r, m: gaussian_pairs(r, m, widths, ptr, 1), (2 * normal(3, 3), normal(3, 1, 1, 4))
    if "segment" in name:
        function, rows = {"segment_sum": (segment_sum, 3), "segment_expand": (segment_expand, 3)}[name]
        return lambda v: function(v, ptr.to(device), index).sin(), (normal(rows, 2),)
    if name == "indexed_linear":
        species = torch.tensor([1, 0, 1], device=device)
        return lambda x, w: indexed_linear(x, w, species), (normal(3, 2, 2), normal(2, 2, 3))
    if "conv" in name:
        hidden = 2 if "matrix" in name else 0
        product = plain_product((1, 1))
        product = product._replace(paths=product.paths[1:4:2])
        problem = Problem(product, 2, 2, generator, hidden, device=device)
        return problem.value, tuple(problem.inputs)
    p = SymmetricPolynomial.from_dense(random_blocks(generator, 2, n_paths=1))
    x, weights, index = random_problem(generator, p, 2, 2, 2, device)
    return lambda x, w: symmetric_contraction(x, w, index, p), (x, weights)


@pytest.mark.parametrize("name", NAMES)
def test_forward_mode_is_the_finite_difference(name, generator):
    """Of the values and of the first derivatives, in a batch of directions too."""
    function, inputs = operator(name, generator)
    inputs = tuple(x.requires_grad_() for x in inputs)
    assert torch.autograd.gradcheck(
        function, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # of linearize, whatever it traces
@pytest.mark.parametrize("name", NAMES)
def test_transforms(name, generator):
    """Any nest of them gives what `torch.autograd` gives."""
    function, inputs = operator(name, generator)
    every, func = tuple(range(len(inputs))), torch.func

    def scalar(*x):
        return function(*x).square().sum()

    jacobian = torch.autograd.functional.jacobian(function, inputs)
    hessian = torch.autograd.functional.hessian(scalar, inputs)
    gradient = torch.autograd.functional.jacobian(scalar, inputs)
    along = tuple(x.cos() for x in inputs)
    product = [
        sum((block * v).flatten(x.ndim).sum(-1) for block, v in zip(row, along, strict=True))
        for x, row in zip(inputs, hessian, strict=True)
    ]
    batch = [torch.stack((x, 2 * x)) for x in inputs]
    rows = [torch.autograd.functional.jacobian(scalar, tuple(b[i] for b in batch)) for i in range(2)]
    expected = {
        "grad": (func.grad(scalar, every)(*inputs), gradient),
        "grad without": (torch.no_grad()(func.grad(scalar, every))(*inputs), gradient),
        "jacrev": (func.jacrev(function, every)(*inputs), jacobian),
        "jacfwd": (func.jacfwd(function, every)(*inputs), jacobian),
        "hessian": (func.hessian(scalar, every)(*inputs), hessian),
        "forward over forward": (func.jacfwd(func.jacfwd(scalar, every), every)(*inputs), hessian),
        "reverse over forward": (func.jacrev(func.jacfwd(scalar, every), every)(*inputs), hessian),
        "product": (func.jvp(func.grad(scalar, every), inputs, along)[1], product),
        "linearize": (func.linearize(func.grad(scalar, every), *inputs)[1](*along), product),
        "vmap": (
            func.vmap(func.grad(scalar, every))(*batch),
            [torch.stack(column) for column in zip(*rows, strict=True)],
        ),
        "grad of vmap": (
            func.grad(lambda *b: func.vmap(scalar)(*b).sum(), every)(*batch),
            [torch.stack(column) for column in zip(*rows, strict=True)],
        ),
    }
    for got, want in expected.values():
        for a, b in zip(tree_leaves(got), tree_leaves(want), strict=True):
            assert_close(a, b, 1e-10)  # up to thousands of terms


@pytest.mark.parametrize("name", NAMES)
def test_third_derivatives(name, generator):
    """Reverse over forward over reverse, as the gradient of a Hessian's product."""
    function, inputs = operator(name, generator)
    every = tuple(range(len(inputs)))
    along = tuple(x.cos() for x in inputs)

    def gradient(*x):
        return torch.func.grad(lambda *y: function(*y).sin().sum(), every)(*x)

    def product(*x):
        return sum(t.sin().sum() for t in torch.func.jvp(gradient, x, along)[1])

    leaves = [x.clone().requires_grad_() for x in inputs]
    first = torch.autograd.grad(function(*leaves).sin().sum(), leaves, create_graph=True)
    dot = sum((a * b).sum() for a, b in zip(first, along, strict=True))
    second = torch.autograd.grad(dot, leaves, create_graph=True)
    want = torch.autograd.grad(sum(t.sin().sum() for t in second), leaves)
    for a, b in zip(torch.func.grad(product, every)(*inputs), want, strict=True):
        assert_close(a, b, 1e-10)  # up to thousands of terms


@pytest.mark.interpreter
@pytest.mark.parametrize(
    "name", ["structure_factor", "gaussian_pairs", "indexed_linear", "symmetric_contraction"]
)
def test_kernels(name, generator, device):
    function, inputs = operator(name, generator, device)
    along = tuple(x.cos() for x in inputs)
    leaves = [x.clone().requires_grad_() for x in inputs]
    want = torch.autograd.grad(function(*leaves).square().sum(), leaves)
    got = torch.func.grad(lambda *x: function(*x).square().sum(), tuple(range(len(inputs))))(*inputs)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b)
    tangent = torch.func.jvp(lambda *x: function(*x).square().sum(), inputs, along)[1]
    assert_close(tangent, sum((a * b).sum() for a, b in zip(want, along, strict=True)))


@pytest.mark.parametrize("name", NAMES)
def test_without_autograd(name, generator):
    """The same numbers in inference mode, whichever mode filled the caches, and derivatives afterwards."""
    for first in (True, False):
        function, inputs = operator(name, generator)
        values = {}
        for inference in (first, not first):
            with torch.inference_mode(inference), torch.no_grad():
                values[inference] = function(*inputs)
        assert torch.equal(values[True], values[False])
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = function(*leaves)
        assert torch.equal(value.detach(), values[False])
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value.square().sum(), leaves))


@pytest.mark.parametrize("transform", ["grad", "vmap of grad", "hessian"])
@pytest.mark.parametrize("name", ["indexed_linear", "channelwise_conv", "structure_factor"])
def test_compiled(name, transform, generator):
    function, inputs = operator(name, generator)

    def scalar(*x):
        return function(*x).square().sum()

    chosen = {
        "grad": torch.func.grad(scalar),
        "vmap of grad": torch.func.vmap(torch.func.grad(scalar), in_dims=(0, *(None,) * (len(inputs) - 1))),
        "hessian": torch.func.jacrev(torch.func.grad(scalar)),
    }[transform]
    arguments = (torch.stack((inputs[0], 2 * inputs[0])), *inputs[1:]) if "vmap" in transform else inputs
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: chosen(*x), fullgraph=True, backend="aot_eager")
    assert_close(compiled(*arguments), chosen(*arguments))


def test_no_derivative_is_lost_without_a_word(generator):
    """A solve without derivatives refuses tangents too, instead of dropping them."""
    ptr, source = torch.tensor([0, 2]), torch.randn(2, dtype=F64, generator=generator)
    matrices, totals = torch.eye(2, dtype=F64).flatten(), torch.zeros(1, dtype=F64)
    with pytest.raises(NotImplementedError, match="charge_solve has no derivatives"):
        torch.func.grad(lambda b: charge_solve(matrices, b, totals, ptr).state.sum())(source)
    with pytest.raises(NotImplementedError, match="charge_solve has no derivatives"), forward_ad.dual_level():
        charge_solve(matrices, forward_ad.make_dual(source, source), totals, ptr)
    solved = torch.vmap(lambda b: charge_solve(matrices, b, totals, ptr).state)(
        torch.stack((source, -source))
    )
    assert_close(solved[0], -solved[1])
