"""Range separation for narrow charges: one smooth operator and neighbours replace many wave vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ....electrostatics import Boundary, Coulomb, Geometry
from ....electrostatics.joint import energy_with
from ....electrostatics.range_split import (
    NeighbourPairs,
    ShortRange,
    neighbour_pairs,
    occupied_volumes,
    smooth_width,
)
from ....scf.splitting import reach
from ...config import DensityConfig
from ..base import System, make_coulomb

# smallest ratio of smooth to narrowest width that saves at least half of the wave vectors and pairs
_WORTH = 1.6
# smooth widths are multiples of this, angstrom, so that the operator stays the same as the cell fluctuates
_STEP = 0.05


class RangeSplit:
    """
    Split the interaction of charges of different widths, see `scfmlip.electrostatics.range_split`.

    It splits only if that costs less than the sum over wave vectors.

    Args:
        density: The density's configuration; boundary and tolerance are used.
        widths: Width of each element, angstrom.
    """

    def __init__(self, density: DensityConfig, widths: Sequence[float]) -> None:
        self.density, self.widths = density, widths
        # keyed by the width in steps
        self._operators: dict[int, Coulomb] = {}

    def split(self, system: System) -> tuple[Geometry, NeighbourPairs] | None:
        """
        The smooth operator's geometry, and the neighbours that add the rest.

        None if one operator with all widths is cheaper, or if the split does not support the system:
        clusters, molecules in a box, slabs with a counter-charge, charges with dipoles.
        """
        density = self.density
        if density.l_max > 0 or density.kspace_cutoff_factor is not None or system.counter_charge is not None:
            return None
        counts = system.segments.host_counts
        volumes = occupied_volumes(system.positions, system.cell, system.pbc, system.segments).tolist()
        cells = [
            (n, v) for n, v, p in zip(counts, volumes, system.pbc.any(1).tolist(), strict=True) if p and n
        ]
        if not cells:
            return None
        width = max(*self.widths, *(smooth_width(n, v, density.tolerance) for n, v in cells))
        steps, widest = math.ceil(width / _STEP), max(self.widths)
        width = steps * _STEP
        if width < _WORTH * min(self.widths):
            return None
        if steps not in self._operators:
            self._operators[steps] = make_coulomb(density, sigma=width, self_interaction=True, smooth=0.0)
        geometry = system.prepare(self._operators[steps])
        if any(kind == Boundary.MOLECULE_IN_BOX for kind in geometry.plan.boundaries):
            return None
        cutoff = reach(width, widest, density.tolerance)
        return geometry, neighbour_pairs(system.positions, system.cell, system.pbc, system.segments, cutoff)


def split_energy(geometry: Geometry, pairs: NeighbourPairs, widths: Tensor, charges: Tensor) -> Tensor:
    """``[n_systems]`` eV of ``charges [n_atoms]`` with ``widths [n_atoms]``, including external fields."""
    smooth = geometry.coulomb.source.widths[0]
    short = ShortRange(pairs, geometry.plan, smooth, widths, geometry.positions, geometry.cell)
    energy, sums = energy_with(geometry, charges[:, None], *short.own_energy(charges))
    return (energy + short.energy(sums)).to(charges.dtype)
