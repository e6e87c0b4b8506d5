"""Columns in another order: values, derivatives of any order, refusals."""

import pytest
import torch

from kernels.problems import DTYPES, derivatives
from scfmlip_kernels import take_columns

pytestmark = pytest.mark.usefixtures("empty_is_nan")

ORDER = (3, 0, 4, 1, 2)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.bool])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_values(n, dtype, generator, device):
    x = torch.randint(0, 2, (n, 5), generator=generator).to(device, dtype)
    got = take_columns(x, ORDER)
    assert got.dtype == dtype
    assert torch.equal(got, x[:, list(ORDER)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_derivatives(dtype, generator, device):
    """Exactly those of indexing: nothing is added."""
    x = torch.randn(6, 5, generator=generator).to(device, dtype).requires_grad_()
    for run in (lambda t: take_columns(t, ORDER) ** 3, lambda t: take_columns(t.T, (5, 1, 0, 2, 4, 3)) ** 3):
        order = list(ORDER) if run(x).shape == x.shape else None
        want = x[:, order] ** 3 if order else x.T[:, [5, 1, 0, 2, 4, 3]] ** 3
        for a, b in zip(derivatives(run(x), (x,), 2), derivatives(want, (x,), 2), strict=True):
            assert torch.equal(a, b)


def test_gradcheck(generator):
    x = torch.randn(2, 5, generator=generator, dtype=torch.float64).requires_grad_()
    run = lambda t: take_columns(t, ORDER)  # noqa: E731
    assert torch.autograd.gradcheck(run, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, x)


def test_back_and_forth(generator, device):
    x = torch.randn(4, 5, generator=generator).to(device)
    back = tuple(sorted(range(5), key=ORDER.__getitem__))
    assert torch.equal(take_columns(take_columns(x, ORDER), back), x)


def test_transforms(generator):
    """Inside torch.func, and over a batch."""
    x = torch.randn(3, 4, 5, generator=generator)
    assert torch.equal(torch.vmap(lambda t: take_columns(t, ORDER))(x), x[..., list(ORDER)])
    jacobian = torch.func.jacfwd(lambda t: take_columns(t, ORDER))(x[0, :1])
    assert torch.equal(jacobian[0, :, 0], torch.eye(5)[list(ORDER)])


def test_opcheck(generator):
    torch.use_deterministic_algorithms(False)
    x = torch.randn(3, 5, generator=generator, dtype=torch.float64).requires_grad_()
    torch.library.opcheck(torch.ops.scfmlip.take_columns.default, (x, list(ORDER)))


@pytest.mark.parametrize("columns", [(0, 1, 2, 3), (0, 1, 2, 3, 3), (0, 1, 2, 3, 5), (0, 1, 2, 3, -1)])
def test_refuses_what_is_no_permutation(columns):
    with pytest.raises(ValueError, match=r"columns must be a permutation of those of x \[2, 5\]"):
        take_columns(torch.ones(2, 5), columns)


def test_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match="must be a permutation"):
        take_columns(torch.ones(5), ORDER)
    with pytest.raises(TypeError, match="x must be a tensor, got list"):
        take_columns([[1.0]], (0,))
