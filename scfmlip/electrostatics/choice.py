"""
How a batch is summed: wave by wave or through a mesh, with Gaussians as they are or smoothed.

The costs that decide are recorded in `scfmlip_kernels.tuned`, family "coulomb": nanoseconds of energy and
forces on one thread, measured by `python -m profiling.coulomb_costs`. A GPU without a table of its own sums
wave by wave: nothing was measured there.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from scfmlip_kernels.tuned import tuned

from .cutoff import cutoff_for_tolerance
from .mesh_error import MeshResolution, cell_sizes, choose_mesh, few_waves, mesh_cost
from .near_field import Crowding, NearPlan, Smoothing, near_reach
from .near_list import near_list
from .plan import LatticePlan, summed_cells
from .slab import SlabPlan

Method = Literal["auto", "direct", "mesh"]
# of the tolerance: what the sum over smooth waves may miss, and what neighbours left out may
WAVES_SHARE, NEAR_SHARE = 0.8, 0.2
# by how much single waves stand out in small cells, by their height in widths, see `truncation_error`
_STAND_OUT = ((8.0, 1.5), (4.0, 3.5), (3.0, 5.5), (0.0, 11.0))
# smooth widths that are tried, each so many times the one before
_STEP = 2**0.25
# the widest, angstrom, if no Gaussian is wider
_WIDEST = 3.0
# how much cheaper something else than the plain sum has to be, and what that may cost in any case, ns
WORTH, CHEAP = 1.3, 5e6
# bytes of a pair of neighbours while it is summed, and the most they may take
_PAIR_BYTES, _MOST_BYTES = 200.0, 4 * 2.0**30


class Need(NamedTuple):
    """
    What is asked of the operator.

    Attributes:
        widths: Of the density, angstrom.
        receivers: Of all that feels it, angstrom.
        tolerance: eV, see `Coulomb`.
        l_max: Highest multipole.
    """

    widths: tuple[float, ...]
    receivers: tuple[float, ...]
    tolerance: float
    l_max: int


@dataclass(frozen=True)
class Batch:
    """
    Systems that are summed over waves, as sizes.

    Attributes:
        cells: ``[n_systems, 3, 3]`` float64 on the CPU, as they are summed.
        counts: ``[n_systems]`` atoms of each.
        areas, thickness: ``[n_systems]`` angstrom^2 and angstrom of slabs, 0 of other systems.
        device: Where it is summed.
    """

    cells: Tensor
    counts: Tensor
    areas: Tensor
    thickness: Tensor
    device: torch.device

    @classmethod
    def of(cls, cells: Tensor, slabs: SlabPlan | None, counts: Tensor, device: torch.device) -> Batch:
        """From the user's cells ``[n_systems, 3, 3]``, float64 on the CPU, and atoms of each."""
        areas = thickness = cells.new_zeros(len(cells))
        if slabs is not None:
            host = slabs.on_host()
            areas = torch.where(host.slab, host.normals(cells)[1], areas)
            thickness = torch.where(host.slab, host.thickness, thickness)
        return cls(summed_cells(cells, slabs), counts, areas, thickness, device)

    @property
    def volumes(self) -> Tensor:
        """``[n_systems]`` angstrom^3."""
        return torch.linalg.det(self.cells).abs()

    @property
    def height(self) -> float:
        """The smallest height of any cell, angstrom."""
        return cell_sizes(self.cells)[1]

    @property
    def crowding(self) -> Crowding:
        """Images of an atom: those of a slab lie in its plane."""
        slab = self.areas > 0
        found = [1 / self.volumes[~slab], 1 / self.areas[slab]]
        return Crowding(*(float(v.max()) if len(v) else 0.0 for v in found))

    def n_pairs(self, reach: float) -> float:
        """About how many pairs are nearer than that, angstrom."""
        flat = self.areas * (self.thickness + 0.75 * reach)
        filled = torch.where(self.areas > 0, flat, self.volumes)
        return float((self.counts.double() ** 2 / filled).sum()) * 4 / 3 * math.pi * reach**3


class Choice(NamedTuple):
    """
    A way to sum, and what it is expected to cost.

    Attributes:
        resolution: Cutoff of the wave vectors, 1/angstrom, or that of a mesh.
        smoothing: What is left to neighbours; width 0 for nothing.
        reach: Of the neighbours, angstrom; 0 without any.
        cost: ns of energy and forces on one thread.
        crowding: Of images.
    """

    resolution: float | MeshResolution
    smoothing: Smoothing
    reach: float
    cost: float
    crowding: Crowding = Crowding(0.0, 0.0)


def plan_neighbours(
    sub: LatticePlan, need: Need, choice: Choice, positions: Tensor | None, cell: Tensor
) -> NearPlan:
    """
    The neighbours' part of a plan.

    Args:
        sub: The systems that are summed over waves.
        need: What is asked for.
        choice: How they are summed.
        positions: ``[n_atoms, 3]`` angstrom of the whole batch: neighbours are looked for at once; or None.
        cell: ``[n_systems, 3, 3]`` angstrom of the whole batch, as the user gave it.
    """
    found = None
    if positions is not None:
        cells = cell if sub.atoms is None else cell.index_select(0, sub.systems)
        found = near_list(sub, sub.take(positions), cells.double(), choice.reach)
    return NearPlan(choice.reach, NEAR_SHARE * need.tolerance, need.l_max, choice.crowding, found)


def wave_cutoff(need: Need, smoothing: Smoothing, batch: Batch) -> float:
    """Cutoff, 1/angstrom, of a direct sum over smooth waves, in small cells too."""
    widths = batch.height / smoothing.width
    stand_out = next(factor for least, factor in _STAND_OUT if widths >= least) * few_waves(widths)
    tolerance = max(WAVES_SHARE * need.tolerance / stand_out, 1e-15)
    return cutoff_for_tolerance(smoothing.width**2, tolerance, need.l_max)


def choose(
    method: Method, smooth: float | None, need: Need, batch: Batch, dtype: torch.dtype, plain: float
) -> Choice:
    """
    The way to sum that costs least.

    Args:
        method: "direct" and "mesh" insist on that.
        smooth: Width that waves are smoothed to, angstrom, 0 for none; None for the best.
        need: What is asked for.
        batch: Of which systems.
        dtype: Of the positions.
        plain: Cutoff of the direct sum over Gaussians as they are, 1/angstrom.
    """
    nothing = Smoothing(0.0, need.widths)
    if method == "direct" and not smooth:
        return Choice(plain, nothing, 0.0, 0.0)
    table = tuned("coulomb", batch.device, dtype)
    costs = table["dipoles" if need.l_max else "charges"]
    if method == "auto" and smooth is None:
        # all atoms with the waves of all systems: more than there is to do
        volume, n_atoms = float(batch.volumes.sum()), int(batch.counts.sum())
        most = plain**3 * volume * (costs["wave"] * n_atoms + costs["table"]) / (12 * math.pi**2)
        if most < CHEAP or not table["measured"]:
            return Choice(plain, nothing, 0.0, most)
    direct = Choice(plain, nothing, 0.0, _direct_cost(plain, batch, costs))
    if method == "auto" and smooth is None and direct.cost < CHEAP:
        return direct
    widths = smooth_widths(smooth, need)
    found = [direct] if method != "mesh" and 0.0 in widths else []
    worse, last = 0, math.inf
    for width in widths:
        ways = _ways(method, need, Smoothing(width, need.widths), batch, costs, len(widths) == 1)
        found += ways
        # fewer waves, more neighbours: the sum of both costs falls and rises again
        here = min((way.cost for way in ways), default=math.inf)
        worse, last = (worse + 1 if here >= last else 0), here
        if worse == 2:
            break
    # a mesh that float32 is not accurate enough for would be refused
    good = [way for way in found if dtype == torch.float64 or not _refused(way.resolution)]
    best = min(good or found, key=lambda choice: choice.cost)
    if method == "auto" and direct in found and best.cost * WORTH > direct.cost:
        return direct
    return best


def _refused(resolution: float | MeshResolution) -> bool:
    """Whether float32 positions are, see `check_single`."""
    return isinstance(resolution, MeshResolution) and resolution.least > 0


def narrowest(need: Need) -> float:
    """Width, angstrom, of two equal Gaussians that interact as the narrowest pair does."""
    return math.sqrt(0.5 * min(w**2 + r**2 for w in need.widths for r in need.receivers))


def smooth_widths(smooth: float | None, need: Need) -> list[float]:
    """Widths to choose from, 0 for Gaussians as they are; arguments as in `choose`."""
    narrow = narrowest(need)
    if smooth is not None:
        return [smooth if smooth > narrow else 0.0]
    if importlib.util.find_spec("matscipy") is None:
        return [0.0]
    steps = math.ceil(math.log(max(_WIDEST, *need.receivers) / narrow) / math.log(_STEP))
    return [0.0] + [narrow * _STEP**n for n in range(1, steps + 1)]


def _ways(
    method: Method, need: Need, smoothing: Smoothing, batch: Batch, costs: dict, wanted: bool
) -> list[Choice]:
    """Sums with that smoothing; none where neighbours take too much memory, unless it is ``wanted``."""
    crowding = batch.crowding
    reach = near_reach(smoothing, need.receivers, NEAR_SHARE * need.tolerance, need.l_max, crowding)
    width, near, share = smoothing.width, 0.0, WAVES_SHARE
    if not reach:
        width, share, smoothing = narrowest(need), 1.0, Smoothing(0.0, need.widths)
    else:
        pairs = batch.n_pairs(reach)
        if pairs * _PAIR_BYTES > _MOST_BYTES and not wanted:
            return []
        near = costs["near"] + pairs * costs["pair"]
    found = []
    if method != "mesh" and reach:
        cutoff = wave_cutoff(need, smoothing, batch)
        found.append(Choice(cutoff, smoothing, reach, near + _direct_cost(cutoff, batch, costs), crowding))
    if method != "direct":
        volume, height = cell_sizes(batch.cells)
        n_atoms = int(batch.counts.sum())
        mesh = choose_mesh(width**2, share * need.tolerance, need.l_max, n_atoms, volume, height)
        cost = costs["mesh"] + costs["point"] * mesh_cost(mesh, n_atoms, volume)
        found.append(Choice(mesh, smoothing, reach, near + cost, crowding))
    return found


def _direct_cost(cutoff: float, batch: Batch, costs: dict) -> float:
    """ns: every atom meets every wave of half a sphere."""
    waves = batch.volumes * cutoff**3 / (12 * math.pi**2)
    products = float((batch.counts * waves).sum())
    return costs["direct"] + costs["wave"] * products + costs["table"] * float(waves.sum())
