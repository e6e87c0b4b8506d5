"""The recursion of preconditioned conjugate gradients, independently for each system of a ragged batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...segments import Segments
from .gmres import Map


@dataclass(frozen=True)
class GivenSum:
    """
    The constraint that some numbers of every system, its charges, have a given sum.

    Attributes:
        ones: ``[n]`` float64, 1 for these numbers and 0 for others.
        count: ``[n_systems]`` their number.
        along: ``[n]`` M applied to ``ones``, of a symmetric positive preconditioner M.
        weight: ``[n_systems]`` ``ones . along``.
    """

    ones: Tensor
    count: Tensor
    along: Tensor
    weight: Tensor


class ConjugateDirections:
    """
    Minimise ``b.x + 1/2 x.A x`` along conjugate directions (Hestenes, Stiefel, J. Res. NBS 49, 409, 1952).

    One step consists of `look` along the direction, `move` for the systems that continue, and `turn` to the
    next direction. In between, the caller decides from the curvature and the gradient which systems continue.
    All vectors are ``[n]`` float64. A step takes two sums over atoms beside the products with A: each is a
    message where ranks share a system.

    Attributes:
        x: The minimum so far.
        slope: ``A x + b``.
        gradient: Projection of the slope on the allowed directions.
        direction: Direction of the next step.
        rz: ``[n_systems]`` gradient times preconditioned gradient, of that direction.
        directions: What `kept` is made of.
        curvature: ``[n_systems]`` ``p.A p`` of the direction p, set by `look`.
        length: ``[n_systems]`` norm of p, set by `look`.
        norms: ``[2, n_systems]`` norms of gradient and slope.

    Args:
        batch: The system of each number.
        apply: A, symmetric. It should be positive along the allowed directions; `curvature` shows if not.
        precondition: Symmetric positive approximation of A's inverse, with values in the allowed directions.
        x: Starting point.
        slope: ``A x + b`` at the starting point.
        project: Projector on the allowed directions; None if all are allowed.
        given: The constraint, instead of ``project`` and of values of ``precondition`` that satisfy it.
        inside: Whether the slope at the starting point is along the allowed directions.
        keep: How many directions to keep for a `ConjugateInverse`.

    Example:
        >>> import torch
        >>> from scfmlip.segments import Segments
        >>> a, b = torch.diag(torch.tensor([1.0, 4.0]).double()), torch.tensor([-1.0, -8.0]).double()
        >>> one = Segments.of(torch.zeros(2, dtype=torch.int64), 1)
        >>> walk = ConjugateDirections(one, lambda v: a @ v, lambda v: v, torch.zeros_like(b), b)
        >>> for _ in range(2):
        ...     walk.look()
        ...     walk.move(walk.curvature > 0)
        ...     walk.turn(walk.curvature > 0)
        >>> [round(x, 12) for x in walk.x.tolist()]
        [1.0, 2.0]
    """

    def __init__(
        self,
        batch: Segments,
        apply: Map,
        precondition: Map,
        x: Tensor,
        slope: Tensor,
        project: Map | None = None,
        given: GivenSum | None = None,
        keep: int = 0,
        inside: bool = False,
    ) -> None:
        self.keep = keep
        self.directions: list[tuple[Tensor, Tensor]] = []
        self.batch, self.apply, self.precondition = batch, apply, precondition
        self.project, self.given = project, given
        self.x, self.slope = x, slope
        if inside or given is None:
            self.gradient = slope if inside or project is None else project(slope)
        else:
            self.gradient = slope - self._even(batch.dot(given.ones, slope))
        z, self.rz = self._preconditioned()
        self.direction = -z

    def _even(self, total: Tensor) -> Tensor:
        """``[n]`` sums ``[n_systems]``, spread evenly."""
        assert self.given is not None
        return self.batch.expand(total / self.given.count) * self.given.ones

    def _preconditioned(self) -> tuple[Tensor, Tensor]:
        """The preconditioned gradient z, and its product with the gradient; sets `norms`."""
        g, s, given = self.gradient, self.slope, self.given
        z = self.precondition(g)
        if given is None:
            rz, gg, ss = self.batch.dot(torch.stack((g, g, s)), torch.stack((z, g, s)))
        else:
            rows = torch.stack((g, g, s, given.ones, given.along))
            rz, gg, ss, excess, overlap = self.batch.dot(rows, torch.stack((z, g, s, z, g)))
            excess = excess / given.weight
            # M 1 adds charge: what of it takes off the excess
            z = z - self.batch.expand(excess) * given.along
            rz = rz - excess * overlap
        self.norms = torch.stack((gg, ss)).sqrt()
        return z, rz

    def look(self) -> None:
        """One product with A: the curvature along the direction."""
        p = self.direction
        self._image = image = self.apply(p)
        if self.given is None:
            self.curvature, size = self.batch.dot(torch.stack((p, p)), torch.stack((image, p)))
            self._turned = None
        else:
            rows = torch.stack((p, p, self.given.ones))
            self.curvature, size, total = self.batch.dot(rows, torch.stack((image, p, image)))
            self._turned = image - self._even(total)
        self.length = size.sqrt()

    def move(self, moving: Tensor) -> None:
        """Move the systems in ``moving [n_systems]`` to the minimum along the direction."""
        if len(self.directions) < self.keep:
            self._remember(moving)
        length = self.rz / torch.where(moving, self.curvature, 1.0)
        length = self.batch.expand(torch.where(moving, length, 0.0))
        where = self.batch.expand(moving)
        self.x = torch.where(where, self.x + length * self.direction, self.x)
        self.slope = torch.where(where, self.slope + length * self._image, self.slope)
        if self._turned is not None:
            # the slope's mean may be far larger: taken off again, its rounding would remain
            self.gradient = torch.where(where, self.gradient + length * self._turned, self.gradient)
        else:
            self.gradient = self.slope if self.project is None else self.project(self.slope)
        self._next, self._next_rz = self._preconditioned()

    def _remember(self, moving: Tensor) -> None:
        """Keep the direction of moving systems, and its image, scaled to a curvature of 1."""
        image = self._turned
        if image is None:
            image = self._image if self.project is None else self.project(self._image)
        scale = self.batch.expand(torch.where(moving, self.curvature, 1.0).rsqrt())
        where = self.batch.expand(moving)
        parts = (torch.where(where, scale * rows, 0.0) for rows in (self.direction, image))
        self.directions.append((next(parts), next(parts)))

    @property
    def kept(self) -> tuple[Tensor, Tensor] | None:
        """``[k, n]`` directions so far with a curvature of 1, and their projected images; None if none."""
        if not self.directions:
            return None
        directions, images = (torch.stack(rows) for rows in zip(*self.directions, strict=True))
        return directions, images

    def turn(self, moving: Tensor) -> None:
        """Turn the systems in ``moving [n_systems]`` to the next direction."""
        z, rz = self._next, self._next_rz
        some = self.rz != 0
        beta = torch.where(moving & some, rz / torch.where(some, self.rz, 1.0), 0.0)
        fresh = self.batch.expand(beta) * self.direction - z
        self.direction = torch.where(self.batch.expand(moving), fresh, self.direction)
        self.rz = torch.where(moving, rz, self.rz)
