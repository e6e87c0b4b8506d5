"""What a solve hands on to the next one of nearly the same equations: an approximate inverse, and a start."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...segments import Segments
from .conjugate_inverse import ConjugateInverse
from .gmres import KrylovInverse, RootResult
from .preconditioners import SparseFactor
from .source_fit import EMPTY, SourceFit

# Krylov spaces that are multiplied at first, and as atoms move on: each is applied in every iteration
_FIRST, _SPACES = 2, 6
# and numbers in them from which four are enough, as applying more costs what they spare
_LARGE, _FEWER = 200_000, 4


@dataclass(frozen=True)
class SolverMemory:
    """
    What `fixed_point` or `charge_equilibration` found in earlier solves: an approximate inverse, and starts.

    Solves along a trajectory have nearly the same matrix. An inverse from the Krylov space of one solve
    preconditions the next ones; what the second still had to find is multiplied to it, and what others find
    when it helps less than it did, up to six spaces (four in large systems). Then it is dropped, so that the
    next solve makes a new one, and when the equations have another size.
    The last eight solutions are kept too. Where a solve's source is nearly a combination of theirs, it starts
    from the same combination of them instead of the first guess that it is given, see `SourceFit`.
    Where a solve ends does not depend on any of it, to the tolerance.

    An empty one, ``SolverMemory()``, asks for the first. `state_dict` and `from_state` are for restarts.

    Attributes:
        spaces: Of each `KrylovInverse` its basis, pseudo-inverse, projector and overlaps with earlier ones;
            of each space of a `ConjugateInverse` directions, images and overlaps. The first one comes first.
        affine: Whether the map was recognised as affine, so that this needs not be asked again.
        fresh: Evaluations of the solve that had none.
        fewest: Least evaluations of a solve since then.
        size: Numbers of a row of the state.
        symmetric: Whether the spaces are those of conjugate gradients.
        factor: Parts of a `SparseFactor`, the preconditioner of conjugate gradients; it may be kept while
            atoms move.
        fit: The last solutions; None leaves every solve the first guess that it is given.

    Example:
        >>> import torch, scfmlip
        >>> from scfmlip.scf import SolverMemory
        >>> a = torch.diag(torch.tensor([-2.0, -1.0, -0.5, 0.3]).double())
        >>> memory, start, counts = SolverMemory(), torch.zeros(4, 1).double(), []
        >>> for step in range(2):  # the map changes a little from one solve to the next
        ...     b = a + 0.001 * step
        ...     solution = scfmlip.fixed_point(lambda s: 1.0 + b @ s, start, memory=memory)
        ...     memory = solution.memory
        ...     counts.append(int(solution.iterations))
        >>> counts
        [4, 1]
    """

    spaces: tuple[tuple[Tensor, ...], ...] = ()
    affine: bool = False
    fresh: int = 0
    fewest: int = 0
    size: int = 0
    symmetric: bool = False
    factor: tuple[Tensor, ...] = ()
    fit: SourceFit | None = EMPTY

    def inverse(self, batch: Segments) -> KrylovInverse | None:
        """The inverse for equations of these systems; None if there is none of this size."""
        found = None
        if self.symmetric:
            return None
        for basis, pinv, projector, cross in self.spaces:
            fits = basis.shape[1] == batch.n_rows and len(pinv) == batch.n_segments
            if not fits or basis.device != batch.index.device:
                return None
            found = KrylovInverse(basis, pinv, projector, batch, found, cross)
        return found

    def conjugate(self, batch: Segments) -> ConjugateInverse | None:
        """As `inverse`, for equations with a symmetric positive matrix."""
        if not (self.symmetric and self.spaces):
            return None
        directions, _, cross = self.spaces[0]
        fits = directions.shape[1] == batch.n_rows and len(cross) == batch.n_segments
        if not fits or directions.device != batch.index.device:
            return None
        return ConjugateInverse(self.spaces, batch)

    def sparse_factor(self, n_atoms: int, device: torch.device) -> SparseFactor | None:
        """The preconditioner for that many atoms; None if there is none."""
        if not self.factor or len(self.factor[0]) != n_atoms or self.factor[0].device != device:
            return None
        return SparseFactor(*self.factor)

    def after(
        self, result: RootResult, used: KrylovInverse | None, affine: bool, size: int = 0
    ) -> SolverMemory:
        """
        What to hand on after a solve.

        Args:
            result: Of the solve.
            used: What `inverse` gave to it, or None.
            affine: Whether the map was recognised as affine.
            size: Numbers of a row of the state, for `moved`.
        """
        found, count = result.inverse, result.evaluations
        if found is None or found is used:
            # nothing was left to do
            return self.emptied() if used is None else self
        whole = _factors(found)
        if used is None:
            return SolverMemory(whole, affine, count, count, size, fit=self.fit)
        return self._renewed(whole if found.first is used else self.spaces, count)

    def after_conjugate(
        self,
        found: tuple[Tensor, Tensor] | None,
        used: ConjugateInverse | None,
        factor: SparseFactor | None,
        count: int,
        batch: Segments,
    ) -> SolverMemory:
        """
        What to hand on after conjugate gradients.

        Args:
            found: ``[k, n]`` directions with ``p.A p = 1`` and their images; None if they were not kept.
            used: What `conjugate` gave to the solve, or None.
            factor: The preconditioner.
            count: Iterations.
            batch: The system of each number.
        """
        if count == 0:
            return self
        parts = () if factor is None else factor.parts
        same = len(parts) == len(self.factor) and all(map(operator.is_, parts, self.factor))
        goes_on = self.symmetric and same and (used is not None or not self.spaces)
        earlier = self.spaces if goes_on else ()
        whole = earlier
        if found is not None:
            old = torch.cat([space[0] for space in earlier]) if earlier else found[0][:0]
            pairs = torch.broadcast_tensors(old[:, None], found[1][None])
            whole = (*earlier, (*found, batch.dot(*pairs).movedim(-1, 0)))
        if goes_on:
            return self._renewed(whole, count)
        return SolverMemory(whole, False, count, count, 0, True, parts, self.fit)

    def _renewed(self, whole: tuple[tuple[Tensor, ...], ...], count: int) -> SolverMemory:
        """With the spaces there are now, or as before, or empty, by how much they helped."""
        stale = count > self.fewest
        most = _SPACES if sum(space[0].numel() for space in whole) < _LARGE else _FEWER
        full = len(self.spaces) >= most or len(whole) == len(self.spaces)
        if count > self.fresh or (full and count > self.fewest + max(1, self.fewest // 4)):
            return self.emptied()
        grows = len(self.spaces) < (most if stale else _FIRST)
        return replace(self, spaces=whole if grows else self.spaces, fewest=min(self.fewest, count))

    def emptied(self) -> SolverMemory:
        """The same without an approximate inverse."""
        return SolverMemory(fit=self.fit)

    @property
    def holds_rows(self) -> bool:
        """Whether it holds numbers of rows, which go where rows go."""
        return bool(self.spaces or self.factor or (self.fit is not None and len(self.fit.sources)))

    def moved(self, n_rows: int, move: Callable[[Tensor], Tensor]) -> SolverMemory:
        """
        The same for rows that have changed places.

        Args:
            n_rows: Rows of the state so far; unknowns behind them stay where they are.
            move: ``[n_rows, n] -> [n_new, n]`` takes numbers of the rows to their new places.

        Example:
            >>> import torch, scfmlip
            >>> from scfmlip.scf import SolverMemory
            >>> scale = torch.tensor([[0.5], [0.2], [-0.3]]).double()
            >>> first = torch.zeros(3, 1).double()
            >>> known = scfmlip.fixed_point(lambda s: 1 + scale * s, first, memory=SolverMemory()).memory
            >>> order = torch.tensor([2, 0, 1])
            >>> known = known.moved(3, lambda rows: rows[order])
            >>> int(scfmlip.fixed_point(lambda s: 1 + scale[order] * s, first, memory=known).iterations)
            1
        """
        fit = None if self.fit is None else self.fit.moved(move)
        if self.symmetric or not self.spaces:
            # a preconditioner is of neighbours, which are others now
            return SolverMemory(fit=fit)
        kept = n_rows * self.size
        rows = [
            basis[:, :kept].unflatten(1, (n_rows, self.size)).transpose(0, 1) for basis, *_ in self.spaces
        ]
        counts = [len(basis) for basis, *_ in self.spaces]
        there = move(torch.cat(rows, 1).flatten(1)).unflatten(1, (sum(counts), self.size))
        spaces = []
        for (basis, *others), part in zip(self.spaces, there.split(counts, 1), strict=True):
            spaces.append((torch.cat((part.transpose(0, 1).flatten(1), basis[:, kept:]), 1), *others))
        return replace(self, spaces=tuple(spaces), fit=fit)

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors on the CPU, from which `from_state` makes the same again."""
        spaces = [[part.cpu() for part in space] for space in self.spaces]
        return {
            "spaces": spaces,
            "affine": self.affine,
            "fresh": self.fresh,
            "fewest": self.fewest,
            "size": self.size,
            "symmetric": self.symmetric,
            "factor": [part.cpu() for part in self.factor],
            "fit": None if self.fit is None else self.fit.state_dict(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device | str = "cpu") -> SolverMemory:
        """What `state_dict` was called of, on a device; empty if an earlier version wrote it."""
        symmetric = bool(state.get("symmetric", False))
        if any(len(space) != (3 if symmetric else 4) for space in state["spaces"]):
            return cls()  # a restart file of an earlier version
        fit: SourceFit | None = EMPTY
        if "fit" in state:
            fit = None if state["fit"] is None else SourceFit.from_state(state["fit"], device)
        spaces = tuple(tuple(part.to(device) for part in space) for space in state["spaces"])
        numbers = (int(state["fresh"]), int(state["fewest"]), int(state.get("size", 0)))
        factor = tuple(part.to(device) for part in state.get("factor", ()))
        return cls(spaces, bool(state["affine"]), *numbers, symmetric, factor, fit)


def _factors(inverse: KrylovInverse | None) -> tuple[tuple[Tensor, ...], ...]:
    """The tensors of an inverse and of those before it, the first one first."""
    if inverse is None:
        return ()
    return tuple((s.basis, s.pinv, s.projector, s.cross) for s, _ in inverse.spaces)
