"""Inverses of cells: both paths against linear algebra, with derivatives."""

import pytest
import torch
from tolerances import assert_close

from kernels.problems import DTYPES, PATHS, derivatives, random_cells
from scfmlip_kernels import cell_inverse
from scfmlip_kernels.cell_inverse.reference import cell_inverse_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")


def both(inverse, volume):
    return torch.cat((inverse.flatten(1), volume[:, None]), 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 33])
@pytest.mark.parametrize("path", PATHS)
def test_values_and_derivatives(path, n, dtype, generator, device):
    cells = random_cells(n, generator)
    cells[: n // 2] *= -1  # left-handed
    given = cells.to("cpu" if path == "cpu" else device, dtype).requires_grad_()
    exact = given.detach().double().requires_grad_()
    for order in (1, 2):  # the kernel of the derivative, and formulas that are differentiated again
        value, want = both(*cell_inverse(given)), both(*cell_inverse_reference(exact))
        assert value.dtype == dtype
        got = [value[:, :9], value[:, 9], *derivatives(value, (given,), order)]
        wanted = [want[:, :9], want[:, 9], *derivatives(want, (exact,), order)]
        for a, b in zip(got, wanted, strict=True):
            assert_close(a, b, 1e-5 if dtype == torch.float32 else None)  # products of rounded products


def test_gradcheck(generator):
    cells = random_cells(2, generator).requires_grad_()
    assert torch.autograd.gradcheck(cell_inverse, (cells,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(cell_inverse, (cells,))


def test_opcheck(generator):
    torch.use_deterministic_algorithms(False)
    torch.library.opcheck(
        torch.ops.scfmlip.cell_inverse.default, (random_cells(2, generator).requires_grad_(),)
    )


def test_refuses():
    with pytest.raises(ValueError, match=r"cell must be \[n, 3, 3\]"):
        cell_inverse(torch.eye(3))
