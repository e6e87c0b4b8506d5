"""
Energies and potentials whose sums over atoms are made together.

Where several ranks share a system, every sum over its atoms is a message. Structure factors, low moments, the
energies of neighbours, pairs and Gaussians with themselves, and the charges that an average or a
counter-charge follows from are therefore one sum, of what is known before it. A solve that needs the product
with the operator, its quadratic form and a few dot products gets them here with one message.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .self_interaction import self_field

if TYPE_CHECKING:
    from .geometry import Geometry


class _Sums:
    """Parts of sums, of the atoms of this process, until they are made together."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._whole: list[Tensor] = []

    def add(self, *parts: Tensor) -> Callable[[], list[Tensor]]:
        """The function that gives these sums once they are made."""
        first = len(self._whole) + len(self._parts)
        self._parts += parts
        return lambda: self._whole[first : first + len(parts)]

    def take(self) -> list[Tensor]:
        """The parts that are to be summed now; `made` follows."""
        parts, self._parts = self._parts, []
        return parts

    def made(self, sums: tuple[Tensor, ...]) -> None:
        """What they have become."""
        self._whole += sums


def _beside_waves(
    geometry: Geometry, moments: Tensor, widths: tuple[float, ...], rank: int, with_self: bool
) -> Tensor | None:
    """
    What the field of the sum over waves lacks or has too much, but for an average; None for nothing.

    Arguments as in `fields`, of the systems with waves. ``[n_atoms, n_channels, len(widths), 1 | 4 | 10]``.
    """
    source, quirks, smoothing = geometry.coulomb.source, geometry.coulomb.quirks, geometry.plan.smoothing
    if geometry.near is None:
        return None if with_self else self_field(moments, source, widths, rank, quirks, -1.0)
    rows, smooth = moments.double(), dataclasses.replace(source, widths=smoothing.sources)
    found = geometry.near.field(moments, widths, rank)
    found = found - self_field(rows, smooth, smoothing.receivers(widths), rank, quirks)
    return found + self_field(rows, source, widths, rank, quirks) if with_self else found


def _half(geometry: Geometry, field: Tensor | None, moments: Tensor) -> tuple[Tensor, ...]:
    """``[n_systems, n_channels]`` part of this process of ``1/2 moments . field``; nothing of None."""
    if field is None:
        return ()
    lattice = geometry.plan.lattice
    assert lattice is not None
    return (lattice.segments.own_sum(0.5 * (field.double() * moments.double()).sum((2, 3))),)


def _with_waves(
    geometry: Geometry, moments: Tensor, with_self: bool, sums: _Sums, form: bool
) -> tuple[Tensor | None, Tensor]:
    """Energies of systems with waves, and with ``form`` the field of the density's own widths as well."""
    waves, near, source = geometry.kspace, geometry.near, geometry.coulomb.source
    assert waves is not None and geometry.plan.lattice is not None
    # energies are sums in float64, also of what Gaussians have with themselves
    beside = _beside_waves(geometry, moments.double(), source.widths, source.l_max, with_self)
    half = sums.add(*_half(geometry, beside, moments))
    charges = sums.add(*(() if near is None else near.own_charges(moments)))
    field = None
    if form:
        field, energy, found = waves.field_and_energy(moments, source.l_max, *sums.take())
    else:
        energy, found = waves.energy_with(moments, *sums.take())
    sums.made(found)
    if field is not None:
        field = _whole_field(geometry, field, beside, charges(), source.widths)
    for value in half():
        energy = energy + value
    for value in charges():
        assert near is not None
        energy = energy - near.level_energy(value)
    return field, energy


def _whole_field(
    geometry: Geometry, field: Tensor, beside: Tensor | None, charges: list[Tensor], widths: tuple[float, ...]
) -> Tensor:
    """The field of waves with what stands beside it."""
    near, lattice = geometry.near, geometry.plan.lattice
    if beside is None:
        return field
    if near is None:
        return field + beside
    field = field.double() + beside
    for value in charges:
        assert lattice is not None
        level = lattice.segments.expand(near.level(value, widths))
        field = torch.cat(((field[..., 0] - level)[..., None], field[..., 1:]), -1)
    return field.to(geometry.positions.dtype)


def _counter_sums(geometry: Geometry, moments: Tensor, sums: _Sums) -> Callable[[], list[Tensor]]:
    """Those that a counter-charge asks for; none without one."""
    return sums.add(*(() if geometry.counter is None else geometry._own_overlap(moments)))


def _with_counter(
    geometry: Geometry,
    field: Tensor,
    moments: Tensor,
    found: list[Tensor],
    widths: tuple[float, ...],
    rank: int,
    conjugate: bool,
) -> Tensor:
    """The field with that of the counter-charge."""
    if geometry.counter is None:
        return field
    charge, zero = geometry._counter_zero(moments, conjugate, found)
    places = geometry.positions, geometry.plan.segments
    return field + geometry.counter.field(charge, zero, *places, widths, rank).to(field.dtype)


def energies(
    geometry: Geometry, moments: Tensor, with_self: bool, *others: Tensor, inside: bool = False
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """
    Energies, those in external fields included, and other sums over atoms.

    Args:
        geometry: Any.
        moments: ``[n_atoms, n_channels, n_widths, 1 | 4 | 10]``, see `GaussianMultipoles.to_moments`.
        with_self: Whether to include each Gaussian's interaction with itself.
        others: float64 parts of other sums, of the atoms of this process, which are added up as well.
        inside: Whether the parts of gradients are equal on all ranks anyway, or made so by the caller.

    Returns:
        ``[n_systems, n_channels]`` float64 eV, and the other sums over all ranks, which send one message.
    """
    plan, source, sums = geometry.plan, geometry.coulomb.source, _Sums()
    rest, counter = sums.add(*others), _counter_sums(geometry, moments, sums)
    external = sums.add()
    if geometry.external_field is not None or geometry.external_potential is not None:
        field = geometry._external_field((0.0,) * source.n_widths, source.l_max)
        external = sums.add(plan.segments.own_sum((moments.double() * field).sum((2, 3))))
    lattice = opened = None
    if plan.lattice is not None:
        _, lattice = _with_waves(geometry, plan.lattice.take(moments), with_self, sums, False)
    if geometry.openspace is not None and plan.open is not None:
        mine, own = plan.open.take(moments), sums.add()
        if with_self:
            rows = mine.double()
            field = self_field(rows, source, source.widths, source.l_max, geometry.coulomb.quirks)
            own = sums.add(plan.open.segments.own_sum(0.5 * (field * rows).sum((2, 3))))
        opened, found = geometry.openspace.energy_with(mine, *sums.take())
        sums.made(found)
        opened = sum(own(), opened)
    energy = plan.join(lattice, opened, True)
    if geometry.counter is not None:
        energy = energy + geometry.counter.energy(*counter())
    energy, found = sum(external(), energy), rest()
    if inside:
        return energy, tuple(found)
    energy, *found = plan.segments.equal_parts(energy, *found)
    return energy, tuple(found)


def fields(
    geometry: Geometry,
    moments: Tensor,
    widths: tuple[float, ...],
    rank: int,
    conjugate: bool,
    with_self: bool,
    *others: Tensor,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """
    The potential and its derivatives, averaged over Gaussians, without external fields, and other sums.

    Args:
        geometry: Any.
        moments: As in `energies`.
        widths: Of the receiving Gaussians, angstrom.
        rank: 0 for the potential, 1 to add its gradient, 2 its second derivatives.
        conjugate: Whether the field is the derivative of the energy, where a reference code has two.
        with_self: As in `energies`.
        others: As in `energies`.

    Returns:
        ``[n_atoms, n_channels, len(widths), 1 | 4 | 10]`` in the positions' dtype, V, V/angstrom and
        V/angstrom^2, and the other sums over all ranks, which send one message.
    """
    plan, source, sums = geometry.plan, geometry.coulomb.source, _Sums()
    rest, counter = sums.add(*others), _counter_sums(geometry, moments, sums)
    lattice = opened = None
    if geometry.kspace is not None and plan.lattice is not None:
        mine, smooth = plan.lattice.take(moments), plan.smoothing.receivers(widths)
        beside = _beside_waves(geometry, mine, widths, rank, with_self)
        charges = sums.add(*(() if geometry.near is None else geometry.near.own_charges(mine)))
        lattice, found = geometry.kspace.field_with(mine, smooth, rank, *sums.take())
        sums.made(found)
        lattice = _whole_field(geometry, lattice, beside, charges(), widths)
    if geometry.openspace is not None and plan.open is not None:
        mine = plan.open.take(moments)
        opened, found = geometry.openspace.field_with(mine, widths, rank, conjugate, *sums.take())
        sums.made(found)
        if with_self:
            opened = opened + self_field(mine, source, widths, rank, geometry.coulomb.quirks)
    field = plan.join(lattice, opened, False)
    return _with_counter(geometry, field, moments, counter(), widths, rank, conjugate), tuple(rest())


def energy_with(
    geometry: Geometry,
    multipoles: Tensor,
    *others: Tensor,
    self_interaction: bool = True,
    inside: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """
    `Geometry.energy` with self-interaction, and other sums over atoms.

    Args:
        geometry: Any.
        multipoles: ``[n_atoms, dim]``.
        others: float64 parts of other sums, of the atoms of this process, which are added up as well.
        self_interaction: False to leave each Gaussian's interaction with itself out.
        inside: See `energies`.

    Returns:
        ``[n_systems]`` float64 eV, and the other sums over all ranks; differentiable. Ranks send one message.

    Example:
        >>> import torch, scfmlip
        >>> from scfmlip.electrostatics.joint import energy_with
        >>> positions, cell = torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]]), 4 * torch.eye(3)[None]
        >>> geometry = scfmlip.Coulomb(l_max=0, sigma=1.0).prepare(positions, cell, True)
        >>> energy, (more,) = energy_with(geometry, torch.tensor([[1.0], [-1.0]]), torch.ones(1).double())
        >>> round(float(energy), 2), float(more)
        (1.17, 1.0)
    """
    if not geometry.plan.segments.shared:
        return geometry.energy(multipoles, self_interaction).double(), others
    moments = geometry._moments(multipoles)
    energy, rest = energies(geometry, moments, self_interaction, *others, inside=inside)
    return energy[:, 0], rest


def potential_with(
    geometry: Geometry, multipoles: Tensor, *others: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """
    `Geometry.potential` with self-interaction, and other sums over atoms.

    Args:
        geometry: Any.
        multipoles: ``[n_atoms, (n_channels,) dim]``.
        others: float64 parts of other sums, of the atoms of this process, which are added up as well.

    Returns:
        Shape and dtype of ``multipoles``, V; and the other sums over all ranks, which send one message.

    Example:
        >>> import torch, scfmlip
        >>> from scfmlip.electrostatics.joint import potential_with
        >>> positions, cell = torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]]), 4 * torch.eye(3)[None]
        >>> geometry = scfmlip.Coulomb(l_max=0, sigma=1.0).prepare(positions, cell, True)
        >>> potential, _ = potential_with(geometry, torch.tensor([[1.0], [-1.0]]))
        >>> [round(v, 2) for v in potential[:, 0].tolist()]
        [1.17, -1.17]
    """
    return geometry._field(multipoles, geometry.coulomb.source, True, True, *others)


def potential_and_energy(
    geometry: Geometry, multipoles: Tensor, *others: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """
    `Geometry.potential` and `Geometry.energy` with self-interaction, and other sums over atoms.

    Args:
        geometry: Without external fields.
        multipoles: ``[n_atoms, n_channels, dim]``.
        others: float64 parts of other sums, of the atoms of this process, which are added up as well.

    Returns:
        ``[n_atoms, n_channels, dim]`` V (and V/angstrom, V/angstrom^2), ``[n_systems, n_channels]`` float64
        eV, and the other sums over all ranks, which send one message; with ``compat``, whose energies are not
        those of its potentials, two.

    Example:
        >>> import torch, scfmlip
        >>> from scfmlip.electrostatics.joint import potential_and_energy
        >>> positions, cell = torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]]), 4 * torch.eye(3)[None]
        >>> geometry = scfmlip.Coulomb(l_max=0, sigma=1.0).prepare(positions, cell, True)
        >>> charges = torch.tensor([[[1.0]], [[-1.0]]])
        >>> potential, energy, _ = potential_and_energy(geometry, charges)
        >>> bool(torch.allclose(0.5 * (charges * potential).sum().double(), energy))
        True
    """
    plan, source, sums = geometry.plan, geometry.coulomb.source, _Sums()
    if geometry.coulomb.compat is not None:
        potential = geometry.potential(multipoles, self_interaction=True)
        half = 0.5 * plan.segments.own_sum((multipoles.double() * potential.double()).sum(-1))
        energy, *found = plan.segments.combine_all(half, *others)
        return potential, energy, tuple(found)
    moments = geometry._moments(multipoles)
    rest, counter = sums.add(*others), _counter_sums(geometry, moments, sums)
    lattice = opened = lattice_energy = open_energy = None
    if plan.lattice is not None:
        lattice, lattice_energy = _with_waves(geometry, plan.lattice.take(moments), True, sums, True)
    if geometry.openspace is not None and plan.open is not None:
        mine = plan.open.take(moments)
        own = self_field(mine, source, source.widths, source.l_max, geometry.coulomb.quirks)
        half = sums.add(plan.open.segments.own_sum(0.5 * (own.double() * mine.double()).sum((2, 3))))
        opened, open_energy, found = geometry.openspace.conjugate_and_energy(mine, source.l_max, *sums.take())
        sums.made(found)
        opened, open_energy = opened + own, sum(half(), open_energy)
    field, energy = plan.join(lattice, opened, False), plan.join(lattice_energy, open_energy, True)
    field = _with_counter(geometry, field, moments, counter(), source.widths, source.l_max, True)
    if geometry.counter is not None:
        energy = energy + geometry.counter.energy(*counter())
    return source.project(field), energy, tuple(rest())
