"""Operator registration: dispatch, fake tensors, derivatives, public function."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_rank, outside_autocast
from ..dispatch import loop_over_batch, runs_triton
from ..lattice.directions import shifted_along
from ..lattice.monomials import monomial_count
from ..mesh.checks import check_derivatives, check_mesh_arguments, mesh_gradients
from ..mesh.grid import MeshGrid, MeshPlaces
from ..operators import operator
from .cpu import mesh_gather_cpu
from .kernel import launch_mesh_gather


@operator("scfmlip::mesh_gather")
def _mesh_gather(
    coords: Tensor,
    values: Tensor,
    atoms: Tensor,
    block_ptr: Tensor,
    table: Tensor,
    atom_system: Tensor,
    shapes: Sequence[int],
    block: Sequence[int],
    order: int,
    rank: int,
) -> Tensor:
    check_derivatives("mesh_gather", order, rank)
    coords, values = coords.contiguous(), values.contiguous()
    if runs_triton(values):
        return launch_mesh_gather(coords, values, atoms, table, atom_system, order, rank)
    return mesh_gather_cpu(coords, values, atoms, block_ptr, shapes, block, order, rank)


@_mesh_gather.register_fake
def _(coords, values, atoms, block_ptr, table, atom_system, shapes, block, order, rank):
    return values.new_empty((coords.shape[0], values.shape[0], monomial_count(rank)))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6])
    ctx.layout = inputs[6:9]


def _backward(ctx, grad):
    coords, values, *tables = ctx.saved_tensors
    tables = (*tables, *ctx.layout)
    d_coords = d_values = None
    if ctx.needs_input_grad[0]:
        d_coords, _ = mesh_gradients(ctx, coords, grad, values, tables)
    if ctx.needs_input_grad[1]:
        d_values = torch.ops.scfmlip.mesh_spread(coords, grad, *tables)
    return d_coords, d_values, *(None,) * 8


def _jvp(args, tangents):
    coords, values, *tables, rank = args
    d_coords, d_values = tangents[:2]
    found = None
    if d_coords is not None:
        field = torch.ops.scfmlip.mesh_gather(coords, values, *tables, rank + 1)
        found = shifted_along(field, d_coords, rank)
    if d_values is not None:
        more = torch.ops.scfmlip.mesh_gather(coords, d_values, *tables, rank)
        found = more if found is None else found + more
    return found


_mesh_gather.register_autograd(_backward, setup_context=_setup_context, jvp=_jvp)


@_mesh_gather.register_vmap
def _(info, in_dims, coords, values, *rest):
    if any(dim is not None for i, dim in enumerate(in_dims) if i != 1):
        return loop_over_batch(torch.ops.scfmlip.mesh_gather, info, in_dims, coords, values, *rest)
    # a batch of values becomes additional channels
    values = values.movedim(in_dims[1], 0)
    field = torch.ops.scfmlip.mesh_gather(coords, values.flatten(0, 1), *rest)
    return field.unflatten(1, values.shape[:2]), 1


def mesh_gather(coords: Tensor, values: Tensor, grid: MeshGrid, places: MeshPlaces, rank: int) -> Tensor:
    r"""
    Interpolate a function on periodic meshes, and its derivatives, to atoms: the adjoint of `mesh_spread`.

    ``V_A(x_i) = sum_g values(g) d^A [theta(x_i1 - g_1) theta(x_i2 - g_2) theta(x_i3 - g_3)]`` for the
    monomials A of degree at most ``rank``. Rank 0 is the spline sum itself, rank 1 adds its gradient per mesh
    spacing.

    Args:
        coords: ``[n_atoms, 3]`` float64, in mesh spacings from the origin; any range.
        values: ``[n_channels, n_points]`` float32 or float64, also the dtype of the arithmetic.
        grid: Meshes of the batch.
        places: From `place_atoms` for these coordinates; not checked.
        rank: Highest degree of the monomials.

    Returns:
        ``[n_atoms, n_channels, n_monomials]`` of the values' dtype. Differentiable in ``coords`` and
        ``values`` as often as the splines allow: rank plus derivatives in ``coords`` at most ``order - 2``.

    Raises:
        NotImplementedError: for a rank or derivatives beyond that.
        TypeError: for another dtype.
        ValueError: for shapes that do not match, or tensors on different devices.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import build_mesh_grid, mesh_gather, place_atoms
        >>> coords = torch.tensor([[4.0, 4.0, 4.0], [1.3, 2.6, 4.5]], dtype=torch.float64)
        >>> grid = build_mesh_grid([(8, 8, 8)], 4, torch.zeros(2, dtype=torch.long), torch.device("cpu"))
        >>> ramp = torch.arange(8.0).expand(8, 8, 8).reshape(1, -1)  # grows along the last axis
        >>> mesh_gather(coords, ramp, grid, place_atoms(coords, grid), rank=0).flatten().round(decimals=4)
        tensor([4.0000, 4.5000])
    """
    (values,) = outside_autocast(values)
    check_rank("mesh_gather", rank)
    check_mesh_arguments("mesh_gather", coords, values, "values", 2, grid, places)
    if values.shape[1] != grid.n_points:
        raise ValueError(
            f"mesh_gather: values must be [n_channels, {grid.n_points}], got {list(values.shape)}"
        )
    tables = (*places, grid.table, grid.atom_system, grid.shapes, grid.block, grid.order)
    return torch.ops.scfmlip.mesh_gather(coords, values, *tables, rank)
