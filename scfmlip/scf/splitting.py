"""Range separation: when and how a smooth operator and neighbours replace many wave vectors."""

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
# fraction of the tolerance that one truncated pair may lose, because many pairs are truncated
_SHARE = 0.1
# required saving on a CPU, and for a GPU with neighbour lists from the host (measured on 2 cores)
_WORTH, _WORTH_GPU = 2.0, 40.0
# most neighbours of a batch, about 1 GiB
_MOST_PAIRS = 1 << 23


class Split(NamedTuple):
    """
    Charges split between a smooth operator and neighbours.

    Attributes:
        geometry: Geometry of the smooth operator.
        widths: ``[n_atoms]`` the atoms' own widths, angstrom.
        pairs: The neighbours.
    """

    geometry: Geometry
    widths: Tensor
    pairs: NeighbourPairs


def reach(smooth: float, widest: float, tolerance: float) -> float:
    """Neighbour cutoff, angstrom, for which all truncated pairs together stay within ``tolerance``, eV."""
    return pair_cutoff(smooth, widest, _SHARE * tolerance)


def split_widths(geometry: Geometry, widths: Tensor, pairs: NeighbourPairs | None, tolerance: float) -> Split:
    """
    Check the user's widths, and find neighbours that reach far enough for them.

    Args:
        geometry: Geometry of a smooth operator.
        widths: ``[n_atoms]`` angstrom.
        pairs: Neighbours, or None to find them.
        tolerance: Tolerance of the solve; it also limits the operator's tolerance.

    Raises:
        TypeError: for widths that are not a tensor.
        ValueError: for densities that the smooth operator cannot represent, and too short neighbour lists.
    """
    coulomb, positions, plan = geometry.coulomb, geometry.positions, geometry.plan
    if coulomb.source.l_max > 0 or coulomb.source.n_widths > 1 or coulomb.compat is not None:
        raise ValueError(
            "widths per atom need an operator for charges with one smooth width: "
            "Coulomb(l_max=0, sigma=S) without compat"
        )
    if any(kind == Boundary.MOLECULE_IN_BOX for kind in plan.boundaries):
        raise ValueError(
            "widths per atom do not work for molecules in a box, whose correction knows one width only: use "
            "boundary='open', or an operator with several widths and width_index"
        )
    if geometry.counter_bounds is not None:
        raise ValueError("counter_charge knows the operator's width only: leave it or widths out")
    if not isinstance(widths, Tensor):
        raise TypeError(f"widths must be a tensor {[len(positions)]}, got {type(widths).__name__}")
    if widths.shape != (len(positions),) or widths.dtype != positions.dtype:
        raise ValueError(
            f"widths must be {positions.dtype} of shape {[len(positions)]}, got {widths.dtype} "
            f"{list(widths.shape)}"
        )
    if not any(plan.atom_counts):
        raise ValueError("widths need at least one atom")
    if geometry.validate and not bool(((widths > 0) & torch.isfinite(widths)).all()):
        raise ValueError("widths must be positive numbers in angstrom")
    shared = plan.segments.shared
    most = plan.segments.highest(widths) if shared else widths.detach()
    smooth, widest = coulomb.source.widths[0], float(most.max())
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
    if shared and pairs.halo is None:
        raise ValueError(
            "pairs of a system that several processes share need a halo: leave pairs out, or make them with "
            "neighbour_pairs and the system's Segments"
        )
    if bool((pairs.edge_index[0].diff() < 0).any()):
        order = torch.argsort(pairs.edge_index[0], stable=True)
        pairs = NeighbourPairs(pairs.edge_index[:, order], pairs.edge_shift[order], pairs.cutoff, pairs.halo)
    return Split(geometry, widths, pairs)


def split_operator(
    geometry: Geometry, width_index: Tensor | None, tolerance: float, interaction: Interaction
) -> Split | None:
    """
    Split the operator's charges into a smooth operator and neighbours; None if its own sum is cheaper.

    Args:
        geometry: Geometry of the operator.
        width_index: ``[n_atoms]`` int64 which of its widths an atom has, or None if there is only one.
        tolerance: Tolerance of the solve, see `split_widths`.
        interaction: "auto", or "split" to split whatever the cost.

    Raises:
        ValueError: if "split" is requested but impossible.
    """
    coulomb, plan, positions = geometry.coulomb, geometry.plan, geometry.positions
    reason = _obstacle(geometry)
    if reason is not None:
        if interaction == "split":
            raise ValueError(f"interaction='split' does not work for {reason}: use 'auto' or 'direct'")
        return None
    if interaction == "auto" and coulomb.method == "mesh":
        return None  # the cost of a mesh hardly depends on the widths of the Gaussians
    assert geometry.cell is not None
    own = coulomb.source.widths
    tolerance = min(coulomb.tolerance, tolerance)
    periodic = torch.tensor(_periodic(geometry), device=positions.device)
    volumes = occupied_volumes(positions, geometry.cell, periodic, plan.segments).tolist()
    kinds = zip(plan.atom_counts, volumes, plan.boundaries, strict=True)
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
    """Number of wave vectors of a half sphere in a cell of 1 angstrom^3."""
    return cutoff_for_tolerance(width**2, tolerance, 0) ** 3 / (12 * math.pi**2)


def _obstacle(geometry: Geometry) -> str | None:
    """Why the charges of this operator cannot be split, or None."""
    coulomb, plan = geometry.coulomb, geometry.plan
    if coulomb.compat is not None:
        return f"compat={coulomb.compat!r}"
    if coulomb.kspace_cutoff is not None:
        return "an operator with its own kspace_cutoff"
    if geometry.counter_bounds is not None:
        return "a counter_charge"
    if any(kind == Boundary.MOLECULE_IN_BOX for kind in plan.boundaries):
        return "molecules in a box"
    counts = plan.atom_counts
    if not any(n and kind != Boundary.OPEN for n, kind in zip(counts, plan.boundaries, strict=True)):
        return "systems without periodicity"
    if importlib.util.find_spec("matscipy") is None:
        return "an environment without matscipy, which makes the neighbour list"
    return None


def _smooth(geometry: Geometry, width: float, tolerance: float) -> Geometry:
    """The geometry of the same atoms and fields with Gaussians of one width."""
    # solvers may request more than float64 sums can give
    coulomb = replace(
        geometry.coulomb,
        l_max=0,
        sigma=width,
        tolerance=max(tolerance, 1e-15),
        feature_widths=None,
        smooth=0.0,
    )
    plan, positions = geometry.plan, geometry.positions
    pbc, n_atoms = _periodic(geometry), len(positions)
    owners = plan.segments if plan.segments.shared else plan.segments.index
    smooth = coulomb.plan(geometry.cell, pbc, owners, n_atoms, positions.device, positions)
    return coulomb.prepare(
        positions,
        geometry.cell,
        plan=smooth,
        external_field=geometry.external_field,
        external_potential=geometry.external_potential,
    )


def _neighbours(geometry: Geometry, widest: float) -> NeighbourPairs:
    """Neighbours as far as the operator's tolerance requires."""
    coulomb, plan = geometry.coulomb, geometry.plan
    cutoff = reach(coulomb.source.widths[0], widest, coulomb.tolerance)
    return neighbour_pairs(geometry.positions, geometry.cell, _periodic(geometry), plan.segments, cutoff)


def _periodic(geometry: Geometry) -> list[list[bool]]:
    """Which directions of each system are periodic."""
    kinds = zip(geometry.plan.boundaries, _slab_axes(geometry), strict=True)
    return [
        [kind != Boundary.OPEN] * 3 if kind != Boundary.SLAB else [a != axis for a in range(3)]
        for kind, axis in kinds
    ]


def _slab_axes(geometry: Geometry) -> list[int]:
    """The open lattice direction of each system; meaningful for slabs only."""
    plan = geometry.plan
    axes = [2] * plan.n_systems
    if plan.lattice is not None:
        for system, axis in zip(plan.lattice.systems.tolist(), plan.lattice.slab_axis.tolist(), strict=True):
            axes[system] = axis
    return axes
