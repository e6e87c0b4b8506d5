"""Cells of slabs and the strengths of their corrections: both paths against formulas, with derivatives."""

import pytest
import torch
from tolerances import assert_close

from kernels.problems import DTYPES, PATHS, derivatives, random_cells
from scfmlip_kernels import slab_cell, slab_strengths
from scfmlip_kernels.slab_cell.reference import slab_cell_reference, slab_strengths_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64


def problem(n, generator):
    """Cells, factors, volumes and weights, some systems no slabs; axes."""
    cell = random_cells(n, generator)
    factor = torch.tensor([20.0, 0.0, -30.0, 15.0] * n, dtype=F64)[:n]
    return cell, factor, cell.det().abs(), factor.abs(), torch.arange(n) % 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 4, 33])
@pytest.mark.parametrize("path", PATHS)
def test_values_and_derivatives(path, n, dtype, generator, device):
    where = "cpu" if path == "cpu" else device
    cell, factor, volume, weight, axis = problem(n, generator)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11  # quotients of several factors
    for run, reference, leaves, fixed in (
        (slab_cell, slab_cell_reference, (cell,), (axis, factor)),
        (slab_strengths, slab_strengths_reference, (cell.inverse() if n else cell, volume), (axis, weight)),
    ):
        given = tuple(t.to(where, dtype).requires_grad_() for t in leaves)
        exact = tuple(t.detach().to("cpu", F64).requires_grad_() for t in given)
        more = tuple(t.to(where) if t.dtype == torch.int64 else t.to(where, dtype) for t in fixed)
        value, want = run(*given, *more), reference(*exact, *fixed)
        assert value.dtype == dtype
        if n == 0:
            assert value.shape == want.shape
            continue
        got = [value, *derivatives(value, given, 2)]
        for a, b in zip(got, [want, *derivatives(want, exact, 2)], strict=True):
            assert_close(a, b, tolerance)
        # first derivatives alone, by the kernel
        weights = torch.randn(want.shape, generator=generator, dtype=F64)
        slopes = torch.autograd.grad(run(*given, *more), given, weights.to(value))
        right = torch.autograd.grad(reference(*exact, *fixed), exact, weights)
        for a, b in zip(slopes, right, strict=True):
            assert_close(a, b, tolerance)


def test_gradcheck(generator):
    cell, factor, volume, weight, axis = problem(3, generator)
    for run, given in (
        (lambda c: slab_cell(c, axis, factor), (cell,)),
        (lambda i, v: slab_strengths(i, v, axis, weight), (cell.inverse(), volume)),
    ):
        leaves = tuple(t.requires_grad_() for t in given)
        assert torch.autograd.gradcheck(run, leaves, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(run, leaves)


def test_opcheck(generator):
    torch.use_deterministic_algorithms(False)
    cell, factor, volume, weight, axis = problem(3, generator)
    torch.library.opcheck(torch.ops.scfmlip.slab_cell.default, (cell.requires_grad_(), axis, factor))
    given = (cell.detach().inverse().requires_grad_(), volume.requires_grad_(), axis, weight)
    torch.library.opcheck(torch.ops.scfmlip.slab_strengths.default, given)


def test_refuses():
    cell, axis, factor = torch.eye(3)[None], torch.tensor([2]), torch.ones(1)
    with pytest.raises(ValueError, match="axis names axes 3 to 3, there are 3"):
        slab_cell(cell, axis + 1, factor)
    with pytest.raises(ValueError, match=r"factor must be \[1\]"):
        slab_cell(cell, axis, torch.ones(2))
    with pytest.raises(NotImplementedError, match="no derivatives in the factors"):
        slab_cell(cell, axis, factor.requires_grad_()).sum().backward()
    with pytest.raises(TypeError, match="convert one of them"):
        slab_strengths(cell, factor.detach().double(), axis, factor.detach())
