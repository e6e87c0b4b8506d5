"""
Channel-wise convolution with a fused last layer of the radial network, ``w = hidden @ matrix``.

The weights are computed in registers, for the values and for every derivative: no tensor of edges times
weights is ever allocated. Used where the recorded parameters say so (``"radial"``, off until measured on a
GPU); elsewhere a matrix product makes the weights for `kernel`. `generate_radial` and
`generate_radial_backward` describe the grids. No atomics: each row has one owner, and sums over senders and
over chunks of edges follow in a fixed order. Matrix products run in the recorded precision: float32 ("ieee")
or three products of tf32 parts ("tf32x3"), never a single one in tf32.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ..tuned import compiler_options, tuned
from .generate import pieces
from .generate_radial import radial_kernel
from .generate_radial_backward import path_groups, radial_edges_kernel, radial_matrix_kernel
from .kernel import channel_blocks, sum_rows
from .product import ChannelwiseProduct


def fuses_radial(x: Tensor) -> bool:
    """Whether the recorded parameters fuse the last radial layer into the kernels."""
    return tuned("radial", x.device, x.dtype)["fused"]


def launch_channelwise_conv_radial(
    x: Tensor,
    y: Tensor,
    hidden: Tensor,
    matrix: Tensor,
    sender: Tensor,
    by_receiver: Tensor,
    receiver_ptr: Tensor,
    product: ChannelwiseProduct,
) -> Tensor:
    """
    Allocate and launch; the weights ``hidden @ matrix`` are never stored.

    ``hidden [n_edges, n_hidden]`` and ``matrix [n_hidden, weight_numel]`` must be contiguous; the rest is as
    in `launch_channelwise_conv`. Returns ``[n_receivers, out_dim]``.
    """
    options = tuned("radial", x.device, x.dtype)
    block, n_blocks = channel_blocks(product, options["channels"])
    n_nodes, most = receiver_ptr.shape[0] - 1, options["components"]
    out = x.new_empty((n_nodes, product.out_dim))
    for piece in range(len(pieces(product, most)) if n_nodes else 0):
        radial_kernel(product, most, piece)[(n_nodes * n_blocks,)](
            x_ptr=x,
            y_ptr=y,
            hidden_ptr=hidden,
            matrix_ptr=matrix,
            out_ptr=out,
            by_receiver_ptr=by_receiver.contiguous(),
            receiver_ptr=receiver_ptr.contiguous(),
            sender_ptr=sender.contiguous(),
            N_BLOCKS=n_blocks,
            BLOCK_CHANNELS=max(16, block),
            BLOCK_EDGES=options["edges"],
            N_HIDDEN=hidden.shape[1],
            BLOCK_HIDDEN=options["hidden"],
            PRECISION=options["precision"],
            **compiler_options(options["num_warps"], options["num_stages"], x),
        )
    return out


def launch_channelwise_conv_radial_backward(
    x: Tensor,
    y: Tensor,
    hidden: Tensor,
    matrix: Tensor,
    grad: Tensor,
    sender: Tensor,
    by_receiver: Tensor,
    receiver_ptr: Tensor,
    by_sender: Tensor,
    sender_ptr: Tensor,
    product: ChannelwiseProduct,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    Allocate, launch, sum over senders and over chunks of edges.

    Arguments as in `launch_channelwise_conv_radial`, with ``grad [n_receivers, out_dim]`` contiguous. Returns
    the derivatives in x, y, hidden and matrix; unwanted ones are empty.
    """
    tables = {"by_receiver_ptr": by_receiver.contiguous(), "sender_ptr": sender.contiguous()}
    # sorted by receiver; the table of edges holds only where each receiver's edges end
    slots = torch.arange(len(y), device=y.device)
    tables["receiver_ptr"] = torch.searchsorted(receiver_ptr[1:].contiguous(), slots, right=True)
    inputs = {"x_ptr": x, "y_ptr": y, "hidden_ptr": hidden, "grad_ptr": grad, "n_edges": len(y)}
    found = _by_edges(
        inputs, matrix, tables, by_sender, sender_ptr, product, (wanted[0], wanted[1], wanted[2])
    )
    d_matrix = _in_matrix(inputs, matrix, tables, product) if wanted[3] else x.new_empty(0)
    return *found, d_matrix


def _by_edges(
    inputs: dict[str, Any],
    matrix: Tensor,
    tables: dict[str, Tensor],
    by_sender: Tensor,
    sender_ptr: Tensor,
    product: ChannelwiseProduct,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    x, y, hidden = inputs["x_ptr"], inputs["y_ptr"], inputs["hidden_ptr"]
    options = tuned("radial_edges", x.device, x.dtype)
    compiler = compiler_options(options["num_warps"], options["num_stages"], x)
    wants_x, wants_y, wants_hidden = wanted
    n_edges, n_hidden, most = len(y), hidden.shape[1], options["components"]
    d_rows = x.new_empty((n_edges, product.x_dim) if wants_x else 0)
    d_y = x.new_empty(y.shape if wants_y else 0)
    d_hidden = x.new_empty(hidden.shape if wants_hidden else 0)
    block, _ = channel_blocks(product, options["channels"])
    for piece in range(len(pieces(product, most)) if n_edges and any(wanted) else 0):
        radial_edges_kernel(product, most, piece, wanted)[(triton.cdiv(n_edges, options["edges"]),)](
            **inputs,
            **tables,
            n_hidden=n_hidden,
            matrix_ptr=matrix,
            d_x_ptr=d_rows,
            d_y_ptr=d_y,
            d_hidden_ptr=d_hidden,
            BLOCK_CHANNELS=max(16, block),
            BLOCK_EDGES=options["edges"],
            N_HIDDEN=n_hidden,
            PADDED_HIDDEN=max(16, triton.next_power_of_2(n_hidden)),
            BLOCK_HIDDEN=options["hidden"],
            PRECISION=options["precision"],
            **compiler,
        )
    d_x = sum_rows(d_rows, by_sender, sender_ptr, compiler) if wants_x else x.new_empty(0)
    return d_x, d_y, d_hidden


def _in_matrix(
    inputs: dict[str, Any], matrix: Tensor, tables: dict[str, Tensor], product: ChannelwiseProduct
) -> Tensor:
    x, n_edges, n_hidden = inputs["x_ptr"], inputs["n_edges"], matrix.shape[0]
    options = tuned("radial_matrix", x.device, x.dtype)
    chunk, n_chunks = edge_chunks(n_edges, options["edges"], options["chunk"], options["chunks"])
    parts = x.new_empty((n_chunks, *matrix.shape))
    block_hidden = min(options["hidden"], max(16, triton.next_power_of_2(n_hidden)))
    for group, paths in enumerate(path_groups(product, options["paths"]) if n_chunks else ()):
        channels = product.out[paths[0]][0]
        block = min(options["channels"], max(16, triton.next_power_of_2(channels)))
        grid = triton.cdiv(channels, block), triton.cdiv(n_hidden, block_hidden), n_chunks
        radial_matrix_kernel(product, options["paths"], group)[grid](
            **inputs,
            **tables,
            d_matrix_ptr=parts,
            chunk_edges=chunk,
            BLOCK_CHANNELS=block,
            BLOCK_EDGES=options["edges"],
            N_HIDDEN=n_hidden,
            BLOCK_HIDDEN=block_hidden,
            PRECISION=options["precision"],
            **compiler_options(options["num_warps"], options["num_stages"], x),
        )
    return parts.sum(0)


def edge_chunks(n_edges: int, tile: int, least: int, most: int) -> tuple[int, int]:
    """
    Edges per chunk and number of chunks: at most ``most`` chunks of at least ``least`` edges, in whole tiles.

    They depend on the number of edges only, so sums are the same in every run.
    """
    chunk = triton.cdiv(max(least, triton.cdiv(n_edges, most)), tile) * tile
    return chunk, triton.cdiv(n_edges, chunk)
