"""
CPU path of the charge solve: one Cholesky factorisation per system, batched over systems of equal size.

With given sums, the matrix is projected on charges that sum to 0, and the direction that this removes gets
the mean diagonal. The result is positive definite exactly where the form has a minimum.
"""

import itertools
from collections import defaultdict

import torch
from torch import Tensor

from .kernel import CONVERGED, INDEFINITE, NOT_FINITE, STAGNATED


def charge_solve_cpu(
    matrices: Tensor, source: Tensor, totals: Tensor, atom_ptr: Tensor, tolerance: float, constrained: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Like `launch_charge_solve`, with 0 iterations; indefinite systems return their stationary point."""
    bounds = list(itertools.pairwise(atom_ptr.tolist()))
    begins = [0, *itertools.accumulate((last - first) ** 2 for first, last in bounds)]
    by_size: dict[int, list[int]] = defaultdict(list)
    for system, (first, last) in enumerate(bounds):
        by_size[last - first].append(system)
    state, slope = torch.empty_like(source), torch.empty_like(source)
    residual, status = torch.zeros_like(totals), totals.new_full(totals.shape, CONVERGED, dtype=torch.int64)
    for n, systems in by_size.items():
        if n == 0:
            continue
        matrix = torch.stack([matrices[begins[i] : begins[i] + n * n].view(n, n) for i in systems]).double()
        index = torch.tensor(systems, device=source.device)
        rows = torch.tensor([bounds[i][0] for i in systems], device=source.device)[:, None]
        rows = rows + torch.arange(n, device=source.device)
        found = _solve(matrix, source[rows], totals[index], tolerance, constrained)
        state[rows], slope[rows], residual[index], status[index] = found
    return state, slope, residual, torch.zeros_like(status), status


def _solve(
    matrix: Tensor, source: Tensor, totals: Tensor, tolerance: float, constrained: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``[systems, n]`` states and slopes, ``[systems]`` residuals and status; ``matrix [systems, n, n]``."""
    n = source.shape[1]

    def projected(v: Tensor) -> Tensor:
        return v - v.mean(1, keepdim=True) if constrained else v

    start, inner = torch.zeros_like(source), matrix
    if constrained:
        start += totals[:, None] / n
        columns, rows = matrix.mean(1, keepdim=True), matrix.mean(2, keepdim=True)
        own = matrix.diagonal(dim1=1, dim2=2).abs().mean(1)[:, None, None]
        inner = matrix - columns - rows + columns.mean(2, keepdim=True) + own / n
    right = -projected(source + (matrix @ start[..., None])[..., 0])
    factor, failed = torch.linalg.cholesky_ex(inner)
    step = torch.cholesky_solve(right[..., None], factor)[..., 0]
    if bool(failed.any()):
        bad = failed > 0
        step[bad] = torch.linalg.solve_ex(inner[bad], right[bad])[0]
    state = start + projected(step)
    slope = (matrix @ state[..., None])[..., 0] + source
    scale = projected(source).norm(dim=1)
    residual = projected(slope).norm(dim=1) / torch.where(scale > 0, scale, 1)
    status = torch.where(failed > 0, INDEFINITE, CONVERGED)
    status = torch.where((failed == 0) & ~(residual <= max(tolerance, 1e-9)), STAGNATED, status)
    return state, slope, residual, torch.where(torch.isfinite(residual), status, NOT_FINITE)
