"""Shared by the two mesh operators: splines, meshes, atoms sorted into blocks, Fourier transforms."""

from .fourier import mesh_values, mesh_waves
from .grid import MeshGrid, MeshPlaces, build_mesh_grid, place_atoms, smooth_size
from .splines import spline_weights, window

__all__ = [
    "MeshGrid",
    "MeshPlaces",
    "build_mesh_grid",
    "mesh_values",
    "mesh_waves",
    "place_atoms",
    "smooth_size",
    "spline_weights",
    "window",
]
