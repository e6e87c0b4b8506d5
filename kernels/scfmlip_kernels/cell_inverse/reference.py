"""Plain PyTorch definition; the tests' source of truth."""

from torch import Tensor, linalg


def cell_inverse_reference(cell: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse and determinant of ``[n, 3, 3]``."""
    return linalg.inv(cell), linalg.det(cell)
