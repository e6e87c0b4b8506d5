"""
Indexed linear maps ``out[n, i] = x[n, i] @ weights[z_n]`` as grouped matrix products.

Rows are (atom, component) pairs sorted by species and cut into tiles of one species each; the kernels find
the tiles from the counts on the device (`tiles`). Grid of the map: (row tiles, column blocks). Rows are
gathered and scattered by the order, so nothing is sorted in memory. Strides are arguments, so transposed
weights and features need no copy. Grid of the weights' gradient: (long row tiles, blocks of the matrix); a
second kernel adds the tiles of each species in order. No atomics.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..tuned import compiler_options, tuned
from .tiles import most_tiles, species_tile, sum_tiles, tile_constants


@triton.jit(do_not_specialize=["n_species"])
def _indexed_linear_kernel(
    x_ptr,  # [n_rows, SCALE, N_IN]
    weights_ptr,  # [n_species, N_IN, N_OUT]
    order_ptr,  # [n_rows] int64
    ptr_ptr,  # [n_species + 1] int64
    out_ptr,  # [n_rows, SCALE, N_OUT]
    n_species,
    stride_x_row,
    stride_x_component,
    stride_x_in,
    stride_w_species,
    stride_w_in,
    stride_w_out,
    N_IN: tl.constexpr,
    N_OUT: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SPECIES: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    dtype = x_ptr.dtype.element_ty
    tile = tl.program_id(0).to(tl.int64)
    species, first, last = species_tile(tile, ptr_ptr, n_species, SCALE, BLOCK_ROWS, BLOCK_SPECIES)
    if first < last:
        row = first + tl.arange(0, BLOCK_ROWS)
        there = row < last
        atom = tl.load(order_ptr + row // SCALE, mask=there, other=0)
        component = row % SCALE
        column = tl.program_id(1) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
        inside = column < N_OUT
        x = x_ptr + atom * stride_x_row + component * stride_x_component
        weights = weights_ptr + species * stride_w_species + column * stride_w_out
        total = tl.zeros((BLOCK_ROWS, BLOCK_OUT), dtype)
        for start in range(0, N_IN, BLOCK_IN):
            k = start + tl.arange(0, BLOCK_IN)
            left = tl.load(
                x[:, None] + k[None, :] * stride_x_in, mask=there[:, None] & (k < N_IN)[None, :], other=0.0
            )
            right = tl.load(
                weights[None, :] + k[:, None] * stride_w_in,
                mask=(k < N_IN)[:, None] & inside[None, :],
                other=0.0,
            )
            total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=dtype)
        out = out_ptr + (atom * SCALE + component)[:, None] * N_OUT + column[None, :]
        tl.store(out, total, mask=there[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["n_species"])
def _indexed_linear_weights_kernel(
    x_ptr,  # [n_rows, SCALE, N_IN]
    grad_ptr,  # [n_rows, SCALE, N_OUT]
    order_ptr,  # [n_rows] int64
    ptr_ptr,  # [n_species + 1] int64
    out_ptr,  # [n_tiles, N_IN, N_OUT]
    n_species,
    stride_x_row,
    stride_x_component,
    stride_x_in,
    stride_g_row,
    stride_g_component,
    stride_g_out,
    N_IN: tl.constexpr,
    N_OUT: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SPECIES: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_SUM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    dtype = x_ptr.dtype.element_ty
    tile = tl.program_id(0).to(tl.int64)
    _, first, last = species_tile(tile, ptr_ptr, n_species, SCALE, BLOCK_ROWS, BLOCK_SPECIES)
    i = tl.program_id(1) * BLOCK_IN + tl.arange(0, BLOCK_IN)
    j = tl.program_id(2) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    total = tl.zeros((BLOCK_IN, BLOCK_OUT), dtype)
    for start in range(first, last, BLOCK_SUM):
        row = start + tl.arange(0, BLOCK_SUM)
        there = row < last
        atom = tl.load(order_ptr + row // SCALE, mask=there, other=0)
        component = row % SCALE
        x = x_ptr + atom * stride_x_row + component * stride_x_component
        grad = grad_ptr + atom * stride_g_row + component * stride_g_component
        left = tl.load(
            x[None, :] + i[:, None] * stride_x_in, mask=(i < N_IN)[:, None] & there[None, :], other=0.0
        )
        right = tl.load(
            grad[:, None] + j[None, :] * stride_g_out, mask=there[:, None] & (j < N_OUT)[None, :], other=0.0
        )
        total = tl.dot(left, right, total, input_precision=PRECISION, out_dtype=dtype)
    out = out_ptr + (tile * N_IN + i)[:, None] * N_OUT + j[None, :]
    tl.store(out, total, mask=(i < N_IN)[:, None] & (j < N_OUT)[None, :])


def _near(values: Tensor) -> Tensor:
    """The same values with strides that fit 32-bit offsets, which is what the kernels compute with."""
    rows, columns = values.shape[1:]
    far = max(rows * values.stride(1), columns * values.stride(2))
    return values.contiguous() if far >= 2**31 else values


def _options(x: Tensor) -> tuple[dict[str, Any], dict[str, int]]:
    options = tuned("indexed_linear", x.device, x.dtype)
    return options, compiler_options(options["num_warps"], options["num_stages"], x)


def _arguments(
    x: Tensor, order: Tensor, ptr: Tensor, n_out: int, strides: dict[str, Tensor], precision: str
) -> dict[str, Any]:
    """Arguments of both kernels: x, the order of its rows, sizes, and the strides of each tensor's axes."""
    found = {
        f"stride_{name}": tensor.stride(n)
        for names, tensor in ({"x_row x_component x_in": x} | strides).items()
        for n, name in enumerate(names.split())
    }
    pointers = {"x_ptr": x, "order_ptr": order.contiguous(), "ptr_ptr": ptr, "n_species": ptr.shape[0] - 1}
    return {**pointers, **found, "N_IN": x.shape[2], "N_OUT": n_out, "PRECISION": precision}


def launch_indexed_linear(x: Tensor, weights: Tensor, order: Tensor, ptr: Tensor) -> Tensor:
    """``x[n] @ weights[species of n]``; any strides."""
    x, weights = _near(x), _near(weights)
    n_rows, n_components, _ = x.shape
    n_species, _, n_out = weights.shape
    if not (x.numel() and n_out):
        return x.new_zeros((n_rows, n_components, n_out))
    options, compiler = _options(x)
    out = x.new_empty((n_rows, n_components, n_out))
    n_tiles = most_tiles(n_rows * n_components, n_species, options["rows"])
    strides = {"w_species w_in w_out": weights}
    _indexed_linear_kernel[(n_tiles, triton.cdiv(n_out, options["out"]))](
        **_arguments(x, order, ptr, n_out, strides, options["precision"]),
        weights_ptr=weights,
        out_ptr=out,
        **tile_constants(n_species, options["rows"], n_components),
        BLOCK_IN=options["in"],
        BLOCK_OUT=options["out"],
        **compiler,
    )
    return out


def launch_indexed_linear_weights(x: Tensor, grad: Tensor, order: Tensor, ptr: Tensor) -> Tensor:
    """``sum x[n]^T grad[n]`` over the rows of each species; any strides."""
    x, grad = _near(x), _near(grad)
    n_rows, n_components, n_in = x.shape
    n_species, n_out = ptr.shape[0] - 1, grad.shape[2]
    if not (x.numel() and n_out):
        return x.new_zeros((n_species, n_in, n_out))
    options, compiler = _options(x)
    constants = tile_constants(n_species, options["sum_rows"], n_components)
    n_tiles = most_tiles(n_rows * n_components, n_species, options["sum_rows"])
    parts = x.new_empty((n_tiles, n_in, n_out))
    # here the sum runs over the long dimension, so rows and columns change roles
    block = options["out"]
    strides = {"g_row g_component g_out": grad}
    _indexed_linear_weights_kernel[(n_tiles, triton.cdiv(n_in, block), triton.cdiv(n_out, block))](
        **_arguments(x, order, ptr, n_out, strides, options["precision"]),
        grad_ptr=grad,
        out_ptr=parts,
        **constants,
        BLOCK_IN=block,
        BLOCK_OUT=block,
        BLOCK_SUM=options["in"],
        **compiler,
    )
    return sum_tiles(parts, ptr, constants)
