"""
Slabs in any orientation, for electrostatics that knows only slabs along z.

graph-longrange treats a system with pbc = (T, T, F) as a slab with normal z, and any other periodic system as
a crystal. In our batches, a slab with another orientation is first rotated upright, together with its
multipoles, and the results are rotated back. They equal the reference's results for the same slab upright.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..electrostatics import Coulomb, Geometry
from ..electrostatics.kept import Plans
from ..segments import Segments
from ..types import E3NN_FROM_CARTESIAN


def is_upright(cell: Tensor, pbc: Tensor) -> bool:
    """Whether a system needs no rotation: it is not a slab, or it is one that graph-longrange knows."""
    if int(pbc.sum()) != 2:
        return True
    flat = cell[pbc, 2].abs().max() <= 1e-12 * cell[pbc].abs().max()
    return bool(flat) and pbc.tolist() == [True, True, False]


def _to_z(cell: Tensor, pbc: Tensor) -> Tensor:
    """The shortest rotation of a slab's normal to z, ``[3, 3]`` as in ``matrix @ r``; follows the cell."""
    eye = torch.eye(3, dtype=cell.dtype, device=cell.device)
    if int(pbc.sum()) != 2:
        return eye
    first, second = cell[pbc]
    normal = torch.linalg.cross(first, second)
    normal = normal / normal.norm()
    normal = torch.where(normal[2] < 0, -normal, normal)
    x, y, z = normal
    axis = torch.stack((y, -x, torch.zeros_like(z)))
    cross = torch.linalg.cross(axis.expand(3, 3), eye).mT
    return eye + cross + cross @ cross / (1 + z)


@dataclass(frozen=True)
class Turn:
    """
    The rotation that makes slabs upright, for multipoles and features.

    Attributes:
        matrix: ``[n_atoms, 3, 3]`` rotation of each atom's system, for rows in e3nn's order.
    """

    matrix: Tensor

    def upright(self, rows: Tensor) -> Tensor:
        """Rotate multipoles ``[n_atoms, ..., 1 | 4]`` upright."""
        return self._turn(rows, 1, self.matrix)

    def back(self, features: Tensor, n_widths: int) -> Tensor:
        """Rotate features ``[n_atoms, ..., n_widths * (1 | 4)]`` back."""
        return self._turn(features, n_widths, self.matrix.mT)

    @staticmethod
    def _turn(rows: Tensor, n_scalars: int, matrix: Tensor) -> Tensor:
        """Rotate the vectors that follow the scalars in ``[n_atoms, ..., n]``."""
        if rows.shape[-1] == n_scalars:
            return rows
        vectors = rows[..., n_scalars:].unflatten(-1, (-1, 3)).flatten(1, -2)
        turned = torch.einsum("nij,nkj->nki", matrix, vectors)
        return torch.cat((rows[..., :n_scalars], turned.reshape(rows[..., n_scalars:].shape)), -1)


def orientation(cell: Tensor, pbc: Tensor, plans: Plans) -> tuple[bool, bool]:
    """Whether there are slabs, and whether none has to be turned; arguments as in `prepare_upright`."""

    def ask() -> tuple[bool, bool]:
        host = cell.detach().cpu(), pbc.cpu()
        return bool((host[1].sum(1) == 2).any()), all(map(is_upright, *host))

    return plans.fact("slabs, and whether all are upright", ask)


def prepare_upright(
    coulomb: Coulomb, positions: Tensor, cell: Tensor, pbc: Tensor, batch: Segments, plans: Plans
) -> tuple[Geometry, Turn | None]:
    """
    `Coulomb.prepare` with every slab upright, and the rotation of its rows and features, or None.

    Args:
        coulomb: An operator with ``compat="graph_longrange"`` and ``order="e3nn"``.
        positions: ``[n_atoms, 3]`` angstrom.
        cell: ``[n_systems, 3, 3]`` angstrom. If it carries a strain, the normal follows it, with gradients.
        pbc: ``[n_systems, 3]``.
        batch: The system of each atom.
        plans: Plans of this call.
    """
    slabs, upright = orientation(cell, pbc, plans)
    if not (slabs and cell.requires_grad) and upright:
        return coulomb.prepare(positions, cell, plan=plans.plan(coulomb)), None
    # open vector last
    order = torch.argsort((~pbc & (pbc.sum(1, keepdim=True) == 2)).long(), dim=1, stable=True)
    cell, pbc = cell.gather(1, order[..., None].expand(-1, -1, 3)), pbc.gather(1, order)
    matrix = torch.stack([_to_z(*system) for system in zip(cell, pbc, strict=True)])
    cell = torch.einsum("sij,skj->ski", matrix, cell)
    positions = torch.einsum("nij,nj->ni", matrix[batch.index], positions)
    geometry = coulomb.prepare(positions, cell, pbc, batch)
    order = list(E3NN_FROM_CARTESIAN)
    return geometry, Turn(matrix[:, order][:, :, order][batch.index])
