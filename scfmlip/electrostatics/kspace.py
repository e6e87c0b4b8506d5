"""
The Coulomb operator as a direct sum over wave vectors; the cost is atoms x wave vectors.

Every structure factor and every value of the field is a sum over all pairs of an atom and a wave vector.
"""

import math

import torch
from torch import Tensor

from scfmlip_kernels import LatticeGrid, lattice_field, structure_factor
from scfmlip_kernels.lattice import grid_at_points

from .waves import Places, WaveSum, turn_derivatives

# products of waves and atoms up to which zeros among the waves cost less than a look
_FEW = 1 << 22


def _phases(n: Tensor, frac: Tensor) -> Tensor:
    """``[n_waves, n_atoms]`` ``exp(2 pi i n.frac)``, from powers along each axis."""
    top = n.abs().amax(0).tolist() if len(n) else [0, 0, 0]
    parts = []
    for axis in range(3):
        index = torch.arange(-top[axis], top[axis] + 1, device=frac.device, dtype=torch.float64)
        phase = 2 * math.pi * index[:, None] * frac[:, axis]
        parts.append(torch.polar(torch.ones_like(phase), phase)[n[:, axis] + top[axis]])
    return parts[0] * parts[1] * parts[2]


class KSpace(WaveSum):
    """The direct sum; see `WaveSum`."""

    grid: LatticeGrid

    def structure_factors(self, moments: Tensor) -> Tensor:
        """See `WaveSum.structure_factors`."""
        return structure_factor(self.frac, moments, self.grid)

    def series(self, coefficients: Tensor, rank: int, places: Places | None = None) -> Tensor:
        """See `WaveSum.series`."""
        frac, segments, grid = self.frac, self.segments, self.grid
        if places is not None:
            frac, segments = places.frac, places.segments
            grid = grid_at_points(grid, places.host_ptr)
            coefficients = coefficients.contiguous()
        field = lattice_field(frac, coefficients, grid, rank, self.dtype)
        if rank == 0:
            return field
        return turn_derivatives(field, self.inverse, segments, 2 * math.pi, transposed=True)

    def matrices(self, widths: Tensor, dim: int) -> list[Tensor]:
        """
        The full interaction matrices of unit multipoles, for small systems without corrections.

        Args:
            widths: ``[n_atoms]`` Gaussian width of each atom, angstrom.
            dim: 1 for charges, 4 for charges and dipoles, ``[q, d_x, d_y, d_z]`` of one atom after another.

        Returns:
            One ``[dim n, dim n]`` float64 per system, self-interaction included; not differentiable.
        """
        assert self.correction is None
        ptr, first = self.host_ptr.tolist(), self.grid.point_ptr.tolist()
        frac, k_squared, coulomb = self.frac.detach(), self.k_squared.detach(), self.coulomb.detach()
        found = []
        for i in range(len(ptr) - 1):
            atoms, points = slice(ptr[i], ptr[i + 1]), slice(first[i], first[i + 1])
            few = (points.stop - points.start) * (atoms.stop - atoms.start) < _FEW
            if frac.device.type == "cuda" and few:  # a GPU is not asked which waves are 0
                used, n = points, self.grid.miller[points].long()
                phase = 2 * math.pi * (n.double() @ frac[atoms].mT)
                wave = torch.polar(torch.ones_like(phase), phase)
            else:
                used = torch.nonzero(coulomb[points]).flatten() + first[i]
                n = self.grid.miller[used].long()
                wave = _phases(n, frac[atoms])
            decay = torch.exp(-0.5 * k_squared[used][:, None] * widths[None, atoms] ** 2)
            weighted = (wave * ((2 * coulomb[used]).sqrt()[:, None] * decay))[..., None]
            if dim > 1:
                k = 2 * math.pi * n.double() @ self.inverse[i].detach().T
                weighted = torch.cat((weighted, 1j * k[:, None] * weighted), 2)
            rows = torch.view_as_real(weighted.flatten(1)).transpose(1, 2).flatten(0, 1)
            found.append(rows.T @ rows)
        return found
