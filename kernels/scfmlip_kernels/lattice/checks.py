"""Argument checks of the lattice operators; metadata only, so nothing synchronises."""

import torch
from torch import Tensor

from .grid import LatticeGrid


def check_lattice_arguments(op: str, frac: Tensor, values: Tensor, grid: LatticeGrid) -> None:
    """Raise what `structure_factor` and `lattice_field` document, naming ``op``."""
    if frac.dtype != torch.float64 or frac.ndim != 2 or frac.shape[1] != 3:
        raise ValueError(f"{op}: frac must be float64 [n_atoms, 3], got {frac.dtype} {list(frac.shape)}")
    if values.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: values must be float32 or float64, got {values.dtype}")
    if values.ndim != 3:
        raise ValueError(f"{op}: values must have 3 dimensions, got {list(values.shape)}")
    if not torch.compiler.is_compiling() and len(frac) != int(grid.atom_ptr[-1]):
        raise ValueError(
            f"{op}: frac holds {len(frac)} rows but the grid was made for {int(grid.atom_ptr[-1])} atoms"
        )
    devices = {frac.device, values.device, grid.weight.device}
    if len(devices) > 1:
        raise ValueError(f"{op}: all tensors must be on one device, got {sorted(map(str, devices))}")
