"""
Linear equations for ragged batches, and approximate inverses from Krylov spaces.

The unknowns are one vector; `Segments` tells which system each number belongs to. Every dot product is one
number per system, in float64, so systems converge, stop and fail independently.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scfmlip_kernels import pseudo_inverse

from ...segments import Segments
from ..solution import Status
from .looks import Looks

Map = Callable[[Tensor], Tensor]
# largest relative amplification of a direction that a matrix nearly annihilates
_LOST = 1e-13


class KrylovInverse:
    """
    An approximate inverse of a matrix, from a Krylov space of an earlier GMRES solve.

    With ``A V = W H``, where V holds the leading columns of W, it is exact on the range of ``A V`` and a
    multiple of the identity on the rest, ``M = V H+ W^T + sign (1 - W H H+ W^T)``. The sign is -1 for the
    residual ``F(s) - s`` of a contracting map, and 1 if A had already been multiplied by an approximate
    inverse.

    Args:
        basis: ``[k + 1, n]`` float64 W^T, orthonormal in every system.
        pinv: ``[n_systems, k, k + 1]`` H+.
        projector: ``[n_systems, k + 1, k + 1]`` H H+.
        batch: The systems.
        first: Right preconditioner of that solve; the combination is then an inverse of A itself, the product
            of ``first`` and this. Dot products with the vectors of all spaces are taken at once: between them
            the vectors' overlaps with each other are enough.
        cross: ``[n_systems, m, k + 1]`` overlaps of ``first``'s vectors with these; found when needed if
            None.
    """

    def __init__(
        self,
        basis: Tensor,
        pinv: Tensor,
        projector: Tensor,
        batch: Segments,
        first: KrylovInverse | None = None,
        cross: Tensor | None = None,
    ) -> None:
        self.basis, self.pinv, self.projector = basis, pinv, projector
        self.batch, self.first = batch, first
        self.sign = -1.0 if first is None else 1.0
        if cross is not None:
            self.cross = cross

    @functools.cached_property
    def cross(self) -> Tensor:
        """See the arguments."""
        if self.first is None:
            return self.basis.new_zeros((self.batch.n_segments, 0, len(self.basis)))
        earlier, mine = torch.broadcast_tensors(self.first.vectors[:, None], self.basis[None])
        return self.batch.dot(earlier, mine).movedim(-1, 0)

    @functools.cached_property
    def vectors(self) -> Tensor:
        """``[m, n]`` of all spaces, the first one's first."""
        return self.basis if self.first is None else torch.cat((self.first.vectors, self.basis))

    @functools.cached_property
    def spaces(self) -> tuple[tuple[KrylovInverse, slice], ...]:
        """All of them, the first one first, and where their vectors are."""
        before = () if self.first is None else self.first.spaces
        return (*before, (self, slice(len(self.vectors) - len(self.basis), len(self.vectors))))

    @functools.cached_property
    def overlaps(self) -> Tensor:
        """``[n_systems, m, m]`` of different spaces' vectors; zero for those of one space."""
        if self.first is None:
            return self.basis.new_zeros((self.batch.n_segments, len(self.basis), len(self.basis)))
        empty = self.basis.new_zeros((self.batch.n_segments, len(self.basis), len(self.basis)))
        above = torch.cat((self.first.overlaps, self.cross), 2)
        return torch.cat((above, torch.cat((self.cross.mT, empty), 2)), 1)

    @classmethod
    def of_space(
        cls,
        basis: Tensor,
        hessenberg: Tensor,
        batch: Segments,
        rounding: float,
        first: KrylovInverse | None = None,
    ) -> KrylovInverse:
        """
        The inverse of a Krylov space.

        Args:
            basis: As for the class.
            hessenberg: ``[n_systems, k + 1, k]`` H.
            batch: As for the class.
            rounding: Relative error of products with A. Nearly singular directions are not inverted, because
                a large inverse would amplify rounding.
            first: As for the class.
        """
        pinv = pseudo_inverse(hessenberg, rounding**0.5)
        return cls(basis, pinv, hessenberg @ pinv, batch, first)

    @property
    def n_steps(self) -> int:
        """Iterations that made it, without those of ``first``."""
        return len(self.basis) - 1

    def __call__(self, r: Tensor) -> Tensor:
        """``M r``, all ``[n]`` float64."""
        return self._apply(r, False)

    def transposed(self, r: Tensor) -> Tensor:
        """``M^T r``."""
        return self._apply(r, True)

    def _apply(self, r: Tensor, transposed: bool) -> Tensor:
        """Factor by factor: ``scale r + sum_j W_j weights_j``, whose overlaps follow from those of ``r``."""
        known = self.batch.dot(self.vectors, r.expand_as(self.vectors)).T[..., None]
        weights: Tensor | None = None
        scale = 1.0
        for space, mine in self.spaces if transposed else reversed(self.spaces):
            overlap = known[:, mine] if scale == 1.0 else scale * known[:, mine]
            if weights is not None:
                others = slice(0, mine.start) if transposed else slice(mine.stop, None)
                overlap = overlap + self.overlaps[:, mine, others] @ weights
                weights = weights if space.sign == 1.0 else space.sign * weights
            own = space._weigh(overlap, transposed)
            if weights is None:
                weights = own
            else:
                weights = torch.cat((weights, own) if transposed else (own, weights), 1)
            scale = space.sign * scale
        assert weights is not None
        return scale * r + (self.batch.expand(weights[..., 0]).T * self.vectors).sum(0)

    def _weigh(self, overlap: Tensor, transposed: bool) -> Tensor:
        """What this factor adds of its own vectors, ``[n_systems, k + 1, 1]``, for overlaps with them."""
        rest = -self.sign * self.projector @ overlap
        if transposed:
            return rest + self.pinv.mT @ overlap[:, :-1]
        rest[:, :-1] += self.pinv @ overlap
        return rest


class RootResult(NamedTuple):
    """
    A root of every system's equations.

    Attributes:
        x: ``[n]`` float64.
        residual: ``[n_systems]`` norm of the equations, relative.
        iterations, status: ``[n_systems]`` int64.
        evaluations: Number of function evaluations, for the whole batch.
        inverse: Approximate inverse of the equations' matrix there, if a Krylov space gave one.
    """

    x: Tensor
    residual: Tensor
    iterations: Tensor
    status: Tensor
    evaluations: int
    inverse: KrylovInverse | None = None


def _orthogonal(w: Tensor, basis: list[Tensor], batch: Segments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    Orthogonalise ``w`` against the vectors of a basis.

    Returns:
        The result and its ``[n_systems]`` norm, its ``[n_systems, n_vectors]`` overlaps with them, and
        ``[n_systems]`` the norm w had.
    """
    rows = torch.stack((*basis, w))
    stack, overlap = rows[:-1], batch.dot(rows, w.expand_as(rows))
    size, overlap = overlap[-1].sqrt(), overlap[:-1]
    w = w - (batch.expand(overlap.T).T * stack).sum(0)
    # twice, because a single pass loses orthogonality
    rows = torch.stack((*basis, w))
    more = batch.dot(rows, w.expand_as(rows))
    # what the second pass takes off is orthogonal to what it leaves, and small
    left, more = more[-1], more[:-1]
    length = (left - (more**2).sum(0)).clamp(min=0).sqrt()
    return w - (batch.expand(more.T).T * stack).sum(0), length, (overlap + more).T, size


def gmres(
    apply: Map,
    right: Tensor,
    batch: Segments,
    tolerance: float | Tensor,
    max_iterations: int,
    image: Tensor | None = None,
    rounding: float = 1e-14,
    inverse: KrylovInverse | None = None,
    transposed: bool = False,
) -> RootResult:
    """
    Solve ``A x = right`` for any matrix, without restarts (Saad and Schultz, SIAM J. Sci. Stat. Comput. 7,
    856).

    Args:
        apply: A, ``[n]`` -> ``[n]``.
        right: ``[n]`` float64.
        batch: The systems.
        tolerance: Residual relative to the norm of ``right``, one number or ``[n_systems]``.
        max_iterations: Largest Krylov space.
        image: ``A right`` if it is known (without ``inverse``).
        rounding: Relative error of ``apply``; a Krylov space that grows by less is complete.
        inverse: Approximate inverse of A, applied as a right preconditioner, which leaves residuals
            unchanged.
        transposed: Whether ``inverse`` is that of the transpose of A.
    """

    def precondition(v: Tensor) -> Tensor:
        if inverse is None:
            return v
        return inverse.transposed(v) if transposed else inverse(v)

    scale = batch.norm(right)
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    basis = [right / batch.expand(safe)]
    columns: list[Tensor] = []
    residual = (scale > 0).double()
    iterations = torch.zeros_like(scale, dtype=torch.int64)
    open_ = torch.ones_like(scale, dtype=torch.bool)
    looks = Looks()
    # last row of Q^T in H = Q R, built up by Givens rotations: all that the residual norms need
    last = torch.ones((batch.n_segments, 1), dtype=torch.float64, device=right.device)
    for step in range(1, max_iterations + 1):
        active = (residual > tolerance) & open_
        if looks.ended(step - 1, active, residual, tolerance):
            break
        iterations = iterations + active
        known = step == 1 and image is not None
        w = image / batch.expand(safe) if known and image is not None else apply(precondition(basis[-1]))
        column = torch.zeros((batch.n_segments, step + 1), dtype=torch.float64, device=right.device)
        w, length, column[:, :step], size = _orthogonal(w, basis, batch)
        column[:, step] = length
        fresh = length > rounding * size
        open_ = open_ & fresh
        basis.append(torch.where(batch.expand(fresh), w / batch.expand(torch.where(fresh, length, 1.0)), 0.0))
        columns.append(column)
        inside = (last * column[:, :step]).sum(1)
        radius = torch.hypot(inside, length)
        # a direction that A annihilates cannot reduce the residual
        lost = radius <= _LOST * column.norm(dim=1)
        cosine = torch.where(lost, 0.0, inside / radius)
        sine = torch.where(lost, 1.0, length / radius)
        residual = residual * sine.abs()
        last = torch.cat((-sine[:, None] * last, cosine[:, None]), 1)
    size = len(columns)
    hessenberg = right.new_zeros((batch.n_segments, size + 1, size), dtype=torch.float64)
    for j, column in enumerate(columns):
        hessenberg[:, : j + 2, j] = column
    finite = torch.isfinite(hessenberg).flatten(1).all(1) & torch.isfinite(scale)
    hessenberg = torch.where(finite[:, None, None], hessenberg, 0.0)
    first = torch.zeros((batch.n_segments, size + 1, 1), dtype=torch.float64, device=right.device)
    first[:, 0, 0] = (scale > 0).double()
    weights = pseudo_inverse(hessenberg, _LOST) @ first
    residual = (first - hessenberg @ weights).flatten(1).norm(dim=1)
    status = torch.where(residual <= tolerance, int(Status.CONVERGED), int(Status.ITERATIONS))
    status = torch.where(finite, status, int(Status.NOT_FINITE))
    x, space = torch.zeros_like(right), inverse
    if size > 0:
        stack = torch.stack(basis)
        x = (batch.expand(weights[..., 0] * safe[:, None]).T * stack[:-1]).sum(0)
        if not transposed:
            space = KrylovInverse.of_space(stack, hessenberg, batch, rounding, inverse)
    x = torch.where(batch.expand(finite), precondition(x), 0.0)
    return RootResult(x, residual, iterations, status, size - (image is not None and size > 0), space)
