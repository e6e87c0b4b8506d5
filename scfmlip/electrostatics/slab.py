"""
Slabs as two-dimensional systems: the height of their cell along the open axis is chosen here.

A slab is summed over wave vectors of a three-dimensional cell. The height of that cell has no physical
meaning. It is chosen here from the thickness of the slab, the lateral lattice vectors and the tolerance; the
user's open vector only says which side is up. Lateral variations with wave vector G decay as exp(-G z). There
are two ways to exclude images, and the one with the lower cell is used:
* let the variations decay: leave a gap g to the next image with
  ``sum_G (2 pi k_e / A G) (1 + [l_max > 0] G^2 sigma^2) exp(-G g) < tolerance``;
* cut the interaction off at half the height H (Rozzi et al., Phys. Rev. B 73, 205119 (2006); Sohier, Calandra
  and Mauri, Phys. Rev. B 96, 075448 (2017)): ``1 / k^2`` becomes ``(1 - (-1)^m exp(-G H / 2)) / k^2`` for the
  m-th wave vector along the normal, which is exact for a slab thinner than H / 2.
Waves along the normal itself (G = 0) are corrected exactly in both cases, see `boundary.Correction`.
Gaussians must end within the remaining gap, or they overlap with their images.
"""

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

from scfmlip_kernels import slab_cell
from scfmlip_kernels.identity import ByIdentity

from ..segments import Segments
from ..units import COULOMB_CONSTANT

# a plan allows slabs to become this much thicker, angstrom, so that dynamics can reuse it
_ROOM = 0.5
# number of lateral wave vectors that may dominate the decaying part
_SHELLS = 5


def _multipole_factor(x, l_max: int):
    """How much more than charges dipoles, quadrupoles interact: ``1 + x + x^2 / 9`` up to l_max."""
    return 1 + (l_max > 0) * x + (l_max > 1) * x**2 / 9


@lru_cache(maxsize=256)
def gaussian_reach(sigma_squared: float, tolerance: float, l_max: int) -> float:
    """
    Distance, angstrom, beyond which two Gaussians interact like points within ``tolerance``, eV.

    ``(k_e / r) erfc(r / sqrt(2) s) (1 + [l_max > 0] r^2 / s^2 + [l_max > 1] r^4 / 9 s^4)``: unit charges,
    dipoles of 1 e times s, or quadrupoles of 1 e times s^2.

    Args:
        sigma_squared: s^2, the sum of the squared widths of the two, angstrom^2.
        tolerance: eV.
        l_max: Highest multipole.
    """
    s = math.sqrt(sigma_squared)
    low, high = 0.0, 40 * s
    for _ in range(50):
        r = 0.5 * (low + high)
        x = (r / s) ** 2
        left = COULOMB_CONSTANT / r * math.erfc(math.sqrt(0.5 * x)) * _multipole_factor(x, l_max)
        low, high = (r, high) if left > tolerance else (low, r)
    return high


def lateral_reach(vectors: Tensor, sigma: float, tolerance: float, l_max: int) -> float:
    """
    Distance, angstrom, at which lateral variations have decayed to ``tolerance``, eV.

    Args:
        vectors: ``[2, 3]`` lateral lattice vectors, float64 on the CPU.
        sigma: Width of the widest Gaussian, angstrom.
        tolerance: eV, of a pair of unit charges, of dipoles of 1 e times sigma, of quadrupoles of its square.
        l_max: Highest multipole.
    """
    a, b = vectors
    # Gauss reduction, so that the shortest waves are among the first
    for _ in range(100):
        if a.norm() > b.norm():
            a, b = b, a
        steps = torch.round((a @ b) / (a @ a))
        if steps == 0:
            break
        b = b - steps * a
    plane = torch.stack((a, b))
    area = float(torch.linalg.cross(a, b).norm())
    reciprocal = 2 * math.pi * torch.linalg.pinv(plane).T
    n = torch.arange(-_SHELLS, _SHELLS + 1, dtype=plane.dtype)
    waves = (torch.cartesian_prod(n, n) @ reciprocal).norm(dim=1)
    waves = waves[waves > 0.5 * waves[waves > 0].min()]
    weights = 2 * math.pi * COULOMB_CONSTANT / (area * waves) * _multipole_factor((sigma * waves) ** 2, l_max)
    shortest = float(waves.min())

    def left(g: float) -> float:
        return float((weights * torch.exp(-waves * g)).sum())

    # the decay is at least that of the shortest wave: one step is sufficient, a second one lowers the cell
    reach = max(0.0, math.log(left(0.0) / tolerance) / shortest)
    start = 0.8 * reach
    return min(reach, start + max(0.0, math.log(max(left(start), 1e-300) / tolerance) / shortest))


_factors: ByIdentity[Tensor] = ByIdentity(8)


@dataclass
class SlabPlan:
    """
    The cells that slabs are summed in; entries of systems that are not slabs have no meaning.

    Attributes:
        slab: ``[n_systems]`` bool.
        axis: ``[n_systems]`` int64 open lattice direction of a slab.
        sign: ``[n_systems]`` float64: the normal is ``sign`` times the cross product of the next two lattice
            vectors.
        height: ``[n_systems]`` float64 height of the cell along the normal, angstrom.
        thickness: ``[n_systems]`` float64 thickness of the thickest slab that fits, angstrom.
        truncated: ``[n_systems]`` bool, whether the interaction is truncated at half the height.
    """

    slab: Tensor
    axis: Tensor
    sign: Tensor
    height: Tensor
    thickness: Tensor
    truncated: Tensor

    def on_host(self) -> "SlabPlan":
        """The same on the CPU."""
        return SlabPlan(*(getattr(self, f.name).cpu() for f in fields(self)))

    def normals(self, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Unit normals ``[n_systems, 3]`` and areas ``[n_systems]`` of cells ``[n_systems, 3, 3]``."""
        return slab_normals(cell, self.axis, self.sign)

    def cells(self, cell: Tensor) -> Tensor:
        """``[n_systems, 3, 3]`` with the open vector of every slab along its normal, as high as planned."""
        if cell.is_cuda and not torch.compiler.is_compiling():
            parts = (self.slab, self.sign, self.height)
            factor = _factors.get(parts, None, lambda: torch.where(self.slab, self.sign * self.height, 0.0))
            return slab_cell(cell, self.axis, factor)
        normal, _ = self.normals(cell)
        open_vector = torch.nn.functional.one_hot(self.axis, 3).bool() & self.slab[:, None]
        return torch.where(open_vector[..., None], (self.height[:, None] * normal)[:, None], cell)


def slab_normals(cell: Tensor, axis: Tensor, sign: Tensor) -> tuple[Tensor, Tensor]:
    """Normals and areas, see `SlabPlan.normals`."""
    systems = torch.arange(len(cell), device=cell.device)
    cross = torch.linalg.cross(cell[systems, (axis + 1) % 3], cell[systems, (axis + 2) % 3])
    area = cross.norm(dim=1)
    return sign[:, None] * cross / area[:, None], area


def plan_slabs(
    cell: Tensor,
    slabs: list[bool],
    axes: list[int],
    extents: list[float] | None,
    widths: tuple[float, float],
    tolerance: float,
    l_max: int,
    device: torch.device,
) -> SlabPlan | None:
    """
    Choose cell heights for slabs of given thickness; None if there is no slab.

    Args:
        cell: ``[n_systems, 3, 3]`` float64 on the CPU.
        slabs: Which systems are slabs.
        axes: Open lattice direction of each slab.
        extents: Extents of the atoms along the normal, angstrom; the height of the user's cell if None.
        widths: Widths of the widest source and of the widest receiver, angstrom.
        tolerance: Largest residual interaction with images, eV, for a pair of unit multipoles.
        l_max: Highest multipole.
        device: Device of the result.

    Raises:
        ValueError: without ``extents``, for a slab whose open vector does not define a height.
    """
    if not any(slabs):
        return None
    axis = torch.tensor(axes)
    systems = torch.arange(len(cell))
    normal, _ = slab_normals(cell, axis, torch.ones(len(cell), dtype=cell.dtype))
    up = (normal * cell[systems, axis]).sum(1)
    sign = torch.where(up < 0, -torch.ones_like(up), torch.ones_like(up))
    reach = gaussian_reach(widths[0] ** 2 + widths[1] ** 2, tolerance, l_max)
    height, thickness = torch.ones_like(up), torch.zeros_like(up)
    truncated = torch.zeros(len(cell), dtype=torch.bool)
    for i, is_slab in enumerate(slabs):
        if not is_slab:
            continue
        if extents is None:
            thick = abs(float(up[i]))
            if thick == 0.0:
                raise ValueError(
                    f"system {i} is a slab whose open cell vector lies in its plane or is zero: pass "
                    "positions to plan(), which then finds the thickness itself"
                )
        else:
            thick = math.ceil(extents[i] + _ROOM)
        vectors = cell[i, [(axes[i] + 1) % 3, (axes[i] + 2) % 3]]
        decayed = thick + max(reach, lateral_reach(vectors, max(widths), tolerance, l_max))
        cut = 2 * (thick + reach)
        height[i], thickness[i], truncated[i] = min(decayed, cut), thick, cut < decayed
    parts = (torch.tensor(slabs), axis, sign, height, thickness, truncated)
    return SlabPlan(*(part.to(device) for part in parts))


def slab_steps(extents: Tensor) -> Tensor:
    """The thickness, angstrom, that plans are made for at these extents, float64."""
    return torch.ceil(extents.clamp(min=0.0) + _ROOM)


def slab_extents(positions: Tensor, normal: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """Lowest and highest ``position . normal`` of each system, ``[n_systems]``; (inf, -inf) without atoms."""
    z = (positions.detach().double() * segments.expand(normal.detach())).sum(-1)
    low, high = segments.highest(torch.stack((-z, z), 1)).unbind(1)
    return -low, high


def extents_of(positions: Tensor, segments: Segments) -> Tensor:
    """Lengths of the systems along x, y and z, ``[n_systems, 3]`` angstrom; 0 without atoms."""
    r = positions.detach().double()
    high, low = segments.highest(torch.cat((r, -r), 1)).split(3, 1)
    return (high + low).clamp(min=0.0)
