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
from ..electrostatics.range_split import NeighbourPairs, ShortRange
from ..segments import Segments
from .constraints import ChargeGroups


@dataclass(frozen=True)
class QuadraticProblem:
    """
    What defines a batch of systems but their positions, cells and hardness.

    Attributes:
        coulomb, plan: The operator and its geometry-independent part.
        slots: ``[n_atoms, dim]`` int64 columns of the operator's multipoles that an atom's state fills, or
            None for all: with several Gaussian widths every atom has one of them.
        groups: Groups of atoms of given charge.
        constrained: False at constant potential.
        counter_charge: Passed on to `Coulomb.prepare`.
        pairs: Neighbours, where atoms have widths of their own beside the operator's one.
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
        """Systems of the batch."""
        return self.plan.n_systems

    def spread(self, state: Tensor) -> Tensor:
        """``[n_atoms, ..., dim]`` states to the operator's rows."""
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
        """The interaction at a geometry; ``widths [n_atoms]`` of the atoms, with neighbours only."""
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

    # the constraint: groups of charges that add up to given totals

    def project(self, state: Tensor) -> Tensor:
        """The part of a gradient along which charges may move: group means of the charges removed."""
        if not self.constrained:
            return state
        mean = self.groups.segments.mean(state[:, 0])
        return torch.cat(((state[:, 0] - self.groups.segments.expand(mean))[:, None], state[:, 1:]), 1)

    def feasible(self, state: Tensor, totals: Tensor) -> Tensor:
        """The nearest state with the right totals."""
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
        problem: Sizes.
        geometry: The operator's.
        short: What neighbours add, or None.
    """

    problem: QuadraticProblem
    geometry: Geometry
    short: ShortRange | None

    def potential(self, state: Tensor) -> Tensor:
        """``K s`` and external potentials, of the shape of ``state``."""
        problem = self.problem
        rows = self.geometry.potential(problem.spread(state), self_interaction=True)
        out = problem.collect(rows)
        return out if self.short is None else out + self.short.potential(state)

    def energy(self, state: Tensor) -> Tensor:
        """``1/2 s.K s`` and external energies, ``[n_systems]`` float64."""
        energy = self.geometry.energy(self.problem.spread(state), self_interaction=True).double()
        return energy if self.short is None else energy + self.short.energy(state[:, 0])
