"""Vectors along strained edges and their derivatives, in PyTorch; arguments as in `op`."""

import torch
from torch import Tensor


def _strains(strain: Tensor, system: Tensor, sender: Tensor) -> Tensor:
    """``[n_edges, 3, 3]`` symmetric part of each edge's strain."""
    return (0.5 * (strain + strain.mT))[system[sender]]


def _parts(positions, strain, shifts, system, sender, receiver) -> tuple[Tensor, Tensor, Tensor | None]:
    """Vectors before and after the strain, and the strain of each edge."""
    before = positions[receiver] - positions[sender] + shifts
    if strain is None:
        return before, before, None
    each = _strains(strain, system, sender)
    return before, before + (before[:, None] @ each)[:, 0], each


def vectors_plain(
    positions: Tensor,
    strain: Tensor | None,
    shifts: Tensor,
    system: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
) -> Tensor:
    """``[n_edges, 4]``."""
    _, vectors, _ = _parts(positions, strain, shifts, system, sender, receiver)
    return torch.cat((vectors, torch.linalg.vector_norm(vectors, dim=1, keepdim=True)), 1)


def gradients_plain(
    positions: Tensor,
    strain: Tensor | None,
    shifts: Tensor,
    system: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Derivatives of ``sum grad out`` in the positions and the strains."""
    before, vectors, each = _parts(positions, strain, shifts, system, sender, receiver)
    length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    there = length > 0
    direction = torch.where(there, vectors / torch.where(there, length, 1.0), 0.0)
    along = grad[:, :3] + grad[:, 3:] * direction
    if strain is None or each is None or system is None:
        d_strain, d_edges = None, along
    else:
        outer = before[:, :, None] * along[:, None, :]
        d_strain = torch.zeros_like(strain).index_add(0, system[sender], 0.5 * (outer + outer.mT))
        d_edges = along + (each @ along[..., None])[..., 0]
    zeros = torch.zeros_like(positions)
    return zeros.index_add(0, receiver, d_edges).index_add(0, sender, -d_edges), d_strain
