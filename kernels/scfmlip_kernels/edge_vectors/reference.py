"""Plain PyTorch definition of the vectors along edges; the tests' source of truth."""

import torch
from torch import Tensor


def edge_vectors_reference(
    positions: Tensor, shifts: Tensor, sender: Tensor, receiver: Tensor, strain: Tensor | None, system: Tensor
) -> Tensor:
    """Strain positions and shifts, then subtract; ``[n_edges, 4]``."""
    if strain is not None:
        symmetric = 0.5 * (strain + strain.mT)
        moved = positions + torch.einsum("ni,nij->nj", positions, symmetric[system])
        shifts = shifts + torch.einsum("ni,nij->nj", shifts, symmetric[system[sender]])
        positions = moved
    vectors = positions[receiver] - positions[sender] + shifts
    return torch.cat((vectors, vectors.norm(dim=1, keepdim=True)), 1)
