"""What MACE-POLAR does with rows of charges, positions and cells, each in one launch on a GPU."""

# mace-torch's modules are untyped: for torch.nn.Module every attribute is Tensor | Module
# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from scfmlip_kernels import RowForm, close_charges, row_form, row_form_sums
from scfmlip_kernels.constants import constant
from scfmlip_kernels.identity import ByIdentity

from ..segments import Segments
from ..types import CARTESIAN_FROM_E3NN, E3NN_FROM_CARTESIAN

_targets: ByIdentity[Tensor] = ByIdentity(4)


def _own(segments: Segments) -> bool:
    """Whether all rows of a system are here, one after another."""
    return not segments.shared and segments.order is None


def _places(segments: Segments, n_systems: int) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if n_systems == 1 else (segments.index, segments.ptr)


def _strain(rows: int) -> RowForm:
    """Vectors plus their product with the symmetric part of a strain."""
    terms: list[tuple[int, int, int, float]] = []
    for row in range(rows):
        for c in range(3):
            terms.append((3 * row + c, 3 * row + c, -1, 1.0))
            for j in range(3):
                terms += [(3 * row + c, 3 * row + j, place, 0.5) for place in (3 * j + c, 3 * c + j)]
    return RowForm(3 * rows, 9, 3 * rows, tuple(terms))


_OF_POSITIONS, _OF_CELLS = _strain(1), _strain(3)


def strained_positions(positions: Tensor, displacement: Tensor, batch: Tensor, ptr: Tensor) -> Tensor:
    """``[n_atoms, 3]`` positions plus their product with the symmetric part of ``displacement``."""
    one = len(displacement) == 1
    places = (None, None) if one else (batch, ptr)
    return row_form(positions, _OF_POSITIONS, displacement.flatten(1), *places)


def strained_cells(cell: Tensor, displacement: Tensor | None) -> Tensor:
    """``[n_systems, 3, 3]`` cells likewise."""
    if displacement is None:
        return cell
    if cell.is_cuda and cell.dtype == displacement.dtype:
        return row_form(cell.flatten(1), _OF_CELLS, displacement.flatten(1)).view(-1, 3, 3)
    return cell + cell @ (0.5 * (displacement + displacement.mT))


def spin_targets(data: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """``[n_systems, 2]`` charge of each spin, from total charge and spin multiplicity."""
    charge, spin = data["total_charge"], data["total_spin"]

    def make() -> Tensor:
        excess = spin - 1
        return torch.stack(((charge + excess) / 2, (charge - excess) / 2), -1).to(dtype)

    if charge.requires_grad or spin.requires_grad:
        return make()
    return _targets.get((charge, spin), dtype, make)


def closed_charges(charges: Tensor, update: Tensor, targets: Tensor, segments: Segments) -> Tensor:
    """
    Distribute the missing charge of each spin channel over the atoms by Fukui weights.

    Args:
        charges: ``[n, 2 m]``.
        update: ``[n, 2]`` weights, or ``[n, 2 m + 2]`` changes of the charges and weights.
        targets: ``[n_systems, 2]``.
        segments: The system of each atom; its sums run in float64.
    """
    if _own(segments):
        return close_charges(charges, update, targets, segments.ptr, segments.index)

    weights, rows = update[:, -2:], charges
    if update.shape[1] > 2:
        rows = rows + update[:, :-2]
    rows = rows.unflatten(1, (2, -1))
    # in one sum, because each costs time over several processes
    totals = segments.sum(torch.cat((weights, rows[:, :, 0]), 1).double())
    norm, there = segments.expand(totals).to(charges.dtype).split(2, 1)
    weights = weights / torch.where(norm == 0, torch.ones_like(norm), norm)
    missing = segments.expand(targets) - there
    monopoles = rows[:, :, 0] + weights * missing
    return torch.cat((monopoles[..., None], rows[..., 1:]), -1).flatten(1)


def centred(positions: Tensor, segments: Segments) -> Tensor:
    """``[n_atoms, 3]`` positions from the mean of their system, which is added up in float64."""
    return positions - segments.expand(segments.mean(positions.double())).to(positions.dtype)


@lru_cache(maxsize=64)
def _field_form(matrix: tuple[tuple[float, ...], ...], norms: tuple[float, ...]) -> RowForm:
    """Features of a field on both spins; a row of the matrix for each feature."""
    terms: list[tuple[int, int, int, float]] = []
    size = len(norms)
    for spin in range(2):
        for k, (row, norm) in enumerate(zip(matrix, norms, strict=True)):
            out = spin * size + k
            terms += [(out, axis, axis, 0.5 * row[0] / norm) for axis in range(3)]
            # columns of the matrix: the potential, then the field along z, x, y
            for axis, value in zip((2, 0, 1), row[1:], strict=False):
                terms.append((out, -1, axis, 0.5 * value / norm))
    return RowForm(3, 3, 2 * size, tuple(t for t in terms if t[3] != 0.0))


def half_field_features(
    positions: Tensor,
    field: Tensor,
    segments: Segments,
    matrix: tuple[tuple[float, ...], ...],
    norms: tuple[float, ...],
) -> Tensor:
    """
    Half of the features of a field on either spin, over the features' norms, ``[n_atoms, 2 n_features]``.

    Args:
        positions: ``[n_atoms, 3]`` from the middle of their system.
        field: ``[n_systems, 3]`` V/angstrom, of the energy field . dipole.
        segments: The system of each atom.
        matrix: Features of a potential, and of a field along z, x, y.
        norms: Norms of the features.
    """
    form = _field_form(matrix, norms)
    if _own(segments):
        return row_form(positions, form, field, *_places(segments, len(field)))
    each = segments.expand(field)
    return row_form(positions, form, each.contiguous())


@lru_cache(maxsize=16)
def _moments_form(m: int) -> RowForm:
    """Sums of dipoles x, y, z and charges of the rows of both spins."""
    terms: list[tuple[int, int, int, float]] = []
    for first in (0, m):
        terms += [(first, axis, axis, 1.0) for axis in range(3)]
        terms.append((first, -1, 3, 1.0))
        if m > 1:
            terms += [(first + 1 + CARTESIAN_FROM_E3NN[axis], -1, axis, 1.0) for axis in range(3)]
    return RowForm(3, 4, 2 * m, tuple(terms))


def dipoles_and_charges(charges: Tensor, positions: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """Dipoles ``[n_systems, 3]``, charges ``[n_systems]`` of multipoles ``[n_atoms, 2, m]`` of two spins."""
    if _own(segments) and positions.dtype == charges.dtype:
        n_systems = segments.n_segments
        form = _moments_form(charges.shape[2])
        sums = row_form_sums(charges.flatten(1), positions, form, n_systems, *_places(segments, n_systems))
        return sums[:, :3], sums[:, 3]
    density = charges.sum(1)
    rows = positions * density[:, :1]
    if density.shape[1] > 1:
        places = constant(CARTESIAN_FROM_E3NN, torch.int64, density.device)
        rows = rows + density[:, 1:4].index_select(1, places)
    sums = segments.sum(torch.cat((rows, density[:, :1].to(rows.dtype)), 1))
    return sums[:, :3], sums[:, 3].to(density.dtype)


def system_sums(segments: Segments, *values: Tensor) -> tuple[Tensor, ...]:
    """``[n_systems]`` sums of each of several ``[n_atoms]``; processes send one message for all."""
    if not segments.shared:
        return tuple(segments.sum(v) for v in values)
    sums = segments.combine_all(*(segments.own_sum(v.double()) for v in values))
    return tuple(s.to(v.dtype) for s, v in zip(sums, values, strict=True))


_DOT = RowForm(3, 3, 1, tuple((0, axis, axis, 1.0) for axis in range(3)))


def field_energies(field: Tensor, dipole: Tensor) -> Tensor:
    """``[n_systems]`` products of fields and dipoles ``[n_systems, 3]``."""
    if field.shape != dipole.shape or field.dtype != dipole.dtype:
        return (field * dipole).sum(-1)
    return row_form(dipole, _DOT, field)[:, 0]


def of_both_spins(charges: Tensor, sign: int) -> Tensor:
    """``[n_atoms, m]`` sum (1) or difference (-1) of the multipoles ``[n_atoms, 2, m]`` of two spins."""
    m = charges.shape[2]
    return row_form(charges.flatten(1), _spins_form(m, sign))


@lru_cache(maxsize=16)
def _spins_form(m: int, sign: int) -> RowForm:
    terms: list[Any] = [(k, k, -1, 1.0) for k in range(m)]
    return RowForm(2 * m, 0, m, (*terms, *((k, m + k, -1, float(sign)) for k in range(m))))


def in_e3nn_order(vectors: Tensor) -> Tensor:
    """Vectors ``[n, 3]`` as y, z, x."""
    if vectors.is_cuda:
        return row_form(vectors, _E3NN_ORDER)
    return vectors.index_select(-1, constant(E3NN_FROM_CARTESIAN, torch.int64, vectors.device))


_E3NN_ORDER = RowForm(3, 0, 3, tuple((k, x, -1, 1.0) for k, x in enumerate(E3NN_FROM_CARTESIAN)))
