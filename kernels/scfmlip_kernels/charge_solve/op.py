"""Operator registration: dispatch, fake tensors, public function."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..dispatch import runs_triton
from .kernel import MAX_ATOMS, launch_charge_solve
from .reference import charge_solve_reference


class ChargeSolve(NamedTuple):
    """
    Minima of every system's quadratic form.

    Attributes:
        state: ``[n_atoms]`` float64.
        slope: ``[n_atoms]`` float64, ``A s + b`` there: the multiplier at every atom, but for the residual.
        residual: ``[n_systems]`` float64, norm of the projected slope relative to that of b.
        iterations: ``[n_systems]`` int64; 0 on a CPU, where systems are factorised.
        status: ``[n_systems]`` int64: 0 converged, 1 too few iterations, 2 not positive, 3 not finite, 4
            stagnated.
    """

    state: Tensor
    slope: Tensor
    residual: Tensor
    iterations: Tensor
    status: Tensor


@torch.library.custom_op("scfmlip::charge_solve", mutates_args=())
def _charge_solve(
    matrices: Tensor,
    source: Tensor,
    totals: Tensor,
    atom_ptr: Tensor,
    initial: Tensor,
    tolerance: float,
    max_iterations: int,
    constrained: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    matrices, source, totals = matrices.contiguous(), source.contiguous(), totals.contiguous()
    if runs_triton(matrices):
        start = initial.contiguous()
        return launch_charge_solve(
            matrices, source, totals, atom_ptr, start, tolerance, max_iterations, constrained
        )
    return _factorised(matrices, source, totals, atom_ptr, tolerance, constrained)


def _factorised(matrices, source, totals, atom_ptr, tolerance, constrained):
    """The CPU's way: whole systems at once."""
    state, slope = charge_solve_reference(matrices, source, totals, atom_ptr, constrained)
    n_systems = len(totals)
    index = torch.arange(n_systems, device=source.device).repeat_interleave(atom_ptr.diff().to(source.device))
    counts = atom_ptr.diff().clamp(min=1).to(source.device)

    def norm(v):
        if constrained:
            v = v - (v.new_zeros(n_systems).index_add(0, index, v) / counts)[index]
        return v.new_zeros(n_systems).index_add(0, index, v * v).sqrt()

    scale = norm(source)
    residual = norm(slope) / torch.where(scale > 0, scale, 1.0)
    # a stationary point below which the form falls further is no minimum
    definite, begin = [], 0
    for n in atom_ptr.diff().tolist():
        matrix = matrices[begin : begin + n * n].view(n, n).double()
        begin += n * n
        if constrained and n:
            shift = matrix.diagonal().abs().mean()
            matrix = matrix - matrix.mean(0) - matrix.mean(1)[:, None] + matrix.mean() + shift / n
        definite.append(int(torch.linalg.cholesky_ex(matrix).info) == 0)
    good = torch.tensor(definite, dtype=torch.bool, device=source.device).reshape(n_systems)
    status = torch.where(good, 0, 2)
    status = torch.where(good & ~(residual <= max(tolerance, 1e-9)), 4, status)
    status = torch.where(torch.isfinite(residual), status, 3)
    return state, slope, residual, torch.zeros_like(status), status


@_charge_solve.register_fake
def _(matrices, source, totals, atom_ptr, initial, tolerance, max_iterations, constrained):
    counts = totals.new_empty(totals.shape, dtype=torch.int64)
    return (
        source.new_empty(source.shape),
        source.new_empty(source.shape),
        totals.new_empty(totals.shape),
        counts,
        counts.new_empty(counts.shape),
    )


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
) -> ChargeSolve:
    """
    Minima of ``b.s + 1/2 s.A s`` with ``sum s = Q``, one small system after another, in one launch.

    By conjugate gradients on a GPU, systems of at most 1024 atoms; factorised on a CPU. Has no derivatives
    of its own: the adjoint is the same solve (`scfmlip.charge_equilibration`).

    Args:
        matrices: ``[sum n^2]`` float32 or float64, symmetric, positive where the sum is 0; row after row,
            system after system.
        source: ``[n_atoms]`` float64, b.
        totals: ``[n_systems]`` float64, Q; unused without the constraint.
        atom_ptr: ``[n_systems + 1]`` int64 on the CPU, first atom of each system.
        initial: ``[n_atoms]`` float64 first guess; zeros if None.
        constrained: Whether sums are given.
        tolerance: Of the residual; at least 2e-6 for float32, 1e-14 for float64.
        max_iterations: Of one system.

    Returns:
        The minima and how each solve ended.

    Raises:
        TypeError: for another dtype.
        ValueError: for shapes that do not fit, or a system that is too large.
        NotImplementedError: where a gradient is wanted.
    """
    if matrices.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"charge_solve: matrices must be float32 or float64, got {matrices.dtype}")
    initial = torch.zeros_like(source) if initial is None else initial
    for name, value in (("source", source), ("totals", totals), ("initial", initial)):
        if value.dtype != torch.float64:
            raise TypeError(f"charge_solve: {name} must be float64, got {value.dtype}")
    counts = atom_ptr.diff()
    if matrices.shape != (int((counts**2).sum()),):
        raise ValueError(
            f"charge_solve: matrices must be [{int((counts**2).sum())}], n^2 of every system, got "
            f"{list(matrices.shape)}"
        )
    if source.shape != (int(atom_ptr[-1]),) or initial.shape != source.shape:
        raise ValueError(
            f"charge_solve: source and initial must be [{int(atom_ptr[-1])}], got {list(source.shape)} and "
            f"{list(initial.shape)}"
        )
    if totals.shape != counts.shape:
        raise ValueError(f"charge_solve: totals must be {list(counts.shape)}, got {list(totals.shape)}")
    if len(counts) and int(counts.max()) > MAX_ATOMS:
        raise ValueError(
            f"charge_solve: the largest system has {int(counts.max())} atoms, at most {MAX_ATOMS} fit"
        )
    if torch.is_grad_enabled() and any(t.requires_grad for t in (matrices, source, totals)):
        raise NotImplementedError(
            "charge_solve has no derivatives: call it under torch.no_grad(), and the adjoint the same way"
        )
    floor = 2e-6 if matrices.dtype == torch.float32 else 1e-14
    solved = torch.ops.scfmlip.charge_solve(
        matrices, source, totals, atom_ptr, initial, max(tolerance, floor), max_iterations, constrained
    )
    return ChargeSolve(*solved)
