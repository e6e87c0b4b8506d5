"""Pseudo-inverses of small matrices: both paths against PyTorch's, and Moore and Penrose's conditions."""

import pytest
import torch
from tolerances import assert_close

from kernels.problems import PATHS
from scfmlip_kernels import pseudo_inverse
from scfmlip_kernels.pseudo_inverse.reference import pseudo_inverse_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64
SHAPES = [(1, 2, 1), (3, 1, 1), (2, 4, 3), (2, 3, 5), (1, 9, 8), (2, 17, 16), (1, 24, 23)]


def singular(shape, generator):
    """Matrices whose singular values are 1, 0.1, 0.01, ... and, for the last one, rounding."""
    n, m, k = shape
    left, right = (torch.linalg.qr(torch.randn(n, i, i, generator=generator, dtype=F64))[0] for i in (m, k))
    few = min(m, k)
    values = 10.0 ** -torch.arange(few, dtype=F64).clamp(max=5)
    if few > 1:
        values[-1] = 1e-15
    return left[:, :, :few] * values @ right[:, :few]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", PATHS)
def test_values(path, shape, generator, device):
    where = "cpu" if path == "cpu" else device
    matrix = torch.randn(shape, generator=generator, dtype=F64)
    assert_close(pseudo_inverse(matrix.to(where), 1e-13), pseudo_inverse_reference(matrix, 1e-13), 1e-10)
    # what is rounding is not inverted
    matrix = singular(shape, generator)
    got, want = pseudo_inverse(matrix.to(where), 1e-8), pseudo_inverse_reference(matrix, 1e-8)
    assert_close(got, want, 1e-9)


@pytest.mark.parametrize("path", PATHS)
def test_conditions(path, generator, device):
    """Moore and Penrose, of matrices of every rank."""
    where = "cpu" if path == "cpu" else device
    full = torch.randn(4, 6, 5, generator=generator, dtype=F64)
    low = full[:, :, :2] @ torch.randn(4, 2, 5, generator=generator, dtype=F64)
    equal = torch.eye(6, 5, dtype=F64).expand(4, 6, 5)
    for matrix in (full, low, equal, torch.zeros_like(full), 1e150 * full, 1e-150 * low):
        inverse = pseudo_inverse(matrix.to(where), 1e-10).cpu()
        scale = matrix.abs().amax().clamp(min=1e-300)
        a, b = matrix / scale, inverse * scale
        assert torch.isfinite(b).all()
        for got, want in ((a @ b @ a, a), (b @ a @ b, b), ((a @ b).mT, a @ b), ((b @ a).mT, b @ a)):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("path", PATHS)
def test_hessenberg_matrices(path, generator, device):
    """Of Krylov spaces: one row more than columns, zeros below the first subdiagonal, and unused systems."""
    where = "cpu" if path == "cpu" else device
    matrix = torch.randn(3, 8, 7, generator=generator, dtype=F64).triu(-1)
    matrix[1, :, 4:] = 0
    matrix[2] = 0
    assert_close(pseudo_inverse(matrix.to(where), 1e-13), pseudo_inverse_reference(matrix, 1e-13), 1e-10)


def test_sizes_beyond_one_program(generator):
    matrix = torch.randn(1, 70, 3, generator=generator, dtype=F64)
    assert_close(pseudo_inverse(matrix, 1e-13), pseudo_inverse_reference(matrix, 1e-13), 1e-12)
    assert pseudo_inverse(matrix[:, :, :0], 1e-13).shape == (1, 0, 70)
    assert pseudo_inverse(matrix[:0], 1e-13).shape == (0, 3, 70)


def test_bad_input():
    with pytest.raises(TypeError, match=r"matrix must be float64.*matrix\.double\(\)"):
        pseudo_inverse(torch.eye(2)[None], 1e-10)
    with pytest.raises(ValueError, match="matrix"):
        pseudo_inverse(torch.eye(2, dtype=F64), 1e-10)
    with pytest.raises(NotImplementedError, match="no derivatives"):
        pseudo_inverse(torch.eye(2, dtype=F64)[None].requires_grad_(), 1e-10)
