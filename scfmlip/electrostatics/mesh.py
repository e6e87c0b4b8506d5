"""
The Coulomb operator through a mesh: O(N log N), for Gaussians wide enough to need no sum over pairs.

Multipoles are spread on a mesh with B-splines, whose Fourier transform times the splines' `window` is the
structure factor; the series of the field is transformed back, and gathered with the same splines. Both
directions are exact adjoints of each other, so the operator is symmetric and forces are the derivative of the
energy to rounding: Essmann et al., J. Chem. Phys. 103, 8577 (1995); Hockney and Eastwood, Computer Simulation
Using Particles (1988), for the best window. How far it misses the exact sum is `mesh_error.mesh_error`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scfmlip_kernels import (
    MeshGrid,
    MeshPlaces,
    mesh_gather,
    mesh_spread,
    mesh_values,
    mesh_waves,
    place_atoms,
)

from .mesh_error import check_single
from .plan import LatticePlan
from .tensors import products
from .waves import Places, WaveSum, turn_derivatives


class Mesh(WaveSum):
    """The sum over wave vectors through a mesh; see `WaveSum`."""

    grid: MeshGrid

    def __init__(self, plan: LatticePlan, positions: Tensor, *rest: Any) -> None:
        assert plan.mesh is not None
        super().__init__(plan, positions, *rest)
        self.sizes = self.grid.table[:, :3].double()
        check_single(plan.mesh, self.dtype)
        # rounding of float32 sums may exceed the tolerance
        self.arithmetic = self.dtype if plan.mesh.single else torch.float64
        self.coords = self.frac * self.segments.expand(self.sizes)
        self.places = place_atoms(self.coords, self.grid)

    def _squares(self) -> Tensor:
        """As in `WaveSum`, from three short tables for each system."""
        metric = (4 * math.pi**2) * self.inverse.mT @ self.inverse
        shapes, parts = self.grid.shapes, []
        for i, g in enumerate(metric.unbind(0)):
            sizes = shapes[3 * i : 3 * i + 3]
            axes = [torch.fft.fftfreq(n, 1 / n, dtype=g.dtype, device=g.device).round() for n in sizes]
            x, y, z = axes[0][:, None, None], axes[1][:, None], axes[2].abs()[: sizes[2] // 2 + 1]
            across = (x * g[0, 2] + y * g[1, 2]) * 2 + z * g[2, 2]
            parts.append(
                torch.addcmul(x * (x * g[0, 0] + y * (2 * g[0, 1])) + y**2 * g[1, 1], across, z).flatten()
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @property
    def window(self) -> Tensor:
        """See `WaveSum.window`."""
        return self.grid.window

    def make_factors(self, widths: tuple[float, ...]) -> Tensor:
        """With the window of the splines, which spreading and gathering bring in."""
        return super().make_factors(widths) * self.grid.window[:, None]

    def structure_factors(self, moments: Tensor) -> Tensor:
        """See `WaveSum.structure_factors`; without the window."""
        if moments.shape[-1] > 1:
            sizes = self.segments.expand(self.sizes / (2 * math.pi))[:, None]
            scales = [torch.ones_like(sizes[..., :1]), sizes]
            if moments.shape[-1] > 4:
                scales.append(products(sizes))
            moments = moments * torch.cat(scales, -1)
        values = mesh_spread(self.coords, moments.to(self.arithmetic), self.grid, self.places)
        return mesh_waves(values, self.grid.shapes).permute(1, 0, 2).double()

    def series(self, coefficients: Tensor, rank: int, places: Places | None = None) -> Tensor:
        """See `WaveSum.series`; the coefficients hold the window."""
        coords, here, grid, segments = self.coords, self.places, self.grid, self.segments
        if places is not None:
            segments = places.segments
            grid = grid.at_points(segments.index)
            coords = places.frac * segments.expand(self.sizes)
            here: MeshPlaces = place_atoms(coords, grid)
        values = mesh_values(coefficients.permute(1, 0, 2).to(self.arithmetic), grid.shapes)
        field = mesh_gather(coords, values, grid, here, rank).to(self.dtype)
        if rank == 0:
            return field
        matrices = (self.sizes[:, :, None] * self.inverse.mT).to(self.dtype)
        return turn_derivatives(field, matrices, segments)
