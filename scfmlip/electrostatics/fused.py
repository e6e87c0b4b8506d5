"""
Energies and features of crystals on a GPU in fewest launches.

What stands between the rows of a model and the sums over wave vectors is linear in the rows: their order, the
axes of the cell, projections, self-interaction. Each of these is a form, and forms of forms are forms, so
that one launch leads from rows to the sums and one back.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from scfmlip_kernels import RowForm, lattice_field, row_form, wave_coefficients, wave_energies

from .boundary import Quirks
from .density import GaussianMultipoles
from .forms import composed, fits, form_of, repeated, turn_form, with_matrices
from .kspace import KSpace
from .self_interaction import self_field
from .waves import WaveSum

# columns up to which a table of terms is small
_COLUMNS = 256


def _plain(waves: WaveSum, rows: Tensor, l_max: int) -> bool:
    """Whether rows of these systems are summed here."""
    segments = waves.segments
    alone = not segments.shared and segments.order is None
    small = rows.shape[1] * rows.shape[2] <= _COLUMNS and l_max < 2 and rows.shape[1] > 0
    return type(waves) is KSpace and fits(rows) and waves.correction is None and alone and small


@lru_cache(maxsize=256)
def _moments_form(source: GaussianMultipoles, n_channels: int) -> RowForm:
    """From rows to moments along the axes of the cell."""
    shape, form = form_of(torch.Size((source.dim,)), ("to_moments", source), source._to_moments)
    turn = turn_form(shape[0] * n_channels, shape[1], 2 * math.pi, False)
    return composed(repeated(form, n_channels), turn)


@lru_cache(maxsize=256)
def _project_form(basis: GaussianMultipoles, n_channels: int) -> RowForm:
    """From a field along the axes of the cell to rows."""
    shape = torch.Size((basis.n_widths, basis.n_moments))
    _, form = form_of(shape, ("project", basis), basis._project)
    if basis.l_max == 0:
        return repeated(form, n_channels)
    turn = turn_form(shape[0] * n_channels, shape[1], 2 * math.pi, True)
    return composed(turn, repeated(form, n_channels))


@lru_cache(maxsize=256)
def _own_form(
    source: GaussianMultipoles, basis: GaussianMultipoles, quirks: Quirks, n_channels: int
) -> RowForm:
    """From rows to minus their self-interaction in rows of the basis."""

    def own(rows: Tensor) -> Tensor:
        moments = source._to_moments(rows)[:, None]
        field = self_field(moments, source, basis.widths, basis.l_max, quirks, -1.0)
        return basis._project(field)[:, 0]

    key = ("own", source, basis, quirks.numerical_self_interaction)
    _, form = form_of(torch.Size((source.dim,)), key, own)
    return repeated(form, n_channels)


def _turned_moments(waves: WaveSum, rows: Tensor, source: GaussianMultipoles) -> Tensor:
    """``[n, n_channels * n_widths, 1 | 4]`` moments along the axes of the cell."""
    n, n_channels, _ = rows.shape
    size = n_channels * source.n_widths
    if source.l_max == 0:
        return source.to_moments(rows).reshape(n, size, 1)
    form = _moments_form(source, n_channels)
    turned = with_matrices(rows.reshape(n, -1), form, waves.inverse, waves.segments)
    return turned.view(n, size, source.n_moments)


def _sums(waves: WaveSum, rows: Tensor, source: GaussianMultipoles) -> Tensor:
    """``[n_points, n_channels, n_widths, 2]`` structure factors."""
    sums = waves.structure_factors(_turned_moments(waves, rows, source))
    return waves.segments.combine(sums).unflatten(1, (rows.shape[1], source.n_widths))


def fused_energy(waves: WaveSum, rows: Tensor, source: GaussianMultipoles) -> Tensor | None:
    """
    Energies with self-interaction, ``[n_systems, n_channels]`` float64, eV; None if they are made otherwise.

    Args:
        waves: The sums.
        rows: ``[n, n_channels, source.dim]``.
        source: The basis of the rows, its widths those of the sums.
    """
    if not _plain(waves, rows, source.l_max) or waves.waves is None or source.widths != waves.widths:
        return None
    sums = _sums(waves, rows, source)
    return waves.points.sum(wave_energies(sums, waves.waves, waves.window, waves.widths))


def fused_rows(
    waves: WaveSum,
    rows: Tensor,
    source: GaussianMultipoles,
    basis: GaussianMultipoles,
    quirks: Quirks,
    with_self: bool,
) -> Tensor | None:
    """
    Potentials projected on a basis, ``[n, n_channels, basis.dim]``; None if they are made otherwise.

    Args:
        waves: The sums.
        rows: ``[n, n_channels, source.dim]``.
        source: The basis of the rows, its widths those of the sums.
        basis: What the potential is projected on.
        quirks: Deviations of a reference code.
        with_self: Whether to include self-interaction.
    """
    l_max = max(source.l_max, basis.l_max)
    if not _plain(waves, rows, l_max) or waves.waves is None or source.widths != waves.widths:
        return None
    n, n_channels, _ = rows.shape
    if n_channels * basis.n_widths * basis.n_moments > _COLUMNS:
        return None
    sums = _sums(waves, rows, source)
    coefficients = wave_coefficients(sums, waves.waves, waves.window, waves.widths, basis.widths)
    rank = min(basis.l_max, 1)
    assert isinstance(waves, KSpace)
    field = lattice_field(waves.frac, coefficients.flatten(1, 2), waves.grid, rank, waves.dtype)
    form = _project_form(basis, n_channels)
    if basis.l_max == 0:
        out = row_form(field.flatten(1), form)
    else:
        out = with_matrices(field.flatten(1), form, waves.inverse, waves.segments)
    if not with_self:
        own = _own_form(source, basis, quirks, n_channels)
        out = out + row_form(rows.reshape(n, -1), own)
    return out.view(n, n_channels, basis.dim)
