"""Tensor-level operators: Triton on a GPU, fast PyTorch elsewhere. Knows no atoms, units or models."""

from .dispatch import backend
from .gaussian_pairs import gaussian_pairs
from .lattice import LatticeGrid, build_lattice_grid
from .lattice_field import lattice_field
from .segments import segment_expand, segment_sum
from .structure_factor import structure_factor

__all__ = [
    "LatticeGrid",
    "backend",
    "build_lattice_grid",
    "gaussian_pairs",
    "lattice_field",
    "segment_expand",
    "segment_sum",
    "structure_factor",
]
