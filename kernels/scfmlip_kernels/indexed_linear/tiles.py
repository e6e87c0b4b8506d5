"""Row tiles of one species each. The kernels find them; the host never needs the counts."""

# @triton.jit bodies and launches do not type-check
# pyright: reportArgumentType=false

import triton
import triton.language as tl
from torch import Tensor

from ..tuned import compiler_options


@triton.jit
def species_tile(
    tile,  # number of the tile
    ptr_ptr,  # [n_species + 1] int64, where each species starts in the order of the rows
    n_species,
    SCALE,  # number, known at compile time or not
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SPECIES: tl.constexpr,
):
    """Species, first and last row of a tile; empty past the last tile. One row counts as SCALE rows."""
    species = tl.arange(0, BLOCK_SPECIES)
    inside = species < n_species
    begin = tl.load(ptr_ptr + species, mask=inside, other=0) * SCALE
    end = tl.load(ptr_ptr + species + 1, mask=inside, other=0) * SCALE
    n_tiles = (end - begin + BLOCK_ROWS - 1) // BLOCK_ROWS
    last_tile = tl.cumsum(n_tiles, 0)
    mine = tl.sum(((last_tile <= tile) & inside).to(tl.int64), 0)
    chosen = species == mine
    first_tile = tl.sum(tl.where(chosen, last_tile - n_tiles, 0), 0)
    first = tl.sum(tl.where(chosen, begin, 0), 0) + (tile - first_tile) * BLOCK_ROWS
    last = tl.minimum(first + BLOCK_ROWS, tl.sum(tl.where(chosen, end, 0), 0))
    return mine, first, last


@triton.jit
def tiles_of_species(
    species,  # number of the species
    ptr_ptr,  # [n_species + 1] int64
    n_species,
    SCALE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SPECIES: tl.constexpr,
):
    """First and last tile of a species."""
    each = tl.arange(0, BLOCK_SPECIES)
    inside = each < n_species
    begin = tl.load(ptr_ptr + each, mask=inside, other=0) * SCALE
    end = tl.load(ptr_ptr + each + 1, mask=inside, other=0) * SCALE
    n_tiles = (end - begin + BLOCK_ROWS - 1) // BLOCK_ROWS
    first = tl.sum(tl.where(each < species, n_tiles, 0), 0)
    return first, first + tl.sum(tl.where(each == species, n_tiles, 0), 0)


@triton.jit(do_not_specialize=["n_species"])
def _sum_tiles_kernel(
    parts_ptr,  # [n_tiles, N_NUMBERS]
    ptr_ptr,  # [n_species + 1] int64
    out_ptr,  # [n_species, N_NUMBERS]
    n_species,
    N_NUMBERS: tl.constexpr,
    BLOCK: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SPECIES: tl.constexpr,
):
    species = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = number < N_NUMBERS
    first, last = tiles_of_species(species, ptr_ptr, n_species, SCALE, BLOCK_ROWS, BLOCK_SPECIES)
    total = tl.zeros((BLOCK,), parts_ptr.dtype.element_ty)
    for tile in range(first, last):
        total += tl.load(parts_ptr + tile * N_NUMBERS + number, mask=inside, other=0.0)
    tl.store(out_ptr + species * N_NUMBERS + number, total, mask=inside)


def most_tiles(n_rows: int, n_species: int, block: int) -> int:
    """Upper bound of the number of tiles of this many rows."""
    return min(n_rows, n_rows // block + n_species)


def tile_constants(n_species: int, block: int, scale: int = 1) -> dict[str, int]:
    """Compile-time constants of kernels that use tiles."""
    return {"SCALE": scale, "BLOCK_ROWS": block, "BLOCK_SPECIES": triton.next_power_of_2(n_species)}


def sum_tiles(parts: Tensor, ptr: Tensor, constants: dict[str, int]) -> Tensor:
    """Sum the parts ``[n_tiles, n, m]`` of each species in order, ``[n_species, n, m]``."""
    n_species, n_numbers = ptr.shape[0] - 1, parts.shape[1] * parts.shape[2]
    out = parts.new_empty((n_species, *parts.shape[1:]))
    _sum_tiles_kernel[(n_species, triton.cdiv(n_numbers, 256))](
        parts_ptr=parts,
        ptr_ptr=ptr,
        out_ptr=out,
        n_species=n_species,
        N_NUMBERS=n_numbers,
        BLOCK=256,
        **constants,
        **compiler_options(4, 1, parts),
    )
    return out
