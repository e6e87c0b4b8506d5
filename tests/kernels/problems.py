"""Ragged problems the kernel tests share, and the two paths every operator has."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from scfmlip_kernels import LatticeGrid, build_lattice_grid
from scfmlip_kernels.lattice import monomial_count

# a kernel test takes `path`; the marker makes conftest switch to the kernels
PATHS = ["cpu", pytest.param("triton", marks=pytest.mark.interpreter)]
DTYPES = [torch.float32, torch.float64]


def submodule(name: str):
    """A module below scfmlip_kernels; the operators' names hide their folders from `import`."""
    return importlib.import_module(f"scfmlip_kernels.{name}")


def pointers(sizes: Sequence[int]) -> Tensor:
    """First row of each system, and the end."""
    return torch.tensor([0, *sizes]).cumsum(0)


def system_of(sizes: Sequence[int]) -> Tensor:
    """System of each row."""
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))


def random_cells(n: int, generator: torch.Generator, edge: float = 6.0, triclinic: float = 0.5) -> Tensor:
    """Right-handed cells of different shapes, float64."""
    edges = edge * (0.8 + 0.4 * torch.rand(n, 3, generator=generator, dtype=torch.float64))
    shear = triclinic * torch.randn(n, 3, 3, generator=generator, dtype=torch.float64)
    return torch.diag_embed(edges) + shear


@dataclass
class LatticeProblem:
    """Arguments of both lattice operators, and which system each atom is in."""

    frac: Tensor
    moments: Tensor
    coefficients: Tensor
    grid: LatticeGrid
    atom_system: Tensor

    def to(self, device: str) -> "LatticeProblem":
        """The same on another device; the grid has to be there already."""
        moved = {k: getattr(self, k).to(device) for k in ("frac", "moments", "coefficients", "atom_system")}
        return replace(self, **moved)

    @property
    def miller(self) -> Tensor:
        return self.grid.miller.cpu()

    @property
    def point_system(self) -> Tensor:
        return self.grid.system.cpu()

    @property
    def inside(self) -> Tensor:
        """Points whose value is specified."""
        return self.grid.weight.cpu() > 0


def lattice_problem(
    sizes: list[int],
    rank: int,
    generator: torch.Generator,
    device: str = "cpu",
    channels: int = 2,
    cutoff: float = 2.5,
    cells: Tensor | None = None,
    far: float = 3.0,
) -> LatticeProblem:
    """Random multipoles at random fractional coordinates, most of them outside the cell."""
    cells = random_cells(len(sizes), generator) if cells is None else cells
    grid = build_lattice_grid(cells, cutoff, pointers(sizes), torch.device(device))
    n = sum(sizes)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    coefficients = normal(grid.n_points, channels, 2) * grid.weight.cpu()[:, None, None]
    moments = normal(n, channels, monomial_count(rank))
    problem = LatticeProblem(far * normal(n, 3), moments, coefficients, grid, system_of(sizes))
    return problem.to(device)


def scattered(values: Tensor) -> Tensor:
    """The same numbers with NaN between them in memory: nothing about it is contiguous."""
    padded = values.new_full((*values.shape[:-1], 2 * values.shape[-1]), torch.nan)
    padded[..., ::2] = values
    return padded[..., ::2]


def waves(like: Tensor) -> Tensor:
    """Fixed numbers in [-1, 1] to contract a gradient with."""
    values = torch.cos(torch.arange(1.0, 1.0 + like.numel(), dtype=torch.float64)).view(like.shape)
    return values.to(like)


def derivatives(value: Tensor, inputs: tuple[Tensor, ...], order: int) -> list[Tensor]:
    """Gradients of a fixed contraction of ``value``, of one of those, and so on up to ``order``."""
    results: list[Tensor] = []
    outputs: tuple[Tensor, ...] = (value,)
    for level in range(order):
        scalar = sum((waves(o) * o).sum() for o in outputs)
        outputs = torch.autograd.grad(scalar, inputs, create_graph=level < order - 1)
        results += [o.detach() for o in outputs]
    return results
