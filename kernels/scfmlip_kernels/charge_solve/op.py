"""Operator registration: dispatch, fake tensors, public function."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import FLOATS, check_index, check_pointers, check_shape, check_tensors
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from .cpu import charge_solve_cpu
from .kernel import MAX_ATOMS, launch_charge_solve


class ChargeSolve(NamedTuple):
    """
    The minimum of each system's quadratic form.

    Attributes:
        state: ``[n_atoms]`` float64.
        slope: ``[n_atoms]`` float64, ``A s + b``: equal to the Lagrange multiplier at every atom, up to the
            residual.
        residual: ``[n_systems]`` float64, norm of the projected slope relative to that of b.
        iterations: ``[n_systems]`` int64; 0 on a CPU, where systems are factorised.
        status: ``[n_systems]`` int64: 0 converged, 1 too few iterations, 2 not positive definite, 3 not
            finite, 4 stagnated.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import charge_solve
        >>> matrix = torch.tensor([[10.0, 0.0], [0.0, 14.0]], dtype=torch.float64)
        >>> chi = torch.tensor([3.0, -3.0], dtype=torch.float64)
        >>> total = torch.zeros(1, dtype=torch.float64)
        >>> solve = charge_solve(matrix.flatten(), chi, total, torch.tensor([0, 2]))
        >>> solve.status  # 0: converged
        tensor([0])
        >>> solve.slope  # equal on both atoms: electronegativity equalisation
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    state: Tensor
    slope: Tensor
    residual: Tensor
    iterations: Tensor
    status: Tensor


@operator("scfmlip::charge_solve")
def _charge_solve(
    matrices: Tensor,
    source: Tensor,
    totals: Tensor,
    atom_ptr: Tensor,
    initial: Tensor,
    tolerance: float,
    max_iterations: int,
    constrained: bool,
    first_atoms: Tensor | None = None,
    first_elements: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    matrices, source, totals = matrices.contiguous(), source.contiguous(), totals.contiguous()
    if runs_triton(matrices):
        start = initial.contiguous()
        options = (tolerance, max_iterations, constrained, first_atoms, first_elements)
        return launch_charge_solve(matrices, source, totals, atom_ptr, start, *options)
    return charge_solve_cpu(matrices, source, totals, atom_ptr, tolerance, constrained)


@_charge_solve.register_fake
def _(
    matrices,
    source,
    totals,
    atom_ptr,
    initial,
    tolerance,
    max_iterations,
    constrained,
    first_atoms=None,
    first_elements=None,
):
    counts = totals.new_empty(totals.shape, dtype=torch.int64)
    return (
        source.new_empty(source.shape),
        source.new_empty(source.shape),
        totals.new_empty(totals.shape),
        counts,
        counts.new_empty(counts.shape),
    )


vmap_by_loop(_charge_solve, "charge_solve")


def charge_solve(
    matrices: Tensor,
    source: Tensor,
    totals: Tensor,
    atom_ptr: Tensor,
    initial: Tensor | None = None,
    *,
    constrained: bool = True,
    tolerance: float = 1e-6,
    max_iterations: int = 500,
    starts: tuple[Tensor, Tensor] | None = None,
) -> ChargeSolve:
    """
    Minimise ``b.s + 1/2 s.A s`` with ``sum s = Q`` for many small systems in one launch.

    A GPU uses conjugate gradients, for systems of at most 2048 atoms; a CPU factorises. The operator has no
    derivatives: the adjoint is the same solve, see `scfmlip.charge_equilibration`.

    Args:
        matrices: ``[sum n^2]`` float32 or float64, row after row, system after system. Symmetric, and
            positive definite on vectors that sum to 0.
        source: ``[n_atoms]`` float64, b.
        totals: ``[n_systems]`` float64, Q; unused without the constraint.
        atom_ptr: ``[n_systems + 1]`` int64 on the CPU, first atom of each system.
        initial: ``[n_atoms]`` float64 first guess; zeros if None.
        constrained: Whether the sums are fixed to ``totals``.
        tolerance: Largest residual; at least 2e-6 for float32, 1e-14 for float64.
        max_iterations: Most iterations of one system.
        starts: ``[n_systems + 1]`` int64 each, on the device of the matrices: the first atom of each system,
            and its first element. Without them a GPU's host waits the first time that it sees such an
            ``atom_ptr``.

    Returns:
        The minima, and how each solve ended.

    Raises:
        TypeError: for another dtype.
        ValueError: for shapes that do not match, or a system that is too large.
        NotImplementedError: if a gradient is requested.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import charge_solve
        >>> matrix = torch.tensor([[16.0, 5.0], [5.0, 18.0]], dtype=torch.float64)  # hardness + Coulomb, V/e
        >>> chi = torch.tensor([2.0, -2.0], dtype=torch.float64)  # electronegativities, V
        >>> total = torch.zeros(1, dtype=torch.float64)
        >>> solve = charge_solve(matrix.flatten(), chi, total, torch.tensor([0, 2]))
        >>> solve.state  # e
        tensor([-0.1667,  0.1667], dtype=torch.float64)
    """
    check_tensors("charge_solve", matrices=matrices, source=source, totals=totals)
    if matrices.dtype not in FLOATS:
        raise TypeError(f"charge_solve: matrices must be float32 or float64, got {matrices.dtype}")
    check_shape("charge_solve", "source", source, ("n_atoms",))
    check_pointers("charge_solve", "atom_ptr", atom_ptr, len(source), "atoms")
    initial = torch.zeros_like(source) if initial is None else initial
    check_tensors("charge_solve", source=source, initial=initial)
    counts = atom_ptr.diff()
    shapes = {"matrices": int((counts**2).sum()), "totals": len(counts), "initial": len(source)}
    for name, value in (("source", source), ("totals", totals), ("initial", initial)):
        if value.dtype != torch.float64:
            raise TypeError(f"charge_solve: {name} must be float64, got {value.dtype}: convert it")
    for name, value in (("matrices", matrices), ("totals", totals), ("initial", initial)):
        check_shape("charge_solve", name, value, (shapes[name],))
    if len(counts) and int(counts.max()) > MAX_ATOMS:
        raise ValueError(
            f"charge_solve: the largest system has {int(counts.max())} atoms, at most {MAX_ATOMS} fit"
        )
    if not (tolerance >= 0 and max_iterations >= 0):
        raise ValueError(
            f"charge_solve: tolerance and max_iterations must be 0 or more, got {tolerance!r} and "
            f"{max_iterations!r}"
        )
    if torch.is_grad_enabled() and any(t.requires_grad for t in (matrices, source, totals, initial)):
        raise NotImplementedError(
            "charge_solve has no derivatives: call it under torch.no_grad(), and once more for the adjoint"
        )
    for name, value in zip(("first atoms", "first elements"), starts or (), strict=False):
        check_tensors("charge_solve", matrices=matrices, starts=value)
        check_index("charge_solve", f"starts, {name}", value, max(shapes.values()) + 1, "numbers")
        check_shape("charge_solve", f"starts, {name}", value, (len(atom_ptr),))
    floor = 2e-6 if matrices.dtype == torch.float32 else 1e-14
    solved = torch.ops.scfmlip.charge_solve(
        matrices,
        source,
        totals,
        atom_ptr,
        initial,
        max(tolerance, floor),
        max_iterations,
        constrained,
        *(starts or ()),
    )
    return ChargeSolve(*solved)
