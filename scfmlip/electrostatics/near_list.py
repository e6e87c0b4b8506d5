"""Neighbours of narrow Gaussians: which atoms, and images of them, are near which others, or near points."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scfmlip_kernels import PairList, sort_pairs
from scfmlip_kernels.transforms import on_values, unwrapped

from .. import neighbours
from ..distributed import Halo, SharedSegments, halo_within

if TYPE_CHECKING:
    from .plan import LatticePlan


@dataclass
class NearList:
    """
    Neighbours of atoms at one place, images included.

    Attributes:
        pairs: Of atoms (targets) and sources: the atoms, then images of them.
        atoms: ``[n_sources]`` int64 atom that each source is; those of other processes stand behind own ones.
        shift: ``[n_sources, 3]`` float64 lattice vectors, as numbers, that lead to the image.
        reach: Angstrom.
        positions, cell: Where they were found, ``[n_atoms, 3]`` and ``[n_systems, 3, 3]``.
        halo: Atoms of other processes, if several share the system.
    """

    pairs: PairList
    atoms: Tensor
    shift: Tensor
    reach: float
    positions: Tensor
    cell: Tensor
    halo: Halo | None = None

    def everywhere(self, rows: Tensor) -> Tensor:
        """``[n_atoms, ...]`` -> rows that ``atoms`` counts."""
        return rows if self.halo is None else self.halo.extend(rows)

    def holds(self, positions: Tensor, cell: Tensor) -> bool:
        """Whether these are the neighbours at other positions and cells."""
        given = ((unwrapped(positions), self.positions), (unwrapped(cell), self.cell))
        return all(
            a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a.detach(), b)
            for a, b in given
        )


def periodic_axes(sub: LatticePlan) -> np.ndarray:
    """``[n_systems, 3]`` booleans: directions along which each system has images."""
    flags = np.ones((len(sub.systems), 3), dtype=bool)
    slab = sub.slab.cpu().numpy() > 0
    flags[slab, sub.slab_axis.cpu().numpy()[slab]] = False
    return flags


@on_values
def near_list(sub: LatticePlan, positions: Tensor, cell: Tensor, reach: float) -> NearList:
    """
    Neighbours on the host, in linear time; processes that share a system call together.

    Args:
        sub: The systems.
        positions: ``[n_atoms, 3]`` angstrom of their atoms.
        cell: ``[n_systems, 3, 3]`` angstrom as the user gave it.
        reach: Angstrom.

    Raises:
        ImportError: without matscipy.
        ValueError: for more pairs than fit into memory.
    """
    positions, cell = positions.detach(), cell.detach()
    if sub.segments.shared:
        found = point_list(sub, positions, cell, positions, torch.tensor([len(positions)]), reach, apart=True)
        return dataclasses.replace(found, positions=positions.clone(), cell=cell.clone())
    host, cells = positions.cpu().double().numpy(), cell.cpu().double().numpy()
    flags, n_atoms = periodic_axes(sub), len(host)
    targets, sources, shifts = [], [], []
    for i, (begin, end) in enumerate(itertools.pairwise(sub.host_ptr.tolist())):
        try:
            pairs, images = neighbours.neighbour_pairs(
                host[begin:end], cells[i], flags[i], reach, apart=False
            )
        except ValueError as error:
            raise ValueError(
                f"system {int(sub.systems[i])}, neighbours of narrow Gaussians: {error}"
            ) from None
        targets.append(pairs[0] + begin)
        sources.append(pairs[1] + begin)
        shifts.append(images)
    target, source, shift = (np.concatenate(parts) for parts in (targets, sources, shifts))
    # images are sources of their own, each once
    away = shift.any(1)
    span = np.abs(shift).max(initial=0) + 1
    code = ((shift[away] + span) @ np.array([4 * span**2, 2 * span, 1])) * n_atoms + source[away]
    _, first, number = np.unique(code, return_index=True, return_inverse=True)
    atoms = np.concatenate((np.arange(n_atoms), source[away][first]))
    steps = np.concatenate((np.zeros((n_atoms, 3)), shift[away][first]))
    source[away] = n_atoms + number
    listed = sort_pairs(torch.from_numpy(target), torch.from_numpy(source), n_atoms, len(atoms))
    device = positions.device
    return NearList(
        PairList(*(part.to(device) for part in listed)),
        torch.from_numpy(atoms).to(device),
        torch.from_numpy(steps).to(device),
        reach,
        positions.clone(),
        cell.clone(),
    )


def point_list(
    sub: LatticePlan,
    positions: Tensor,
    cell: Tensor,
    points: Tensor,
    counts: Tensor,
    reach: float,
    apart: bool = False,
) -> NearList:
    """
    Atoms and their images near points; arguments as `near_list`.

    Args:
        sub: The systems.
        positions: ``[n_atoms, 3]`` angstrom.
        cell: ``[n_systems, 3, 3]`` angstrom.
        points: ``[n_points, 3]`` angstrom, of one system after another.
        counts: ``[n_systems]`` points of each.
        reach: Angstrom.
        apart: The points are the atoms themselves, which are no neighbours of their own.

    Raises:
        ImportError: without scipy.
    """
    halo, everywhere = None, positions.detach()
    if sub.segments.shared:
        assert isinstance(sub.segments, SharedSegments)
        place = cell[0], periodic_axes(sub)[0]
        halo = halo_within(sub.segments.communicator, positions, points, *place, reach)
        everywhere = halo.copy_out(positions)
    host, at = everywhere.cpu().double().numpy(), points.detach().cpu().double().numpy()
    cells, flags = cell.detach().cpu().double().numpy(), periodic_axes(sub)
    ptr = sub.host_ptr.tolist() if halo is None else [0, len(host)]
    ends = np.concatenate(([0], np.cumsum(counts.tolist())))
    target, source, atoms, steps, n_sources = [], [], [], [], 0
    for i, (begin, end) in enumerate(itertools.pairwise(ptr)):
        mine, here = host[begin:end], at[ends[i] : ends[i + 1]]
        if not len(mine) or not len(here):
            continue
        point, image, owners, shift = pairs_around(mine, here, cells[i], flags[i], reach, apart)
        target.append(point + ends[i])
        source.append(image + n_sources)
        atoms.append(owners + begin)
        steps.append(shift)
        n_sources += len(owners)
    empty = [np.zeros(0, dtype=np.int64)]
    index = [torch.from_numpy(np.concatenate(parts or empty)) for parts in (target, source, atoms)]
    shift = torch.from_numpy(np.concatenate(steps or [np.zeros((0, 3))])).double()
    listed = sort_pairs(index[0], index[1], len(at), n_sources)
    device = positions.device
    pairs = PairList(*(part.to(device) for part in listed))
    return NearList(pairs, index[2].to(device), shift.to(device), reach, positions, cell, halo)


class Around(NamedTuple):
    """
    Pairs of points and images of atoms.

    Attributes:
        point, image: ``[n_pairs]`` int64.
        owners: ``[n_images]`` int64 atom of each image.
        shift: ``[n_images, 3]`` float64 lattice vectors, as numbers, that lead to it.
    """

    point: np.ndarray
    image: np.ndarray
    owners: np.ndarray
    shift: np.ndarray


def pairs_around(
    atoms: np.ndarray, points: np.ndarray, cell: np.ndarray, periodic: np.ndarray, reach: float, apart: bool
) -> Around:
    """
    Points and images of atoms within reach of each other.

    Args:
        atoms: ``[n_atoms, 3]`` angstrom.
        points: ``[n_points, 3]`` angstrom.
        cell: ``[3, 3]`` angstrom.
        periodic: ``[3]`` bool.
        reach: Angstrom.
        apart: The points are the first of the atoms, which are no neighbours of their own.
    """
    if not len(points):
        nothing = np.zeros(0, dtype=np.int64)
        return Around(nothing, nothing, nothing, np.zeros((0, 3)))
    images, owners, shift = _images(atoms, points, cell, periodic, reach)
    point, image = _near(points, images, reach)
    if apart:
        other = (owners[image] != point) | shift[image].any(1)
        point, image = point[other], image[other]
    return Around(point, image, owners, shift)


def _near(points: np.ndarray, places: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of points and of places within reach of each other."""
    try:
        from scipy.spatial import KDTree
    except ImportError as error:
        raise ImportError("atoms near points come from scipy: pip install scipy") from error
    if not len(places):
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing
    found = KDTree(points).sparse_distance_matrix(KDTree(places), reach, output_type="ndarray")
    return found["i"].astype(np.int64), found["j"].astype(np.int64)


def _images(
    atoms: np.ndarray, points: np.ndarray, cell: np.ndarray, periodic: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images of atoms within reach of the box around points: positions, which atom, lattice vectors."""
    box = cell.copy()
    normals = neighbours.normals_of(box[periodic])
    box[~periodic] = normals
    inverse = np.linalg.inv(box)
    places, wanted = atoms @ inverse, points @ inverse
    margin = reach * np.linalg.norm(inverse, axis=0)
    low = np.floor(wanted.min(0) - margin - places.max(0)).astype(int)
    high = np.ceil(wanted.max(0) + margin - places.min(0)).astype(int)
    low, high = np.where(periodic, low, 0), np.where(periodic, high, 0)
    steps = np.array(list(itertools.product(*(range(a, b + 1) for a, b in zip(low, high, strict=True)))))
    moved = places[:, None] + steps
    inside = ((moved >= wanted.min(0) - margin) & (moved <= wanted.max(0) + margin))[..., periodic].all(-1)
    owner, step = np.nonzero(inside)
    return moved[owner, step] @ box, owner, steps[step].astype(float)
