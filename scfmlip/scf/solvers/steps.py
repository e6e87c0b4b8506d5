"""
Steps of conjugate gradients, system by system until each has ended: in plain operations, or in four launches.

The launches are those beside the product with A and the preconditioner. In plain operations it is a hundred,
which on a GPU take longer than the product of a system of thousands of atoms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scfmlip_kernels import conjugate_move, conjugate_turn
from scfmlip_kernels.conjugate_move.layout import STUCK_BELOW
from scfmlip_kernels.conjugate_move.layout import Progress as Numbers
from scfmlip_kernels.dispatch import needs_kernel_tables

from ..convergence import Verdict, ended, given_up, strange
from ..solution import Status
from .recursion import ConjugateDirections

# iterations without a new smallest residual after which a system stops
PATIENCE = 25


class Progress:
    """
    How far the systems of a batch have come, and which of them continue.

    Attributes:
        verdict: Of each system's last point.
        status: ``[n_systems]`` int64, `Status.ITERATIONS` for those that continue.
        iterations: ``[n_systems]`` int64.

    Args:
        verdict: Of the first point.
        tolerance: Relative residual.
        status: As the attribute, where it is known.
        iterations: Likewise; zeros if None.
    """

    def __init__(
        self,
        verdict: Verdict,
        tolerance: float,
        status: Tensor | None = None,
        iterations: Tensor | None = None,
    ) -> None:
        self.verdict, self.tolerance = verdict, tolerance
        if status is None:
            status = torch.full_like(verdict.residual, int(Status.ITERATIONS), dtype=torch.int64)
            status = ended(status, verdict)
        self.status = status
        self.iterations = torch.zeros_like(status) if iterations is None else iterations
        self._best, self._since = verdict.residual, self.iterations

    @property
    def active(self) -> Tensor:
        """``[n_systems]`` bool."""
        return self.status == Status.ITERATIONS

    def met(self, curvature: Tensor) -> None:
        """End systems whose direction has no minimum."""
        status = torch.where(self.active & (curvature <= 0), int(Status.INDEFINITE), self.status)
        self.status = torch.where(self.active & strange(curvature), int(Status.NOT_FINITE), status)

    def moved(self, fresh: Verdict) -> None:
        """The verdict of new points of the active systems; end those that need no more."""
        active = self.active
        kept = (torch.where(active, new, old) for new, old in zip(fresh, self.verdict, strict=True))
        self.verdict = verdict = Verdict(*kept)
        better = verdict.residual < self._best
        self._since = torch.where(better, 0, self._since + 1)
        self._best = torch.where(better, verdict.residual, self._best)
        # accept rounding where the residual no longer improves
        reached = verdict.residual <= self.tolerance
        stuck = (self._since > PATIENCE) & ((self._best < STUCK_BELOW) | verdict.rounded)
        reached = verdict._replace(converged=reached | (stuck & verdict.converged))
        status = ended(self.status, reached)
        self.status = torch.where((status == Status.ITERATIONS) & stuck, int(Status.STAGNATED), status)

    def given_up(self) -> Tensor:
        """``[n_systems]`` the status at the end."""
        return given_up(ended(self.status, self.verdict), self.verdict)


class Limits(NamedTuple):
    """
    What residuals and curvatures are compared with; numbers, or ``[n_systems]`` float64.

    Attributes:
        scale: Of the gradient's norm.
        size: A part of the norm of the terms that cancel to the gradient; the slope's norm is added.
        tolerance: Largest residual, relative to the scale.
        rounding: Norm of the gradient that is rounding, relative to the terms that cancel to it.
        excused: Largest residual that passes because it is rounding.
        patience: Iterations without a new smallest residual after which a system may stop.
        flat: Curvature that is none, relative to the square of the direction's norm.
    """

    scale: Tensor | float
    size: Tensor | float
    tolerance: Tensor | float
    rounding: float = 0.0
    excused: float = 0.0
    patience: float = math.inf
    flat: float = 0.0


class PlainSteps:
    """
    Steps in plain operations.

    Args:
        walk: At its first point.
        judge: The verdict of a walk's point.
        tolerance: Relative residual.
    """

    def __init__(
        self,
        walk: ConjugateDirections,
        judge: Callable[[ConjugateDirections], Verdict],
        tolerance: float,
    ) -> None:
        self.walk, self.judge = walk, judge
        self.progress = Progress(judge(walk), tolerance)

    @property
    def active(self) -> Tensor:
        """``[n_systems]`` bool: which systems go on."""
        return self.progress.active

    @property
    def residual(self) -> Tensor:
        """``[n_systems]`` float64, relative."""
        return self.progress.verdict.residual

    def take(self) -> None:
        """One step of the systems that go on."""
        walk, progress = self.walk, self.progress
        walk.look()
        progress.met(walk.curvature)
        active = progress.active
        walk.move(active)
        progress.iterations = progress.iterations + active
        progress.moved(self.judge(walk))
        walk.turn(active)

    def finished(self) -> Progress:
        """How far it came; the walk is at its last point."""
        return self.progress


class LaunchedSteps:
    """
    Steps by `scfmlip_kernels.conjugate_move` and `scfmlip_kernels.conjugate_turn`.

    Attributes:
        numbers: ``[8, n_systems]`` see `scfmlip_kernels.conjugate_move.layout.Progress`.

    Args:
        walk: At its first point.
        verdict: Of that point.
        status: ``[n_systems]`` int64, `Status.ITERATIONS` for systems that go on.
        limits: What residuals and curvatures are compared with.
    """

    def __init__(self, walk: ConjugateDirections, verdict: Verdict, status: Tensor, limits: Limits) -> None:
        self.walk, given = walk, walk.given
        self.constrained = given is not None
        # not read without a constraint
        self._sums = (walk.x, walk.x) if given is None else (given.ones, given.along)
        charges, weight = (None, None) if given is None else (given.count, given.weight)
        one, none = torch.ones_like(verdict.residual), torch.zeros_like(verdict.residual)
        rows = (limits.scale, limits.size, charges, weight, limits.tolerance, *limits[3:])
        self.scales = torch.stack([_row(one if row is None else row, one) for row in rows])
        residual = verdict.residual
        start = (walk.rz, residual, verdict.converged, verdict.rounded, residual, none, status, none)
        self.numbers = torch.stack([row.double() for row in start])

    @staticmethod
    def fit(walk: ConjugateDirections) -> bool:
        """Whether there are kernels for this walk: on one process, without a projector of its own."""
        batch = walk.batch
        plain = walk.project is None and not batch.shared and batch.order is None
        return plain and needs_kernel_tables(walk.x.device)

    @property
    def now(self) -> Numbers:
        """``numbers`` by name."""
        return Numbers(*self.numbers)

    @property
    def active(self) -> Tensor:
        """``[n_systems]`` bool: which systems go on."""
        return self.now.status == int(Status.ITERATIONS)

    @property
    def residual(self) -> Tensor:
        """``[n_systems]`` float64, relative."""
        return self.now.residual

    def take(self) -> None:
        """One step of the systems that go on."""
        walk, ptr, (ones, along) = self.walk, self.walk.batch.ptr, self._sums
        fixed, keep = (self.scales, self.constrained), len(walk.directions) < walk.keep
        image = walk.apply(walk.direction)
        rows = (walk.direction, image, walk.x, walk.slope, walk.gradient, ones)
        walk.x, walk.slope, walk.gradient, met, kept = conjugate_move(*rows, ptr, self.numbers, *fixed, keep)
        if keep:
            walk.directions.append((kept[0], kept[1]))
        z = walk.precondition(walk.gradient)
        rows = (z, walk.gradient, walk.slope, walk.direction, ones, along)
        walk.direction, self.numbers = conjugate_turn(*rows, ptr, self.numbers, met, *fixed)

    def finished(self) -> Progress:
        """How far it came; the walk is at its last point."""
        now = self.now
        norm = now.residual * self.scales[0]
        verdict = Verdict(norm, now.residual, now.converged > 0, now.rounded > 0)
        return Progress(verdict, 0.0, now.status.long(), now.iterations.long())


def _row(values: Tensor | float, like: Tensor) -> Tensor:
    return values.double() if isinstance(values, Tensor) else values * like
