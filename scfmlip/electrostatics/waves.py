"""
Sums over the wave vectors of a batch of cells, direct or through a mesh: crystals, slabs, molecules in a box.

With S(k) the structure factor of the multipoles and f(k) = exp(-sigma^2 k^2 / 2),
    E = (1 / eps0 V) sum'_k |f S|^2 / k^2,      V(r) = Re (2 / eps0 V) sum'_k f_r f S e^{i k.r} / k^2
over half of all k != 0. `kspace.KSpace` sums directly, `mesh.Mesh` through a mesh and Fourier transforms;
they differ in how they compute S and the series. The operators use fractional coordinates and Miller indices
only. The cell enters through these and through O(wave vectors) arithmetic here, so its derivative, the
stress, is exact to any order of autograd.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scfmlip_kernels import LatticeGrid, MeshGrid, wave_coefficients, wave_energies, wave_weights
from scfmlip_kernels.constants import constant
from scfmlip_kernels.identity import ByIdentity

from ..segments import Segments
from ..units import FIELD_CONSTANT
from .boundary import Correction, Quirks
from .density import symmetric_coefficients, symmetric_matrices
from .forms import turned_groups
from .plan import LatticePlan
from .slab import SlabPlan
from .tensors import from_upper_triangles, inverse_and_volume, products, upper_triangles


@dataclass(frozen=True)
class Places:
    """
    Points of a batch of systems.

    Attributes:
        frac: ``[n, 3]`` float64 fractional coordinates.
        host_ptr: ``[n_systems + 1]`` int64 on the CPU, first point of each system.
        segments: The system of each point, on the device.
    """

    frac: Tensor
    host_ptr: Tensor
    segments: Segments


def turn(
    vectors: Tensor, matrices: Tensor, segments: Segments, scale: float = 1.0, transposed: bool = False
) -> Tensor:
    """
    Multiply each atom's row vectors by its system's matrix.

    Args:
        vectors: ``[n, ..., 3]``.
        matrices: ``[n_systems, 3, 3]``.
        segments: The system of each row.
        scale: Factor of the matrices.
        transposed: Whether to use the transposed matrices.

    Returns:
        Shape of ``vectors``.
    """
    found = turned_groups(vectors, matrices, segments, scale, transposed)
    if found is not None:
        return found
    matrices = matrices.mT if transposed else matrices
    matrices = (matrices if scale == 1.0 else scale * matrices).to(vectors.dtype)
    if len(matrices) == 1:
        return vectors @ matrices[0]
    each = segments.expand(matrices)
    rows = vectors.flatten(1, -2) if vectors.ndim > 2 else vectors[:, None]
    return torch.einsum("nci,nij->ncj", rows, each).reshape(vectors.shape)


def turn_derivatives(
    field: Tensor, matrices: Tensor, segments: Segments, scale: float = 1.0, transposed: bool = False
) -> Tensor:
    """
    A field and its derivatives along other axes.

    Args:
        field: ``[n, n_channels, 1 | 4 | 10]``, values, gradients, second derivatives xx, xy, xz, yy, yz, zz.
        matrices: ``[n_systems, 3, 3]``, gradients times which are the new ones.
        segments: The system of each row.
        scale: Factor of the matrices.
        transposed: Whether to use the transposed matrices.

    Returns:
        Shape of ``field``.
    """
    if field.shape[-1] == 4:
        found = turned_groups(field, matrices, segments, scale, transposed)
        if found is not None:
            return found
    parts = [field[..., :1], turn(field[..., 1:4], matrices, segments, scale, transposed)]
    if field.shape[-1] > 4:
        second = from_upper_triangles(field[..., 4:])
        for _ in range(2):  # once for each index
            second = turn(second, matrices, segments, scale, transposed).mT
        parts.append(upper_triangles(second))
    return torch.cat(parts, -1)


_kept: ByIdentity[Tensor] = ByIdentity(8)


def _strengths(grid: LatticeGrid | MeshGrid) -> Tensor:
    """``[n_points]`` weights of waves times the field constant; 0 where k = 0."""
    origin = (grid.miller == 0).all(-1)
    return FIELD_CONSTANT * torch.where(origin, torch.zeros_like(grid.weight), grid.weight)


def _cut_heights(slabs: SlabPlan) -> Tensor:
    """``[n_systems]`` height of the cells of slabs whose interaction is cut off, else 0."""
    return torch.where(slabs.slab & slabs.truncated, slabs.height, torch.zeros_like(slabs.height))


class WaveSum(ABC):
    """
    One batch of cells and positions, ready for any multipoles.

    Args:
        plan: Sizes, boundaries and wave vectors.
        positions: ``[n_atoms, 3]`` angstrom, float32 or float64.
        cell: ``[n_systems, 3, 3]`` angstrom, float64, the user's cells; slabs are summed in other ones.
        widths: Source widths, angstrom.
        quirks: Deviations of a reference code.
    """

    def __init__(
        self, plan: LatticePlan, positions: Tensor, cell: Tensor, widths: tuple[float, ...], quirks: Quirks
    ) -> None:
        grid, segments = plan.grid, plan.segments
        self.host_ptr, self.segments = plan.host_ptr, segments
        self.grid, self.points = grid, Segments(plan.point_ptr, grid.system)
        self.dtype, self.widths = positions.dtype, widths
        self.cell = cell = plan.cells(cell)
        self.inverse, volume = inverse_and_volume(cell)
        inverse, self.volume = self.inverse, volume.abs()
        self.frac = turn(positions.double(), inverse, segments)
        self._factors: dict[tuple[float, ...], Tensor] = {}
        self.waves = None
        if positions.is_cuda:
            self.waves = self._fused_weights(plan.slabs)
            self.k_squared, self.coulomb = self.waves.unbind(1)
        else:
            self._set_weights(plan.slabs)
        self.correction = None
        if not plan.corrected:
            return
        origin = segments.mean(positions.detach().double())
        if quirks.slab_along_z:  # keep the reference's dependence on the origin
            origin = torch.zeros_like(origin)
        self.correction = Correction(
            positions=positions.double(),
            origin=origin,
            volume=self.volume,
            slab=plan.slab,
            box=plan.box if plan.boxed else None,
            inverse=inverse,
            axis=plan.slab_axis,
            segments=segments,
            widths=widths,
            quirks=quirks,
        )

    def _fused_weights(self, slabs: SlabPlan | None) -> Tensor:
        """``[n_points, 2]`` k^2 and the weights of the waves in energies, in one launch."""
        grid = self.grid
        weight = _kept.get((grid.weight, grid.miller), None, lambda: _strengths(grid))
        height = axis = None
        if slabs is not None:
            parts = (slabs.slab, slabs.truncated, slabs.height)
            height, axis = _kept.get(parts, None, lambda: _cut_heights(slabs)), slabs.axis
        return wave_weights(self.inverse, self.volume, grid.miller, grid.system, weight, height, axis)

    def _set_weights(self, slabs: SlabPlan | None) -> None:
        """The same as two tensors, in PyTorch."""
        self.k_squared = self._squares()
        origin = (self.grid.miller == 0).all(-1)
        point_volume = self.points.expand(self.volume)
        safe = torch.where(origin, torch.ones_like(self.k_squared), self.k_squared)
        weight = torch.where(origin, torch.zeros_like(self.grid.weight), self.grid.weight)
        self.coulomb = FIELD_CONSTANT * weight / (point_volume * safe)
        if slabs is not None:
            self.coulomb = self.coulomb * self._truncation(slabs)

    def _squares(self) -> Tensor:
        """``[n_points]`` squared wave vectors, 1/angstrom^2."""
        grid = self.grid
        n = grid.miller.double()
        metric = (4 * math.pi**2) * self.inverse.mT @ self.inverse
        twice = constant((1.0, 2.0, 2.0, 1.0, 2.0, 1.0), n.dtype, n.device)
        point_metric = self.points.expand(upper_triangles(metric))
        return (products(n) * twice * point_metric).sum(-1)

    def _truncation(self, slabs: SlabPlan) -> Tensor:
        """``1 - (-1)^m exp(-G H / 2)`` if a slab's interaction is truncated at half the height H, else 1."""
        each = torch.stack((_cut_heights(slabs), slabs.axis.double()), 1)
        height, axis = self.points.expand(each).unbind(1)
        along = torch.nn.functional.one_hot(axis.long(), 3).bool()
        m = torch.where(along, self.grid.miller, 0).sum(1).double()
        lateral = (torch.where(along, 0, self.grid.miller) != 0).any(1) & (height > 0)
        k = 2 * math.pi * m / torch.where(lateral, height, torch.ones_like(height))
        wave = torch.where(lateral, self.k_squared - k**2, torch.ones_like(k)).sqrt()
        image = (1 - 2 * (m % 2)) * torch.exp(-0.5 * wave * height)
        return 1 - torch.where(lateral, image, torch.zeros_like(image))

    def form_factor(self, width: float) -> Tensor:
        """``exp(-width^2 k^2 / 2)``, ``[n_points]``."""
        return self.form_factors((width,))[:, 0]

    def form_factors(self, widths: tuple[float, ...]) -> Tensor:
        """Form factors of several widths, ``[n_points, n_widths]``; cached with the geometry."""
        if widths in self._factors:
            return self._factors[widths]
        # a first call without gradients may be followed by one with gradients
        with torch.enable_grad():
            factors = self.make_factors(widths)
        if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
            self._factors[widths] = factors
        return factors

    def make_factors(self, widths: tuple[float, ...]) -> Tensor:
        """Compute the factors that `form_factors` caches."""
        exponents = constant(tuple(-0.5 * w**2 for w in widths), torch.float64, self.k_squared.device)
        return torch.exp(exponents * self.k_squared[:, None])

    @property
    def window(self) -> Tensor | None:
        """``[n_points]`` window that form factors are multiplied by; None for 1."""
        return None

    @abstractmethod
    def structure_factors(self, moments: Tensor) -> Tensor:
        """
        Structure factors at the wave vectors, without form factors.

        Args:
            moments: ``[n_atoms, n_channels, 1 | 4 | 10]``, in reciprocal lattice vectors times 2 pi.

        Returns:
            ``[n_points, n_channels, 2]`` float64, real and imaginary part.
        """
        ...

    @abstractmethod
    def series(self, coefficients: Tensor, rank: int, places: Places | None = None) -> Tensor:
        """
        A real Fourier series at the atoms, or at other points, and its Cartesian derivatives.

        Args:
            coefficients: ``[n_points, n_channels, 2]`` float64.
            rank: 0 for values, 1 to add gradients, 2 second derivatives.
            places: Points to use instead of the atoms.

        Returns:
            ``[n, n_channels, 1 | 4 | 10]`` in the positions' dtype.
        """
        ...

    def density(self, moments: Tensor) -> Tensor:
        """
        Fourier coefficients of the charge density times the volume.

        Args:
            moments: ``[n_atoms, n_channels, n_widths, 1 | 4 | 10]``, see `GaussianMultipoles.to_moments`.

        Returns:
            ``[n_points, n_channels, 2]`` float64, real and imaginary part.
        """
        return self._density(self._sums(moments))

    def _density(self, sums: Tensor) -> Tensor:
        return (sums * self.form_factors(self.widths)[:, None, :, None]).sum(2)

    def _sums(self, moments: Tensor) -> Tensor:
        """``[n_points, n_channels, n_widths, 2]`` structure factors of each width."""
        return self.segments.combine(self._own_sums(moments))

    def _own_sums(self, moments: Tensor) -> Tensor:
        """The same of the atoms of this process."""
        n_atoms, n_channels, n_widths, size = moments.shape
        turned = None
        if size == 4:
            turned = turned_groups(moments, self.inverse, self.segments, 2 * math.pi, False)
        if size > 1:
            moments = self._along_axes(moments) if turned is None else turned
        sums = self.structure_factors(moments.reshape(n_atoms, n_channels * n_widths, size))
        return sums.unflatten(1, (n_channels, n_widths))

    def _all_sums(
        self, moments: Tensor, *others: Tensor, alike: bool = False
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        """Structure factors, sums of the correction, and other parts of sums; see `Segments.combine_all`."""
        own = self._own_sums(moments)
        if self.correction is None or not self.segments.shared:  # a process alone has faster ways
            sums, *rest = self.segments.combine_all(own, *others, alike=alike)
            return sums, None, tuple(rest)
        parts = (own, self.correction.own_sums(moments), *others)
        sums, low, *rest = self.segments.combine_all(*parts, alike=alike)
        return sums, low, tuple(rest)

    def _along_axes(self, moments: Tensor) -> Tensor:
        """Moments in reciprocal lattice vectors times 2 pi."""
        parts = [moments[..., :1]]
        axes = self.inverse, self.segments, 2 * math.pi
        parts.append(turn(moments[..., 1:4].double(), *axes).to(self.dtype))
        if moments.shape[-1] > 4:
            second = symmetric_matrices(moments[..., 4:].double())
            for _ in range(2):  # once for each index
                second = turn(second, *axes).mT
            parts.append(symmetric_coefficients(second).to(self.dtype))
        return torch.cat(parts, -1)

    def energy(self, moments: Tensor) -> Tensor:
        """``[n_systems, n_channels]`` float64, eV, including self-interaction."""
        return self.segments.equal_parts(self.energy_with(moments)[0])[0]

    def energy_with(self, moments: Tensor, *others: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """
        The energy, and sums over ranks of float64 parts of other sums, all in one message.

        All that is made of them is alike on all ranks, and leaves through `Segments.equal_parts`.
        """
        sums, low, rest = self._all_sums(moments, *others, alike=True)
        return self._energy(moments, sums, low), rest

    def _energy(self, moments: Tensor, sums: Tensor, low: Tensor | None) -> Tensor:
        if self.waves is not None:
            per_point = wave_energies(sums, self.waves, self.window, self.widths)
        else:
            per_point = self.coulomb[:, None] * (self._density(sums) ** 2).sum(-1)
        energy = self.points.sum(per_point)
        if self.correction is not None:
            energy = energy + self.correction.energy(moments, low)
        return energy

    def field(self, moments: Tensor, widths: tuple[float, ...], rank: int) -> Tensor:
        """
        Potential and derivatives at the atoms, averaged over Gaussians, self-interaction included.

        Args:
            moments: ``[n_atoms, n_channels, n_widths, 1 | 4 | 10]``.
            widths: Widths of the receiving Gaussians, angstrom.
            rank: 0 for the potential, 1 to add its gradient, 2 its second derivatives.

        Returns:
            ``[n_atoms, n_channels, len(widths), 1 | 4 | 10]`` in the positions' dtype, V, V/angstrom and
            V/angstrom^2.
        """
        return self.field_with(moments, widths, rank)[0]

    def field_with(
        self, moments: Tensor, widths: tuple[float, ...], rank: int, *others: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The field, and other sums as in `energy_with`."""
        sums, low, rest = self._all_sums(moments, *others)
        return self._field(moments, widths, rank, sums, low), rest

    def field_and_energy(
        self, moments: Tensor, rank: int, *others: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """What `field` gives for the sources' own widths, the energy, and other sums, in one message."""
        sums, low, rest = self._all_sums(moments, *others)
        field = self._field(moments, self.widths, rank, sums, low)
        return field, self._energy(moments, sums, low), rest

    def _field(
        self, moments: Tensor, widths: tuple[float, ...], rank: int, sums: Tensor, low: Tensor | None
    ) -> Tensor:
        if self.waves is not None:
            coefficients = wave_coefficients(sums, self.waves, self.window, self.widths, widths)
        else:
            factors = 2 * self.coulomb[:, None] * self.form_factors(widths)
            coefficients = self._density(sums)[:, :, None, :] * factors[:, None, :, None]
        out = self.series(coefficients.flatten(1, 2), rank).unflatten(1, (moments.shape[1], len(widths)))
        if self.correction is not None:
            out = out + self.correction.field(moments, widths, rank, sums=low).to(self.dtype)
        return out
