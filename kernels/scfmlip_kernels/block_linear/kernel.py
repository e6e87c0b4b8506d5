"""
Linear maps between blocks of columns, all blocks in one launch.

Grid: (row tiles, tiles of output channels). Rows are (atom, component) pairs of one block, sorted by species
where there are several, as in `indexed_linear`. A program reads its place, its block and the paths that lead
there from small tables, and adds one matrix product for each path. Components that are neighbours in memory
belong to the same tile, so nothing is transposed in memory. No atomics.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..constants import constant
from ..indexed_linear.tiles import most_tiles, species_tile
from ..tuned import compiler_options, tuned
from .maps import BlockMap, allocate, count_rows, map_of, part_of


@triton.jit(do_not_specialize=["n_species"])
def _block_linear_kernel(
    x_ptr,  # [n_rows, x_dim]
    weights_ptr,  # [n_weights]
    bias_ptr,  # [n_biases] or None
    order_ptr,  # [n_rows] int64, rows sorted by species
    ptr_ptr,  # [n_species + 1] int64
    tiles_ptr,  # [n_tiles, 11] int32, see `column_tiles`
    paths_ptr,  # [n_paths, 10] int32, see `path_rows`
    scales_ptr,  # [n_paths] factors of the paths
    out_ptr,  # [n_rows, out_dim]
    n_rows,
    n_species,
    x_stride,
    out_dim,
    HAS_SPECIES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SPECIES: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    dtype = x_ptr.dtype.element_ty
    tile = tiles_ptr + tl.program_id(1) * 11
    first_column = tl.load(tile)
    channel_stride = tl.load(tile + 1)
    component_stride = tl.load(tile + 2)
    n_channels = tl.load(tile + 3)
    dim = tl.load(tile + 4)
    first_channel = tl.load(tile + 5)
    first_path = tl.load(tile + 6)
    last_path = tl.load(tile + 7)
    if HAS_SPECIES:
        species, first, last = species_tile(
            tl.program_id(0).to(tl.int64), ptr_ptr, n_species, dim, BLOCK_ROWS, BLOCK_SPECIES
        )
        species = species.to(tl.int32)
    else:
        species = 0
        first = tl.program_id(0).to(tl.int64) * BLOCK_ROWS
        last = dim.to(tl.int64) * n_rows
    if first < last:
        row = first + tl.arange(0, BLOCK_ROWS)
        there = row < last
        atom = row // dim
        component = (row - atom * dim).to(tl.int32)
        if HAS_SPECIES:
            atom = tl.load(order_ptr + atom, mask=there, other=0)
        column = first_channel + tl.arange(0, BLOCK_OUT)
        inside = column < n_channels
        total = tl.zeros((BLOCK_ROWS, BLOCK_OUT), dtype)
        if bias_ptr is not None:
            first_bias = tl.load(tile + 8)
            has_bias = inside & (column * 0 + first_bias >= 0)
            total += tl.load(bias_ptr + first_bias + column, mask=has_bias, other=0.0)[None, :]
        for number in range(first_path, last_path):
            path = paths_ptr + number * 10
            n_in = tl.load(path + 3)
            in_stride = tl.load(path + 1)
            width = tl.load(path + 9)
            start_x = tl.load(path) + tl.load(path + 8).to(tl.int64) * (n_rows - 1)
            x = x_ptr + start_x + atom * tl.where(width < 0, x_stride, width) + component * tl.load(path + 2)
            weights = weights_ptr + tl.load(path + 4) + species * tl.load(path + 5)
            weights = weights + column * tl.load(path + 7)
            scale = tl.load(scales_ptr + number)
            for start in range(0, n_in, BLOCK_IN):
                k = start + tl.arange(0, BLOCK_IN)
                left = tl.load(
                    x[:, None] + k[None, :] * in_stride, mask=there[:, None] & (k < n_in)[None, :], other=0.0
                )
                right = tl.load(
                    weights[None, :] + k[:, None] * tl.load(path + 6),
                    mask=(k < n_in)[:, None] & inside[None, :],
                    other=0.0,
                )
                total = tl.dot(left, right * scale, total, input_precision=PRECISION, out_dtype=dtype)
        out_width = tl.load(tile + 10)
        start_out = first_column + tl.load(tile + 9).to(tl.int64) * (n_rows - 1)
        out_row = start_out + atom * tl.where(out_width < 0, out_dim, out_width)
        out = out_ptr + (out_row + component * component_stride)[:, None]
        tl.store(out + (column * channel_stride)[None, :], total, mask=there[:, None] & inside[None, :])


def _sorted_paths(linear: BlockMap) -> list:
    """Paths in the order of the blocks that they lead to."""
    return sorted(linear.paths, key=lambda path: path.out)


@lru_cache(maxsize=1024)
def column_tiles(linear: BlockMap, block: int) -> tuple[tuple[int, ...], ...]:
    """Rows of: first column, strides, channels, components, first channel, paths, first bias, part."""
    paths, rows = [path.out for path in _sorted_paths(linear)], []
    for n, out in enumerate(linear.out):
        first = sum(p < n for p in paths)
        mine = (first, first + paths.count(n))
        for channel in range(0, out.channels, block):
            bias = linear.biases[n] if linear.biases else -1
            part = part_of(out, linear.out_parts)
            rows.append((out.first, *out.strides, out.channels, out.dim, channel, *mine, bias, *part))
    return tuple(rows)


@lru_cache(maxsize=1024)
def path_rows(linear: BlockMap) -> tuple[tuple[int, ...], ...]:
    """Rows of: first column of x, two strides, channels, first weight, strides of the weights, part of x."""
    rows = []
    for path in _sorted_paths(linear):
        x = linear.x[path.x]
        part = part_of(x, linear.x_parts)
        rows.append((x.first, *x.strides, x.channels, path.first, *path.strides, *part))
    return tuple(rows)


@lru_cache(maxsize=1024)
def path_scales(linear: BlockMap) -> tuple[float, ...]:
    """Factors of the paths."""
    return tuple(path.scale for path in _sorted_paths(linear))


def launch_block_linear(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    ptr: Tensor | None,
    text: str,
) -> Tensor:
    """Allocate and launch; the columns of x and the weights are neighbours in memory."""
    linear = map_of(text)
    n_rows = count_rows(x, linear.x_parts)
    out = allocate(n_rows, linear.out_dim, linear.out_parts, x)
    if not out.numel():
        return out
    if not linear.paths and bias is None:
        return out.zero_()
    options = tuned("indexed_linear", x.device, x.dtype)
    block_out = max(16, options["out"] // 2)  # blocks are read with strides, which takes registers
    tiles = column_tiles(linear, block_out)
    rows = n_rows * max(block.dim for block in linear.out)
    n_tiles = triton.cdiv(rows, options["rows"])
    if order is not None:
        n_tiles = most_tiles(rows, linear.n_species, options["rows"])
    _block_linear_kernel[(n_tiles, len(tiles))](
        x_ptr=x,
        weights_ptr=weights,
        bias_ptr=bias,
        order_ptr=order,
        ptr_ptr=ptr,
        tiles_ptr=constant(tiles, torch.int32, x.device),
        paths_ptr=constant(path_rows(linear) or ((0,) * 10,), torch.int32, x.device),
        scales_ptr=constant(path_scales(linear) or (0.0,), x.dtype, x.device),
        out_ptr=out,
        n_rows=n_rows,
        n_species=linear.n_species,
        x_stride=x.stride(0),
        out_dim=linear.out_dim,
        HAS_SPECIES=order is not None,
        BLOCK_ROWS=options["rows"],
        BLOCK_SPECIES=triton.next_power_of_2(linear.n_species),
        BLOCK_IN=options["in"],
        BLOCK_OUT=block_out,
        PRECISION=options["precision"],
        **compiler_options(options["num_warps"], options["num_stages"], x),
    )
    return out
