"""Plain PyTorch definition of mesh gathering; the tests' source of truth."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..lattice.monomials import monomials
from ..mesh_spread.reference import axis_weights


def mesh_gather_reference(
    coords: Tensor, values: Tensor, shapes: Sequence[int], atom_system: Tensor, order: int, rank: int
) -> Tensor:
    """
    Sum over mesh points of values times derivatives of splines, all points at once, in float64.

    Args:
        coords: ``[n_atoms, 3]`` in mesh spacings.
        values: ``[n_channels, n_points]``.
        shapes: Three numbers of mesh points for each system.
        atom_system: ``[n_atoms]`` system of each atom.
        order: Order of the splines.
        rank: Highest derivative.

    Returns:
        ``[n_atoms, n_channels, n_monomials]``.
    """
    out, point = values.new_zeros((len(coords), len(values), len(monomials(rank)))).double(), 0
    for i in range(len(shapes) // 3):
        shape = tuple(shapes[3 * i : 3 * i + 3])
        n_points = shape[0] * shape[1] * shape[2]
        mesh = values[:, point : point + n_points].double().unflatten(1, shape)
        point += n_points
        mine = torch.nonzero(atom_system == i).flatten()
        x, found = coords[mine].double(), []
        for powers in monomials(rank):
            axes = [axis_weights(x[:, k], shape[k], order, powers[k]) for k in range(3)]
            found.append(torch.einsum("cxyz,ix,iy,iz->ic", mesh, *axes))
        out = out.index_copy(0, mine, torch.stack(found, -1))
    return out
