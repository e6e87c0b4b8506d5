"""
Direct solution of small systems: one Cholesky factorisation each, with the batch padded to the largest.

The matrix comes from applying the operator to unit multipoles: column c of all systems at once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..convergence import ROUNDING
from ..quadratic import QuadraticProblem
from ..solution import Status
from .conjugate_gradients import LinearResult, scale_of

# residual of a factorisation, relative to the potentials that it balances
_EXACT = 1e-11


class DenseSolver:
    """
    The factors of ``A + c E E^T`` of every system.

    E holds one column per group of constrained charges. The shift changes nothing on the constraint, and
    makes a matrix that is positive on the constraint positive everywhere.

    Args:
        problem: Sizes and constraint.
        apply: A, applied to ``[n_atoms, n, dim]``.
        dim: Components of an atom's state.
        dtype: dtype in which ``apply`` computes.
        blocks: The matrices themselves, if they are known.
    """

    def __init__(
        self,
        problem: QuadraticProblem,
        apply: Callable[[Tensor], Tensor],
        dim: int,
        dtype: torch.dtype,
        blocks: list[Tensor] | None = None,
    ) -> None:
        self.problem = problem
        segments = problem.plan.segments
        index, ptr = segments.index, segments.ptr
        device, n_systems = index.device, problem.n_systems
        counts = problem.plan.atom_ptr.diff()
        width = int(counts.max()) * dim if len(counts) else 0
        local = (torch.arange(len(index), device=device) - ptr[index]) * dim
        self.index = index[:, None]
        self.rows = local[:, None] + torch.arange(dim, device=device)
        self.width = width

        matrix = torch.zeros((n_systems, width, width), dtype=torch.float64, device=device)
        if blocks is not None:
            for i, block in enumerate(blocks):
                matrix[i, : len(block), : len(block)] = block
        else:
            units = torch.zeros((len(index), width, dim), dtype=dtype, device=device)
            units.scatter_(1, self.rows[:, None, :], 1.0)
            matrix[self.index, self.rows] = apply(units).double().transpose(1, 2)
        padding = torch.ones((n_systems, width), dtype=torch.float64, device=device)
        padding[self.index, self.rows] = 0.0
        self.matrix = 0.5 * (matrix + matrix.mT)
        self.indicator = self._indicator(padding)
        # the matrix of a charged slab is very negative along the total charge
        total = (self.indicator.sum(2)[:, None] @ self.matrix @ self.indicator.sum(2)[..., None]).flatten()
        size = ptr.diff().clamp(min=1)
        shift = (self.matrix.diagonal(dim1=1, dim2=2).sum(1) / size).abs() + 10 * total.abs() / size**2
        shifted = self.matrix + torch.diag_embed(padding)
        shifted = shifted + shift[:, None, None] * self.indicator @ self.indicator.mT
        self.finite = torch.isfinite(shifted).flatten(1).all(1)
        eye = torch.eye(width, dtype=torch.float64, device=device)
        factor, info = torch.linalg.cholesky_ex(torch.where(self.finite[:, None, None], shifted, eye))
        self.definite = info == 0
        self.factor = torch.where(self.definite[:, None, None], factor, eye)
        if problem.constrained:
            self.response = torch.cholesky_solve(self.indicator, self.factor)
            capacity = self.indicator.mT @ self.response
            unused = 1.0 - self.indicator.amax(1) if width else capacity.new_ones(capacity.shape[:2])
            self.capacity = capacity + torch.diag_embed(unused)
        self.shift = shift

    def _indicator(self, like: Tensor) -> Tensor:
        """``[n_systems, width, most groups]``: 1 if a charge belongs to the system's n-th group."""
        problem, groups = self.problem, self.problem.groups
        if not problem.constrained:
            return like.new_zeros((*like.shape, 1))
        if groups.whole:  # one group for each system
            self.number = torch.zeros_like(groups.system)
            indicator = like.new_zeros((*like.shape, 1))
            indicator[self.index[:, 0], self.rows[:, 0]] = 1.0
            return indicator
        order = torch.argsort(groups.system, stable=True)
        sorted_system = groups.system[order]
        number = torch.empty_like(order)
        number[order] = torch.arange(len(order), device=order.device) - torch.searchsorted(
            sorted_system, sorted_system
        )
        self.number = number
        indicator = like.new_zeros((*like.shape, int(number.max()) + 1))
        indicator[self.index[:, 0], self.rows[:, 0], number[groups.segments.index]] = 1.0
        return indicator

    def solve(self, source: Tensor, totals: Tensor, tolerance: float) -> LinearResult:
        """Minimise ``source.s + 1/2 s.A s``; arguments as in `conjugate_gradients`."""
        problem, groups = self.problem, self.problem.groups
        right = source.new_zeros((problem.n_systems, self.width))
        right[self.index, self.rows] = -source
        state = torch.cholesky_solve(right[..., None], self.factor)
        multiplier = totals.new_zeros(groups.segments.n_segments)
        if problem.constrained:
            wanted = totals.new_zeros((problem.n_systems, self.indicator.shape[2]))
            wanted[groups.system, self.number] = totals
            missing = wanted[..., None] - self.indicator.mT @ state
            shifted = torch.linalg.solve_ex(self.capacity, missing)[0]
            state = state + self.response @ shifted
            multiplier = shifted[groups.system, self.number, 0] - self.shift[groups.system] * totals
        slope = gradient = self.matrix @ state - right[..., None]
        if problem.constrained:
            packed = multiplier.new_zeros((problem.n_systems, self.indicator.shape[2]))
            packed[groups.system, self.number] = multiplier
            gradient = gradient - self.indicator @ packed[..., None]
        state, slope = state[self.index, self.rows, 0], slope[self.index, self.rows, 0]
        projected, whole = (
            problem.segments.sum((v**2).sum(1)).sqrt() for v in (problem.project(source), source)
        )
        size = whole + problem.segments.sum((slope**2).sum(1)).sqrt()
        norm, nothing = gradient.flatten(1).norm(dim=1), torch.zeros_like(whole)
        residual = norm / scale_of(projected, whole, nothing, ROUNDING[torch.float64])
        exact = (residual <= tolerance) | (norm <= _EXACT * size)
        status = torch.where(exact, int(Status.CONVERGED), int(Status.STAGNATED))
        good = torch.isfinite(residual) & self.finite
        status = torch.where(self.definite, status, int(Status.INDEFINITE))
        status = torch.where(good, status, int(Status.NOT_FINITE))
        return LinearResult(
            problem.feasible(state, totals),
            multiplier,
            torch.zeros_like(status),
            residual,
            status,
            slope,
        )
