"""Derivatives of the dipole: Born effective charges and polarizability."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..distributed import all_reduce
from .rules import System


def born_charges(
    charges: Tensor,
    dipole: Tensor,
    positions: Tensor,
    system: System,
    gauge_free: bool,
    create_graph: bool,
) -> Tensor:
    """
    Derivative of the dipole with respect to the positions.

    Along periodic directions, the fractional coordinate f in ``sum q f`` is replaced by
    ``exp(2 pi i f) / (2 pi i)``, and each atom's phase is removed from the derivative. Charge may therefore
    flow across the cell boundary (Zhong et al., arXiv:2504.05169).

    Args:
        charges: ``[n_atoms]`` e.
        dipole: ``[n_systems, 3]`` e angstrom.
        positions: ``[n_atoms, 3]`` angstrom, the differentiation variable.
        system: The batch.
        gauge_free: The dipole does not depend on where the cell is cut, and is differentiated directly.
        create_graph: Keep the graph.

    Returns:
        ``[n_atoms, 3, 3]`` e: component of the position, component of the dipole.
    """

    def gradient(value: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(
            # ranks differentiate the same number together, a part of it each
            value.sum() / (1 if system.domain is None else system.domain.size),
            positions,
            create_graph=create_graph,
            retain_graph=True,
            materialize_grads=True,
        )
        return grad

    if gauge_free:
        return torch.stack([gradient(dipole[:, axis]) for axis in range(3)], 2)
    own = dipole - system.sum(charges[:, None] * system.positions)  # dipoles of atoms
    cell = system.cell[system.index]
    frac = torch.linalg.solve(cell.mT, system.positions)
    phase = 2 * math.pi * frac
    plain = system.sum(charges[:, None] * frac)
    real = system.sum(charges[:, None] * torch.sin(phase)) / (2 * math.pi)
    imaginary = -system.sum(charges[:, None] * torch.cos(phase)) / (2 * math.pi)
    columns = []
    for axis in range(3):
        turn = phase[:, axis, None].detach() if not create_graph else phase[:, axis, None]
        wave = torch.cos(turn) * gradient(real[:, axis]) + torch.sin(turn) * gradient(imaginary[:, axis])
        periodic = system.pbc[system.index, axis, None]
        columns.append(torch.where(periodic, wave, gradient(plain[:, axis])))
    out = torch.stack(columns, 2) @ cell
    return out + torch.stack([gradient(own[:, axis]) for axis in range(3)], 2)


def polarizability(dipole: Tensor, field: Tensor, system: System, create_graph: bool) -> Tensor:
    """
    Derivative of the dipole with respect to the physical field.

    Args:
        dipole: ``[n_systems, 3]`` e angstrom.
        field: ``[n_systems, 3]`` V/angstrom, the differentiation variable.
        system: The batch.
        create_graph: Keep the graph.

    Returns:
        ``[n_systems, 3, 3]`` e angstrom^2/V: component of the field, component of the dipole; zero along
        periodic directions, where no uniform field can be applied.
    """
    domain = system.domain
    columns = [
        torch.autograd.grad(
            dipole[:, axis].sum(), field, create_graph=create_graph, retain_graph=True, materialize_grads=True
        )[0]
        for axis in range(3)
    ]
    if domain is not None:  # each rank has a part of what its copy of the field changes
        columns = list(all_reduce(torch.stack(columns) / domain.size, domain.communicator).unbind(0))
    lattice = system.cell.detach() * system.pbc[..., None]
    eye = torch.eye(3, dtype=lattice.dtype, device=lattice.device)
    free = eye - torch.linalg.pinv(lattice) @ lattice
    return free @ torch.stack(columns, 2) @ free
