"""Cells from a list of wave vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cells_from_wave_vectors(k_vectors: Tensor, k_vector_batch: Tensor, n_systems: int) -> Tensor:
    """
    Find the cells whose reciprocal lattices contain the wave vectors of a flat list.

    The three shortest independent vectors of a three-dimensional lattice generate it.

    Args:
        k_vectors: ``[n_k, 3]``, each system's half space of wave vectors.
        k_vector_batch: ``[n_k]`` system of each.
        n_systems: Number of systems.

    Returns:
        ``[n_systems, 3, 3]`` cells with right-handed rows, differentiable in ``k_vectors``.

    Raises:
        ValueError: for a system with fewer than three independent wave vectors.

    Example:
        >>> import math, torch
        >>> from scfmlip.interfaces.graph_longrange import cells_from_wave_vectors
        >>> k = 2 * math.pi / 4.0 * torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 1.0, 0]])
        >>> cells_from_wave_vectors(k, torch.zeros(4, dtype=torch.long), 1).diagonal(dim1=1, dim2=2)
        tensor([[4., 4., 4.]])
    """
    host = k_vectors.detach().to("cpu", torch.float64)
    batch = k_vector_batch.to("cpu")
    chosen = []
    for i in range(n_systems):
        rows = torch.nonzero(batch == i).flatten()
        order = rows[host[rows].norm(dim=1).argsort()]
        basis: list[int] = []
        for row in order.tolist():
            trial = host[[*basis, row]]
            lengths = trial.norm(dim=1, keepdim=True)
            if float(lengths.min()) == 0.0:
                continue
            if int(torch.linalg.matrix_rank(trial / lengths, tol=1e-4)) == len(trial):
                basis.append(row)
            if len(basis) == 3:
                break
        if len(basis) < 3:
            raise ValueError(
                f"system {i} has fewer than three independent wave vectors, which do not determine its cell: "
                "raise the k-space cutoff or pass cell=[n_systems, 3, 3]"
            )
        if float(torch.linalg.det(host[basis])) < 0:
            basis = [basis[1], basis[0], basis[2]]
        chosen.append(basis)
    rows = torch.tensor(chosen, device=k_vectors.device)
    return 2 * math.pi * torch.linalg.inv(k_vectors[rows.flatten()].view(n_systems, 3, 3)).mT
