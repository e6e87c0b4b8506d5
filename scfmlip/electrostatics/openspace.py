"""
The Coulomb operator of isolated systems: analytic interaction of all pairs of Gaussian multipoles.

``compat="graph_longrange"`` replaces dipoles by charges displaced along x, y and z, that code's one-sided
finite differences; the same pair operator then runs on four points per atom.
"""

import functools

import torch
from torch import Tensor

from scfmlip_kernels import PairList, gaussian_pairs, listed_pairs, sort_pairs
from scfmlip_kernels.constants import constant
from scfmlip_kernels.lattice.monomials import rank_of_count

from ..distributed import SharedSegments, halo_of_all
from ..segments import Segments
from ..units import COULOMB_CONSTANT
from .boundary import Quirks

# points that stand for an atom with a dipole: itself, and displaced along x, y and z
DISPLACED = 4


class AllAtoms:
    """
    All atoms of an isolated system that processes share, on each of them; every one makes it together.

    Args:
        positions: ``[n_atoms, 3]`` angstrom of own atoms.
        segments: Of them.

    Attributes:
        halo: Gathers rows of own atoms and, behind them, of all others.
        positions: ``[n_all, 3]`` angstrom.
    """

    def __init__(self, positions: Tensor, segments: Segments) -> None:
        assert isinstance(segments, SharedSegments)
        self.halo = halo_of_all(segments.communicator, segments.rank_counts, positions.device)
        self.positions = self.halo.extend(positions)

    @functools.cached_property
    def pairs(self) -> PairList:
        """Of every own atom and every other."""
        n_own, n_all, device = self.halo.n_owned, self.halo.n_all, self.positions.device
        target, source = torch.ones(n_own, n_all, dtype=torch.bool, device=device).nonzero().unbind(1)
        other = target != source
        return sort_pairs(target[other], source[other], n_own, n_all)


class OpenSpace:
    """
    One batch of isolated systems, ready for any multipoles.

    Where processes share one, each sums over the pairs of its own atoms with all there are.

    Args:
        positions: ``[n_atoms, 3]`` angstrom, float32 or float64.
        host_ptr: ``[n_systems + 1]`` int64 on the CPU.
        segments: The system of each atom, on the device.
        widths: Source widths, angstrom.
        quirks: Deviations of a reference code.
        tiles: Of the plan, see `CoulombPlan.pair_tiles`; without them they are made when they are needed.
    """

    def __init__(
        self,
        positions: Tensor,
        host_ptr: Tensor,
        segments: Segments,
        widths: tuple[float, ...],
        quirks: Quirks,
        tiles: dict[int, Tensor] | None = None,
    ) -> None:
        self.positions, self.host_ptr, self.segments = positions, host_ptr, segments
        self.widths, self.quirks = widths, quirks
        self._others: AllAtoms | None = None
        self.tiles = tiles or {}

    def _displaced(self, offset: float) -> Tensor:
        """Each atom and its three copies displaced by +offset along x, y, z: ``[4 n_atoms, 3]``."""
        steps = torch.zeros((4, 3), dtype=self.positions.dtype, device=self.positions.device)
        steps[1:] = offset * torch.eye(3, dtype=steps.dtype, device=steps.device)
        return (self.positions[:, None] + steps).flatten(0, 1)

    def _total(self, widths: tuple[float, ...]) -> Tensor:
        """``[n_sources n_widths]`` on the CPU: the width of each pair's interaction."""
        pairs = tuple((s**2 + w**2) ** 0.5 for s in self.widths for w in widths)
        return constant(pairs, torch.float64, torch.device("cpu"))

    def _pairs(self, moments: Tensor, widths: tuple[float, ...], rank: int) -> Tensor:
        """Pair sums for every receiving width, summed over source widths, times k_e."""
        n_sources = moments.shape[2]
        total = self._total(widths)
        sources = moments[:, :, :, None].expand(-1, -1, -1, len(widths), -1).flatten(2, 3)
        if self.segments.shared:
            out = self._shared_pairs(sources, total, rank)
        else:
            out = gaussian_pairs(self.positions, sources, total, self.host_ptr, rank, tiles=self.tiles.get(1))
        out = out.unflatten(2, (n_sources, len(widths))).sum(2)
        return COULOMB_CONSTANT * out

    def _all_atoms(self) -> AllAtoms:
        """Gathered where they are first needed."""
        if self._others is None:
            # a first call without gradients may be followed by one with gradients
            with torch.enable_grad():
                self._others = AllAtoms(self.positions, self.segments)
        return self._others

    def _shared_pairs(self, sources: Tensor, total: Tensor, rank: int) -> Tensor:
        """As `gaussian_pairs`: own atoms with those of all processes, which are gathered."""
        others = self._all_atoms()
        widths = torch.stack((total, torch.full_like(total, torch.inf)), 1)
        rows = others.halo.extend(sources)
        return listed_pairs(self.positions, others.positions, rows, widths, others.pairs, rank)

    def _finite_difference(
        self, moments: Tensor, widths: tuple[float, ...], rank: int, offset: float
    ) -> Tensor:
        """Like `_pairs`, with dipoles and gradients as one-sided differences over ``offset``."""
        if len(self.widths) != 1:
            raise ValueError("compat='graph_longrange' supports one source width only")
        if self.segments.shared:  # all pairs on every process: nobody shares the work
            others = self._all_atoms()
            rows, ptr = others.halo.extend(moments), torch.tensor([0, others.halo.n_all])
            alone = OpenSpace(others.positions, ptr, self.segments, self.widths, self.quirks)
            return alone._whole_difference(rows, widths, rank, offset)[: len(moments)]
        return self._whole_difference(moments, widths, rank, offset)

    def _whole_difference(
        self, moments: Tensor, widths: tuple[float, ...], rank: int, offset: float
    ) -> Tensor:
        """As `_finite_difference`, of all atoms that there are."""
        n_atoms, n_channels = moments.shape[:2]
        m = moments[:, :, 0]
        group = 1
        positions = self.positions
        charges = m[:, None, :, 0]
        if m.shape[-1] > 1 or rank > 0:
            group = DISPLACED
            positions = self._displaced(offset)
            charges = m.new_zeros((n_atoms, 1, n_channels)) + m[:, None, :, 0]
            if m.shape[-1] > 1:
                ends = m[..., 1:4].permute(0, 2, 1) / offset
                charges = torch.cat((charges - ends.sum(1, keepdim=True), ends), 1)
            else:
                charges = torch.cat((charges, charges.new_zeros((n_atoms, 3, n_channels))), 1)
        sources = charges.flatten(0, 1)[:, :, None, None].expand(-1, -1, len(widths), -1)
        values = gaussian_pairs(
            positions,
            sources,
            self._total(widths),
            self.host_ptr * group,
            0,
            softening=self.quirks.softening,
            group_size=group,
            tiles=self.tiles.get(group),
        )
        values = COULOMB_CONSTANT * values.view(n_atoms, group, n_channels, len(widths))
        if rank == 0:
            return values[:, 0, ..., None]
        gradient = (values[:, 1:] - values[:, :1]) / offset
        return torch.cat((values[:, :1], gradient), 1).permute(0, 2, 3, 1)

    def field(self, moments: Tensor, widths: tuple[float, ...], rank: int) -> Tensor:
        """Potential and gradient at the atoms, as in `KSpace.field`, without self-interaction."""
        if self.quirks.open_offsets is None:
            return self._pairs(moments, widths, rank)
        return self._finite_difference(moments, widths, rank, self.quirks.open_offsets[1])

    def field_with(
        self, moments: Tensor, widths: tuple[float, ...], rank: int, conjugate: bool, *others: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """What `field` gives, or `conjugate`, and other sums as in `energy_with`."""
        field = self.conjugate(moments, rank) if conjugate else self.field(moments, widths, rank)
        return field, self.segments.combine_all(*others) if others else ()

    def conjugate(self, moments: Tensor, rank: int) -> Tensor:
        """Derivative of the energy in the moments, without self-interaction."""
        if self.quirks.open_offsets is None:
            return self._pairs(moments, self.widths, rank)
        return self._finite_difference(moments, self.widths, rank, self.quirks.open_offsets[0])

    def energy(self, moments: Tensor) -> Tensor:
        """``[n_systems, n_channels]`` float64, eV, without self-interaction."""
        return self.segments.equal_parts(self.energy_with(moments)[0])[0]

    def energy_with(self, moments: Tensor, *others: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """
        Energies, and sums over ranks of float64 parts of other sums, all in one message.

        Args:
            moments: ``[n_atoms, n_channels, n_widths, 1 | 4 | 10]``.
            others: Of the atoms of this process.

        Returns:
            ``[n_systems, n_channels]`` float64, eV, without self-interaction, and the other sums. All that is
            made of them is alike on all ranks, and leaves through `Segments.equal_parts`.
        """
        return self._both(moments, rank_of_count(moments.shape[-1]), *others, alike=True)[1:]

    def conjugate_and_energy(
        self, moments: Tensor, rank: int, *others: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """What `conjugate` gives, the energy, and other sums, in one message."""
        return self._both(moments, rank, *others, alike=False)

    def _both(
        self, moments: Tensor, rank: int, *others: Tensor, alike: bool
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Field, energy and other sums; see `Segments.combine_all`."""
        field = self.conjugate(moments, rank)
        # accumulate in float64, because large terms cancel in neutral systems
        per_atom = 0.5 * (field.double() * moments.double()).sum((2, 3))
        energy, *rest = self.segments.combine_all(self.segments.own_sum(per_atom), *others, alike=alike)
        return field, energy, tuple(rest)
