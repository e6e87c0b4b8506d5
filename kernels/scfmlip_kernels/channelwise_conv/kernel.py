"""
Channel-wise convolution out[n] = sum_(e to n) C W[e] x[sender_e] y[e] and its derivatives, without messages.

Grid of the generated kernels: nodes times blocks of channels. A program walks over its node's edges in order
and keeps the node's sums (or gradients) in registers, so each is read or written once. No atomics:
derivatives in x are written per edge, and a second kernel adds them over the senders; derivatives in y are
written per block of channels, and the launcher adds them. Large products are split into several kernels that
run in turn (`generate.pieces`). Arithmetic runs in the dtype of the inputs. These kernels read the weights;
`kernel_radial` computes them inside from the last radial layer, where the recorded parameters say so.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..tuned import compiler_options, tuned
from .generate import backward_kernel, forward_kernel, pieces
from .product import ChannelwiseProduct


@triton.jit(do_not_specialize=["n_columns"])
def _sum_rows_kernel(
    rows_ptr,  # [n_rows, n_columns]
    order_ptr,  # [n_rows] int64, rows by group
    ptr_ptr,  # [n_groups + 1] int64
    out_ptr,  # [n_groups, n_columns]
    n_columns,
    BLOCK_COLUMNS: tl.constexpr,
):
    group = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = column < n_columns
    first = tl.load(ptr_ptr + group)
    last = tl.load(ptr_ptr + group + 1)
    total = tl.zeros((BLOCK_COLUMNS,), rows_ptr.dtype.element_ty)
    for slot in range(first, last):
        row = tl.load(order_ptr + slot)
        total += tl.load(rows_ptr + row * n_columns + column, mask=inside, other=0.0)
    tl.store(out_ptr + group * n_columns + column, total, mask=inside)


def sum_rows(rows: Tensor, order: Tensor, ptr: Tensor, compiler: dict[str, int]) -> Tensor:
    """
    Sum groups of rows, in the order given.

    ``rows [n_rows, n_columns]`` contiguous, ``order [n_rows]`` the rows by group, ``ptr [n_groups + 1]``
    where each group starts in it, ``compiler`` the options of the launch. Returns ``[n_groups, n_columns]``.
    """
    n_groups, n_columns = ptr.shape[0] - 1, rows.shape[1]
    out = rows.new_empty((n_groups, n_columns))
    columns = min(128, triton.next_power_of_2(n_columns))
    if n_groups:
        _sum_rows_kernel[(n_groups, triton.cdiv(n_columns, columns))](
            rows_ptr=rows,
            order_ptr=order.contiguous(),
            ptr_ptr=ptr.contiguous(),
            out_ptr=out,
            n_columns=n_columns,
            BLOCK_COLUMNS=columns,
            **compiler,
        )
    return out


def channel_blocks(product: ChannelwiseProduct, block: int) -> tuple[int, int]:
    """Channels per program and programs per node, for blocks of at most ``block`` channels."""
    most = max(channels for channels, _ in product.x)
    block = min(block, triton.next_power_of_2(most))
    return block, triton.cdiv(most, block)


def launch_channelwise_conv(
    x: Tensor,
    y: Tensor,
    w: Tensor,
    sender: Tensor,
    by_receiver: Tensor,
    receiver_ptr: Tensor,
    product: ChannelwiseProduct,
) -> Tensor:
    """
    Allocate and launch.

    ``x [n_nodes, x_dim]``, ``y [n_edges, y_dim]`` and ``w [n_edges, weight_numel]`` must be contiguous; the
    tables are those of `EdgeOrder`. Returns ``[n_receivers, out_dim]``.
    """
    options = tuned("channelwise", x.device, x.dtype)
    block, n_blocks = channel_blocks(product, options["forward"])
    n_nodes = receiver_ptr.shape[0] - 1
    out = x.new_empty((n_nodes, product.out_dim))
    most = options["forward_components"]
    for piece in range(len(pieces(product, most)) if n_nodes else 0):
        forward_kernel(product, most, piece)[(n_nodes * n_blocks,)](
            x_ptr=x,
            y_ptr=y,
            w_ptr=w,
            out_ptr=out,
            by_receiver_ptr=by_receiver.contiguous(),
            receiver_ptr=receiver_ptr.contiguous(),
            sender_ptr=sender.contiguous(),
            N_BLOCKS=n_blocks,
            BLOCK_CHANNELS=block,
            **compiler_options(options["num_warps"], options["num_stages"], x),
        )
    return out


def launch_channelwise_conv_backward(
    x: Tensor,
    y: Tensor,
    w: Tensor,
    grad: Tensor,
    sender: Tensor,
    by_receiver: Tensor,
    receiver_ptr: Tensor,
    by_sender: Tensor,
    sender_ptr: Tensor,
    product: ChannelwiseProduct,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Allocate, launch, sum over senders and over blocks of channels.

    Arguments as in `launch_channelwise_conv`, with ``grad [n_receivers, out_dim]``. Returns the derivatives
    in x, y and w; unwanted ones are empty.
    """
    wants_x, wants_y, wants_w = wanted
    options = tuned("channelwise", x.device, x.dtype)
    block, n_blocks = channel_blocks(product, options["backward"])
    n_nodes, n_edges = receiver_ptr.shape[0] - 1, len(y)
    d_rows = x.new_empty((n_edges, product.x_dim) if wants_x else 0)
    most = options["backward_components"]
    n_pieces = len(pieces(product, most))
    d_parts = x.new_empty((n_edges, n_pieces * n_blocks, product.y_dim) if wants_y else 0)
    d_w = x.new_empty(w.shape if wants_w else 0)
    compiler = compiler_options(options["num_warps"], options["num_stages"], x)
    for piece in range(n_pieces if n_nodes and n_edges else 0):
        backward_kernel(product, most, piece, wanted)[(n_nodes * n_blocks,)](
            x_ptr=x,
            y_ptr=y,
            w_ptr=w,
            grad_ptr=grad,
            d_x_ptr=d_rows,
            d_y_ptr=d_parts,
            d_w_ptr=d_w,
            by_receiver_ptr=by_receiver.contiguous(),
            receiver_ptr=receiver_ptr.contiguous(),
            sender_ptr=sender.contiguous(),
            N_BLOCKS=n_blocks,
            BLOCK_CHANNELS=block,
            **compiler,
        )
    d_x = sum_rows(d_rows, by_sender, sender_ptr, compiler) if wants_x else x.new_empty(0)
    d_y = x.new_empty(0)
    if wants_y:
        d_y = d_parts[:, 0] if d_parts.shape[1] == 1 else d_parts.sum(1)
    return d_x, d_y, d_w
