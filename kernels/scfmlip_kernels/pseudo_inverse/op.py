"""Operator registration: dispatch, fake tensors, public function."""

import torch
from torch import Tensor

from ..checks import check_shape, check_tensors
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from .kernel import MAX_SIZE, launch_pseudo_inverse


@operator("scfmlip::pseudo_inverse")
def _pseudo_inverse(matrix: Tensor, rtol: float) -> Tensor:
    matrix = matrix.contiguous()
    if not runs_triton(matrix) or max(matrix.shape[1:]) > MAX_SIZE or min(matrix.shape[1:]) == 0:
        return torch.linalg.pinv(matrix, rtol=rtol)
    return launch_pseudo_inverse(matrix, rtol)


@_pseudo_inverse.register_fake
def _(matrix, rtol):
    return matrix.new_empty((matrix.shape[0], matrix.shape[2], matrix.shape[1]))


vmap_by_loop(_pseudo_inverse, "pseudo_inverse")


def pseudo_inverse(matrix: Tensor, rtol: float) -> Tensor:
    """
    Pseudo-inverses of small matrices, without the look at convergence for which a GPU's host would wait.

    Up to 64 rows and columns a GPU takes one launch; larger ones, and those on a CPU, go to
    ``torch.linalg.pinv``.

    Args:
        matrix: ``[n, m, k]`` float64, finite, without a graph: there are no derivatives.
        rtol: Singular values up to this, relative to a matrix's largest, are not inverted.

    Returns:
        ``[n, k, m]`` float64.

    Raises:
        TypeError: for another dtype.
        NotImplementedError: for a matrix that requires gradients.
        ValueError: for another shape.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import pseudo_inverse
        >>> matrix = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)  # singular
        >>> pseudo_inverse(matrix, 1e-10).tolist()
        [[[0.5, 0.0], [0.0, 0.0]]]
    """
    check_tensors("pseudo_inverse", matrix=matrix)
    if matrix.dtype != torch.float64:
        raise TypeError(f"pseudo_inverse: matrix must be float64, got {matrix.dtype}: call matrix.double()")
    check_shape("pseudo_inverse", "matrix", matrix, ("n", "m", "k"))
    return torch.ops.scfmlip.pseudo_inverse(matrix, float(rtol))
