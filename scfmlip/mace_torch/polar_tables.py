"""
The Coulomb sums of a PolarMACE with the constants that the model holds.

graph-longrange keeps widths, normalisations, self terms and finite-difference steps as buffers. In models
that were made in float32 and run in float64, as published ones do, these are rounded; exact constants would
change energies by 1e-8 to 1e-6 eV. Here sums over wave vectors and over pairs use the rounded widths and
steps, and multipoles and features carry the rounded factors, as in the original.
"""

# optional parts of a geometry imply each other, which pyright cannot see
# pyright: reportOptionalMemberAccess=false

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scfmlip_kernels.constants import constant

from ..electrostatics import GaussianMultipoles, Geometry
from .kept import kept_of_buffers
from .turned import Turn

# constants closer than this to the exact ones were not rounded to float32
_ROUNDED = 1e-12


class Basis(NamedTuple):
    """
    Gaussian orbitals according to a table.

    Attributes:
        widths: angstrom.
        factors: ``(l_max + 1)`` tuples of ``n_widths`` corrections to the exact constants.
    """

    widths: tuple[float, ...]
    factors: tuple[tuple[float, ...], ...]

    def of(self, rows: Tensor) -> Tensor:
        """``[..., n_widths * (l_max + 1)^2]`` rows times the factors."""
        flat = [f for l, each in enumerate(self.factors) for f in each for _ in range(2 * l + 1)]
        return rows * constant(tuple(flat), rows.dtype, rows.device)


@dataclasses.dataclass(frozen=True)
class Tables:
    """
    The buffers of a PolarMACE's electrostatic modules.

    Attributes:
        energy, source: The density's Gaussians in the energy and in the features, over wave vectors.
        receivers: The features' Gaussians over wave vectors.
        correction: The features' Gaussians in the corrections of slabs and boxes.
        steps: Finite-difference displacements of open dipoles, for energies and for features, angstrom.
        pairs: The features' Gaussians over pairs; widths are those that give the rounded sums of squares.
    """

    energy: Basis
    source: Basis
    receivers: Basis
    correction: Basis
    steps: tuple[float, float]
    pairs: Basis


def _host(buffer: Tensor) -> list[Any]:
    return buffer.detach().to("cpu", torch.float64).tolist()


def _inverse_norm(l: int, sigma: float, receiver: bool) -> float:
    """1 / C_l of `electrostatics.density`."""
    if receiver:
        return 2 ** ((l + 1) / 2) * math.gamma((l + 3) / 2) * sigma ** (l + 3)
    angular = math.sqrt(4 * math.pi / (2 * l + 1)) * 2 ** ((2 * l + 1) / 2) * math.gamma((2 * l + 3) / 2)
    return angular * sigma ** (2 * l + 3)


def _wave_basis(basis: Any) -> Basis:
    """The basis of a ``GTOBasis``."""
    radial, receiver = basis.radial_spline, basis.normalize == "receiver"
    scale = _host(basis.cl_scale)
    factors = []
    for l in range(basis.max_l + 1):
        given = _host(getattr(radial, f"pref{l}"))
        exact = [4 * math.pi * math.sqrt(math.pi / 2) * s ** (2 * l + 3) for s in basis.sigmas]
        factors.append(
            tuple(
                g * scale[i][l] * _inverse_norm(l, s, receiver) / e
                for i, (g, e, s) in enumerate(zip(given, exact, basis.sigmas, strict=True))
            )
        )
    return Basis(tuple(math.sqrt(s) for s in _host(radial.sigma2)), tuple(factors))


def _exact_features(l: int, sigma: float) -> float:
    """The factor of `GaussianMultipoles.project` for a potential (l = 0) or its gradient (l = 1)."""
    return _inverse_norm(l, sigma, False) / _inverse_norm(l, sigma, True)


def read_tables(model: Any) -> Tables | None:
    """The buffers of a PolarMACE, or None if they are the exact constants to float64 rounding."""
    energy, features = model.coulomb_energy, model.electric_potential_descriptor
    widths, l_max = list(features.feature_basis.sigmas), features.feature_basis.max_l
    n, sigma = len(widths), energy.density_smearing_width
    matrix = _host(features.non_periodic_correction_terms.displaced_interactions.matrix)
    rows = [matrix[:n], matrix[n::3]][: l_max + 1]
    correction = [
        tuple(sum(row) / _exact_features(l, w) for row, w in zip(rows[l], widths, strict=True))
        for l in range(l_max + 1)
    ]
    pairs = features.realspace_features
    steps = _host(energy.realspace_energy.x)[0], _host(pairs.x)[0]
    totals = _host(pairs.total_width_factors)
    given = [_host(pairs.l0_factors), [f * steps[1] for f in _host(pairs.l1_factors)]][: l_max + 1]
    tables = Tables(
        energy=_wave_basis(energy.density_basis),
        source=_wave_basis(features.density_basis),
        receivers=_wave_basis(features.feature_basis),
        correction=Basis(tuple(widths), tuple(correction)),
        steps=steps,
        pairs=Basis(
            tuple(math.sqrt(2 * t**2 - sigma**2) for t in totals),
            tuple(
                tuple(g / _exact_features(l, w) for g, w in zip(given[l], widths, strict=True))
                for l in range(l_max + 1)
            ),
        ),
    )
    off = [abs(steps[0] / energy.realspace_energy.offset - 1), abs(steps[1] / pairs.offset - 1)]
    for basis, exact in (
        (tables.energy, [sigma]),
        (tables.source, [sigma]),
        *((basis, widths) for basis in (tables.receivers, tables.correction, tables.pairs)),
    ):
        off += [abs(w / e - 1) for w, e in zip(basis.widths, exact, strict=True)]
        off += [abs(f - 1) for each in basis.factors for f in each]
    return tables if max(off) > _ROUNDED else None


class PolarSums:
    """
    Features and energy of a PolarMACE's densities at one geometry.

    Args:
        model: The PolarMACE.
        geometry: Geometry of a `Coulomb` with ``compat="graph_longrange"`` and the model's options.
        turn: Rotation that made slabs upright in it, or None.
    """

    def __init__(self, model: Any, geometry: Geometry, turn: Turn | None = None) -> None:
        self.model, self.geometry, self.turn = model, geometry, turn
        # what is wrong with charges shows in the energy, which is checked
        self._unchecked = copy.copy(geometry)
        self._unchecked.validate = geometry.validate and not geometry.positions.is_cuda
        double = geometry.positions.dtype == torch.float64
        buffers = [*model.coulomb_energy.buffers(), *model.electric_potential_descriptor.buffers()]
        self.tables = (
            kept_of_buffers(model, "tables", buffers, lambda: read_tables(model)) if double else None
        )

    def features(self, rows: Tensor) -> Tensor:
        """``[n_atoms, n_channels, (l + 1)^2]`` densities -> ``[n_atoms, n_channels, .]`` features."""
        if self.turn is None:
            return self._features(rows)
        return self.turn.back(self._features(self.turn.upright(rows)), len(self.model.field_feature_widths))

    def _features(self, rows: Tensor) -> Tensor:
        model, geometry, tables = self.model, self.geometry, self.tables
        widths, l_max = tuple(model.field_feature_widths), model.field_feature_max_l
        if tables is None:
            return self._unchecked.features(rows, widths, l_max, self_interaction=model.field_si)
        moments = self._unchecked._moments(rows)
        basis = GaussianMultipoles(l_max, widths, "receiver", "e3nn")
        rank = 0 if l_max == 0 else 1
        terms = model.electric_potential_descriptor
        lattice = opened = None
        if geometry.kspace is not None:
            mine = geometry.plan.lattice.take(moments)
            waves = _waves(geometry, tables.source)
            field = waves.field(_scaled(mine, tables.source), tables.receivers.widths, rank)
            lattice = tables.receivers.of(basis.project(field))
            if geometry.kspace.correction is not None:
                field = geometry.kspace.correction.field(mine, widths, rank)
                lattice = lattice + tables.correction.of(basis.project(field))
            if not model.field_si:
                mine = geometry.plan.lattice.take(rows)
                lattice = lattice - terms.self_interaction_terms(mine.flatten(0, 1)).view_as(lattice)
        if geometry.openspace is not None:
            mine = geometry.plan.open.take(moments)
            step = tables.steps[1] / terms.realspace_features.offset
            field = _pairs(geometry, tables).field(_stepped(mine, step), tables.pairs.widths, rank)
            opened = tables.pairs.of(basis.project(field))
            if model.field_si:
                mine, own = geometry.plan.open.take(rows), terms.realspace_features.self_interaction
                opened = opened + own(mine.flatten(0, 1)).view_as(opened)
        return geometry.plan.join(lattice, opened, per_system=False)

    def energy(self, rows: Tensor) -> Tensor:
        """``[n_atoms, (l + 1)^2]`` density -> ``[n_systems]`` eV."""
        rows = rows if self.turn is None else self.turn.upright(rows)
        model, geometry, tables = self.model, self.geometry, self.tables
        with_self = model.include_electrostatic_self_interaction
        if tables is None:
            return geometry.energy(rows, self_interaction=with_self)
        moments = geometry._moments(rows)
        terms = model.coulomb_energy
        lattice = opened = None
        if geometry.kspace is not None:
            sub = geometry.plan.lattice
            mine = sub.take(moments)
            lattice = _waves(geometry, tables.energy).energy(_scaled(mine, tables.energy))
            if geometry.kspace.correction is not None:
                lattice = lattice + geometry.kspace.correction.energy(mine)
            if not with_self:
                lattice = lattice - _self_energy(terms.self_interaction_terms, rows, sub)
        if geometry.openspace is not None:
            sub = geometry.plan.open
            step = tables.steps[0] / terms.realspace_energy.offset
            opened = _pairs(geometry, tables).energy(_stepped(sub.take(moments), step))
            if with_self:
                opened = opened + _self_energy(terms.realspace_energy.self_interaction, rows, sub)
        return geometry.plan.join(lattice, opened, per_system=True)[:, 0]


def _scaled(moments: Tensor, basis: Basis) -> Tensor:
    """``[..., 1, (l + 1)^2]`` moments times the factors of a density's table."""
    flat = [f for l, (f,) in enumerate(basis.factors) for _ in range(2 * l + 1)]
    return moments * torch.tensor(flat, dtype=moments.dtype, device=moments.device)


def _stepped(moments: Tensor, step: float) -> Tensor:
    """Moments for dipoles whose charges are displaced by another step than they were divided by."""
    return torch.cat((moments[..., :1], moments[..., 1:] * step), -1)


def _waves(geometry: Geometry, density: Basis) -> Any:
    """The sum over wave vectors with the density's rounded width, without corrections."""
    waves = copy.copy(geometry.kspace)
    waves.widths, waves.correction = density.widths, None
    return waves


def _pairs(geometry: Geometry, tables: Tables) -> Any:
    """The sum over pairs with the rounded steps."""
    pairs = copy.copy(geometry.openspace)
    pairs.quirks = dataclasses.replace(pairs.quirks, open_offsets=tables.steps)
    return pairs


def _self_energy(terms: torch.nn.Module, rows: Tensor, sub: Any) -> Tensor:
    """Self energies ``[n_systems, 1]``, eV, of a sub-batch's atoms."""
    mine = sub.take(rows)
    return sub.segments.sum(0.5 * (mine * terms(mine)).sum(-1, keepdim=True))
