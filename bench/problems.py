"""Inputs of a benchmark: the same numbers for every provider, dtype and device."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from scfmlip_kernels import LatticeGrid, build_lattice_grid
from scfmlip_kernels.lattice import monomial_count

from .registry import DENSITY, KSPACE_CUTOFF, Case, Size


@dataclass
class Problem:
    """
    A batch of crystals or molecules at the density of water, atoms on a jittered cubic lattice.

    Attributes:
        case, size: What this is for.
        positions: ``[n_atoms, 3]`` angstrom.
        cells: ``[n_systems, 3, 3]`` angstrom, cubic.
        batch_idx: ``[n_atoms]``.
        rows: ``[n_atoms, (l_max + 1)^2]`` multipoles of neutral systems, e3nn order ``[q, d_y, d_z, d_x]``.
        spin: As ``rows``; what two spin channels differ by.
    """

    case: Case
    size: Size
    positions: Tensor
    cells: Tensor
    batch_idx: Tensor
    rows: Tensor
    spin: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Of every floating-point tensor."""
        return self.positions.dtype

    @property
    def device(self) -> torch.device:
        """Of every tensor."""
        return self.positions.device

    @property
    def counts(self) -> list[int]:
        """Atoms of each system."""
        return self.size.counts

    @property
    def pbc(self) -> Tensor:
        """``[n_systems, 3]`` booleans, on the CPU."""
        return torch.full((len(self.counts), 3), not self.case.open_boundary)

    @cached_property
    def atom_ptr(self) -> Tensor:
        """``[n_systems + 1]`` on the CPU."""
        return torch.tensor([0, *self.counts]).cumsum(0)

    @cached_property
    def grid(self) -> LatticeGrid:
        """Wave vectors up to the cutoff."""
        return build_lattice_grid(self.cells, KSPACE_CUTOFF, self.atom_ptr, self.device)

    @cached_property
    def wave_vectors(self) -> list[Tensor]:
        """Half of the sphere without its origin, ``[n_k, 3]`` 1/angstrom for each system."""
        found = []
        for i, cell in enumerate(self.cells.double()):
            mine = (self.grid.system == i) & (self.grid.weight == 1)
            miller = self.grid.miller[mine].to(torch.float64)
            found.append((miller @ (2 * math.pi * torch.linalg.inv(cell).T)).to(self.dtype))
        return found

    def leaves(self) -> tuple[Tensor, Tensor]:
        """The two tensors that derivatives are taken in; where and what."""
        kind, rank = self.case.quantity, self.case.rank
        generator = torch.Generator().manual_seed(1)

        def normal(*shape: int) -> Tensor:
            values = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return values.to(self.device, torch.float64)

        n_atoms = len(self.positions)
        if kind == "gaussian_pairs":
            return self.positions, normal(n_atoms, 1, 1, monomial_count(1)).to(self.dtype)
        if kind in ("structure_factor", "lattice_field"):
            inverse = torch.linalg.inv(self.cells.double())[self.batch_idx]
            frac = torch.einsum("ni,nij->nj", self.positions.double(), inverse)
            if kind == "structure_factor":
                return frac, normal(n_atoms, 1, monomial_count(rank)).to(self.dtype)
            decay = torch.exp(-((self.grid.miller.double() / 4) ** 2).sum(-1))
            decay = decay * (self.grid.weight > 0)
            return frac, normal(self.grid.n_points, 1, 2) * decay[:, None, None]
        return self.positions, self.rows

    def weights(self, output: Tensor) -> Tensor:
        """Fixed weights that turn an output into the scalar whose derivatives are timed."""
        ramp = torch.arange(output.numel(), device=output.device, dtype=torch.float64)
        weights = torch.cos(0.1 * ramp).view_as(output)
        if self.case.quantity == "structure_factor":
            weights = weights * self.grid.weight[:, None, None]  # outside the sphere nothing is promised
        return weights.to(output.dtype)

    def to(self, dtype: torch.dtype) -> "Problem":
        """The same numbers in another precision."""
        return Problem(
            self.case,
            self.size,
            self.positions.to(dtype),
            self.cells.to(dtype),
            self.batch_idx,
            self.rows.to(dtype),
            self.spin.to(dtype),
        )


def make_problem(case: Case, size: Size, dtype: torch.dtype, device: torch.device) -> Problem:
    """Random inputs that depend on the case's shape and the size only."""
    generator = torch.Generator().manual_seed(20261121)
    positions, cells = [], []
    for n in size.counts:
        edge = (n / DENSITY) ** (1 / 3)
        sites = math.ceil(round(n ** (1 / 3), 6))
        axis = (torch.arange(sites, dtype=torch.float64) + 0.5) * edge / sites
        lattice = torch.cartesian_prod(axis, axis, axis)
        lattice = lattice[torch.randperm(len(lattice), generator=generator)[:n]]
        jitter = torch.rand(n, 3, generator=generator, dtype=torch.float64) - 0.5
        positions.append(lattice + 0.4 * edge / sites * jitter)
        cells.append(edge * torch.eye(3, dtype=torch.float64))
    batch_idx = torch.arange(size.systems).repeat_interleave(torch.tensor(size.counts))
    n_atoms, dim = len(batch_idx), (case.l_max + 1) ** 2
    scale = torch.tensor([0.5, 0.2, 0.2, 0.2], dtype=torch.float64)[:dim]
    rows = torch.randn(n_atoms, dim, generator=generator, dtype=torch.float64) * scale
    for i in range(size.systems):
        mine = batch_idx == i
        rows[mine, 0] -= rows[mine, 0].mean()
    spin = 0.2 * torch.randn(n_atoms, dim, generator=generator, dtype=torch.float64) * scale
    return Problem(
        case,
        size,
        torch.cat(positions).to(device, dtype),
        torch.stack(cells).to(device, dtype),
        batch_idx.to(device),
        rows.to(device, dtype),
        spin.to(device, dtype),
    )
