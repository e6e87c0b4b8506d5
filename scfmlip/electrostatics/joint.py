"""
Potential and energy of one density from the same sums.

Where several ranks share a system, every sum over its atoms is a message. A solve that needs the product with
the operator, its quadratic form and a few dot products gets them here with one.
"""

from __future__ import annotations

from torch import Tensor

from .geometry import Geometry


def energy_with(geometry: Geometry, multipoles: Tensor, *others: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """
    `Geometry.energy` with self-interaction, and other sums over atoms.

    Args:
        geometry: Any.
        multipoles: ``[n_atoms, dim]``.
        others: float64 parts of other sums, of the atoms of this process, which are added up as well.

    Returns:
        ``[n_systems]`` float64 eV, and the other sums over all ranks; differentiable. Crystals and slabs
        without external fields take one message for all of it.

    Example:
        >>> import torch, scfmlip
        >>> from scfmlip.electrostatics.joint import energy_with
        >>> positions, cell = torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]]), 4 * torch.eye(3)[None]
        >>> geometry = scfmlip.Coulomb(l_max=0, sigma=1.0).prepare(positions, cell, True)
        >>> energy, (more,) = energy_with(geometry, torch.tensor([[1.0], [-1.0]]), torch.ones(1).double())
        >>> round(float(energy), 2), float(more)
        (1.17, 1.0)
    """
    kspace, lattice = geometry.kspace, geometry.plan.lattice
    segments = geometry.plan.segments
    if kspace is not None and lattice is not None and geometry._only_lattice and segments.shared:
        moments = lattice.take(geometry._moments(multipoles[:, None]))
        energy, rest = kspace.energy_with(moments, *others)
        return energy[:, 0], rest
    energy = geometry.energy(multipoles, self_interaction=True).double()
    return energy, segments.combine_all(*others)


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
        eV, and the other sums over all ranks. Crystals and slabs take one message for all of it, systems with
        neighbours or a counter-charge one more.

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
    kspace, lattice, source = geometry.kspace, geometry.plan.lattice, geometry.coulomb.source
    plain = geometry._only_lattice and geometry.coulomb.compat is None
    if kspace is not None and lattice is not None and plain:
        moments = lattice.take(geometry._moments(multipoles))
        field, energy, rest = kspace.field_and_energy(moments, source.l_max, *others)
        return source.project(field), energy, rest
    potential = geometry.potential(multipoles, self_interaction=True)
    segments = geometry.plan.segments
    half = 0.5 * segments.own_sum((multipoles.double() * potential.double()).sum(-1))
    energy, *rest = segments.combine_all(half, *others)
    return potential, energy, tuple(rest)
