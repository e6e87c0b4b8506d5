"""
The quadratic functional of charge equilibration and its linear system.

    E(s) = b.s + 1/2 s.(J + K) s,   sum of the charges of each group given (or their potential),
with K the Coulomb operator, self-interaction included, and J > 0 the diagonal hardness. K of Gaussians is
positive semidefinite, so the minimum is unique.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..electrostatics import Coulomb, CoulombPlan, Geometry
from ..electrostatics.joint import energy_with, potential_and_energy, potential_with
from ..electrostatics.range_split import NeighbourPairs, ShortRange
from ..segments import Segments
from .constraints import ChargeGroups


@dataclass(frozen=True)
class QuadraticProblem:
    """
    Everything that defines a batch of systems except positions, cells and hardness.

    Attributes:
        coulomb, plan: The operator and its geometry-independent part.
        slots: ``[n_atoms, dim]`` int64 columns of the operator's multipoles that hold an atom's state; None
            for all columns. With several Gaussian widths, every atom uses one of them.
        groups: Groups of atoms with given charges.
        constrained: False at constant potential.
        counter_charge: Passed on to `Coulomb.prepare`.
        pairs: Neighbours, if atoms have their own widths besides the operator's.
    """

    coulomb: Coulomb
    plan: CoulombPlan
    slots: Tensor | None
    groups: ChargeGroups
    constrained: bool
    counter_charge: Tensor | None = None
    pairs: NeighbourPairs | None = None

    @property
    def n_systems(self) -> int:
        """Number of systems in the batch."""
        return self.plan.n_systems

    def spread(self, state: Tensor) -> Tensor:
        """From states ``[n_atoms, ..., dim]`` to the operator's rows."""
        if self.slots is None:
            return state
        slots = self.slots
        if state.ndim == 3:
            slots = slots[:, None].expand(-1, state.shape[1], -1)
        rows = state.new_zeros((*state.shape[:-1], self.coulomb.source.dim))
        return rows.scatter(-1, slots, state)

    def collect(self, rows: Tensor) -> Tensor:
        """The adjoint of `spread`."""
        if self.slots is None:
            return rows
        slots = self.slots
        if rows.ndim == 3:
            slots = slots[:, None].expand(-1, rows.shape[1], -1)
        return rows.gather(-1, slots)

    def prepare(
        self,
        positions: Tensor,
        cell: Tensor | None,
        widths: Tensor | None = None,
        external_field: Tensor | None = None,
        external_potential: Tensor | None = None,
    ) -> Interaction:
        """The interaction at a geometry; ``widths [n_atoms]`` only together with neighbours."""
        geometry = self.coulomb.prepare(
            positions,
            cell,
            plan=self.plan,
            external_field=external_field,
            external_potential=external_potential,
            counter_charge=self.counter_charge,
        )
        short = None
        if self.pairs is not None:
            assert widths is not None
            smooth = self.coulomb.source.widths[0]
            short = ShortRange(self.pairs, self.plan, smooth, widths, positions, geometry.cell)
        return Interaction(self, geometry, short)

    def apply(self, interaction: Interaction, hardness: Tensor, state: Tensor) -> Tensor:
        """``(J + K) s`` for ``state [n_atoms, dim]`` or several, ``[n_atoms, n, dim]``."""
        diagonal = hardness if state.ndim == 2 else hardness[:, None]
        return diagonal * state + interaction.potential(state)

    @property
    def segments(self) -> Segments:
        """The system of each atom."""
        return self.plan.segments

    # the constraint: the charges of each group add up to a given total

    def project(self, state: Tensor) -> Tensor:
        """Project a gradient on allowed directions by removing the group means of its charge part."""
        if not self.constrained:
            return state
        mean = self.groups.segments.mean(state[:, 0])
        return torch.cat(((state[:, 0] - self.groups.segments.expand(mean))[:, None], state[:, 1:]), 1)

    def feasible(self, state: Tensor, totals: Tensor) -> Tensor:
        """The nearest state that satisfies the totals."""
        if not self.constrained:
            return state
        atoms = self.groups.segments
        missing = (totals - atoms.sum(state[:, 0])) / atoms.counts.to(state.dtype)
        return torch.cat(((state[:, 0] + atoms.expand(missing))[:, None], state[:, 1:]), 1)


@dataclass(frozen=True)
class Interaction:
    """
    K at one geometry.

    Attributes:
        problem: Sizes of the batch.
        geometry: The operator's geometry.
        short: The short-range part that neighbours add, or None.
    """

    problem: QuadraticProblem
    geometry: Geometry
    short: ShortRange | None

    def potential(self, state: Tensor) -> Tensor:
        """``K s`` plus external potentials, in the shape of ``state``."""
        problem, short = self.problem, self.short
        near, parts = (None, ()) if short is None else (short.near(state), short.own_sums(state))
        rows, sums = potential_with(self.geometry, problem.spread(state), *parts)
        out = problem.collect(rows)
        return out if short is None or near is None else out + short.whole(near, sums)

    def product(self, state: Tensor, *others: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """
        ``K s`` and ``s.K s`` of several states, without external potentials, and other sums over atoms.

        Args:
            state: ``[n_atoms, n_channels, dim]``.
            others: float64 parts of other sums, of the atoms of this process.

        Returns:
            Shape of ``state``, ``[n_systems, n_channels]`` float64, and the other sums over all ranks; see
            `potential_and_energy`.
        """
        problem, short = self.problem, self.short
        rows = problem.spread(state)
        if short is None:
            potential, energy, rest = potential_and_energy(self.geometry, rows, *others)
            return problem.collect(potential), 2 * energy, rest
        near, averages = short.near(state), short.own_sums(state)
        form = problem.segments.own_sum((state.double() * near.double()).sum(-1))
        parts = (form, *averages, *others)
        potential, energy, (form, *rest) = potential_and_energy(self.geometry, rows, *parts)
        sums, rest = rest[: len(averages)], rest[len(averages) :]
        form = form + 2 * energy
        if sums:
            form = form - 2 * short.average_energy(sums).sum(-1)
        return problem.collect(potential) + short.whole(near, sums), form, tuple(rest)

    def energy(self, state: Tensor, own: Tensor | None = None) -> Tensor:
        """``1/2 s.K s`` plus external energies and the sum of ``own [n_atoms]``, ``[n_systems]`` float64."""
        problem, short = self.problem, self.short
        near = () if short is None else short.own_energy(state[:, 0])
        parts = () if own is None else (problem.segments.own_sum(own.double()),)
        energy, sums = energy_with(self.geometry, problem.spread(state), *near, *parts)
        energy = sum(sums[len(near) :], energy)
        return energy if short is None else energy + short.energy(sums[: len(near)])
