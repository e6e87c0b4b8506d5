"""Screening of Coulomb pairs that a short-range network describes (4G-HDNNP, Ko et al., 2021)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ....units import COULOMB_CONSTANT
from ..base import System


def screened_energy(system: System, charges: Tensor, widths: Tensor, inner: float, outer: float) -> Tensor:
    """
    ``[n_systems]`` eV of self terms and of the part that the switch removes from pairs of neighbours.

    Args:
        system: The batch.
        charges: ``[n_atoms]`` e.
        widths: ``[n_atoms]`` Gaussian widths, angstrom.
        inner: Distance from which pairs begin to count, angstrom.
        outer: Distance from which pairs count in full, angstrom.
    """
    own = COULOMB_CONSTANT / math.sqrt(math.pi) * charges**2 / (2 * widths)
    sender, receiver = system.edge_index
    r = system.edge_vectors.norm(dim=1)
    first, near = system.everywhere(charges), system.everywhere(widths)
    gamma = (near[sender] ** 2 + widths[receiver] ** 2).sqrt()
    pair = COULOMB_CONSTANT * first[sender] * charges[receiver] * torch.erf(r / (math.sqrt(2) * gamma)) / r
    switch = 0.5 * (1 + torch.cos(math.pi * (r.clamp(inner, outer) - inner) / (outer - inner)))
    # every pair occurs twice, once from each end
    return system.sum(own.index_add(0, receiver, 0.5 * pair * switch))
