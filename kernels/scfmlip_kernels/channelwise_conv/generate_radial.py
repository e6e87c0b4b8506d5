"""
Triton source of the convolution with a fused last radial layer: edge weights never leave the registers.

One program owns a node and a block of channels, as in `generate`. It takes its edges in tiles, because
``hidden @ matrix`` is a matrix product over edges: ``[edges, n_hidden] @ [n_hidden, channels]`` per path.
Products with x and y are summed over the tile before they are added to the node's sums. This needs more
registers than the kernel that reads weights, so products are split into smaller pieces.
"""

from functools import lru_cache
from typing import Any

from ..codegen import kernel_of
from .generate import _PROGRAM, _entries, _total, _Writer, pieces
from .product import ChannelwiseProduct

_TILE = """
    part = tl.arange(0, BLOCK_HIDDEN)
    for start in range(first, last, BLOCK_EDGES):
        slot = start + tl.arange(0, BLOCK_EDGES)
        there = slot < last
        edge = tl.load(by_receiver_ptr + slot, mask=there, other=0)
        sender = tl.load(sender_ptr + edge, mask=there, other=0)
        hidden_row = hidden_ptr + edge * N_HIDDEN
"""

WEIGHTS = """
        w = tl.zeros((BLOCK_EDGES, BLOCK_CHANNELS), dtype)
        for begin in range(0, N_HIDDEN, BLOCK_HIDDEN):
            h = begin + part
            known = h < N_HIDDEN
            left = tl.load(hidden_row[:, None] + h[None, :], mask=there[:, None] & known[None, :], other=0.0)
            right = tl.load(place + h[:, None] * W_COLUMNS, mask=known[:, None] & inside, other=0.0)
            w = tl.dot(left, right, w, input_precision=PRECISION, out_dtype=dtype)
"""


def radial_source(product: ChannelwiseProduct, most: int, piece: int) -> str:
    """
    Source of ``kernel``: sums of messages whose weights are ``hidden @ matrix``.

    Args:
        product: The product.
        most: Most components of results in one kernel, see `generate.pieces`.
        piece: Which of the kernels.
    """
    to = _Writer(product, pieces(product, most)[piece])
    pointers = "x y hidden matrix out by_receiver receiver sender"
    to.header(pointers, "", "N_BLOCKS BLOCK_CHANNELS BLOCK_EDGES N_HIDDEN BLOCK_HIDDEN PRECISION")
    to.add_block(_PROGRAM)
    to.masks()
    for p, path in to.paths:
        for k in range(path.dim):
            to.add(1, f"sum_{p}_{k} = tl.zeros((BLOCK_CHANNELS,), dtype)")
    to.add_block(_TILE)
    for n in to.used_y:
        for j in range(product.y[n]):
            place = f"y_ptr + edge * {product.y_dim} + {to.y_first[n] + j}"
            to.add(2, f"y_{n}_{j} = tl.load({place}, mask=there, other=0.0)")
    for n in to.used_x:
        to.add(2, f"inside = inside_{product.x[n][0]}[None, :]")
        for i in range(product.x[n][1]):
            place = f"x_ptr + sender[:, None] * {product.x_dim} + ({to.x_place(n, i)})[None, :]"
            to.add(2, f"x_{n}_{i} = tl.load({place}, mask=there[:, None] & inside, other=0.0)")
        for p in to.paths_of[n]:
            _path(to, p)
    to.add(1, f"out_row = out_ptr + node * {product.out_dim}")
    for p, path in to.paths:
        for k in range(path.dim):
            to.add(1, f"tl.store(out_row + {to.out_place(p, k)}, sum_{p}_{k}, {to.mask(path.x)})")
    return to.source()


def _path(to: _Writer, p: int) -> None:
    """The weights of a tile of edges, then their products."""
    path = to.product.paths[p]
    to.add(2, f"place = matrix_ptr + ({to.w_first[p]} + channel)[None, :]")
    to.add_block(WEIGHTS)
    to.small_matrix(p)
    for i in sorted({i for i, _ in _entries(path)}):
        to.add(2, f"z_{i} = w * x_{path.x}_{i}")
    for k in range(path.dim):
        terms = [f"m_{i}_{k}[:, None] * z_{i}" for i, b in _entries(path) if b == k]
        if terms:
            to.add(2, f"sum_{p}_{k} += tl.sum({_total(terms)}, 0)")


@lru_cache(maxsize=512)
def radial_kernel(product: ChannelwiseProduct, most: int, piece: int) -> Any:
    """The kernel of `radial_source`, compiled on first use."""
    return kernel_of(radial_source(product, most, piece), "channelwise_conv")
