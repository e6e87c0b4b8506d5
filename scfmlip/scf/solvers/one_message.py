"""
Conjugate gradients on ranks that share a system, with one message an iteration.

The recursion of `conjugate_gradients` needs three sums over atoms an iteration, one after another: the
product with A, the curvature, and the preconditioned gradient. Here all of them are sums of what is known
before the product, after Chronopoulos and Gear, J. Comput. Appl. Math. 25, 153 (1989):

* The product is taken of the preconditioned gradient y = M g, not of the direction p. Images of directions
  follow from those of the y as the directions do from the y.
* ``y.A y`` comes from the same sums as ``A y`` (`Interaction.product`), so that the curvature of
  ``p = -u + beta p'`` is ``u.A u - 2 beta u.A p' + beta^2 p'.A p'``.
* The constraint takes from y a multiple of M 1, and from its image a multiple of A M 1, which is known. The
  image's mean is ``A 1 . u``. Both numbers are sums of what is known before the product.

The norm of the gradient comes with the next product, which would be in vain after the last iteration. Where
the last two norms say that this one is the last, the norm is asked for alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..convergence import ROUNDING, judged
from ..quadratic import Interaction, QuadraticProblem
from .conjugate_gradients import FLOOR, LinearResult, scale_of
from .steps import Progress

Precondition = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Constraint:
    """
    What the given total charge asks for at one geometry; zeros at constant potential.

    Attributes:
        ones: ``[n_atoms, dim]`` 1 for charges.
        along: ``[n_atoms, dim]`` M 1.
        a_ones, a_along: ``[n_atoms, dim]`` A 1 and A M 1.
        count: Number of atoms.
        weight: ``1.M 1``.
        form: ``M 1.A M 1``.
        total: ``1.A M 1``.
    """

    ones: Tensor
    along: Tensor
    a_ones: Tensor
    a_along: Tensor
    count: float
    weight: float
    form: float
    total: float


@dataclass
class _Walk:
    """A point, its projected gradient and the mean that was taken off, and the direction that led there."""

    x: Tensor
    gradient: Tensor
    mean: float
    direction: Tensor
    image: Tensor
    image_mean: float = 0.0
    curvature: float = 0.0
    rz: float = 0.0


@dataclass
class _Run:
    """
    A solve on its way.

    Attributes:
        walk: Where it is.
        even: Where it would start at evenly spread charges, if it starts elsewhere.
        own, whole: Norms of the source, projected and not.
        count: Number of charges.
        tolerance, dtype, max_iterations: See `OneMessage.solve`.
        step: Iterations so far.
        charge: Sum of the charges at ``walk.x``.
        scale: Of residuals.
        residuals: Of all points so far.
        progress: None before the first residual.
    """

    walk: _Walk
    even: _Walk | None
    own: float
    whole: float
    count: float
    tolerance: float
    dtype: torch.dtype
    max_iterations: int
    step: int = 0
    charge: float = 0.0
    scale: float = 1.0
    residuals: list[float] = field(default_factory=list)
    progress: Progress | None = None

    @property
    def ended(self) -> bool:
        """Whether there is no next iteration."""
        if self.progress is None:
            return False
        return self.step == self.max_iterations or not bool(self.progress.active)

    def expects_end(self) -> bool:
        """Whether this point is probably the last one."""
        if self.step == self.max_iterations:
            return True
        if len(self.residuals) < 2:
            return False
        before, now = self.residuals[-2:]
        return now**2 <= self.tolerance * before

    def judge(self, square: float, charge: float) -> bool:
        """
        Whether the run goes on elsewhere than at this point, or not at all.

        Args:
            square: Of the gradient's norm.
            charge: Sum of the charges.
        """
        one, norm = self.walk.x.new_tensor, math.sqrt(square) if square >= 0 else math.nan
        if self.progress is None:
            if self.even is not None and not norm <= 10 * self.own:
                self.walk, self.even = self.even, None  # its rounding would remain
                return True
            first = norm if self.even is None else 0.0
            scale = scale_of(one([self.own]), one([self.whole]), one([first]), ROUNDING[self.dtype])
            self.scale = float(scale)
        self.charge = charge
        size = self.whole + math.sqrt(square + self.count * self.walk.mean**2) if square >= 0 else math.nan
        verdict = judged(one([norm]), one([self.scale]), one([size]), self.tolerance, self.dtype)
        if self.progress is None:
            self.progress = Progress(verdict, self.tolerance)
        else:
            self.progress.moved(verdict)
        self.residuals.append(norm / self.scale)
        return self.ended

    def move(self) -> None:
        """To the minimum along the direction, if there is one."""
        walk, progress = self.walk, self.progress
        assert progress is not None
        progress.met(walk.x.new_tensor([walk.curvature]))
        if not bool(progress.active):
            return
        length = walk.rz / walk.curvature
        walk.x = walk.x + length * walk.direction
        walk.gradient = walk.gradient + length * walk.image
        walk.mean += length * walk.image_mean
        progress.iterations += 1
        self.step += 1


class OneMessage:
    """
    The solver at one geometry, of one system that ranks share, with its charge given or at a potential.

    Args:
        problem: Sizes and constraint; its groups are whole systems.
        interaction: K at the geometry.
        hardness: ``[n_atoms, dim]``, the diagonal J.
        precondition: Symmetric positive approximation of the inverse of ``A = J + K``, of rows of this rank.
        dtype: dtype in which K is applied.

    Attributes:
        soft: Whether some hardness is not positive; known after the first solve.
    """

    def __init__(
        self,
        problem: QuadraticProblem,
        interaction: Interaction,
        hardness: Tensor,
        precondition: Precondition,
        dtype: torch.dtype,
    ) -> None:
        self.problem, self.interaction, self.precondition = problem, interaction, precondition
        self.hardness, self.dtype = hardness, dtype
        self._constraint: Constraint | None = None
        self.soft = False

    def _product(self, states: Tensor, *parts: Tensor) -> tuple[Tensor, list[float], list[float]]:
        """``A s`` and ``s.A s`` of ``states [n_atoms, c, dim]``, and sums of ``parts [n]`` over ranks."""
        given, hardness = states.to(self.dtype), self.hardness[:, None]
        own = (hardness * given * given).double().sum(2)
        own = self.problem.segments.own_sum(own)[0]
        image, forms, (sums,) = self.interaction.product(given, torch.cat((own, *parts)))
        image = (hardness * given + image).double()
        numbers = torch.cat((forms[0].double(), sums)).tolist()
        n = states.shape[1]
        return image, [a + b for a, b in zip(numbers[:n], numbers[n:], strict=False)], numbers[2 * n :]

    def _parts(self, *pairs: tuple[Tensor, Tensor]) -> Tensor:
        """``[n]`` dot products of this rank's rows."""
        left, right = (torch.stack(rows, 1) for rows in zip(*pairs, strict=True))
        return (left * right).sum((0, 2))

    def _sum(self, *pairs: tuple[Tensor, Tensor]) -> list[float]:
        """Dot products over all ranks."""
        return self.problem.segments.combine(self._parts(*pairs)).tolist()

    def _start(
        self, source: Tensor, totals: Tensor, initial: Tensor | None
    ) -> tuple[_Walk, _Walk | None, float, float]:
        """The first point, the one of evenly spread charges if it is another, and the source's norms."""
        problem, constrained = self.problem, self.problem.constrained
        guess = torch.zeros_like(source) if initial is None else initial.double()
        ones = torch.zeros_like(source)
        ones[:, 0] = float(constrained)
        count = float(problem.groups.segments.counts) if constrained else 1.0
        known = self._constraint
        along = self.precondition(ones) if known is None else known.along
        soft = (self.hardness <= 0).double()
        charge, supply, whole, weight, flat = self._sum(
            (ones, guess), (ones, source), (source, source), (ones, along), (soft, soft)
        )
        self.soft = flat > 0
        level = float(totals[0]) / count if constrained else 0.0
        state = guess + (level - charge / count) * ones
        projected = source - supply / count * ones
        parts = self._parts((state - level * ones, state - level * ones), (projected, projected))
        states = torch.stack((state, along, ones)[: 3 if known is None and constrained else 1], 1)
        image, forms, (far, own) = self._product(states, parts)
        slope = source + image[:, 0]
        if known is None:
            zeros = torch.zeros_like(source)
            a_along, a_ones = image[:, 1:].unbind(1) if constrained else (zeros, zeros)
            known = Constraint(ones, along, a_ones, a_along, count, weight or 1.0, sum(forms[1:2]), 0.0)
        total, total_ones, total_along = self._sum((ones, slope), (ones, known.a_ones), (ones, known.a_along))
        self._constraint = replace(known, total=total_along)

        def at(x: Tensor, slope: Tensor, mean: float) -> _Walk:
            zeros = torch.zeros_like(x)
            return _Walk(x, slope - mean * ones, mean, zeros, zeros)

        even = None
        if far > 0:  # A at evenly spread charges is known from A 1
            mean = (supply + level * total_ones) / count
            even = at(level * ones, source + level * known.a_ones, mean)
        return at(state, slope, total / count), even, own**0.5, whole**0.5

    def _turn(self, walk: _Walk, sums: list[float], form: float, y: Tensor, image: Tensor) -> None:
        """Turn to the next direction; numbers in the order in which `solve` asks for them."""
        known = self._constraint
        assert known is not None
        yg, excess, overlap, mean, middle, old, across = sums
        excess /= known.weight
        u, image = y - excess * known.along, image - excess * known.a_along
        rz = yg - excess * overlap
        form = form - 2 * excess * middle + excess**2 * known.form
        old = old - excess * across
        level = (mean - excess * known.total) / known.count
        beta = rz / walk.rz if walk.rz != 0 else 0.0
        walk.direction = beta * walk.direction - u
        walk.image = beta * walk.image - (image - level * known.ones)
        walk.image_mean = beta * walk.image_mean - level
        walk.curvature = form - 2 * beta * old + beta**2 * walk.curvature
        walk.rz = rz

    def solve(
        self, source: Tensor, totals: Tensor, initial: Tensor | None, tolerance: float, max_iterations: int
    ) -> LinearResult:
        """Minimise ``source.s + 1/2 s.A s`` at the given total; as `conjugate_gradients`."""
        start, even, own, whole = self._start(source, totals, initial)
        known = self._constraint
        assert known is not None
        tolerance = max(tolerance, FLOOR[self.dtype])
        run = _Run(start, even, own, whole, known.count, tolerance, self.dtype, max_iterations)
        while not run.ended:
            walk = run.walk
            where = ((walk.gradient, walk.gradient), (known.ones, walk.x))
            expected = run.expects_end()
            if expected and run.judge(*self._sum(*where)):
                continue
            g, p, y = walk.gradient, walk.image, self.precondition(walk.gradient)
            pairs = ((y, g), (known.ones, y), (known.along, g), (known.a_ones, y), (known.a_along, y))
            parts = self._parts(*where, *pairs, (y, p), (known.along, p))
            image, (form,), (square, charge, *sums) = self._product(y[:, None], parts)
            if not expected and run.judge(square, charge):
                continue
            self._turn(walk, sums, form, y, image[:, 0])
            run.move()
        return self._result(run, totals)

    def _result(self, run: _Run, totals: Tensor) -> LinearResult:
        walk, progress, known = run.walk, run.progress, self._constraint
        assert progress is not None and known is not None
        missing = float(totals[0]) - run.charge if self.problem.constrained else 0.0
        return LinearResult(
            walk.x + missing / known.count * known.ones,
            walk.x.new_tensor([walk.mean]),
            progress.iterations,
            progress.verdict.residual,
            progress.given_up(),
            walk.gradient + walk.mean * known.ones,
        )
