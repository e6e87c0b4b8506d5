"""
Gathering from a mesh, V_A(x_i) = sum_g values(g) d^A theta(x_i - g), |A| <= RANK.

Grid: (blocks of atoms, channels). One program owns BLOCK_ATOMS atoms that are consecutive in the order of the
mesh blocks. It reads the planes of mesh points that their splines reach in turn, and sums over z first, then
over y, then over planes. The launcher tabulates the splines of an atom, ``[3, RANK + 1, ORDER]`` numbers. No
atomics.

The adjoint of spreading; Essmann et al., J. Chem. Phys. 103, 8577 (1995), eq. 4.6.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..lattice.device import monomial_index
from ..lattice.monomials import monomial_count
from ..lattice.tiles import channel_parts, check_places
from ..mesh.device import sorted_splines
from ..tuned import compiler_options, tuned


@triton.jit
def _mesh_gather_kernel(
    first_ptr,  # [n_atoms, 3] int32 first mesh point of each sorted atom
    weights_ptr,  # [n_atoms, 3, RANK + 1, ORDER] splines of the sorted atoms
    values_ptr,  # [n_channels, n_points]
    atoms_ptr,  # [n_atoms] int64 original index of each sorted atom
    rows_ptr,  # [n_atoms, 8] int64 row of MeshGrid.table of each sorted atom's system
    out_ptr,  # [n_atoms, n_channels, N_MONOMIALS]
    n_atoms,
    n_points,
    ORDER: tl.constexpr,
    PADDED_ORDER: tl.constexpr,
    RANK: tl.constexpr,
    N_MONOMIALS: tl.constexpr,
    PADDED_MONOMIALS: tl.constexpr,
    BLOCK_ATOMS: tl.constexpr,
):
    dtype = values_ptr.dtype.element_ty
    atom = tl.program_id(0).to(tl.int64) * BLOCK_ATOMS + tl.arange(0, BLOCK_ATOMS)
    channel = tl.program_id(1).to(tl.int64)
    inside = atom < n_atoms
    n_x = tl.load(rows_ptr + atom * 8, mask=inside, other=1).to(tl.int32)
    n_y = tl.load(rows_ptr + atom * 8 + 1, mask=inside, other=1).to(tl.int32)
    n_z = tl.load(rows_ptr + atom * 8 + 2, mask=inside, other=1).to(tl.int32)
    first_point = tl.load(rows_ptr + atom * 8 + 7, mask=inside, other=0)
    first_x = tl.load(first_ptr + atom * 3, mask=inside, other=0)
    first_y = tl.load(first_ptr + atom * 3 + 1, mask=inside, other=0)
    first_z = tl.load(first_ptr + atom * 3 + 2, mask=inside, other=0)
    point = tl.arange(0, PADDED_ORDER)
    y = first_y[:, None] + point[None, :]
    z = first_z[:, None] + point[None, :]
    y = tl.where(y >= n_y[:, None], y - n_y[:, None], y)
    z = tl.where(z >= n_z[:, None], z - n_z[:, None], z)
    some = inside[:, None] & (point < ORDER)[None, :]
    keep = some[:, :, None] & (point < ORDER)[None, None, :]
    weights = weights_ptr + atom * (3 * (RANK + 1) * ORDER)
    monomial = tl.arange(0, PADDED_MONOMIALS)
    total = tl.zeros((BLOCK_ATOMS, PADDED_MONOMIALS), dtype)
    source = values_ptr + channel * n_points + first_point
    for j in range(ORDER):
        x = first_x + j
        x = tl.where(x >= n_x, x - n_x, x)
        line = (x.to(tl.int64) * n_y)[:, None] + y
        place = line[:, :, None] * n_z[:, None, None] + z[:, None, :]
        plane = tl.load(source[:, None, None] + place, mask=keep, other=0.0)
        for c in tl.static_range(RANK + 1):
            from_z = weights[:, None] + (2 * (RANK + 1) + c) * ORDER + point[None, :]
            along_z = tl.load(from_z, mask=some, other=0.0)
            lines = tl.sum(plane * along_z[:, None, :], 2)
            for b in tl.static_range(RANK + 1 - c):
                from_y = weights[:, None] + (RANK + 1 + b) * ORDER + point[None, :]
                along_y = tl.load(from_y, mask=some, other=0.0)
                value = tl.sum(lines * along_y, 1)
                for a in tl.static_range(RANK + 1 - c - b):
                    along_x = tl.load(weights + a * ORDER + j, mask=inside, other=0.0)
                    here = (monomial == monomial_index(a, b, c))[None, :]
                    total += tl.where(here, (along_x * value)[:, None], 0.0)

    mine = tl.load(atoms_ptr + atom, mask=inside, other=0)
    out = out_ptr + (mine * tl.num_programs(1) + channel)[:, None] * N_MONOMIALS + monomial[None, :]
    tl.store(out, total, mask=inside[:, None] & (monomial < N_MONOMIALS)[None, :])


def gather_atoms(order: int, options: dict[str, Any]) -> int:
    """Atoms per program: the recorded number applies to planes of up to 64 mesh points."""
    return max(1, options["gather_atoms"] * 64 // max(64, triton.next_power_of_2(order) ** 2))


def launch_mesh_gather(
    coords: Tensor,
    values: Tensor,
    atoms: Tensor,
    table: Tensor,
    atom_system: Tensor,
    order: int,
    rank: int,
) -> Tensor:
    """
    Allocate, sort and launch.

    Arguments as in `mesh_gather`, contiguous. Returns ``[n_atoms, n_channels, n_monomials]``.
    """
    n_atoms, (n_channels, n_points), n_monomials = len(coords), values.shape, monomial_count(rank)
    check_places("mesh_gather", n_atoms, max(3, n_monomials))
    parts = channel_parts(values.mT)
    if len(parts) > 1:
        given = (atoms, table, atom_system, order, rank)
        return torch.cat([launch_mesh_gather(coords, part.mT.contiguous(), *given) for part in parts], 1)
    out = values.new_empty((n_atoms, n_channels, n_monomials))
    if not out.numel():
        return out
    first, weights, rows = sorted_splines(coords, atoms, atom_system, table, order, rank, values)
    options = tuned("mesh", values.device, values.dtype)
    padded = triton.next_power_of_2(order)
    size = gather_atoms(order, options)
    _mesh_gather_kernel[(triton.cdiv(n_atoms, size), n_channels)](
        first_ptr=first,
        weights_ptr=weights,
        values_ptr=values,
        atoms_ptr=atoms,
        rows_ptr=rows,
        out_ptr=out,
        n_atoms=n_atoms,
        n_points=n_points,
        ORDER=order,
        PADDED_ORDER=padded,
        RANK=rank,
        N_MONOMIALS=n_monomials,
        PADDED_MONOMIALS=triton.next_power_of_2(n_monomials),
        BLOCK_ATOMS=size,
        **compiler_options(options["num_warps"], options["num_stages"], values),
    )
    return out
