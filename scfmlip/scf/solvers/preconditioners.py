"""
Approximate inverses of the hardness plus Coulomb matrix.

* Jacobi: the diagonal.
* FSAI, a factorised sparse approximate inverse (Kolotilina and Yeremin, SIAM J. Matrix Anal. Appl. 14, 45
  (1993)): a lower triangular G with neighbours within a radius, from one small dense solve per atom, such
  that G A G^T is close to 1. G^T G is positive definite whatever the entries, so it may be kept while atoms
  move.
Not offered: symmetrised sparse inverses, which lose definiteness for wide Gaussians, and blocks of
neighbours, which help little.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from scfmlip_kernels import cell_inverse, fsai_rows, segment_sum
from scfmlip_kernels.constants import constant

from ...decisions import at_least
from ...electrostatics import Boundary
from ...units import COULOMB_CONSTANT
from ..quadratic import QuadraticProblem

# neighbours of an atom in the sparse factor: nearest first, within the radius, at most this many
FSAI_RADIUS = 6.0
FSAI_NEIGHBOURS = 48
# systems of up to this many atoms find neighbours by comparing all pairs
_ALL_PAIRS = 30000
# an existing neighbour list with at least this cutoff, angstrom, is used instead
_SHORTEST = 4.0
_CHUNK_PAIRS = 1 << 21


def check_preconditioner(name: object) -> None:
    """
    Check the name of a preconditioner.

    Raises:
        ValueError: for an unknown name.
    """
    if not isinstance(name, str) or name not in ("auto", "none", "jacobi", "fsai"):
        raise ValueError(f"preconditioner must be 'auto', 'fsai', 'jacobi' or 'none', got {name!r}")


def diagonal(width: Tensor, hardness: Tensor) -> Tensor:
    """``[n_atoms, dim]`` float64: hardness plus the self-interaction of each Gaussian."""
    charge = (COULOMB_CONSTANT / math.sqrt(math.pi)) / width[:, None]
    if hardness.shape[1] == 1:
        return hardness.double() + charge
    square = width[:, None] ** 2
    own = [charge, (charge / (6 * square)).expand(-1, 3), (charge / (60 * square**2)).expand(-1, 5)]
    return hardness.double() + torch.cat(own, 1)[:, : hardness.shape[1]]


def atom_widths(problem: QuadraticProblem, like: Tensor) -> Tensor:
    """``[n_atoms]`` float64 Gaussian width of each atom, angstrom."""
    widths = constant(problem.coulomb.source.widths, torch.float64, like.device)
    index = problem.slots[:, 0] if problem.slots is not None else like.new_zeros(len(like)).long()
    return widths[index]


def make_factor(
    name: Literal["auto", "none", "jacobi", "fsai"] | str,
    problem: QuadraticProblem,
    positions: Tensor,
    cell: Tensor | None,
    hardness: Tensor,
    widths: Tensor | None = None,
) -> SparseFactor | None:
    """The sparse factor that a preconditioner of this name has, or None."""
    largest = int(problem.plan.atom_ptr.diff().max()) if len(positions) else 0
    near = problem.pairs is not None and problem.pairs.cutoff >= _SHORTEST
    if name in ("none", "jacobi") or (name == "auto" and largest > _ALL_PAIRS and not near):
        return None
    width = atom_widths(problem, hardness) if widths is None else widths.detach().double()
    return SparseFactor.of(problem, positions.detach(), cell, hardness.detach(), width)


def make_preconditioner(
    name: Literal["auto", "none", "jacobi", "fsai"] | str,
    problem: QuadraticProblem,
    hardness: Tensor,
    widths: Tensor | None,
    factor: SparseFactor | None,
) -> Callable[[Tensor], Tensor]:
    """
    Make a function that applies an approximate inverse to ``[n_atoms, dim]`` float64.

    Args:
        name: See `check_preconditioner`.
        problem: Sizes.
        hardness: ``[n_atoms, dim]``.
        widths: ``[n_atoms]`` if atoms have their own.
        factor: From `make_factor`, for these atoms; from places that they have had before, too.
    """
    if name == "none":
        return lambda values: values
    width = atom_widths(problem, hardness) if widths is None else widths.detach().double()
    inverse = 1 / diagonal(width, hardness).abs().clamp(min=1e-6)
    if factor is None:
        return lambda values: inverse * values

    def apply(values: Tensor) -> Tensor:
        charges = factor.apply(values[:, 0].contiguous())
        if values.shape[1] == 1:
            return charges[:, None]
        return torch.cat((charges[:, None], inverse[:, 1:] * values[:, 1:]), 1)

    return apply


class SparseFactor:
    """
    The factor G of the factorised sparse approximate inverse, for charges.

    The entries of A between near atoms are those of two Gaussians in free space. Adding images and background
    in a crystal makes the entries more accurate but the inverse worse: in small cells the largest eigenvalue
    of the product rose from 1.3 to 483.

    Attributes:
        index, values: ``[n_atoms, m + 1]`` rows of G: atoms and entries, 0 where there is none; the atom
            itself comes last.
        row, column, entries: ``[n_entries]`` of G^T, sorted by column: its rows as segments, so that sums are
            deterministic.
        ptr: ``[n_atoms + 1]`` int64 first entry of each column.
    """

    def __init__(
        self, index: Tensor, values: Tensor, row: Tensor, column: Tensor, entries: Tensor, ptr: Tensor
    ) -> None:
        self.index, self.values = index, values
        self.row, self.column, self.entries, self.ptr = row, column, entries, ptr

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """What it is made of."""
        return self.index, self.values, self.row, self.column, self.entries, self.ptr

    @classmethod
    def of(
        cls,
        problem: QuadraticProblem,
        positions: Tensor,
        cell: Tensor | None,
        hardness: Tensor,
        width: Tensor,
    ) -> SparseFactor:
        """The factor for atoms at these places."""
        if problem.pairs is not None and problem.pairs.cutoff >= _SHORTEST:
            neighbours, vectors, valid = listed_neighbours(problem, positions.double(), cell)
        else:
            neighbours, vectors, valid = lower_neighbours(problem, positions.double(), cell)
        n_atoms = len(neighbours)
        # the atom itself comes last
        index = torch.cat((neighbours, torch.arange(n_atoms, device=positions.device)[:, None]), 1)
        used = torch.cat((valid, valid.new_ones(n_atoms, 1)), 1)
        # single precision is enough for an approximate inverse
        given = (vectors.float(), neighbours, valid, width.float(), diagonal(width, hardness)[:, 0].float())
        values = fsai_rows(*given, COULOMB_CONSTANT).double()
        row = torch.arange(n_atoms, device=positions.device)[:, None].expand_as(index)
        if positions.is_cuda:  # its host does not know how many are used: the others are zeros of the atom
            flat, row, entries = torch.where(used, index, row).flatten(), row.flatten(), values.flatten()
        else:
            flat, row, entries = index[used], row[used], values[used]
        order = torch.argsort(flat, stable=True)
        column = flat[order]
        ptr = torch.searchsorted(column, torch.arange(n_atoms + 1, device=positions.device))
        return cls(index, values, row[order], column, entries[order], ptr)

    def apply(self, values: Tensor) -> Tensor:
        """``G^T G v``, ``[n_atoms]`` float64."""
        y = (self.values * values[self.index]).sum(1)
        return segment_sum(self.entries * y[self.row], self.ptr, self.column)


def listed_neighbours(
    problem: QuadraticProblem, positions: Tensor, cell: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Like `lower_neighbours`, from the problem's neighbour list."""
    pairs = problem.pairs
    assert pairs is not None
    first, second = pairs.edge_index
    # ghosts of other processes have larger numbers: the approximate inverse knows own atoms alone
    lower = second < first
    first, second, shift = first[lower], second[lower], pairs.edge_shift[lower].double()
    vector = positions[second] - positions[first]
    if cell is not None:
        cells = cell.detach().double()
        matrices = cells[problem.plan.segments.index[first]] if problem.n_systems > 1 else cells
        vector = vector + (shift[:, None] @ matrices)[:, 0]
    distance = vector.norm(dim=-1)
    # nearest image of each pair, nearest pairs first
    order = torch.argsort(distance, stable=True)
    order = order[torch.argsort(first[order] * len(positions) + second[order], stable=True)]
    first, second, vector, distance = first[order], second[order], vector[order], distance[order]
    fresh = torch.ones_like(first, dtype=torch.bool)
    fresh[1:] = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    fresh = fresh & (distance <= FSAI_RADIUS)
    first, second, vector, distance = first[fresh], second[fresh], vector[fresh], distance[fresh]
    order = torch.argsort(distance, stable=True)
    order = order[torch.argsort(first[order], stable=True)]
    first, second, vector = first[order], second[order], vector[order]
    counts = torch.bincount(first, minlength=len(positions))
    begin = counts.cumsum(0) - counts
    place = torch.arange(len(first), device=first.device) - begin[first]
    keep = place < FSAI_NEIGHBOURS
    first, second, vector, place = first[keep], second[keep], vector[keep], place[keep]
    most = max(1, int(counts.clamp(max=FSAI_NEIGHBOURS).max())) if len(counts) else 1
    numbers = torch.zeros((len(positions), most), dtype=torch.int64, device=positions.device)
    vectors = positions.new_zeros((len(positions), most, 3))
    valid = torch.zeros_like(numbers, dtype=torch.bool)
    numbers[first, place], vectors[first, place], valid[first, place] = second, vector, True
    return numbers, vectors, valid


def lower_neighbours(
    problem: QuadraticProblem, positions: Tensor, cell: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """
    For every atom, the nearest atoms with a smaller index within the radius; nearest images only.

    Returns:
        Their indices ``[n_atoms, m]``, vectors to them ``[n_atoms, m, 3]``, and which entries are used.
    """
    plan = problem.plan
    ptr, boundaries = plan.atom_ptr.tolist(), plan.boundaries
    numbers, vectors, valid = [], [], []
    cells = None if cell is None else plan.cells(cell.detach().double())
    for i, kind in enumerate(boundaries):
        begin, end = ptr[i], ptr[i + 1]
        r = positions[begin:end]
        matrix = None
        if cells is not None and kind in (Boundary.PERIODIC, Boundary.SLAB):
            matrix = cells[i]
        step = max(1, _CHUNK_PAIRS // max(1, end - begin) // 3)
        for start in range(begin, end, step):
            mine = positions[start : min(start + step, end)]
            delta = r[None] - mine[:, None]
            if matrix is not None:
                frac = delta @ cell_inverse(matrix[None])[0][0]
                delta = (frac - frac.round()) @ matrix
            distance = delta.norm(dim=-1)
            number = torch.arange(end - begin, device=r.device)
            lower = number[None] < number[start - begin : start - begin + len(mine), None]
            distance = torch.where(lower, distance, torch.full_like(distance, torch.inf))
            m = min(FSAI_NEIGHBOURS, end - begin)
            near, which = distance.topk(m, largest=False)
            pad = FSAI_NEIGHBOURS - m
            numbers.append(torch.nn.functional.pad(which + begin, (0, pad)))
            picked = torch.take_along_dim(delta, which[..., None], 1)
            vectors.append(torch.nn.functional.pad(picked, (0, 0, 0, pad)))
            valid.append(torch.nn.functional.pad(near <= FSAI_RADIUS, (0, pad)))
    if not numbers:
        empty = torch.zeros((0, FSAI_NEIGHBOURS), dtype=torch.int64, device=positions.device)
        return empty, positions.new_zeros((0, FSAI_NEIGHBOURS, 3)), empty.bool()
    used = torch.cat(valid)
    most = max(1, at_least(used.sum(1).max(), FSAI_NEIGHBOURS))
    return torch.cat(numbers)[:, :most], torch.cat(vectors)[:, :most], used[:, :most]
