"""Operator registration: dispatch, fake tensors, public function."""

import torch
from torch import Tensor

from ..checks import check_index, check_shape, check_tensors
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from .kernel import MAX_NEIGHBOURS, launch_fsai_rows
from .reference import fsai_rows_reference


@operator("scfmlip::fsai_rows")
def _fsai_rows(
    vectors: Tensor, neighbours: Tensor, used: Tensor, widths: Tensor, diagonal: Tensor, coulomb: float
) -> Tensor:
    if not runs_triton(vectors) or neighbours.shape[1] > MAX_NEIGHBOURS:
        return fsai_rows_reference(vectors, neighbours, used, widths, diagonal, coulomb)
    tensors = (vectors, neighbours, used.to(torch.uint8), widths, diagonal)
    vectors, neighbours, used, widths, diagonal = (t.contiguous() for t in tensors)
    return launch_fsai_rows(vectors, neighbours, used, widths, diagonal, coulomb)


@_fsai_rows.register_fake
def _(vectors, neighbours, used, widths, diagonal, coulomb):
    return vectors.new_empty((neighbours.shape[0], neighbours.shape[1] + 1))


vmap_by_loop(_fsai_rows, "fsai_rows")


def fsai_rows(
    vectors: Tensor,
    neighbours: Tensor,
    used: Tensor,
    widths: Tensor,
    diagonal: Tensor,
    coulomb: float,
) -> Tensor:
    """
    Rows of a lower triangular G with ``G A G^T`` close to 1, for A of Gaussian charges in free space.

    A holds ``coulomb erf(r / (sqrt(2) gamma)) / r`` of two atoms at a distance r, with ``gamma^2`` the sum
    of their squared widths, and ``diagonal``. The row of an atom is the last column of the inverse of A among
    its neighbours and itself, over the root of its last number (Kolotilina and Yeremin, SIAM J. Matrix Anal.
    Appl. 14, 45 (1993)). Where A is not positive there, the row is that of the diagonal alone. One launch on
    a GPU, up to 63 neighbours; its host need not look.

    Args:
        vectors: ``[n, m, 3]`` float32 from an atom to its neighbours, angstrom.
        neighbours: ``[n, m]`` int64 their numbers, for a triangular G smaller than the atom's.
        used: ``[n, m]`` bool, which of them there are.
        widths: ``[n]`` float32 of the Gaussians, angstrom.
        diagonal: ``[n]`` float32 of A, eV/e^2.
        coulomb: Coulomb's constant, eV angstrom/e^2.

    Returns:
        ``[n, m + 1]`` float32: a number for each neighbour, 0 where there is none, and the atom's own. There
        are no derivatives.

    Raises:
        TypeError: for dtypes other than these.
        ValueError: for shapes that do not match, numbers of no atom, or tensors on different devices.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import fsai_rows
        >>> apart, ones = torch.tensor([[[0.0, 0.0, 0.0]], [[-3.0, 0.0, 0.0]]]), torch.ones(2)
        >>> used = torch.tensor([[False], [True]])  # the second atom knows the first
        >>> rows = fsai_rows(apart, torch.zeros(2, 1).long(), used, 0.1 * ones, 8 * ones, 14.4)
        >>> [[round(number, 3) for number in row] for row in rows.tolist()]
        [[0.0, 0.354], [-0.265, 0.442]]
    """
    name = "fsai_rows"
    tensors = {"vectors": vectors, "widths": widths, "diagonal": diagonal}
    check_tensors(name, neighbours=neighbours, used=used, **tensors)
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name}: {key} must be float32, got {tensor.dtype}: call {key}.float()")
    if used.dtype != torch.bool:
        raise TypeError(f"{name}: used must be bool, got {used.dtype}")
    check_shape(name, "neighbours", neighbours, ("n", "m"))
    n, m = neighbours.shape
    check_index(name, "neighbours", neighbours, n, "atoms")
    shapes = {"vectors": (n, m, 3), "widths": (n,), "diagonal": (n,), "used": (n, m)}
    for key, shape in shapes.items():
        check_shape(name, key, {**tensors, "used": used}[key], shape)
    return torch.ops.scfmlip.fsai_rows(vectors, neighbours, used, widths, diagonal, float(coulomb))
