"""
Range separation for Gaussians with one width per atom: a smooth operator plus pairs of a neighbour list.

The number of wave vectors for a Gaussian of width s grows as s^-3. Let the operator represent all charges by
one wide Gaussian S; the rest is short-ranged,
    k_e [erf(r / sqrt(2 s_i^2 + 2 s_j^2)) - erf(r / 2 S)] / r     between neighbours,
    k_e (1 / s_i - 1 / S) / sqrt(pi)                              of an atom with itself,
    -2 pi k_e (2 S^2 - s_i^2 - s_j^2) / V                         for all pairs of a crystal.
The last term is the average of the pair terms, which a sum over wave vectors without k = 0 does not contain.
This is Ewald's splitting, Ann. Phys. 369, 253 (1921), for Gaussian charges. With a good S the cost of one
product grows as atoms^1.5.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scfmlip_kernels import segment_sum
from scfmlip_kernels.gaussian_pairs.radial import gaussian_interaction

from .. import neighbours
from ..distributed import Halo, SharedSegments, halo_within
from ..segments import Segments
from ..units import COULOMB_CONSTANT
from . import Boundary, CoulombPlan
from .near_list import pairs_around

# approximate cost of a wave vector per atom, in neighbours including their list (2 cores, float64)
WAVE_COST = 0.1
# angstrom, approximate height that the cell of a slab's sum has besides the atoms
_VACUUM = 20.0


@dataclass(frozen=True)
class NeighbourPairs:
    """
    All ordered pairs of atoms within a cutoff, including periodic images, sorted by the first atom.

    Attributes:
        edge_index: ``[2, n_edges]`` int64 first and second atom; both orders are listed.
        edge_shift: ``[n_edges, 3]`` integer multiples of the lattice vectors that are added to the second
            atom.
        cutoff: Cutoff, angstrom.
        halo: Where several processes share the system: its ghosts, which second atoms count behind own ones.

    Example:
        >>> import torch
        >>> from scfmlip.scf import NeighbourPairs
        >>> edges = torch.tensor([[0, 1], [1, 0]])  # from any neighbour list; both orders of each pair
        >>> pairs = NeighbourPairs(edges, edge_shift=torch.zeros(2, 3), cutoff=4.0)
        >>> pairs.edge_index.shape[1]
        2
    """

    edge_index: Tensor
    edge_shift: Tensor
    cutoff: float
    halo: Halo | None = None

    def everywhere(self, rows: Tensor) -> Tensor:
        """``[n_atoms, ...]`` -> rows that second atoms count."""
        return rows if self.halo is None else self.halo.extend(rows)


def neighbour_pairs(
    positions: Tensor,
    cell: Tensor | None,
    pbc: Tensor | list,
    batch_idx: Tensor | Segments | None,
    cutoff: float,
) -> NeighbourPairs:
    """
    Find the neighbours of every atom, on the host, in linear time.

    Args:
        positions: ``[n_atoms, 3]`` angstrom.
        cell: ``[3, 3]`` or ``[n_systems, 3, 3]`` angstrom, or None without periodicity; vectors that are not
            periodic do not matter.
        pbc: ``[3]`` or ``[n_systems, 3]`` booleans.
        batch_idx: ``[n_atoms]`` int64 system of each atom, not decreasing; None for one system; or
            `Segments`, which several processes may share: they call together.
        cutoff: Cutoff, angstrom.

    Raises:
        ImportError: without matscipy; you can also make `NeighbourPairs` from any other list.
        ValueError: for two atoms at the same position, or more pairs than fit into memory.

    Example:
        >>> import torch
        >>> from scfmlip.scf import neighbour_pairs
        >>> positions = torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]], dtype=torch.float64)  # CsCl
        >>> cell = 4.0 * torch.eye(3, dtype=torch.float64)
        >>> pairs = neighbour_pairs(positions, cell, [True, True, True], None, cutoff=3.6)
        >>> pairs.edge_index.shape[1]  # 8 nearest neighbours of each atom
        16
    """
    if isinstance(batch_idx, SharedSegments) and batch_idx.shared:
        return _shared_pairs(positions, cell, pbc, batch_idx, cutoff)
    batch_idx = batch_idx.index if isinstance(batch_idx, Segments) else batch_idx
    host = positions.detach().cpu().double().numpy()
    index = np.zeros(len(host), dtype=int) if batch_idx is None else batch_idx.cpu().numpy()
    n_systems = int(index[-1]) + 1 if len(index) else 0
    flags = torch.as_tensor(pbc).cpu().bool().reshape(-1, 3).expand(n_systems, 3).numpy()
    cells = torch.zeros(1, 3, 3) if cell is None else cell.detach().cpu().double().reshape(-1, 3, 3)
    cells = cells.expand(n_systems, 3, 3).numpy()
    starts = np.searchsorted(index, np.arange(n_systems + 1))
    edges, shifts = [np.zeros((2, 0), dtype=np.int64)], [np.zeros((0, 3), dtype=np.int64)]
    for i, (begin, end) in enumerate(itertools.pairwise(starts)):
        try:
            pairs, images = neighbours.neighbour_pairs(host[begin:end], cells[i], flags[i], cutoff)
        except ValueError as error:
            raise ValueError(f"system {i}: {error}") from None
        edges.append(pairs + begin)
        shifts.append(images)
    edge_index, shift = torch.from_numpy(np.concatenate(edges, 1)), torch.from_numpy(np.concatenate(shifts))
    device = positions.device
    return NeighbourPairs(edge_index.to(device), shift.to(device, positions.dtype), float(cutoff))


def _shared_pairs(
    positions: Tensor, cell: Tensor | None, pbc: Tensor | list, segments: SharedSegments, cutoff: float
) -> NeighbourPairs:
    """Neighbours of own atoms; arguments as `neighbour_pairs`."""
    flags = torch.as_tensor(pbc).cpu().bool().reshape(-1, 3)[0].numpy()
    box = torch.zeros(3, 3) if cell is None else cell.detach().reshape(-1, 3, 3)[0]
    place = box, flags, cutoff
    halo = halo_within(segments.communicator, positions, positions, *place)
    rows = halo.copy_out(positions).cpu().double().numpy()
    found = pairs_around(rows, rows[: len(positions)], box.cpu().double().numpy(), flags, cutoff, True)
    order = np.argsort(found.point, kind="stable")
    first, image = found.point[order], found.image[order]
    edges = torch.from_numpy(np.stack((first, found.owners[image])))
    shift = torch.from_numpy(found.shift[image])
    device = positions.device
    return NeighbourPairs(edges.to(device), shift.to(device, positions.dtype), float(cutoff), halo)


def pair_cutoff(smooth: float, widest: float, tolerance: float) -> float:
    """Distance, angstrom, beyond which a pair of unit charges differs by less than ``tolerance``, eV."""
    reach = max(2 * smooth, 2 * widest)
    low, high = 0.0, 20 * reach
    for _ in range(60):
        middle = 0.5 * (low + high)
        value = COULOMB_CONSTANT * math.erfc(middle / reach) / max(middle, 1e-9)
        low, high = (middle, high) if value > tolerance else (low, middle)
    return high


def occupied_volumes(positions: Tensor, cell: Tensor, pbc: Tensor, segments: Segments) -> Tensor:
    """
    Volumes that atoms and waves fill, for estimates; for a slab, independent of the height of its cell.

    Args:
        positions: ``[n_atoms, 3]`` angstrom.
        cell: ``[n_systems, 3, 3]`` angstrom.
        pbc: ``[n_systems, 3]`` booleans.
        segments: The system of each atom.

    Returns:
        ``[n_systems]`` angstrom^3; for an isolated system, the volume of its cell.
    """
    cell = cell.detach().double()
    volumes = torch.linalg.det(cell).abs()
    for i in torch.nonzero(pbc.sum(1) == 2).flatten().tolist():
        first, second = cell[i][pbc[i]]
        normal = torch.linalg.cross(first, second)
        heights = positions.detach().double() @ normal / normal.norm()
        high, low = segments.highest(torch.stack((heights, -heights), 1))[i]
        if high + low > -math.inf:
            volumes[i] = normal.norm() * (high + low + _VACUUM)
    return volumes


def smooth_width(n_atoms: int, volume: float, tolerance: float = 1e-6) -> float:
    """
    The width S, angstrom, at which wave vectors and neighbours of an atom cost about the same.

    Args:
        n_atoms: Number of atoms of one system.
        volume: Volume of its cell, angstrom^3.
        tolerance: Tolerance of the operator, eV.

    Example:
        >>> from scfmlip.scf import smooth_width
        >>> round(smooth_width(n_atoms=1000, volume=20.0**3), 2)  # angstrom
        1.11
    """
    from .cutoff import cutoff_for_tolerance

    waves = volume * cutoff_for_tolerance(1.0, tolerance, 0) ** 3 / (12 * math.pi**2)  # times S^-3
    pairs = 4 * math.pi / 3 * n_atoms / volume * pair_cutoff(1.0, 1.0, tolerance) ** 3  # times S^3
    return (WAVE_COST * waves / pairs) ** (1 / 6)


class ShortRange:
    """
    The short-ranged part at one geometry; differentiable any number of times.

    Args:
        pairs: Neighbours.
        plan: Sizes and boundaries.
        smooth: S, angstrom.
        widths: ``[n_atoms]`` angstrom.
        positions: ``[n_atoms, 3]``.
        cell: ``[n_systems, 3, 3]`` or None.
    """

    def __init__(
        self,
        pairs: NeighbourPairs,
        plan: CoulombPlan,
        smooth: float,
        widths: Tensor,
        positions: Tensor,
        cell: Tensor | None,
    ) -> None:
        self.plan = plan
        self.first, self.second = pairs.edge_index
        counts = torch.bincount(self.first, minlength=len(positions))
        self.edge_ptr = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
        self.pairs, far, wider = pairs, positions, widths
        if pairs.halo is not None:  # in one exchange
            far, wider = pairs.everywhere(torch.cat((positions, widths[:, None]), 1)).split((3, 1), 1)
            wider = wider[:, 0]
        vector = far[self.second] - positions[self.first]
        if cell is not None:
            matrices = cell[plan.segments.index[self.first]] if plan.n_systems > 1 else cell
            vector = vector + (pairs.edge_shift.to(vector.dtype)[:, None] @ matrices)[:, 0]
        square = (vector**2).sum(-1)
        own = widths[self.first] ** 2 + wider[self.second] ** 2
        wide = torch.full_like(own, 2 * smooth**2)
        self.pair = gaussian_interaction(square, own) - gaussian_interaction(square, wide)
        self.pair = COULOMB_CONSTANT * self.pair
        self.own = COULOMB_CONSTANT / math.sqrt(math.pi) * (1 / widths - 1 / smooth)
        self.average = self.second_moment = None
        crystal = torch.tensor([kind == Boundary.PERIODIC for kind in plan.boundaries], device=square.device)
        if cell is not None and bool(crystal.any()):
            volume = torch.linalg.det(cell.double()).abs()
            volume = torch.where(crystal, volume, torch.ones_like(volume))
            self.average = torch.where(crystal, 2 * math.pi * COULOMB_CONSTANT / volume, 0.0)
            self.second_moment = smooth**2 - widths.double() ** 2

    def near(self, charges: Tensor) -> Tensor:
        """``[n_atoms, ...]`` e -> V of neighbours and of each atom itself."""
        trailing = _for(charges)
        rows = self.pair[trailing] * self.pairs.everywhere(charges)[self.second]
        return segment_sum(rows, self.edge_ptr, self.first) + self.own[trailing] * charges

    def own_sums(self, charges: Tensor) -> tuple[Tensor, ...]:
        """
        Parts of the sums that the average of all pairs of a crystal is made of, of this process' atoms.

        Returns:
            Charge and second moment of ``charges [n_atoms, ...]``, ``[n_systems, ...]`` float64; nothing
            without crystals.
        """
        if self.second_moment is None:
            return ()
        wide, segments = charges.double(), self.plan.segments
        return segments.own_sum(wide), segments.own_sum(self.second_moment[_for(charges)] * wide)

    def whole(self, near: Tensor, sums: Sequence[Tensor]) -> Tensor:
        """``[n_atoms, ...]`` V from `near`, and `own_sums` over all atoms."""
        if self.average is None or self.second_moment is None:
            return near
        (total, spread), segments, trailing = sums, self.plan.segments, _for(near)
        factor = self.average[trailing]
        far = self.second_moment[trailing] * segments.expand(factor * total)
        return near - (far + segments.expand(factor * spread)).to(near.dtype)

    def average_energy(self, sums: Sequence[Tensor]) -> Tensor:
        """``[n_systems, ...]`` float64 eV, to be taken off, from `own_sums` over all atoms."""
        (total, spread), factor = sums, self.average
        assert factor is not None
        return factor[_for(total)] * total * spread

    def potential(self, charges: Tensor) -> Tensor:
        """``[n_atoms, ...]`` e -> V."""
        near, parts = self.near(charges), self.own_sums(charges)
        return self.whole(near, self.plan.segments.combine_all(*parts) if parts else ())

    def matrices(self) -> list[Tensor]:
        """One ``[n, n]`` float64 per system; not differentiable."""
        ptr = self.plan.atom_ptr.tolist()
        edges = self.edge_ptr[self.plan.segments.ptr].tolist()
        found = []
        for i, (begin, end) in enumerate(itertools.pairwise(ptr)):
            part = slice(edges[i], edges[i + 1])
            matrix = torch.diag(self.own[begin:end].detach().double())
            place = (self.first[part] - begin, self.second[part] - begin)
            matrix.index_put_(place, self.pair[part].detach().double(), accumulate=True)
            if self.average is not None and self.second_moment is not None:
                moment = self.second_moment[begin:end].detach()
                matrix -= self.average[i].detach() * (moment[:, None] + moment)
            found.append(matrix)
        return found

    def own_energy(self, charges: Tensor) -> tuple[Tensor, ...]:
        """Parts of the sums that `energy` is made of, of this process' ``charges [n_atoms]``; float64."""
        half = 0.5 * charges.double() * self.near(charges).double()
        return self.plan.segments.own_sum(half), *self.own_sums(charges)

    def energy(self, sums: Sequence[Tensor]) -> Tensor:
        """``[n_systems]`` float64 eV, from `own_energy` over all atoms."""
        near, *averages = sums
        return near - self.average_energy(averages) if averages else near


def _for(values: Tensor) -> tuple:
    """Index that makes numbers of rows fit ``values [n_rows, ...]``."""
    return (...,) + (None,) * (values.ndim - 1)
