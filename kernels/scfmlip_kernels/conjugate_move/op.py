"""Operator registration: dispatch, fake tensors, public functions."""

from typing import Any

import torch
from torch import Tensor

from ..checks import check_shape, check_tensors, readable
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from .kernel import launch_conjugate_move, launch_conjugate_turn
from .layout import Met, Progress, Scales
from .reference import conjugate_move_reference, conjugate_turn_reference


@operator("scfmlip::conjugate_move")
def _conjugate_move(
    direction: Tensor,
    image: Tensor,
    point: Tensor,
    slope: Tensor,
    gradient: Tensor,
    ones: Tensor,
    ptr: Tensor,
    progress: Tensor,
    scales: Tensor,
    constrained: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    tensors = (direction, image, point, slope, gradient, ones, ptr, progress, scales)
    run = launch_conjugate_move if runs_triton(point) else conjugate_move_reference
    return run(*(t.contiguous() for t in tensors), constrained, keep)  # type: ignore[call-arg]


@_conjugate_move.register_fake
def _(direction, image, point, slope, gradient, ones, ptr, progress, scales, constrained, keep):
    kept = point.new_empty((2, point.shape[0] if keep else 0))
    met = progress.new_empty((len(Met._fields), progress.shape[1]))
    return *(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (point,) * 3), met, kept


vmap_by_loop(_conjugate_move, "conjugate_move")


@operator("scfmlip::conjugate_turn")
def _conjugate_turn(
    preconditioned: Tensor,
    gradient: Tensor,
    slope: Tensor,
    direction: Tensor,
    ones: Tensor,
    along: Tensor,
    ptr: Tensor,
    progress: Tensor,
    met: Tensor,
    scales: Tensor,
    constrained: bool,
) -> tuple[Tensor, Tensor]:
    tensors = (preconditioned, gradient, slope, direction, ones, along, ptr, progress, met, scales)
    run = launch_conjugate_turn if runs_triton(direction) else conjugate_turn_reference
    return run(*(t.contiguous() for t in tensors), constrained)  # type: ignore[call-arg]


@_conjugate_turn.register_fake
def _(preconditioned, gradient, slope, direction, ones, along, ptr, progress, met, scales, constrained):
    both = (direction, progress)
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in both)


vmap_by_loop(_conjugate_turn, "conjugate_turn")


def _check(op: str, ptr: Tensor, rows: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    check_tensors(op, ptr=ptr, **rows, **{name: tensor for name, (tensor, _) in numbers.items()})
    n_rows = len(next(iter(rows.values())))
    if ptr.dtype != torch.int64 or ptr.ndim != 1 or not len(ptr):
        raise TypeError(f"{op}: ptr must be int64 [n_systems + 1], got {ptr.dtype} {list(ptr.shape)}")
    if readable(ptr) and (int(ptr[0]) != 0 or int(ptr[-1]) != n_rows or bool((ptr.diff() < 0).any())):
        raise ValueError(
            f"{op}: ptr must rise from 0 to {n_rows}, the number of rows, got {ptr.tolist()[:20]}"
        )
    for name, tensor in rows.items():
        check_shape(op, name, tensor, (n_rows,))
    for name, (tensor, kind) in numbers.items():
        check_shape(op, name, tensor, (len(kind._fields), len(ptr) - 1))
    for name, tensor in (*rows.items(), *((name, tensor) for name, (tensor, _) in numbers.items())):
        if tensor.dtype != torch.float64:
            raise TypeError(f"{op}: {name} must be float64, got {tensor.dtype}: call {name}.double()")


def conjugate_move(
    direction: Tensor,
    image: Tensor,
    point: Tensor,
    slope: Tensor,
    gradient: Tensor,
    ones: Tensor,
    ptr: Tensor,
    progress: Tensor,
    scales: Tensor,
    constrained: bool = True,
    keep: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """
    The first half of a step of conjugate gradients: to the minimum along the direction, system by system.

    Systems stop independently: where the curvature is not positive, or not finite, the status says so, and
    nothing moves. Two launches on a GPU, which needs no look of its host. Hestenes and Stiefel, J. Res. NBS
    49, 409 (1952); with the constraint, Gould, Hribar and Nocedal, SIAM J. Sci. Comput. 23, 1376 (2001).

    Args:
        direction: ``[n_rows]`` float64 direction p.
        image: ``[n_rows]`` float64 ``A p``.
        point: ``[n_rows]`` float64.
        slope: ``[n_rows]`` float64 ``A x + b`` at the point x.
        gradient: ``[n_rows]`` float64 projection of the slope on allowed directions.
        ones: ``[n_rows]`` float64, 1 for charges and 0 for other numbers; not read without a constraint.
        ptr: ``[n_systems + 1]`` int64 first row of each system.
        progress: ``[8, n_systems]`` float64, see `scfmlip_kernels.conjugate_move.layout.Progress`.
        scales: ``[9, n_systems]`` float64, see `scfmlip_kernels.conjugate_move.layout.Scales`.
        constrained: Whether allowed directions leave a system's total charge as it is.
        keep: Return the direction and its image, scaled to a curvature of 1.

    Returns:
        Point, slope and gradient, each ``[n_rows]``; ``[3, n_systems]`` what was met, see
        `scfmlip_kernels.conjugate_move.layout.Met`; ``[2, n_rows]`` direction and projected image with
        a curvature of 1, zeros where nothing moved, or ``[2, 0]``. There are no derivatives.

    Raises:
        TypeError: for dtypes other than these.
        ValueError: for shapes that do not match, or tensors on different devices.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import conjugate_move, conjugate_turn
        >>> a, b = torch.tensor([1.0, 4.0]).double(), torch.tensor([-1.0, -8.0]).double()
        >>> ptr, zeros = torch.tensor([0, 2]), torch.zeros(2).double()
        >>> progress = torch.tensor([[65.0], [1.0], [0.0], [0.0], [1.0], [0.0], [1.0], [0.0]]).double()
        >>> scales = torch.tensor([[8.0], [8.0], [2.0], [1.0], [1e-12], [1e-14], [1e-9], [25], [0]]).double()
        >>> x, slope, p = zeros, b, -b
        >>> for _ in range(2):
        ...     x, slope, g, met, _ = conjugate_move(
        ...         p, a * p, x, slope, slope, zeros, ptr, progress, scales, constrained=False
        ...     )
        ...     p, progress = conjugate_turn(
        ...         g, g, slope, p, zeros, zeros, ptr, progress, met, scales, constrained=False
        ...     )
        >>> [round(number, 12) for number in x.tolist()]
        [1.0, 2.0]
        >>> progress[6:].flatten().tolist()  # converged, after two iterations
        [0.0, 2.0]
    """
    rows = {
        "direction": direction,
        "image": image,
        "point": point,
        "slope": slope,
        "gradient": gradient,
        "ones": ones,
    }
    numbers = {"progress": (progress, Progress), "scales": (scales, Scales)}
    _check("conjugate_move", ptr, rows, numbers)
    return torch.ops.scfmlip.conjugate_move(*rows.values(), ptr, progress, scales, constrained, keep)


def conjugate_turn(
    preconditioned: Tensor,
    gradient: Tensor,
    slope: Tensor,
    direction: Tensor,
    ones: Tensor,
    along: Tensor,
    ptr: Tensor,
    progress: Tensor,
    met: Tensor,
    scales: Tensor,
    constrained: bool = True,
) -> tuple[Tensor, Tensor]:
    """
    The second half of a step of conjugate gradients: judge the new point, and turn to the next direction.

    A system converges where its residual is at most the tolerance. It stagnates where iterations found no
    smaller residual for too long, unless the last one is rounding that is excused. Two launches on a GPU.

    Args:
        preconditioned: ``[n_rows]`` float64 ``M g`` of the gradient g, M symmetric and positive.
        gradient: ``[n_rows]`` float64, of `conjugate_move`.
        slope: ``[n_rows]`` float64, of `conjugate_move`.
        direction: ``[n_rows]`` float64 the direction of that move.
        ones: ``[n_rows]`` float64, as there.
        along: ``[n_rows]`` float64 ``M`` applied to ``ones``; not read without a constraint.
        ptr: ``[n_systems + 1]`` int64 first row of each system.
        progress: ``[8, n_systems]`` float64 before the move.
        met: ``[3, n_systems]`` float64, of `conjugate_move`.
        scales: ``[9, n_systems]`` float64, as there.
        constrained: As there.

    Returns:
        The next direction ``[n_rows]``, and the progress after the step ``[8, n_systems]``. There are no
        derivatives.

    Raises:
        TypeError: for dtypes other than these.
        ValueError: for shapes that do not match, or tensors on different devices.

    Example:
        The first direction, from the gradient at the first point; a whole solve stands at `conjugate_move`.

        >>> import torch
        >>> from scfmlip_kernels import conjugate_turn
        >>> g, zeros, ptr = torch.tensor([-1.0, -8.0]).double(), torch.zeros(2).double(), torch.tensor([0, 2])
        >>> progress = torch.tensor([[0.0], [1.0], [0.0], [0.0], [1.0], [0.0], [1.0], [0.0]]).double()
        >>> scales = torch.tensor([[8.0], [8.0], [2.0], [1.0], [1e-12], [1e-14], [1e-9], [25], [0]]).double()
        >>> met = torch.tensor([[1.0], [1.0], [1.0]]).double()  # goes on, moved, curvature
        >>> rows = (g, g, g, zeros, zeros, zeros)
        >>> conjugate_turn(*rows, ptr, progress, met, scales, constrained=False)[0].tolist()
        [1.0, 8.0]
    """
    rows = {
        "preconditioned": preconditioned,
        "gradient": gradient,
        "slope": slope,
        "direction": direction,
        "ones": ones,
        "along": along,
    }
    numbers = {"progress": (progress, Progress), "met": (met, Met), "scales": (scales, Scales)}
    _check("conjugate_turn", ptr, rows, numbers)
    return torch.ops.scfmlip.conjugate_turn(*rows.values(), ptr, progress, met, scales, constrained)
