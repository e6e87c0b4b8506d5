"""Argument checks of the lattice operators. They read metadata only and never synchronise."""

import torch
from torch import Tensor

from ..checks import FLOATS, check_tensors, readable
from .grid import LatticeGrid


def check_lattice_arguments(op: str, frac: Tensor, values: Tensor, name: str, grid: LatticeGrid) -> None:
    """Raise the errors that `structure_factor` and `lattice_field` document, naming ``op`` and ``name``."""
    if not isinstance(grid, LatticeGrid):
        raise TypeError(f"{op}: grid must come from build_lattice_grid, got {type(grid).__name__}")
    check_tensors(op, frac=frac, **{name: values}, grid=grid.weight)
    if frac.dtype != torch.float64 or frac.ndim != 2 or frac.shape[1] != 3:
        raise ValueError(f"{op}: frac must be float64 [n_atoms, 3], got {frac.dtype} {list(frac.shape)}")
    if values.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be float32 or float64, got {values.dtype}: convert them")
    if values.ndim != 3:
        raise ValueError(f"{op}: {name} must have 3 dimensions, got {list(values.shape)}")
    if readable(grid.atom_ptr) and len(frac) != int(grid.atom_ptr[-1]):
        raise ValueError(
            f"{op}: frac holds {len(frac)} rows but the grid was made for {int(grid.atom_ptr[-1])} atoms"
        )


def check_tables(op: str, n_points: int, tiles: Tensor) -> None:
    """Raise if a grid was made without the tables that the kernels need."""
    if n_points and not len(tiles):
        raise RuntimeError(
            f"{op}: this grid has no tables for Triton kernels: call build_lattice_grid with the device, and "
            "inside the scfmlip_kernels.backend block, that the operator runs with"
        )
