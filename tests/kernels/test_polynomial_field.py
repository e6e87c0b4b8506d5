"""Polynomials of positions and their adjoint: both paths against term by term, with derivatives."""

import pytest
import torch
from tolerances import assert_close

from kernels.problems import PATHS, derivatives
from scfmlip_kernels import polynomial_field, polynomial_moments
from scfmlip_kernels.polynomial_field.reference import (
    polynomial_field_reference,
    polynomial_moments_reference,
)

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64


def random(generator, *shape, device="cpu"):
    return torch.randn(*shape, generator=generator, dtype=F64).to(device).requires_grad_()


@pytest.mark.parametrize("n", [0, 5, 130])
@pytest.mark.parametrize("path", PATHS)
def test_values_and_derivatives(path, n, generator, device):
    place = "cpu" if path == "cpu" else device
    r, c = random(generator, n, 3, device=place), random(generator, n, 2, 10, device=place)
    for rank in range(4):
        for order in (1, 2):
            value, want = polynomial_field(r, c, rank), polynomial_field_reference(r, c, rank)
            assert_close(value, want)
            for a, b in zip(derivatives(value, (r, c), order), derivatives(want, (r, c), order), strict=True):
                assert_close(a, b)
    for size in (1, 4, 10):
        p = random(generator, n, 2, size, device=place)
        for order in (1, 2):
            value, want = polynomial_moments(r, p), polynomial_moments_reference(r, p)
            assert_close(value, want)
            for a, b in zip(derivatives(value, (r, p), order), derivatives(want, (r, p), order), strict=True):
                assert_close(a, b)


def test_gradcheck(generator):
    r, c, p = (random(generator, 3, *size) for size in ((3,), (2, 10), (2, 4)))
    for run, given in (
        (lambda r, c: polynomial_field(r, c, 1), (r, c)),
        (polynomial_moments, (r, p)),
    ):
        assert torch.autograd.gradcheck(run, given, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(run, given)


def test_opcheck(generator):
    torch.use_deterministic_algorithms(False)
    r, c, p = (random(generator, 3, *size) for size in ((3,), (2, 10), (2, 4)))
    torch.library.opcheck(torch.ops.scfmlip.polynomial_field.default, (r, c, 2))
    torch.library.opcheck(torch.ops.scfmlip.polynomial_moments.default, (r, p))


def test_refuses(generator):
    r, c = random(generator, 3, 3), random(generator, 3, 2, 10)
    with pytest.raises(ValueError, match="c must be float64"):
        polynomial_field(r, c.float(), 1)
    with pytest.raises(ValueError, match="1, 4 or 10 columns"):
        polynomial_moments(r, c[..., :3])
