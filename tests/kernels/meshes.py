"""Ragged mesh problems the tests of both mesh operators share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.problems import system_of
from scfmlip_kernels import MeshGrid, MeshPlaces, build_mesh_grid, place_atoms
from scfmlip_kernels.lattice import monomial_count

F64 = torch.float64


@dataclass
class MeshProblem:
    """Arguments of both mesh operators."""

    coords: Tensor
    moments: Tensor
    values: Tensor
    grid: MeshGrid
    system: Tensor

    def places(self, coords: Tensor | None = None) -> MeshPlaces:
        return place_atoms(self.coords if coords is None else coords, self.grid)


def mesh_problem(sizes, shapes, order, rank, generator, device="cpu", channels=2) -> MeshProblem:
    """Random multipoles at random places, most of them outside the cell, and random values of the mesh."""
    system, n = system_of(sizes), sum(sizes)
    grid = build_mesh_grid(shapes, order, system, torch.device(device))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64).to(device)

    moments, values = normal(n, channels, monomial_count(rank)), normal(channels, grid.n_points)
    return MeshProblem(20 * normal(n, 3), moments, values, grid, system)
