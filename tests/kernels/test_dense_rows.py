"""Operators that read rows wherever they begin: parts of wider tensors give what their copies give."""

import pytest
import torch

from kernels.problems import DTYPES, PATHS
from scfmlip_kernels import grouped_dot, grouped_scale, radial_basis, spherical_harmonics
from scfmlip_kernels.columns import dense_rows

pytestmark = pytest.mark.usefixtures("empty_is_nan")


def harmonics(wide):
    return spherical_harmonics(wide[:, 1:4], 3)


def radial(wide):
    one = {"dtype": wide.dtype, "device": wide.device}
    frequencies = torch.arange(1, 6, **one)
    numbers = torch.ones(1, **one), torch.full((1,), 5.0, **one)
    power = torch.full((1,), 6, dtype=torch.int64, device=wide.device)
    return radial_basis(wide[:, :1], frequencies, *numbers, power, y=wide[:, 4:])


def scaled(wide):
    return grouped_scale(wide[:, :2], wide[:, 1:], [0, 1, 1, 0])


def dotted(wide):
    return grouped_dot(wide[:, :4], wide[:, 1:], [0, 1, 1, 0], 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("operator", [harmonics, radial, scaled, dotted], ids=lambda f: f.__name__)
def test_parts_of_wider_tensors(operator, path, dtype, generator, device):
    where = "cpu" if path == "cpu" else device
    values = (1.0 + torch.rand(7, 5, generator=generator, dtype=torch.float64)).to(where, dtype)
    # the same numbers with other rows between them, and with columns that are apart
    apart = torch.stack((values, torch.full_like(values, torch.nan)), 1)[:, 0]
    turned = values.T.contiguous().T
    found = []
    for given in (values, apart, turned):
        leaf = given.detach().requires_grad_()
        out = operator(leaf)
        weights = torch.arange(out.numel(), dtype=dtype, device=out.device).view(out.shape) / out.numel()
        (slope,) = torch.autograd.grad((weights * out**2).sum(), leaf)
        found.append((out.detach(), slope))
    for got in found[1:]:
        for a, b in zip(got, found[0], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_only_columns_that_are_apart_are_copied():
    x = torch.arange(12.0).view(3, 4)
    assert dense_rows(x) is x
    assert dense_rows(x[:, 1:3]).data_ptr() == x[:, 1:3].data_ptr()
    assert dense_rows(x[:, 1:2]).stride(0) == 4
    assert dense_rows(x.T).is_contiguous()
    assert dense_rows(x[:1].expand(3, 4)).stride(0) == 0
