"""The recursion of preconditioned conjugate gradients, independently for each system of a ragged batch."""

from __future__ import annotations

import torch
from torch import Tensor

from ...segments import Segments
from .gmres import Map


class ConjugateDirections:
    """
    Minimise ``b.x + 1/2 x.A x`` along conjugate directions (Hestenes, Stiefel, J. Res. NBS 49, 409, 1952).

    One step consists of `look` along the direction, `move` for the systems that continue, and `turn` to the
    next direction. In between, the caller decides from the curvature and the gradient which systems continue.
    All vectors are ``[n]`` float64.

    Attributes:
        x: The minimum so far.
        slope: ``A x + b``.
        gradient: Projection of the slope on the allowed directions.
        direction: Direction of the next step.
        curvature: ``[n_systems]`` ``p.A p`` of the direction p, set by `look`.

    Args:
        batch: The system of each number.
        apply: A, symmetric. It should be positive along the allowed directions; `curvature` shows if not.
        precondition: Symmetric positive approximation of A's inverse, with values in the allowed directions.
        x: Starting point.
        slope: ``A x + b`` at the starting point.
        project: Projector on the allowed directions; None if all are allowed.

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
    ) -> None:
        self.batch, self.apply, self.precondition, self.project = batch, apply, precondition, project
        self.x, self.slope = x, slope
        self.gradient = slope if project is None else project(slope)
        z = precondition(self.gradient)
        self.direction = -z
        self._rz = batch.dot(self.gradient, z)

    def look(self) -> None:
        """One product with A: the curvature along the direction."""
        self._image = self.apply(self.direction)
        self.curvature = self.batch.dot(self.direction, self._image)

    def move(self, moving: Tensor) -> None:
        """Move the systems in ``moving [n_systems]`` to the minimum along the direction."""
        length = self._rz / torch.where(moving, self.curvature, 1.0)
        length = self.batch.expand(torch.where(moving, length, 0.0))
        where = self.batch.expand(moving)
        self.x = torch.where(where, self.x + length * self.direction, self.x)
        self.slope = torch.where(where, self.slope + length * self._image, self.slope)
        self.gradient = self.slope if self.project is None else self.project(self.slope)

    def turn(self, moving: Tensor) -> None:
        """Turn the systems in ``moving [n_systems]`` to the next direction."""
        z = self.precondition(self.gradient)
        rz = self.batch.dot(self.gradient, z)
        some = self._rz != 0
        beta = torch.where(moving & some, rz / torch.where(some, self._rz, 1.0), 0.0)
        fresh = self.batch.expand(beta) * self.direction - z
        self.direction = torch.where(self.batch.expand(moving), fresh, self.direction)
        self._rz = torch.where(moving, rz, self._rz)
