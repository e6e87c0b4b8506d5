"""Which smooth operator and neighbours take the place of many wave vectors, and whether they should."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from scfmlip_kernels.dispatch import runs_triton

from ..electrostatics import Boundary, Geometry
from ..electrostatics.cutoff import cutoff_for_tolerance
from ..electrostatics.range_split import (
    WAVE_COST,
    NeighbourPairs,
    neighbour_pairs,
    occupied_volumes,
    pair_cutoff,
    smooth_width,
)

Interaction = Literal["auto", "direct", "split"]
# of the tolerance: what one pair may lose at the end of the list, where many do
_SHARE = 0.1
# how much cheaper it has to be, on a CPU and where lists are made on the host for a GPU: measured on 2 cores
_WORTH, _WORTH_GPU = 2.0, 40.0
# neighbours of a batch, about 1 GiB
_MOST_PAIRS = 1 << 23


class Split(NamedTuple):
    """
    Charges in a smooth operator and neighbours.

    Attributes:
        geometry: The smooth operator's.
        widths: ``[n_atoms]`` angstrom, the atoms' own.
        pairs: Their neighbours.
    """

    geometry: Geometry
    widths: Tensor
    pairs: NeighbourPairs


def reach(smooth: float, widest: float, tolerance: float) -> float:
    """Cutoff of the neighbours, angstrom, whose missing pairs together stay within ``tolerance``, eV."""
    return pair_cutoff(smooth, widest, _SHARE * tolerance)


def split_widths(geometry: Geometry, widths: Tensor, pairs: NeighbourPairs | None, tolerance: float) -> Split:
    """
    Checked widths of the user's, with neighbours that reach far enough for them.

    Args:
        geometry: Of a smooth operator.
        widths: ``[n_atoms]`` angstrom.
        pairs: Neighbours, or None to find them.
        tolerance: Of the solve: the operator's is lowered to it.

    Raises:
        TypeError: for widths that are no tensor.
        ValueError: for what the smooth operator cannot hold, and neighbours that are too few.
    """
    coulomb, positions, plan = geometry.coulomb, geometry.positions, geometry.plan
    if coulomb.source.l_max > 0 or coulomb.source.n_widths > 1 or coulomb.compat is not None:
        raise ValueError(
            "widths of the atoms' own need an operator of charges with one smooth width: "
            "Coulomb(l_max=0, sigma=S) without compat"
        )
    if any(kind == Boundary.MOLECULE_IN_BOX for kind in plan.boundaries):
        raise ValueError(
            "widths of the atoms' own are not for molecules in a box, whose correction knows one width: use "
            "boundary='open', or several widths of the operator with width_index"
        )
    if geometry.counter_bounds is not None:
        raise ValueError("counter_charge knows the operator's width only: leave one of it and widths out")
    if not isinstance(widths, Tensor):
        raise TypeError(f"widths must be a tensor {[len(positions)]}, got {type(widths).__name__}")
    if widths.shape != (len(positions),) or widths.dtype != positions.dtype:
        raise ValueError(
            f"widths must be {positions.dtype} of shape {[len(positions)]}, got {widths.dtype} "
            f"{list(widths.shape)}"
        )
    if not len(positions):
        raise ValueError("widths need atoms")
    if geometry.validate and not bool(((widths > 0) & torch.isfinite(widths)).all()):
        raise ValueError("widths must be positive numbers in angstrom")
    smooth, widest = coulomb.source.widths[0], float(widths.detach().max())
    need = pair_cutoff(smooth, widest, coulomb.tolerance)
    if pairs is None:
        if coulomb.kspace_cutoff is None and tolerance < coulomb.tolerance:
            geometry = _smooth(geometry, smooth, tolerance)
        return Split(geometry, widths, _neighbours(geometry, widest))
    if not isinstance(pairs, NeighbourPairs):
        raise TypeError(f"pairs must be NeighbourPairs, got {type(pairs).__name__}")
    if pairs.cutoff < 0.999 * need:
        raise ValueError(
            f"pairs reach to {pairs.cutoff:g} angstrom, but widths up to {max(smooth, widest):g} angstrom at "
            f"the operator's tolerance of {coulomb.tolerance:g} eV need {need:.3f}: use a longer list, a "
            "narrower operator, or a looser tolerance"
        )
    if bool((pairs.edge_index[0].diff() < 0).any()):
        order = torch.argsort(pairs.edge_index[0], stable=True)
        pairs = NeighbourPairs(pairs.edge_index[:, order], pairs.edge_shift[order], pairs.cutoff)
    return Split(geometry, widths, pairs)


def split_operator(
    geometry: Geometry, width_index: Tensor | None, tolerance: float, interaction: Interaction
) -> Split | None:
    """
    The operator's charges through a smooth one and neighbours; None where its own sum is cheaper.

    Args:
        geometry: Of the operator.
        width_index: ``[n_atoms]`` int64 which of its widths an atom has, or None for the only one.
        tolerance: Of the solve, see `split_widths`.
        interaction: "auto", or "split" where cost does not matter.

    Raises:
        ValueError: where "split" is asked for and cannot be.
    """
    coulomb, plan, positions = geometry.coulomb, geometry.plan, geometry.positions
    reason = _obstacle(geometry)
    if reason is not None:
        if interaction == "split":
            raise ValueError(f"interaction='split' is not for {reason}: use 'auto' or 'direct'")
        return None
    if interaction == "auto" and coulomb.method == "mesh":
        return None  # what a mesh costs hardly depends on how wide the Gaussians are
    assert geometry.cell is not None
    own = coulomb.source.widths
    tolerance = min(coulomb.tolerance, tolerance)
    periodic = torch.tensor(_periodic(geometry), device=positions.device)
    volumes = occupied_volumes(positions, geometry.cell, periodic, plan.segments.index).tolist()
    kinds = zip(plan.atom_ptr.diff().tolist(), volumes, plan.boundaries, strict=True)
    cells = [(n, v) for n, v, kind in kinds if n and kind != Boundary.OPEN]

    def listed(cutoff: float) -> float:
        return sum(4 * math.pi / 3 * n * n / v * cutoff**3 for n, v in cells)

    width = max(smooth_width(n, v, tolerance) for n, v in cells)
    width *= min(1.0, _MOST_PAIRS / listed(reach(width, max(own), tolerance))) ** (1 / 3)
    width = max(width, *own)
    cutoff = reach(width, max(own), tolerance)
    if interaction == "auto":
        waves = (_waves(min(own), coulomb.tolerance), _waves(width, tolerance))
        direct, split = (sum(n * v * w for n, v in cells) * WAVE_COST for w in waves)
        split += listed(cutoff)
        if direct < (_WORTH_GPU if runs_triton(positions) else _WORTH) * split:
            return None
    index = torch.zeros_like(plan.segments.index) if width_index is None else width_index
    widths = positions.new_tensor(own)[index]
    smooth = _smooth(geometry, width, tolerance)
    return Split(smooth, widths, _neighbours(smooth, max(own)))


def _waves(width: float, tolerance: float) -> float:
    """Wave vectors of half a sphere in a cell of 1 angstrom^3."""
    return cutoff_for_tolerance(width**2, tolerance, 0) ** 3 / (12 * math.pi**2)


def _obstacle(geometry: Geometry) -> str | None:
    """Why charges of this operator are not split."""
    coulomb, plan = geometry.coulomb, geometry.plan
    if coulomb.compat is not None:
        return f"compat={coulomb.compat!r}"
    if coulomb.kspace_cutoff is not None:
        return "an operator with a kspace_cutoff of its own"
    if geometry.counter_bounds is not None:
        return "a counter_charge"
    if any(kind == Boundary.MOLECULE_IN_BOX for kind in plan.boundaries):
        return "molecules in a box"
    counts = plan.atom_ptr.diff().tolist()
    if not any(n and kind != Boundary.OPEN for n, kind in zip(counts, plan.boundaries, strict=True)):
        return "systems without periodicity"
    if importlib.util.find_spec("matscipy") is None:
        return "an environment without matscipy, whose neighbour list it takes"
    return None


def _smooth(geometry: Geometry, width: float, tolerance: float) -> Geometry:
    """The same atoms and fields in Gaussians of one width."""
    # solvers ask for more than sums in float64 have
    coulomb = replace(
        geometry.coulomb, l_max=0, sigma=width, tolerance=max(tolerance, 1e-15), feature_widths=None
    )
    plan, positions = geometry.plan, geometry.positions
    pbc, n_atoms = _periodic(geometry), len(positions)
    smooth = coulomb.plan(geometry.cell, pbc, plan.segments.index, n_atoms, positions.device, positions)
    return coulomb.prepare(
        positions,
        geometry.cell,
        plan=smooth,
        external_field=geometry.external_field,
        external_potential=geometry.external_potential,
    )


def _neighbours(geometry: Geometry, widest: float) -> NeighbourPairs:
    """As far as the operator's tolerance wants them."""
    coulomb, plan = geometry.coulomb, geometry.plan
    cutoff = reach(coulomb.source.widths[0], widest, coulomb.tolerance)
    return neighbour_pairs(
        geometry.positions, geometry.cell, _periodic(geometry), plan.segments.index, cutoff
    )


def _periodic(geometry: Geometry) -> list[list[bool]]:
    """Directions of each system that repeat."""
    kinds = zip(geometry.plan.boundaries, _slab_axes(geometry), strict=True)
    return [
        [kind != Boundary.OPEN] * 3 if kind != Boundary.SLAB else [a != axis for a in range(3)]
        for kind, axis in kinds
    ]


def _slab_axes(geometry: Geometry) -> list[int]:
    """Lattice direction along which each system ends; meant for slabs only."""
    plan = geometry.plan
    axes = [2] * plan.n_systems
    if plan.lattice is not None:
        for system, axis in zip(plan.lattice.systems.tolist(), plan.lattice.slab_axis.tolist(), strict=True):
            axes[system] = axis
    return axes
