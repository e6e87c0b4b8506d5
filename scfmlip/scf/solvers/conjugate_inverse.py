"""
An approximate inverse from the directions of earlier solves by conjugate gradients, symmetric and positive.

With directions P, their images Y = A P and ``P^T Y = 1``, an inverse M of nearly the same matrix becomes
    (1 - P Y^T) M (1 - Y P^T) + P P^T,
exact in the span of the directions and M in the rest: the limited-memory update of Morales and Nocedal, SIAM
J. Optim. 10, 1079 (2000), and Gratton, Sartenaer and Tshimanga, SIAM J. Optim. 21, 912 (2011). It is positive
whatever Y is, as long as M is, so that directions of a matrix that has changed since may be kept. Directions
found with it update it once more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...segments import Segments
from .gmres import Map


class ConjugateInverse:
    """
    One inverse of several spaces of directions.

    Args:
        spaces: Of each, the first one first: ``[k, n]`` float64 directions P, which satisfy the constraint,
            their images Y, and ``[n_systems, m, k]`` overlaps of all earlier spaces' directions with Y.
        batch: The system of each of n numbers.

    Example:
        >>> import torch
        >>> from scfmlip.scf.solvers.conjugate_inverse import ConjugateInverse
        >>> from scfmlip.segments import Segments
        >>> a = torch.diag(torch.tensor([4.0, 1.0]).double())
        >>> p = torch.tensor([[0.5, 0.0]]).double()  # p.A p = 1
        >>> one = Segments.of(torch.zeros(2, dtype=torch.int64), 1)
        >>> inverse = ConjugateInverse([(p, p @ a, torch.zeros(1, 0, 1).double())], one)
        >>> inverse.around(lambda v: v)(torch.tensor([4.0, 3.0]).double()).tolist()
        [1.0, 3.0]
    """

    def __init__(self, spaces: Sequence[tuple[Tensor, ...]], batch: Segments) -> None:
        self.batch = batch
        self.directions = torch.cat([space[0] for space in spaces])
        self.images = torch.cat([space[1] for space in spaces])
        self.places: list[slice] = []
        first = 0
        for space in spaces:
            self.places.append(slice(first, first + len(space[0])))
            first += len(space[0])
        self.overlaps = [space[2] for space in spaces]

    def around(self, precondition: Map) -> Map:
        """The update of ``precondition``, M, a map of ``[n]`` float64."""

        def apply(r: Tensor) -> Tensor:
            # two sums over atoms: dot products with what lies between spaces follow from overlaps
            before = self._dots(self.directions, r)
            for place, cross in reversed(list(zip(self.places, self.overlaps, strict=True))):
                before[:, : place.start] -= (cross @ before[:, place, None])[..., 0]
            y = precondition(r - self._combined(self.images, before))
            after = self._dots(self.images, y)
            weights = torch.zeros_like(before)
            for place, cross in zip(self.places, self.overlaps, strict=True):
                found = after[:, place] + (cross.mT @ weights[:, : place.start, None])[..., 0]
                weights[:, place] = before[:, place] - found
            return y + self._combined(self.directions, weights)

        return apply

    def _dots(self, vectors: Tensor, r: Tensor) -> Tensor:
        """``[n_systems, m]``."""
        if self.batch.n_segments == 1 and not self.batch.shared:
            return (vectors @ r)[None]
        return self.batch.dot(vectors, r.expand_as(vectors)).T.contiguous()

    def _combined(self, vectors: Tensor, weights: Tensor) -> Tensor:
        """``[n]`` sums of the vectors with ``weights [n_systems, m]``."""
        if len(weights) == 1:
            return weights[0] @ vectors
        return (self.batch.expand(weights).T * vectors).sum(0)
