"""
First guesses from the sources of earlier solves.

Along a trajectory, a solution follows its source: the electronegativity, or the density at zero potential.
The source of a solve, which is known before it, is nearly a combination of the last ones,
    b = sum_k c_k b_k,   sum_k c_k = 1,
and the same combination of their solutions is the start. Least squares find c. So the start knows where the
atoms are, and not only, as an extrapolation in time does, where they were. Fischer, Comput. Methods Appl.
Mech. Eng. 163, 193 (1998), for one matrix; Polack et al., Mol. Phys. 118, e1779834 (2020), for density
matrices along a trajectory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...segments import Segments

# solves that are kept, and the fewest that are combined
_KEPT, _FEWEST = 8, 4
# of the mean square of the sources' differences: below it, differences are taken for noise
_RIDGE = 1e-10
# part of a source's change that may stay unexplained
_UNEXPLAINED = 0.3


def _nothing(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class SourceFit:
    """
    The last solves: what they were of, and what they found.

    Attributes:
        sources: ``[n_kept, n_rows, n_source]`` float64, the oldest first.
        rows: ``[n_kept, n_rows, n_state]`` float64 what was found.
        levels: ``[n_kept, n_systems, n_levels]`` float64 unknowns of systems that were found.
        errors: ``[n_systems, 2]`` squared distances of the last solution from the combination and from the
            given start, of the rows of this process; empty before the first.

    Example:
        >>> import torch
        >>> from scfmlip.scf.solvers.source_fit import SourceFit
        >>> from scfmlip.segments import Segments
        >>> one, fit = Segments.of(torch.zeros(3, dtype=torch.int64), 1), SourceFit()
        >>> def source(t):
        ...     return torch.tensor([[1.0 + t], [t**2], [t**3]]).double()
        >>> for t in range(4):  # each solution is twice its source
        ...     fit = fit.after(fit.start(source(t), torch.zeros(3, 1).double(), None, one), 2 * source(t))
        >>> start = fit.start(source(4), torch.zeros(3, 1).double(), None, one)
        >>> start.rows.flatten().round(decimals=3).tolist()
        [10.0, 32.0, 128.0]
    """

    sources: Tensor = field(default_factory=lambda: _nothing(0, 0, 0))
    rows: Tensor = field(default_factory=lambda: _nothing(0, 0, 0))
    levels: Tensor = field(default_factory=lambda: _nothing(0, 0, 0))
    errors: Tensor = field(default_factory=lambda: _nothing(0, 2))

    def start(self, source: Tensor, rows: Tensor, levels: Tensor | None, batch: Segments) -> FittedStart:
        """
        Where a solve starts: at a combination, or at the given start where that was nearer last time.

        One sum over ranks where they share systems; all of them call it together.

        Args:
            source: ``[n_rows, n_source]`` float64 of this solve.
            rows: ``[n_rows, n_state]`` float64, the given start.
            levels: ``[n_systems, n_levels]`` float64, the given start of other unknowns; None for none.
            batch: The system of each row.
        """
        levels = rows.new_zeros(batch.n_segments, 0) if levels is None else levels
        given = FittedStart(self, batch, source, rows, levels, None, rows)
        n_kept = len(self.sources)
        if n_kept == 0:
            return given
        fits = (
            self.sources.shape[1:] == source.shape
            and self.rows.shape[1:] == rows.shape
            and self.levels.shape[1:] == levels.shape
            and self.sources.device == source.device
        )
        if not batch.shared and (n_kept < _FEWEST or not fits):
            return given if fits else replace(given, history=EMPTY)
        last = self.sources[-1] if fits else source
        changes = [(part if fits else source) - last for part in (*self.sources[:-1], source)]
        vectors = torch.stack(changes, 1)
        squares = batch.own_sum((vectors[:, :, None] * vectors[:, None]).sum(-1))
        errors = self.errors if len(self.errors) else source.new_zeros(batch.n_segments, 2)
        if batch.shared:  # a rank whose rows are others now stops all
            flag = source.new_full((1,), float(not fits))
            squares, errors, unfit = batch.combine_all(squares, errors, flag)
            if bool(unfit > 0) or n_kept < _FEWEST:
                return replace(given, history=EMPTY) if bool(unfit > 0) else given
        weights, explained = _least_squares(squares)
        chosen = explained & (errors[:, 0] <= errors[:, 1])
        combined = torch.einsum("nk,knc->nc", batch.expand(weights), self.rows)
        found = torch.einsum("sk,ksc->sc", weights, self.levels)
        return FittedStart(
            self,
            batch,
            source,
            torch.where(batch.expand(chosen)[:, None], combined, rows),
            torch.where(chosen[:, None], found, levels),
            combined,
            rows,
        )

    def after(self, start: FittedStart, rows: Tensor, levels: Tensor | None = None) -> SourceFit:
        """
        With one more solve.

        Args:
            start: What `start` gave to it.
            rows: ``[n_rows, n_state]`` float64 that it found.
            levels: ``[n_systems, n_levels]`` float64 other unknowns that it found; None for none.
        """
        history = start.history
        levels = start.levels if levels is None else levels
        errors = rows.new_zeros(0, 2)
        if start.combined is not None:
            apart = torch.stack((start.combined - rows, start.given - rows), 1).square().sum(2)
            errors = start.batch.own_sum(apart)

        def added(old: Tensor, new: Tensor) -> Tensor:
            return torch.cat((old, new[None]))[-_KEPT:] if len(old) else new[None]

        return SourceFit(
            added(history.sources, start.source),
            added(history.rows, rows),
            added(history.levels, levels),
            errors,
        )

    def moved(self, move: Callable[[Tensor], Tensor]) -> SourceFit:
        """The same for rows that have changed places; ``move`` takes ``[n_rows, n]`` to new places."""
        if not len(self.sources):
            return self
        sizes = [self.sources.shape[2]] * len(self.sources) + [self.rows.shape[2]] * len(self.rows)
        parts = move(torch.cat((*self.sources, *self.rows), 1)).split(sizes, 1)
        n_kept = len(self.sources)
        return replace(self, sources=torch.stack(parts[:n_kept]), rows=torch.stack(parts[n_kept:]))

    def state_dict(self) -> dict[str, Any]:
        """Tensors on the CPU, from which `from_state` makes the same again."""
        names = ("sources", "rows", "levels", "errors")
        return {name: getattr(self, name).cpu() for name in names}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device | str = "cpu") -> SourceFit:
        """What `state_dict` was called of, on a device."""
        if not len(state["sources"]):
            return EMPTY
        return cls(**{name: part.to(device) for name, part in state.items()})


# of no solves
EMPTY = SourceFit()


@dataclass(frozen=True, eq=False)
class FittedStart:
    """
    Where a solve starts, and what of it is wanted afterwards.

    Attributes:
        history: Of earlier solves of the same systems.
        batch: The system of each row.
        source: ``[n_rows, n_source]`` float64 of this solve.
        rows: ``[n_rows, n_state]`` float64, the start.
        levels: ``[n_systems, n_levels]`` float64, the start of other unknowns.
        combined: ``[n_rows, n_state]`` the combination, chosen or not; None without one.
        given: ``[n_rows, n_state]`` the start that the caller gave.
    """

    history: SourceFit
    batch: Segments
    source: Tensor
    rows: Tensor
    levels: Tensor
    combined: Tensor | None
    given: Tensor


def _least_squares(squares: Tensor) -> tuple[Tensor, Tensor]:
    """
    Weights of kept solves that make up a source, and whether they explain enough of its change.

    Args:
        squares: ``[n_systems, k, k]`` dot products of the differences of sources from the last one: of those
            kept before it, and of this solve's.

    Returns:
        ``[n_systems, k]`` that add up to 1, and ``[n_systems]`` bool.
    """
    matrix, right, whole = squares[:, :-1, :-1], squares[:, :-1, -1:], squares[:, -1, -1]
    mean = matrix.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(squares.dtype).tiny)
    eye = torch.eye(matrix.shape[1], dtype=squares.dtype, device=squares.device)
    factor, _ = torch.linalg.cholesky_ex(matrix / mean[:, None, None] + _RIDGE * eye)
    c = torch.cholesky_solve(right / mean[:, None, None], factor)
    left = whole - 2 * (c * right).sum((1, 2)) + (c * (matrix @ c)).sum((1, 2))
    c = c[..., 0]
    explained = torch.isfinite(c).all(1) & (left <= _UNEXPLAINED**2 * whole)
    c = torch.where(explained[:, None], c, 0.0)
    return torch.cat((c, 1 - c.sum(1, keepdim=True)), 1), explained
