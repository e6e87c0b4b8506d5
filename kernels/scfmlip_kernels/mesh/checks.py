"""Argument checks of the mesh operators, and the gradients that both share."""

import torch
from torch import Tensor

from ..checks import FLOATS, check_tensors, readable
from ..lattice.directions import scaled_forces
from ..lattice.monomials import rank_of_count
from .grid import MeshGrid, MeshPlaces


def check_derivatives(op: str, order: int, rank: int) -> None:
    """Raise if splines of this order have too few continuous derivatives."""
    if rank > order - 2:
        raise NotImplementedError(
            f"{op}: splines of order {order} have {order - 2} continuous derivatives, {rank} are needed "
            "(multipoles and every derivative in the positions take one each): use a higher order"
        )


def check_mesh_arguments(
    op: str, coords: Tensor, values: Tensor, name: str, n_dim: int, grid: MeshGrid, places: MeshPlaces
) -> None:
    """Raise the errors that `mesh_spread` and `mesh_gather` document, naming ``op`` and ``name``."""
    if not isinstance(grid, MeshGrid) or not isinstance(places, MeshPlaces):
        raise TypeError(
            f"{op}: grid must come from build_mesh_grid and places from place_atoms, got "
            f"{type(grid).__name__} and {type(places).__name__}"
        )
    check_tensors(op, coords=coords, **{name: values}, places=places.atoms, grid=grid.table)
    if coords.dtype != torch.float64 or coords.ndim != 2 or coords.shape[1] != 3:
        raise ValueError(
            f"{op}: coords must be float64 [n_atoms, 3], got {coords.dtype} {list(coords.shape)}"
        )
    if values.dtype not in FLOATS:
        raise TypeError(f"{op}: {name} must be float32 or float64, got {values.dtype}: convert them")
    if values.ndim != n_dim:
        raise ValueError(f"{op}: {name} must have {n_dim} dimensions, got {list(values.shape)}")
    n = {len(coords), len(places.atoms), len(grid.atom_system)}
    if len(n) > 1 or (readable(places.block_ptr) and len(places.block_ptr) != grid.n_blocks + 1):
        raise ValueError(
            f"{op}: coords hold {len(coords)} rows, places {len(places.atoms)} atoms in "
            f"{len(places.block_ptr) - 1} blocks and grid {len(grid.atom_system)} atoms in {grid.n_blocks}: "
            "make places with place_atoms(coords, grid)"
        )


def mesh_gradients(ctx, coords, moments, values, tables):
    """
    Gradients of ``sum_g values(g) Q(g)`` in the coordinates and the moments; Q is spread from the moments.

    The backward pass of both operators is one gathering with the next rank: the gradient in the moments is
    the gathered values, and a derivative in a coordinate shifts their monomials.
    """
    rank = rank_of_count(moments.shape[-1])
    wants_coords = ctx.needs_input_grad[0]
    field = torch.ops.scfmlip.mesh_gather(coords, values, *tables, rank + 1 if wants_coords else rank)
    d_coords = None
    if wants_coords:
        d_coords = scaled_forces(moments, field, 1.0)
    return d_coords, field[..., : moments.shape[-1]]
