"""
Small systems on a GPU: every system's matrix is in memory, and one kernel launch solves all of them.

The host never waits for the device in between, because it knows all sizes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scfmlip_kernels import charge_solve
from scfmlip_kernels.charge_solve.choice import one_launch_pays
from scfmlip_kernels.dispatch import runs_triton

from ...electrostatics.kspace import KSpace
from ..convergence import ROUNDING
from ..quadratic import Interaction, QuadraticProblem
from .conjugate_gradients import LinearResult, chemical_potential
from .preconditioners import atom_widths

# most elements of an array while matrices are built
_LARGEST_ARRAY = 1 << 27


def solves_small(problem: QuadraticProblem, like: Tensor, dim: int) -> bool:
    """Whether the kernel solves this batch, and it pays: charges only, one constraint per system, a GPU."""
    return (
        dim == 1
        and (not problem.constrained or problem.groups.whole)
        and runs_triton(like)
        and one_launch_pays(problem.plan.atom_ptr.diff(), like)
    )


class SmallSolver:
    """
    The matrices ``J + K`` of a batch, and solves with them.

    Args:
        problem: Sizes and constraint.
        interaction: K.
        hardness: ``[n_atoms, 1]``.
        apply: ``J + K``, applied to ``[n_atoms, n, 1]``.
        tolerance: Relative residual.
        max_iterations: Most iterations of one system.
    """

    def __init__(
        self,
        problem: QuadraticProblem,
        interaction: Interaction,
        hardness: Tensor,
        apply: Callable[[Tensor], Tensor],
        tolerance: float,
        max_iterations: int,
    ) -> None:
        self.problem, self.tolerance, self.max_iterations = problem, tolerance, max_iterations
        plan = problem.plan
        self.counts = plan.atom_ptr.diff()
        device, dtype = hardness.device, hardness.dtype
        width = int(self.counts.max())
        number = torch.arange(len(hardness), device=device) - plan.segments.ptr[plan.segments.index]
        geometry = interaction.geometry
        direct = isinstance(geometry.kspace, KSpace) and geometry.near is None
        if direct and problem.pairs is None and plan.open is None and not plan.corrected:
            padded = _crystal_matrices(problem, interaction, hardness, number, width)
            padded[plan.segments.index, number, number] += hardness[:, 0].double()
        else:
            units = torch.zeros((len(hardness), width, 1), dtype=dtype, device=device)
            units[torch.arange(len(hardness), device=device), number] = 1
            padded = hardness.new_zeros((problem.n_systems, width, width), dtype=torch.float64)
            padded[plan.segments.index, number] = apply(units)[..., 0].double()
            padded = 0.5 * (padded + padded.mT)
        # the used parts of the padded matrices, concatenated
        sizes = plan.segments.ptr.diff()
        squares = sizes**2
        total = int((self.counts**2).sum())
        first = torch.nn.functional.pad(squares.cumsum(0), (1, 0))
        self.starts = (plan.segments.ptr, first)
        element = torch.arange(total, device=device)
        system = torch.searchsorted(first[1:], element, right=True)
        local = element - first[system]
        size = sizes[system]
        self.matrices = padded[system, local // size, local % size].to(dtype)

    def solve(self, source: Tensor, totals: Tensor, initial: Tensor | None) -> LinearResult:
        """Arguments and result as in `conjugate_gradients`."""
        problem = self.problem
        # a uniform source moves no charge: start from evenly spread charges
        projected = problem.project(source)
        own, whole = (problem.segments.sum((v**2).sum(1)).sqrt() for v in (projected, source))
        moves = problem.segments.expand((own > ROUNDING[self.matrices.dtype] * whole).double())[:, None]
        given = torch.where(moves > 0, source, 0.0)
        start = None if initial is None else (moves * initial.double())[:, 0]
        found = charge_solve(
            self.matrices,
            given[:, 0],
            totals if problem.constrained else totals.new_zeros(problem.n_systems),
            problem.plan.atom_ptr,
            start,
            constrained=problem.constrained,
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
            starts=self.starts,
        )
        slope = found.slope[:, None] + (source - given)
        return LinearResult(
            found.state[:, None],
            chemical_potential(problem, slope),
            found.iterations,
            found.residual,
            found.status,
            slope,
        )


def _crystal_matrices(
    problem: QuadraticProblem, interaction: Interaction, like: Tensor, number: Tensor, width: int
) -> Tensor:
    """``[n_systems, width, width]`` float64 for crystals: sums over wave vectors as matrix products."""
    kspace, plan = interaction.geometry.kspace, problem.plan
    assert kspace is not None
    n_systems, device = problem.n_systems, like.device
    point = kspace.points.ptr
    place = torch.arange(len(kspace.coulomb), device=device) - point[kspace.grid.system.long()]
    first = kspace.grid.point_ptr  # on the CPU
    most = int((first[1:] - first[:-1]).max())
    miller = like.new_zeros((n_systems, most, 3), dtype=torch.float64)
    miller[kspace.grid.system.long(), place] = kspace.grid.miller.double()
    weight = like.new_zeros((n_systems, most), dtype=torch.float64)
    weight[kspace.grid.system.long(), place] = (2 * kspace.coulomb.detach()).sqrt()
    squared = torch.zeros_like(weight)
    squared[kspace.grid.system.long(), place] = kspace.k_squared.detach()
    frac = like.new_zeros((n_systems, width, 3), dtype=torch.float64)
    frac[plan.segments.index, number] = kspace.frac.detach()
    sigma = like.new_zeros((n_systems, width), dtype=torch.float64)
    sigma[plan.segments.index, number] = atom_widths(problem, like)
    step = max(1, _LARGEST_ARRAY // max(1, most * width))
    parts = []
    for begin in range(0, n_systems, step):
        part = slice(begin, begin + step)
        phase = 2 * torch.pi * miller[part] @ frac[part].mT
        decay = weight[part, :, None] * torch.exp(-0.5 * squared[part, :, None] * sigma[part, None] ** 2)
        cos, sin = decay * phase.cos(), decay * phase.sin()
        parts.append(cos.mT @ cos + sin.mT @ sin)
    return torch.cat(parts)
