"""SegmentedPolynomial under torch.func, autocast and tracing."""

import io

import pytest
import torch
from tolerances import assert_close
from torch.utils._pytree import tree_leaves

from nn.cueq.polynomials import contraction, convolution, cue, irreps, linear, naive, numbers
from scfmlip.nn.cueq import SegmentedPolynomial

POLYNOMIALS = {
    "convolution": lambda: convolution("2x0e + 2x1o", "0e + 1o", "0e + 1o").polynomial,
    "contraction": lambda: contraction("2x0e + 2x1o", "2x0e", (1, 2)).polynomial,
    "linear": lambda: linear("2x0e + 1x1o", "1x0e + 2x1o").polynomial,
    "two paths to one segment": lambda: linear("2x1o + 3x0e + 1x1o", "2x0e + 4x1o").polynomial,
    "general": lambda: (
        cue.descriptors.fully_connected_tensor_product(
            irreps("2x0e + 1x1o"), irreps("1x0e + 1x1o"), irreps("1x0e + 1x1o")
        ).polynomial
    ),
}


@pytest.mark.parametrize("kind", POLYNOMIALS)
def test_torch_func(kind):
    """Per-sample gradients and Hessians, as of the naive method."""
    polynomial, func = POLYNOMIALS[kind](), torch.func
    mine, other = SegmentedPolynomial(polynomial), naive(polynomial)
    batch = [numbers(3, operand.size, n) for n, operand in enumerate(polynomial.inputs)]
    every = tuple(range(len(batch)))

    def of(module):
        return lambda *x: module([t[None] for t in x])[0].square().sum()

    for transform in (
        lambda f: func.vmap(func.grad(f, every))(*batch),
        lambda f: func.hessian(f, every)(*(b[0] for b in batch)),
        lambda f: func.jvp(func.grad(f, every), tuple(b[0] for b in batch), tuple(b[1] for b in batch)),
    ):
        for got, want in zip(*map(tree_leaves, map(transform, map(of, (mine, other)))), strict=True):
            assert_close(got, want, 1e-11)  # sums over segments and components


@pytest.mark.filterwarnings("ignore:torch.searchsorted")  # a copy of what vmap expands
@pytest.mark.parametrize("kind", POLYNOMIALS)
def test_torch_func_over_indices(kind):
    """A batch of indices is no reason to fail: each element takes rows of its own."""
    polynomial = POLYNOMIALS[kind]()
    mine, other = SegmentedPolynomial(polynomial), naive(polynomial)
    inputs = [numbers(2 if n == 0 else 4, o.size, n) for n, o in enumerate(polynomial.inputs)]
    index = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]])
    got = torch.vmap(lambda i: mine(inputs, {0: i})[0])(index)
    for n in range(2):
        assert_close(got[n], other(inputs, {0: index[n]})[0], 1e-11)  # sums over segments and components


@pytest.mark.parametrize("method", ["", "naive"])
@pytest.mark.parametrize("kind", POLYNOMIALS)
def test_autocast_changes_nothing(kind, method):
    """Dtypes are said by the module's own arguments; low precision is raised as without autocast."""
    polynomial = POLYNOMIALS[kind]()
    module = SegmentedPolynomial(polynomial, method)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [numbers(3, o.size, n).to(dtype) for n, o in enumerate(polynomial.inputs)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = module(list(inputs))[0]
        assert got.dtype == dtype
        assert torch.equal(got, module(list(inputs))[0])


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", POLYNOMIALS)
def test_traced(kind):
    """`torch.jit.trace`, whose sizes are tensors, kept as a file and run with another batch."""
    polynomial = POLYNOMIALS[kind]()
    module = SegmentedPolynomial(polynomial)
    batches = [[numbers(n, o.size, 1) for o in polynomial.inputs] for n in (4, 4)]
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, (batches[0],)), file)
    file.seek(0)
    traced = torch.jit.load(file)
    for inputs in batches:
        assert_close(traced(inputs)[0], module(inputs)[0])
