"""
Spreading of multipoles, Q(g) = sum_i sum_A m_iA d^A theta(x_i - g), one block of mesh points at a time.

Grid: (blocks of mesh points, channels). One program owns BLOCK_X * BLOCK_Y lines of BLOCK_Z points and walks
over the atoms of all blocks whose splines reach it, in sorted order: no atomics, and bitwise reproducible.
The launcher tabulates the splines of an atom, ``[3, RANK + 1, ORDER]`` numbers. Lines times points is a
matrix product over atoms, one for every derivative along z. Sums run in the dtype of the moments, because
only tens of atoms reach a point.

Essmann et al., J. Chem. Phys. 103, 8577 (1995), eq. 4.6.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..identity import ByIdentity
from ..lattice.device import monomial_index
from ..lattice.monomials import monomial_count, rank_of_count
from ..lattice.tiles import channel_parts, check_places
from ..layouts import made_once
from ..mesh.device import sorted_splines
from ..mesh.fourier import count_points
from ..tuned import compiler_options, tuned


@triton.jit
def _mesh_spread_kernel(
    first_ptr,  # [n_atoms, 3] int32 first mesh point of each sorted atom
    weights_ptr,  # [n_atoms, 3, RANK + 1, ORDER] splines of the sorted atoms
    moments_ptr,  # [n_channels, N_MONOMIALS, n_atoms] of the sorted atoms
    block_ptr_ptr,  # [n_blocks + 1] int64 first atom of each block
    rows_ptr,  # [n_blocks, 8] int64 row of MeshGrid.table of each block's system
    out_ptr,  # [n_channels, n_points]
    n_atoms,
    n_points,
    ORDER: tl.constexpr,
    RANK: tl.constexpr,
    N_MONOMIALS: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_Z: tl.constexpr,
    BLOCK_ATOMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    dtype = moments_ptr.dtype.element_ty
    block = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1).to(tl.int64)
    row = rows_ptr + block * 8
    n_x = tl.load(row).to(tl.int32)
    n_y = tl.load(row + 1).to(tl.int32)
    n_z = tl.load(row + 2).to(tl.int32)
    blocks_x = tl.load(row + 3).to(tl.int32)
    blocks_y = tl.load(row + 4).to(tl.int32)
    blocks_z = tl.load(row + 5).to(tl.int32)
    first_block = tl.load(row + 6)
    first_point = tl.load(row + 7)
    local = (block - first_block).to(tl.int32)
    mine_x = local // (blocks_y * blocks_z)
    mine_y = local // blocks_z % blocks_y
    mine_z = local % blocks_z
    line = tl.arange(0, BLOCK_X * BLOCK_Y)
    x = mine_x * BLOCK_X + line // BLOCK_Y
    y = mine_y * BLOCK_Y + line % BLOCK_Y
    z = mine_z * BLOCK_Z + tl.arange(0, BLOCK_Z)

    # blocks that reach this one: itself and those before it; the last block of an axis may be shorter
    reach_x = tl.minimum(blocks_x, 1 + tl.cdiv(ORDER - 1, BLOCK_X) + tl.where(blocks_x * BLOCK_X > n_x, 1, 0))
    reach_y = tl.minimum(blocks_y, 1 + tl.cdiv(ORDER - 1, BLOCK_Y) + tl.where(blocks_y * BLOCK_Y > n_y, 1, 0))
    reach_z = tl.minimum(blocks_z, 1 + tl.cdiv(ORDER - 1, BLOCK_Z) + tl.where(blocks_z * BLOCK_Z > n_z, 1, 0))
    total = tl.zeros((BLOCK_X * BLOCK_Y, BLOCK_Z), dtype)
    moments = moments_ptr + channel * N_MONOMIALS * n_atoms
    for step in range(reach_x * reach_y * reach_z):
        other_x = (mine_x - step // (reach_y * reach_z) + blocks_x) % blocks_x
        other_y = (mine_y - step // reach_z % reach_y + blocks_y) % blocks_y
        other_z = (mine_z - step % reach_z + blocks_z) % blocks_z
        other = first_block + (other_x * blocks_y + other_y) * blocks_z + other_z
        begin = tl.load(block_ptr_ptr + other)
        end = tl.load(block_ptr_ptr + other + 1)
        for start in range(begin, end, BLOCK_ATOMS):
            atom = start + tl.arange(0, BLOCK_ATOMS).to(tl.int64)
            inside = atom < end
            first_x = tl.load(first_ptr + atom * 3, mask=inside, other=0)
            first_y = tl.load(first_ptr + atom * 3 + 1, mask=inside, other=0)
            first_z = tl.load(first_ptr + atom * 3 + 2, mask=inside, other=0)
            at_x = x[:, None] - first_x[None, :]
            at_y = y[:, None] - first_y[None, :]
            at_z = z[None, :] - first_z[:, None]
            at_x = tl.where(at_x < 0, at_x + n_x, at_x)
            at_y = tl.where(at_y < 0, at_y + n_y, at_y)
            at_z = tl.where(at_z < 0, at_z + n_z, at_z)
            keep_x = inside[None, :] & (at_x < ORDER)
            keep_y = inside[None, :] & (at_y < ORDER)
            keep_z = inside[:, None] & (at_z < ORDER)
            weights = weights_ptr + atom * (3 * (RANK + 1) * ORDER)
            for c in tl.static_range(RANK + 1):
                lines = tl.zeros((BLOCK_X * BLOCK_Y, BLOCK_ATOMS), dtype)
                for b in tl.static_range(RANK + 1 - c):
                    along_x = tl.zeros((BLOCK_X * BLOCK_Y, BLOCK_ATOMS), dtype)
                    for a in tl.static_range(RANK + 1 - c - b):
                        m = tl.load(
                            moments + monomial_index(a, b, c) * n_atoms + atom, mask=inside, other=0.0
                        )
                        from_x = weights[None, :] + a * ORDER + at_x
                        along_x += m[None, :] * tl.load(from_x, mask=keep_x, other=0.0)
                    from_y = weights[None, :] + (RANK + 1 + b) * ORDER + at_y
                    lines += along_x * tl.load(from_y, mask=keep_y, other=0.0)
                from_z = weights[:, None] + (2 * (RANK + 1) + c) * ORDER + at_z
                points = tl.load(from_z, mask=keep_z, other=0.0)
                total = tl.dot(made_once(lines), points, total, input_precision=PRECISION, out_dtype=dtype)

    place = (x.to(tl.int64) * n_y + y)[:, None] * n_z + z[None, :]
    keep = ((x < n_x) & (y < n_y))[:, None] & (z < n_z)[None, :]
    tl.store(out_ptr + channel * n_points + first_point + place, total, mask=keep)


_kept: ByIdentity[Tensor] = ByIdentity(4)


def _rows_of_blocks(table: Tensor, n_blocks: int) -> Tensor:
    """``[n_blocks, 8]`` row of the table of each block's system."""
    blocks = torch.arange(n_blocks, device=table.device)
    return table[torch.searchsorted(table[:, 6].contiguous(), blocks, right=True) - 1]


def launch_mesh_spread(
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
    """
    Allocate, sort and launch.

    Arguments as in `mesh_spread`, contiguous. Returns ``[n_channels, n_points]``.
    """
    n_atoms, n_channels, n_monomials = moments.shape
    rank, n_points = rank_of_count(n_monomials), count_points(shapes)
    check_places("mesh_spread", n_atoms, max(3, n_monomials))
    parts = channel_parts(moments)
    if len(parts) > 1:
        given = (atoms, block_ptr, table, atom_system, shapes, block, order)
        return torch.cat([launch_mesh_spread(coords, part, *given) for part in parts])
    out = moments.new_zeros((n_channels, n_points))
    n_blocks = len(block_ptr) - 1
    if not n_blocks or not n_atoms or not n_channels:
        return out
    first, weights, _ = sorted_splines(coords, atoms, atom_system, table, order, rank, moments)
    options = tuned("mesh", moments.device, moments.dtype)
    _mesh_spread_kernel[(n_blocks, n_channels)](
        first_ptr=first,
        weights_ptr=weights,
        moments_ptr=moments[atoms].permute(1, 2, 0).contiguous(),
        block_ptr_ptr=block_ptr,
        rows_ptr=_kept.get((table,), n_blocks, lambda: _rows_of_blocks(table, n_blocks)),
        out_ptr=out,
        n_atoms=n_atoms,
        n_points=n_points,
        ORDER=order,
        RANK=rank,
        N_MONOMIALS=monomial_count(rank),
        BLOCK_X=block[0],
        BLOCK_Y=block[1],
        BLOCK_Z=block[2],
        BLOCK_ATOMS=options["atoms"],
        PRECISION=options["precision"],
        **compiler_options(options["spread_warps"], options["num_stages"], moments),
    )
    return out
