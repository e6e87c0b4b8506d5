"""Operator registration: dispatch, fake tensors, derivatives, public function."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import outside_autocast
from ..dispatch import loop_over_batch, runs_triton
from ..lattice.directions import raised
from ..lattice.monomials import rank_of_count
from ..mesh.checks import check_derivatives, check_mesh_arguments, mesh_gradients
from ..mesh.fourier import count_points
from ..mesh.grid import MeshGrid, MeshPlaces
from ..operators import operator
from .cpu import mesh_spread_cpu
from .kernel import launch_mesh_spread


@operator("scfmlip::mesh_spread")
def _mesh_spread(
    coords: Tensor,
    moments: Tensor,
    atoms: Tensor,
    block_ptr: Tensor,
    table: Tensor,
    atom_system: Tensor,
    shapes: Sequence[int],
    block: Sequence[int],
    order: int,
) -> Tensor:
    check_derivatives("mesh_spread", order, rank_of_count(moments.shape[-1]))
    coords, moments = coords.contiguous(), moments.contiguous()
    if runs_triton(moments):
        return launch_mesh_spread(coords, moments, atoms, block_ptr, table, atom_system, shapes, block, order)
    n_points = count_points(shapes)
    return mesh_spread_cpu(coords, moments, atoms, block_ptr, shapes, block, order, n_points)


@_mesh_spread.register_fake
def _(coords, moments, atoms, block_ptr, table, atom_system, shapes, block, order):
    return moments.new_empty((moments.shape[1], count_points(shapes)))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6])
    ctx.layout = inputs[6:]


def _backward(ctx, grad):
    coords, moments, *tables = ctx.saved_tensors
    return *mesh_gradients(ctx, coords, moments, grad, (*tables, *ctx.layout)), *(None,) * 7


def _jvp(args, tangents):
    coords, moments, *tables = args
    d_coords, d_moments = tangents[:2]
    found = None
    if d_coords is not None:
        found = torch.ops.scfmlip.mesh_spread(coords, raised(moments, d_coords), *tables)
    if d_moments is not None:
        more = torch.ops.scfmlip.mesh_spread(coords, d_moments, *tables)
        found = more if found is None else found + more
    return found


_mesh_spread.register_autograd(_backward, setup_context=_setup_context, jvp=_jvp)


@_mesh_spread.register_vmap
def _(info, in_dims, coords, moments, *tables):
    if any(dim is not None for i, dim in enumerate(in_dims) if i != 1):
        return loop_over_batch(torch.ops.scfmlip.mesh_spread, info, in_dims, coords, moments, *tables)
    # a batch of moments becomes additional channels
    moments = moments.movedim(in_dims[1], 1)
    values = torch.ops.scfmlip.mesh_spread(coords, moments.flatten(1, 2), *tables)
    return values.unflatten(0, moments.shape[1:3]), 0


def mesh_spread(coords: Tensor, moments: Tensor, grid: MeshGrid, places: MeshPlaces) -> Tensor:
    r"""
    Spread point multipoles on a periodic mesh with B-splines.

    ``Q(g) = sum_i sum_A m_iA d^A [theta(x_i1 - g_1) theta(x_i2 - g_2) theta(x_i3 - g_3)]``. The monomials A
    of degree at most the rank stand for derivatives in the coordinates x; theta is the centred cardinal
    B-spline of the grid's order. A charge q and a dipole d in mesh spacings give
    ``(q + d.grad) theta theta theta``.

    Args:
        coords: ``[n_atoms, 3]`` float64, in mesh spacings from the origin; any range.
        moments: ``[n_atoms, n_channels, 1 | 4 | 10 | 20]`` in the order of `lattice.monomials`, float32 or
            float64, also the dtype of the arithmetic.
        grid: Meshes of the batch.
        places: From `place_atoms` for these coordinates; not checked.

    Returns:
        ``[n_channels, n_points]``, system after system, of the moments' dtype. Differentiable in ``coords``
        and ``moments`` as often as the splines allow: rank plus derivatives in ``coords`` at most
        ``order - 2``. Deterministic: sums run in a fixed order on every device.

    Raises:
        NotImplementedError: for a rank or derivatives beyond that.
        TypeError: for another dtype.
        ValueError: for shapes that do not match, or tensors on different devices.

    Essmann et al., J. Chem. Phys. 103, 8577 (1995), eq. 4.6, for charges.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import build_mesh_grid, mesh_spread, place_atoms
        >>> coords = torch.tensor([[4.0, 4.0, 4.0], [1.3, 2.6, 7.9]], dtype=torch.float64)
        >>> grid = build_mesh_grid([(8, 8, 8)], 4, torch.zeros(2, dtype=torch.long), torch.device("cpu"))
        >>> charges = torch.tensor([1.0, -0.4]).view(2, 1, 1)
        >>> mesh = mesh_spread(coords, charges, grid, place_atoms(coords, grid))
        >>> mesh.shape, round(float(mesh.sum()), 4)  # spreading conserves the charge
        (torch.Size([1, 512]), 0.6)
    """
    (moments,) = outside_autocast(moments)
    check_mesh_arguments("mesh_spread", coords, moments, "moments", 3, grid, places)
    rank_of_count(moments.shape[-1])
    if len(moments) != len(coords):
        raise ValueError(f"mesh_spread: {len(moments)} rows of moments for {len(coords)} of coords")
    tables = (*places, grid.table, grid.atom_system, grid.shapes, grid.block, grid.order)
    return torch.ops.scfmlip.mesh_spread(coords, moments, *tables)
