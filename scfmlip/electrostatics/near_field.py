"""
Narrow Gaussians of charges, dipoles and quadrupoles: what a sum over smooth ones leaves out, over neighbours.

The wave vectors that Gaussians of width s need grow as s^-3. A pair of variance ``v = s^2 + t^2`` (source and
receiver) is summed with a larger one u instead, source and receiver both smoothed, and the rest,
    k_e [erf(r / sqrt(2 v)) - erf(r / sqrt(2 u))] / r   and its derivatives,
ends where the smooth Gaussians do: neighbours within a cutoff, images included. In a crystal the average of
that rest, ``2 pi k_e (u - v) / V`` of unit charges, is not part of a sum over wave vectors without k = 0, and
is taken off. The sums over heights of slabs, and the corrections of molecules in a box, are made with the
smooth widths: they hold the k = 0 part of both. Ewald's splitting, Ann. Phys. 369, 253 (1921); in this form
for Gaussians and dipoles Toukmaji et al., J. Chem. Phys. 113, 10913 (2000).

All of it is float64, whatever the positions are: rounding of distances would be more than the tolerance.

Where processes share a system, each sums over neighbours of its own atoms. Those that others own are ghosts:
their moments come in one exchange for each sum, and what a derivative leaves at them goes back in another.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from scfmlip_kernels import listed_pairs
from scfmlip_kernels.transforms import is_batched

from ..units import COULOMB_CONSTANT
from .near_list import NearList, near_list, point_list
from .slab import gaussian_reach

if TYPE_CHECKING:
    from .plan import LatticePlan


@dataclass(frozen=True)
class Smoothing:
    """
    The widths that waves are summed with, and what is left to neighbours.

    Attributes:
        width: S, angstrom: no pair is narrower in the sum over waves than two Gaussians of this width. 0
            leaves all as it is.
        widths: Of the density's Gaussians, angstrom.
    """

    width: float
    widths: tuple[float, ...]

    @property
    def sources(self) -> tuple[float, ...]:
        """The density's widths as waves are summed, angstrom."""
        return tuple(max(w, self.width) for w in self.widths)

    def receivers(self, widths: tuple[float, ...]) -> tuple[float, ...]:
        """
        Widths, angstrom, to receive smooth sources with.

        A receiver that is wide takes back what the narrowest smoothing of the sources added, so that pairs
        wide enough as they are need no neighbours. For the density's own widths these are `sources`.
        """
        if not self.width:
            return widths
        added = min(s**2 - w**2 for s, w in zip(self.sources, self.widths, strict=True))
        least = 2 * self.width**2 - min(self.sources) ** 2
        kept = dict(zip(self.widths, self.sources, strict=True))
        return tuple(kept.get(w, math.sqrt(max(0.0, least, w**2 - added))) for w in widths)

    def widest(self, widths: tuple[float, ...]) -> tuple[float, float]:
        """Width of the widest source and of the widest of these receivers, as waves are summed, angstrom."""
        return max(self.sources), max(*self.sources, *self.receivers(widths))

    def pairs(self, widths: tuple[float, ...]) -> list[tuple[int, int, float, float]]:
        """
        Pairs of widths that leave something to neighbours.

        Args:
            widths: Of the receivers, angstrom.

        Returns:
            Places of source and receiver, own and smooth variance, angstrom^2.
        """
        found = []
        for (a, (w, s)), (b, (x, y)) in itertools.product(
            enumerate(zip(self.widths, self.sources, strict=True)),
            enumerate(zip(widths, self.receivers(widths), strict=True)),
        ):
            own, smooth = w**2 + x**2, s**2 + y**2
            if abs(smooth - own) > 1e-12 * smooth:
                found.append((a, b, own, smooth))
        return found


class Crowding(NamedTuple):
    """
    Images of one atom, at most: they share what a tolerance allows.

    Attributes:
        volume: Per angstrom^3, of crystals and boxes.
        area: Per angstrom^2, of slabs.
    """

    volume: float
    area: float


@lru_cache(maxsize=1024)
def near_reach(
    smoothing: Smoothing, widths: tuple[float, ...], tolerance: float, l_max: int, crowding: Crowding
) -> float:
    """
    Cutoff of the neighbours, angstrom; 0 where there is nothing to sum.

    Args:
        smoothing: The widths that waves are summed with.
        widths: Of the receivers, angstrom.
        tolerance: Energy, eV, that all images beyond the cutoff leave of a pair of unit charges, or of
            dipoles of 1 e times the smooth width (quadrupoles: its square).
        l_max: Highest multipole.
        crowding: Of the images.
    """
    variance = max((max(own, smooth) for _, _, own, smooth in smoothing.pairs(widths)), default=0.0)
    if not variance:
        return 0.0
    reach = gaussian_reach(variance, tolerance, l_max)
    for _ in range(3):  # the tail decays over variance / reach: so many images lie in it
        images = 1 + 4 * math.pi * reach * variance * crowding.volume + 2 * math.pi * variance * crowding.area
        reach = gaussian_reach(variance, tolerance / images, l_max)
    return reach


@dataclass(frozen=True)
class NearPlan:
    """
    The neighbours' part of a plan.

    Attributes:
        reach: Cutoff for the widths the operator knows of, angstrom.
        tolerance: What neighbours left out may carry, eV, see `near_reach`.
        l_max: Highest multipole.
        crowding: Of the images.
        found: Neighbours, where the plan was made with positions; valid for those only.
    """

    reach: float
    tolerance: float
    l_max: int
    crowding: Crowding
    found: NearList | None


class NearField:
    """
    The short-ranged rest at one geometry; differentiable any number of times.

    Args:
        sub: The systems that are summed over wave vectors.
        smoothing: What these are summed with.
        plan: How far the neighbours reach, and which they are where that is known.
        positions: ``[n_atoms, 3]`` angstrom.
        cell: ``[n_systems, 3, 3]`` angstrom, float64, as the user gave it.
        volume: ``[n_systems]`` angstrom^3, of crystals.

    Raises:
        ValueError: inside a compiled graph, which cannot look for neighbours.
    """

    def __init__(
        self,
        sub: LatticePlan,
        smoothing: Smoothing,
        plan: NearPlan,
        positions: Tensor,
        cell: Tensor,
        volume: Tensor,
    ) -> None:
        if torch.compiler.is_compiling():
            raise ValueError(
                "narrow Gaussians are split over neighbours, which a compiled graph cannot look for: pass "
                "smooth=0.0 to Coulomb, or keep the operator out of the graph"
            )
        near = plan.found
        known = near is not None and not is_batched(positions) and near.holds(positions, cell)
        if near is None or not sub.segments.agree(known):
            near = near_list(sub, positions, cell, plan.reach)
        self.sub, self.smoothing, self.plan = sub, smoothing, plan
        self.positions, self.cell = positions.double(), cell
        self.sources, self.near = self._sources(near), near
        # one system that has no average costs ranks no sum
        self.level_free = sub.segments.shared and sub.corrected
        crystal = (sub.slab + sub.box) == 0
        self.background = torch.where(crystal, 2 * math.pi * COULOMB_CONSTANT / volume, 0.0)

    def _sources(self, near: NearList) -> Tensor:
        """``[n_sources, 3]`` positions of atoms and images."""
        places = near.everywhere(self.positions)[near.atoms]
        if near.halo is not None:
            return places + near.shift @ self.cell[0]
        system = self.sub.segments.index[near.atoms]
        return places + (near.shift[:, None] @ self.cell[system])[:, 0]

    def _reach(self, widths: tuple[float, ...], most: float = 1.0) -> float:
        plan = self.plan
        return near_reach(self.smoothing, widths, min(most, plan.tolerance), plan.l_max, plan.crowding)

    def _sums(
        self,
        moments: Tensor,
        table: list[tuple[int, int, float, float]],
        n_widths: int,
        targets: Tensor,
        near: NearList,
        sources: Tensor,
        rank: int,
    ) -> Tensor:
        """``[n_targets, n_channels, n_widths, n_monomials]``, V and its derivatives."""
        columns, rows = [a for a, *_ in table], moments.double()
        sent = sorted(set(columns))
        if sent != list(range(rows.shape[2])):
            rows = rows[:, :, sent]
        rows = near.everywhere(rows)[near.atoms]
        if columns != sent:
            rows = rows[:, :, [sent.index(a) for a in columns]]
        widths = torch.tensor([[own, smooth] for _, _, own, smooth in table], dtype=torch.float64).sqrt()
        values = COULOMB_CONSTANT * listed_pairs(targets, sources, rows, widths, near.pairs, rank)
        if len(table) == n_widths == 1:
            return values
        parts = []
        for b in range(n_widths):
            mine = [n for n, (_, receiver, *_) in enumerate(table) if receiver == b]
            parts.append(values[:, :, mine].sum(2))
        return torch.stack(parts, 2)

    def own_charges(self, moments: Tensor) -> tuple[Tensor, ...]:
        """
        Parts of the sums that the average of what neighbours add is made of, of this process' atoms.

        Args:
            moments: As in `field`.

        Returns:
            ``[n_systems, n_channels, n_widths]`` float64 charges of each width; nothing where no system has
            an average.
        """
        return () if self.level_free else (self.sub.segments.own_sum(moments[..., 0].double()),)

    def level(self, charges: Tensor, widths: tuple[float, ...]) -> Tensor:
        """
        The average of what neighbours add, of crystals.

        Args:
            charges: From `own_charges`, of all atoms.
            widths: Of the receiving Gaussians, angstrom.

        Returns:
            ``[n_systems, n_channels, len(widths)]`` float64 V.
        """
        added = charges.new_zeros((charges.shape[-1], len(widths)))
        for a, b, own, smooth in self.smoothing.pairs(widths):
            added[a, b] = smooth - own
        return self.background[:, None, None] * (charges @ added)

    def level_energy(self, charges: Tensor) -> Tensor:
        """``[n_systems, n_channels]`` float64 eV of the density in its own `level`."""
        return 0.5 * (self.level(charges, self.smoothing.widths) * charges).sum(-1)

    def field(self, moments: Tensor, widths: tuple[float, ...], rank: int) -> Tensor:
        """
        What neighbours add to the potential at the atoms, averaged over Gaussians, and to its gradient.

        In crystals the average of that, `level`, is to be taken off.

        Args:
            moments: ``[n_atoms, n_channels, n_widths, 1 | 4 | 10]``, of the density's widths.
            widths: Of the receiving Gaussians, angstrom.
            rank: 0 for the potential, 1 to add its gradient, 2 its second derivatives.

        Returns:
            ``[n_atoms, n_channels, len(widths), 1 | 4 | 10]`` float64, V, V/angstrom and so on; without the
            interaction of a Gaussian with itself.

        Raises:
            ValueError: for widths that need a longer list.
        """
        table = self.smoothing.pairs(widths)
        if not table:
            shape = (*moments.shape[:2], len(widths), (1, 4, 10)[rank])
            return moments.new_zeros(shape, dtype=torch.float64)
        if self._reach(widths) > self.near.reach * (1 + 1e-9):
            raise ValueError(
                f"features of widths {widths} angstrom need neighbours up to {self._reach(widths):.2f} "
                f"angstrom, this geometry has those up to {self.near.reach:.2f}: pass "
                f"feature_widths={widths} to Coulomb"
            )
        return self._sums(moments, table, len(widths), self.positions, self.near, self.sources, rank)

    def at(
        self, moments: Tensor, points: Tensor, counts: Tensor, index: Tensor, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        """
        Density, potential and its gradient at points, beyond those of the smooth Gaussians.

        Args:
            moments: ``[n_atoms, 1, n_widths, 1 | 4 | 10]``.
            points: ``[n_points, 3]`` float64 angstrom, of one system after another.
            counts: ``[n_systems]`` points of each, on the CPU.
            index: ``[n_points]`` system of each.
            tolerance: Of neighbours left out, eV.

        Returns:
            ``[n_points]`` e/angstrom^3 and ``[n_points, 4]`` V, V/angstrom, float64.
        """
        table = self.smoothing.pairs((0.0,))
        if not table:
            return points.new_zeros(len(points)), points.new_zeros((len(points), 4))
        reach = self._reach((0.0,), tolerance)
        near = point_list(self.sub, self.positions, self.cell, points, counts, reach)
        values = self._sums(moments, table, 1, points, near, self._sources(near), 2)[:, 0, 0]
        # Poisson's equation: the second derivatives are those along xx, yy and zz
        density = -(values[:, 4] + values[:, 7] + values[:, 9]) / (4 * math.pi * COULOMB_CONSTANT)
        charges = self.sub.segments.sum(moments[..., 0].double())
        level = self.level(charges, (0.0,))[:, 0, 0]
        return density, torch.cat(((values[:, 0] - level[index])[:, None], values[:, 1:4]), 1)
