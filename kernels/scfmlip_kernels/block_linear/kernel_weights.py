"""
Gradients of the weights of linear maps between blocks of columns, all paths in one launch.

Grid: (species times splits of its rows, tiles of the paths' matrices). Rows are (atom, component) pairs of
the path's blocks, sorted by species where there are several; a program sums x times the gradient over its
part of them. Splits are added by one more launch where there are several. No atomics.
"""

# @triton.jit bodies and launches do not type-check
# pyright: reportArgumentType=false

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..constants import constant
from ..tuned import compiler_options, tuned
from .maps import BlockMap, count_rows, map_of, part_of

# programs that keep a large GPU busy; parts of a sum are written to memory, so not too many
_PROGRAMS, _MOST_SPLITS = 512, 64


@triton.jit
def _start(tile, atom, component, n_rows, dim):
    """Where a row's channels begin in a matrix, or one of several in a vector; ``tile`` names the block."""
    width = tl.load(tile + 5)
    begin = tl.load(tile) + tl.load(tile + 4).to(tl.int64) * (n_rows - 1)
    return begin + atom * tl.where(width < 0, dim, width) + component * tl.load(tile + 2)


@triton.jit(do_not_specialize=["n_splits"])
def _block_linear_weights_kernel(
    x_ptr,  # [n_rows, x_dim]
    grad_ptr,  # [n_rows, out_dim]
    order_ptr,  # [n_rows] int64 rows sorted by species, or None
    ptr_ptr,  # [n_species + 1] int64, or None
    tiles_ptr,  # [n_tiles, 19] int32, see `matrix_tiles`
    scales_ptr,  # [n_tiles] factors of the paths
    out_ptr,  # [n_splits, n_weights]
    n_rows,
    x_dim,
    out_dim,
    n_weights,
    n_splits,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    dtype = x_ptr.dtype.element_ty
    tile = tiles_ptr + tl.program_id(1) * 19
    species = tl.program_id(0) // n_splits
    split = tl.program_id(0) % n_splits
    dim = tl.load(tile + 16)
    i = tl.load(tile + 17) + tl.arange(0, BLOCK_IN)
    j = tl.load(tile + 18) + tl.arange(0, BLOCK_OUT)
    begin = dim.to(tl.int64) * 0
    end = dim.to(tl.int64) * n_rows
    if order_ptr is not None:
        begin = tl.load(ptr_ptr + species) * dim
        end = tl.load(ptr_ptr + species + 1) * dim
    size = (end - begin + n_splits - 1) // n_splits
    begin += size * split
    end = tl.minimum(begin + size, end)
    total = tl.zeros((BLOCK_IN, BLOCK_OUT), dtype)
    valid_i = i < tl.load(tile + 3)
    valid_j = j < tl.load(tile + 9)
    for start in range(begin, end, BLOCK_SUM):
        row = start + tl.arange(0, BLOCK_SUM)
        there = row < end
        atom = row // dim
        component = row - atom * dim
        if order_ptr is not None:
            atom = tl.load(order_ptr + atom, mask=there, other=0)
        x = x_ptr + _start(tile, atom, component, n_rows, x_dim)
        grad = grad_ptr + _start(tile + 6, atom, component, n_rows, out_dim)
        left = tl.load(
            x[None, :] + i[:, None] * tl.load(tile + 1), mask=valid_i[:, None] & there[None, :], other=0.0
        )
        right = tl.load(
            grad[:, None] + j[None, :] * tl.load(tile + 7), mask=there[:, None] & valid_j[None, :], other=0.0
        )
        total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=dtype)
    first = tl.load(tile + 12) + species * tl.load(tile + 13) + split.to(tl.int64) * n_weights
    place = first + i[:, None] * tl.load(tile + 14) + j[None, :] * tl.load(tile + 15)
    scale = tl.load(scales_ptr + tl.program_id(1))
    tl.store(out_ptr + place, total * scale, mask=valid_i[:, None] & valid_j[None, :])


@lru_cache(maxsize=1024)
def matrix_tiles(linear: BlockMap, block: int) -> tuple[tuple[int, ...], ...]:
    """
    Tiles of the paths' matrices.

    Rows of: a block of x (first column, strides of channels and components, channels, first column and width
    of its matrix), the same of the output; first weight and its strides; components; first channels.
    """
    rows = []
    for path in linear.paths:
        x, out = linear.x[path.x], linear.out[path.out]
        mine = [
            (each.first, *each.strides, each.channels, *part_of(each, parts))
            for each, parts in ((x, linear.x_parts), (out, linear.out_parts))
        ]
        rows += [
            (*mine[0], *mine[1], path.first, *path.strides, x.dim, i, j)
            for i in range(0, x.channels, block)
            for j in range(0, out.channels, block)
        ]
    return tuple(rows)


@lru_cache(maxsize=1024)
def tile_scales(linear: BlockMap, block: int) -> tuple[float, ...]:
    """Factors of the paths, one for each tile."""
    return tuple(
        path.scale
        for path in linear.paths
        for _ in range(0, linear.x[path.x].channels, block)
        for _ in range(0, linear.out[path.out].channels, block)
    )


@lru_cache(maxsize=1024)
def uses_of_weights(text: str) -> tuple[int, int]:
    """How many paths use a weight, at least and at most."""
    linear = map_of(text)
    count = torch.zeros(linear.n_weights, dtype=torch.int64)
    for path in linear.paths:
        sizes = linear.n_species, linear.x[path.x].channels, linear.out[path.out].channels
        axes = [torch.arange(size) * stride for size, stride in zip(sizes, path.strides, strict=True)]
        places = path.first + axes[0][:, None, None] + axes[1][:, None] + axes[2]
        count.index_add_(0, places.flatten(), torch.ones_like(places).flatten())
    return (int(count.min()), int(count.max())) if linear.n_weights else (1, 1)


def launch_block_linear_weights(
    x: Tensor, grad: Tensor, order: Tensor | None, ptr: Tensor | None, text: str
) -> Tensor:
    """``[n_weights]`` of a map whose paths share no weight; contiguous arguments."""
    linear = map_of(text)
    n_rows = count_rows(x, linear.x_parts)
    options = tuned("indexed_linear", x.device, x.dtype)
    block = options["out"]
    tiles = matrix_tiles(linear, block)
    if not (tiles and n_rows):
        return x.new_zeros(linear.n_weights)
    rows = n_rows * max(linear.x[path.x].dim for path in linear.paths) // linear.n_species
    fitting = triton.cdiv(_PROGRAMS, len(tiles) * linear.n_species)
    n_splits = max(1, min(rows // options["sum_rows"], fitting, _MOST_SPLITS))
    allocate = x.new_empty if uses_of_weights(text)[0] else x.new_zeros
    out = allocate((n_splits, linear.n_weights))
    _block_linear_weights_kernel[(linear.n_species * n_splits, len(tiles))](
        x_ptr=x,
        grad_ptr=grad,
        order_ptr=order,
        ptr_ptr=ptr,
        tiles_ptr=constant(tiles, torch.int32, x.device),
        scales_ptr=constant(tile_scales(linear, block), x.dtype, x.device),
        out_ptr=out,
        n_rows=n_rows,
        x_dim=linear.x_dim,
        out_dim=linear.out_dim,
        n_weights=linear.n_weights,
        n_splits=n_splits,
        BLOCK_IN=block,
        BLOCK_OUT=block,
        BLOCK_SUM=options["in"],
        PRECISION=options["precision"],
        **compiler_options(options["num_warps"], options["num_stages"], x),
    )
    return out[0] if n_splits == 1 else out.sum(0)
