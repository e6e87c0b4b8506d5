"""Products of grouped columns: both paths against matrices, with derivatives."""

import pytest
import torch
from tolerances import assert_close

from kernels.problems import DTYPES, PATHS, derivatives
from scfmlip_kernels import grouped_dot, grouped_scale
from scfmlip_kernels.grouped_dot.reference import grouped_dot_reference, grouped_scale_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64
GROUPS, N_GROUPS = (0, 2, 2, 0, 1, 2, 4), 5  # one group without columns


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 5, 70])
@pytest.mark.parametrize("path", PATHS)
def test_values_and_derivatives(path, n, dtype, generator, device):
    x, y, s = (torch.randn(n, k, generator=generator, dtype=F64) for k in (7, 7, 5))
    given = tuple(t.to("cpu" if path == "cpu" else device, dtype).requires_grad_() for t in (x, y, s))
    exact = tuple(t.detach().to(F64).requires_grad_() for t in given)
    for pair, run, reference, more in (
        ((0, 1), grouped_dot, grouped_dot_reference, (GROUPS, N_GROUPS)),
        ((2, 1), grouped_scale, grouped_scale_reference, (GROUPS,)),
    ):
        mine, theirs = (tuple(tensors[i] for i in pair) for tensors in (given, exact))
        value, want = run(*mine, *more), reference(*theirs, *more)
        assert value.dtype == dtype
        got = [value, *derivatives(value, mine, 2)]
        for a, b in zip(got, [want, *derivatives(want, theirs, 2)], strict=True):
            assert_close(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
def test_first_derivatives_alone(path, dtype, generator, device):
    """Both in one launch, as force passes take them."""
    x, y, g = (torch.randn(37, k, generator=generator, dtype=F64) for k in (7, 7, 5))
    given = tuple(t.to("cpu" if path == "cpu" else device, dtype).requires_grad_() for t in (x, y))
    value = grouped_dot(*given, GROUPS, N_GROUPS)
    exact = tuple(t.requires_grad_() for t in (x, y))
    want = torch.autograd.grad(grouped_dot_reference(*exact, GROUPS, N_GROUPS), exact, g)
    for a, b in zip(torch.autograd.grad(value, given, g.to(value)), want, strict=True):
        assert_close(a, b)


def test_gradcheck(generator):
    x, y, s = (torch.randn(3, k, generator=generator, dtype=F64).requires_grad_() for k in (7, 7, 5))
    for run, given in (
        (lambda a, b: grouped_dot(a, b, GROUPS, N_GROUPS), (x, y)),
        (lambda a, b: grouped_scale(a, b, GROUPS), (s, x)),
    ):
        assert torch.autograd.gradcheck(run, given, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(run, given)


def test_opcheck(generator):
    torch.use_deterministic_algorithms(False)
    x, y, s = (torch.randn(3, k, generator=generator, dtype=F64).requires_grad_() for k in (7, 7, 5))
    torch.library.opcheck(torch.ops.scfmlip.grouped_dot.default, (x, y, list(GROUPS), N_GROUPS))
    torch.library.opcheck(torch.ops.scfmlip.grouped_scale.default, (s, x, list(GROUPS)))


def test_refuses():
    x = torch.ones(2, 7)
    with pytest.raises(ValueError, match="groups must be 0 to 2, got 0 to 4"):
        grouped_dot(x, x, GROUPS, 3)
    with pytest.raises(ValueError, match=r"x must be \[n_rows, 7\]"):
        grouped_scale(torch.ones(2, 5), x[:, 1:], GROUPS)
