"""Plain PyTorch definition of mesh spreading; the tests' source of truth."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..lattice.monomials import monomials, rank_of_count


def spline(s: Tensor, order: int, derivative: int) -> Tensor:
    """The centred cardinal B-spline, or one of its derivatives, at any points."""
    if derivative > 0:
        below = spline(s + 0.5, order - 1, derivative - 1)
        return below - spline(s - 0.5, order - 1, derivative - 1)
    if order == 1:
        return ((s >= -0.5) & (s < 0.5)).to(s.dtype)
    half = 0.5 * order
    left, right = spline(s + 0.5, order - 1, 0), spline(s - 0.5, order - 1, 0)
    return ((s + half) * left + (half - s) * right) / (order - 1)


def axis_weights(coords: Tensor, n: int, order: int, derivative: int) -> Tensor:
    """``[n_atoms, n]`` splines of coordinates ``[n_atoms]``, at all points of a periodic axis."""
    distance = coords.detach()[:, None] - torch.arange(n, dtype=coords.dtype, device=coords.device)
    image = n * (distance / n).round()
    reach = range(-(order // (2 * n)) - 1, order // (2 * n) + 2)
    distance = coords[:, None] - torch.arange(n, dtype=coords.dtype, device=coords.device) - image
    return sum((spline(distance + m * n, order, derivative) for m in reach), torch.zeros_like(distance))


def mesh_spread_reference(
    coords: Tensor, moments: Tensor, shapes: Sequence[int], atom_system: Tensor, order: int
) -> Tensor:
    """
    Sum over atoms of multipoles times derivatives of splines, all points at once, in float64.

    Args:
        coords: ``[n_atoms, 3]`` in mesh spacings.
        moments: ``[n_atoms, n_channels, n_monomials]``.
        shapes: Three numbers of mesh points for each system.
        atom_system: ``[n_atoms]`` system of each atom.
        order: Order of the splines.

    Returns:
        ``[n_channels, n_points]``.
    """
    rank, parts = rank_of_count(moments.shape[-1]), []
    for i in range(len(shapes) // 3):
        mine = atom_system == i
        x, m, total = coords[mine].double(), moments[mine].double(), 0.0
        for place, powers in enumerate(monomials(rank)):
            axes = [axis_weights(x[:, k], shapes[3 * i + k], order, powers[k]) for k in range(3)]
            total = total + torch.einsum("ic,ix,iy,iz->cxyz", m[..., place], *axes)
        assert isinstance(total, Tensor)
        parts.append(total.flatten(1))
    return torch.cat(parts, 1)
