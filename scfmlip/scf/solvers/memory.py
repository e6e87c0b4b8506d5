"""What a solve hands on to the next one of nearly the same equations: an approximate inverse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...segments import Segments
from .gmres import KrylovInverse, RootResult

# Krylov spaces that are multiplied at first, and as atoms move on: each is applied in every iteration
_FIRST, _SPACES = 2, 4


@dataclass(frozen=True)
class SolverMemory:
    """
    The approximate inverse that `fixed_point` found along earlier solves, for the next one.

    Solves along a trajectory have nearly the same matrix. An inverse from the Krylov space of one solve
    preconditions the next ones; what the second still had to find is multiplied to it, and what others find
    when it helps less than it did, up to four spaces. Then it is dropped, so that the next solve makes a new
    one, and when the equations have another size.
    Where a solve ends does not depend on it, to the tolerance.

    An empty one, ``SolverMemory()``, asks for the first. `state_dict` and `from_state` are for restarts.

    Attributes:
        spaces: Basis, pseudo-inverse, projector and overlaps with earlier ones of each `KrylovInverse`, the
            first one first.
        affine: Whether the map was recognised as affine, so that this needs not be asked again.
        fresh: Evaluations of the solve that had none.
        fewest: Least evaluations of a solve since then.
        size: Numbers of a row of the state.

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

    spaces: tuple[tuple[Tensor, Tensor, Tensor, Tensor], ...] = ()
    affine: bool = False
    fresh: int = 0
    fewest: int = 0
    size: int = 0

    def inverse(self, batch: Segments) -> KrylovInverse | None:
        """The inverse for equations of these systems; None if there is none of this size."""
        found = None
        for basis, pinv, projector, cross in self.spaces:
            fits = basis.shape[1] == batch.n_rows and len(pinv) == batch.n_segments
            if not fits or basis.device != batch.index.device:
                return None
            found = KrylovInverse(basis, pinv, projector, batch, found, cross)
        return found

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
            return SolverMemory() if used is None else self
        if used is None:
            return SolverMemory(_factors(found), affine, count, count, size)
        stale = count > self.fewest
        if count > self.fresh or (count > self.fewest + 1 and len(self.spaces) >= _SPACES):
            return SolverMemory()
        grows = found.first is used and len(self.spaces) < (_SPACES if stale else _FIRST)
        spaces = _factors(found) if grows else self.spaces
        return SolverMemory(spaces, affine, self.fresh, min(self.fewest, count), self.size)

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
        if not self.spaces:
            return self
        kept = n_rows * self.size
        rows = [
            basis[:, :kept].unflatten(1, (n_rows, self.size)).transpose(0, 1) for basis, *_ in self.spaces
        ]
        counts = [len(basis) for basis, *_ in self.spaces]
        there = move(torch.cat(rows, 1).flatten(1)).unflatten(1, (sum(counts), self.size))
        spaces = []
        for (basis, *others), part in zip(self.spaces, there.split(counts, 1), strict=True):
            spaces.append((torch.cat((part.transpose(0, 1).flatten(1), basis[:, kept:]), 1), *others))
        return replace(self, spaces=tuple(spaces))

    def state_dict(self) -> dict[str, Any]:
        """Plain types and tensors on the CPU, from which `from_state` makes the same again."""
        spaces = [[part.cpu() for part in space] for space in self.spaces]
        return {
            "spaces": spaces,
            "affine": self.affine,
            "fresh": self.fresh,
            "fewest": self.fewest,
            "size": self.size,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device | str = "cpu") -> SolverMemory:
        """What `state_dict` was called of, on a device; empty if an earlier version wrote it."""
        if any(len(space) != 4 for space in state["spaces"]):  # a restart file of an earlier version
            return cls()
        moved = ([part.to(device) for part in space] for space in state["spaces"])
        spaces = tuple((basis, pinv, projector, cross) for basis, pinv, projector, cross in moved)
        return cls(
            spaces,
            bool(state["affine"]),
            int(state["fresh"]),
            int(state["fewest"]),
            int(state.get("size", 0)),
        )


def _factors(inverse: KrylovInverse | None) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], ...]:
    """The tensors of an inverse and of those before it, the first one first."""
    if inverse is None:
        return ()
    return tuple((s.basis, s.pinv, s.projector, s.cross) for s, _ in inverse.spaces)
