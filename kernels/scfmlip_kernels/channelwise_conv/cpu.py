"""
CPU path of the channel-wise convolution: batched matrix products over blocks of nodes.

Nodes with similar numbers of neighbours form a block, padded to a common number D; padding has y = 0. Within
a block the small matrices ``M_p[e; i, k] = sum_j C_ijk y_ej`` do not depend on the channel, and one batched
product ``[dim_out, D dim_x] @ [D dim_x, channels]`` with ``w_p x_i`` contracts components and sums over the
neighbours at once. No message is stored; memory is O(nodes) and one block, which stays in the cache.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .product import ChannelwiseProduct, offsets

# edges of a block for each thread; slots a block may waste on padding, as a share
_EDGES = 384
_WASTE = 0.1


class _Path(NamedTuple):
    x: int  # number of the segment of x
    y_columns: slice
    x_dim: int
    out_dim: int
    channels: int
    terms: Tensor  # [y components, x components * out components]


@lru_cache(maxsize=256)
def _paths(product: ChannelwiseProduct, dtype: torch.dtype) -> tuple[_Path, ...]:
    y_first = offsets(list(product.y))
    found = []
    for path in product.paths:
        channels, dim = product.x[path.x]
        terms = torch.zeros(product.y[path.y], dim, path.dim, dtype=torch.float64)
        for i, j, k, value in path.coefficients:
            terms[j, i, k] = value
        y_columns = slice(y_first[path.y], y_first[path.y] + product.y[path.y])
        found.append(_Path(path.x, y_columns, dim, path.dim, channels, terms.flatten(1).to(dtype)))
    return tuple(found)


def _segments(values: Tensor, segments: tuple[tuple[int, int], ...], layout: str) -> list[Tensor]:
    """Views of the segments, ``[n_rows, components, channels]``, in either layout."""
    parts = values.split([c * d for c, d in segments], 1)
    if layout == "mul_ir":
        return [part.unflatten(1, cd).mT for part, cd in zip(parts, segments, strict=True)]
    return [part.unflatten(1, (d, c)) for part, (c, d) in zip(parts, segments, strict=True)]


def _components_first(values: Tensor, segments: tuple[tuple[int, int], ...], layout: str) -> Tensor:
    """``[n_rows, columns]`` in the layout "ir_mul"."""
    if layout == "ir_mul":
        return values
    return torch.cat([part.flatten(1) for part in _segments(values, segments, layout)], 1)


class _Block(NamedTuple):
    nodes: slice  # in the order of their degrees
    degree: int
    edges: Tensor  # of each slot; padding repeats the node's last edge
    kept: Tensor | None  # slots that are not padding, None if all


def _blocks(order: Tensor, ptr: Tensor, sizes: Tensor, nodes: Tensor) -> Iterator[_Block]:
    limit = _EDGES * max(2, torch.get_num_threads())
    bounds, first, slots = [], 0, 0
    for n, size in enumerate(sizes.tolist()):
        if size == 0:
            first = n + 1
            continue
        count = n - first
        wasted = count * size - slots
        if count and ((count + 1) * size > limit or wasted > _WASTE * (slots + size)):
            bounds.append((first, n))
            first, slots = n, 0
        slots += size
    if first < len(sizes):
        bounds.append((first, len(sizes)))
    starts = ptr[nodes]
    for first, last in bounds:
        smallest, degree = int(sizes[first]), int(sizes[last - 1])
        slot = torch.arange(degree)
        if smallest == degree:
            yield _Block(slice(first, last), degree, order[(starts[first:last, None] + slot).flatten()], None)
            continue
        size = sizes[first:last, None]
        edges = order[(starts[first:last, None] + torch.minimum(slot, size - 1)).flatten()]
        yield _Block(slice(first, last), degree, edges, (slot < size).flatten().nonzero()[:, 0])


class _Buffers:
    """Memory of one block's intermediates, used again by the next block."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.memory: dict[str, Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Uninitialised tensor of this shape; one name holds one tensor at a time."""
        size = math.prod(shape)
        memory = self.memory.get(name)
        if memory is None or len(memory) < size:
            memory = self.memory[name] = self.like.new_empty(size + size // 4)
        return memory[:size].view(shape)

    def rows(self, name: str, values: Tensor, index: Tensor) -> Tensor:
        """``values[index]``."""
        return torch.index_select(values, 0, index, out=self(name, len(index), values.shape[1]))


def _scattered(out: Tensor, block: _Block, values: Tensor) -> None:
    """Values of a block's slots to their edges."""
    if block.kept is None:
        out.index_copy_(0, block.edges, values)
    else:
        out.index_copy_(0, block.edges[block.kept], values[block.kept])


def _attributes(y: Tensor, block: _Block, buffers: _Buffers) -> Tensor:
    values = buffers.rows("y", y, block.edges)
    if block.kept is not None:
        mask = buffers("mask", len(values), 1).zero_().index_fill_(0, block.kept, 1.0)
        values *= mask
    return values


def _edge_weights(weights: Tensor, matrix: Tensor | None, block: _Block, buffers: _Buffers) -> Tensor:
    rows = buffers.rows("weights", weights, block.edges)
    if matrix is None:
        return rows
    return torch.mm(rows, matrix, out=buffers("w", len(rows), matrix.shape[1]))


def _small_matrices(attributes: Tensor, p: _Path, degree: int, buffers: _Buffers) -> Tensor:
    """``M[e; i, k]`` of a path, ``[n_nodes, degree * x components, out components]``."""
    m = buffers("m", len(attributes), p.x_dim * p.out_dim)
    torch.mm(attributes[:, p.y_columns], p.terms, out=m)
    return m.view(-1, degree * p.x_dim, p.out_dim)


def channelwise_conv_cpu(
    x: Tensor,
    y: Tensor,
    weights: Tensor,
    matrix: Tensor | None,
    sender: Tensor,
    by_receiver: Tensor,
    receiver_ptr: Tensor,
    product: ChannelwiseProduct,
) -> Tensor:
    """Sums of every node; arguments as in `channelwise_conv`, on the CPU."""
    paths = _paths(product, x.dtype)
    w_sizes = [p.channels for p in paths]
    x = _components_first(x, product.x, product.layout)
    sizes, nodes = torch.sort(receiver_ptr.diff(), stable=True)
    sums = [x.new_zeros(len(nodes), p.out_dim, p.channels) for p in paths]
    buffers = _Buffers(x)
    for block in _blocks(by_receiver, receiver_ptr, sizes, nodes):
        w = _edge_weights(weights, matrix, block, buffers)[:, None].split(w_sizes, 2)
        sent = _segments(buffers.rows("x", x, sender[block.edges]), product.x, "ir_mul")
        attributes = _attributes(y, block, buffers)
        for p, w_p, total in zip(paths, w, sums, strict=True):
            m = _small_matrices(attributes, p, block.degree, buffers)
            z = buffers("z", len(attributes), p.x_dim, p.channels)
            torch.mul(w_p, sent[p.x], out=z)
            torch.bmm(m.mT, z.view(len(m), -1, p.channels), out=total[block.nodes])
    out = x.new_empty(len(nodes), product.out_dim)
    for part, total in zip(_segments(out, product.out, product.layout), sums, strict=True):
        part[nodes] = total
    return out


def channelwise_conv_backward_cpu(
    x: Tensor,
    y: Tensor,
    weights: Tensor,
    matrix: Tensor | None,
    grad: Tensor,
    sender: Tensor,
    by_receiver: Tensor,
    receiver_ptr: Tensor,
    product: ChannelwiseProduct,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Derivatives of ``sum out grad`` in x, y, weights and matrix; those not wanted are empty."""
    paths = _paths(product, x.dtype)
    w_sizes = [p.channels for p in paths]
    wants_x, wants_y, wants_weights, wants_matrix = wanted
    wants_w = wants_weights or wants_matrix
    x = _components_first(x, product.x, product.layout)
    sizes, nodes = torch.sort(receiver_ptr.diff(), stable=True)
    grads = [part[nodes].contiguous() for part in _segments(grad, product.out, product.layout)]
    # every edge stands in one block, a node may stand in none
    d_x = x.new_zeros(x.shape if wants_x else 0)
    d_y = y.new_empty(y.shape if wants_y else 0)
    d_weights = y.new_empty(weights.shape if wants_weights else 0)
    d_matrix = y.new_zeros(matrix.shape if matrix is not None and wants_matrix else 0)
    used = {p.x for p in paths}
    buffers = _Buffers(x)
    for block in _blocks(by_receiver, receiver_ptr, sizes, nodes):
        weight_rows = _edge_weights(weights, matrix, block, buffers)
        n_slots, n_columns = weight_rows.shape
        w = weight_rows[:, None].split(w_sizes, 2)
        from_node = sender[block.edges]
        sent = _segments(buffers.rows("x", x, from_node), product.x, "ir_mul")
        attributes = _attributes(y, block, buffers)
        d_sent_rows = buffers("d_sent", n_slots, product.x_dim)
        d_sent = _segments(d_sent_rows, product.x, "ir_mul")
        d_w_rows = buffers("d_w", n_slots, n_columns)
        d_w = d_w_rows.split(w_sizes, 1)
        d_attributes = buffers("d_attributes", *attributes.shape).zero_()
        started = set()
        for n, p in enumerate(paths):
            g, x_i, w_p = grads[n][block.nodes], sent[p.x], w[n]
            if wants_x or wants_w:
                m = _small_matrices(attributes, p, block.degree, buffers)
                r = buffers("r", n_slots, p.x_dim, p.channels)
                torch.bmm(m, g, out=r.view(len(g), -1, p.channels))
                if wants_w:
                    torch.mul(x_i[:, 0], r[:, 0], out=d_w[n])
                    for i in range(1, p.x_dim):
                        d_w[n].addcmul_(x_i[:, i], r[:, i])
                if wants_x and p.x in started:
                    d_sent[p.x].addcmul_(w_p, r)
                elif wants_x:
                    torch.mul(w_p, r, out=d_sent[p.x])
                    started.add(p.x)
            if wants_y:
                z = buffers("r", n_slots, p.x_dim, p.channels)
                torch.mul(w_p, x_i, out=z)
                d_m = buffers("m", len(g), block.degree * p.x_dim, p.out_dim)
                torch.bmm(z.view(len(g), -1, p.channels), g.mT, out=d_m)
                d_attributes[:, p.y_columns].addmm_(d_m.view(n_slots, -1), p.terms.mT)
        if wants_x:
            for n, part in enumerate(d_sent):
                if n not in used:
                    part.zero_()
            d_x.index_add_(0, from_node, d_sent_rows)
        if wants_y:
            _scattered(d_y, block, d_attributes)
        if matrix is None:
            if wants_weights:
                _scattered(d_weights, block, d_w_rows)
            continue
        hidden = buffers("weights", n_slots, weights.shape[1])  # still those of this block
        if wants_matrix:
            d_matrix.addmm_(hidden.mT, d_w_rows)
        if wants_weights:
            _scattered(d_weights, block, torch.mm(d_w_rows, matrix.mT, out=hidden))
    if wants_x and product.layout == "mul_ir":
        parts = _segments(d_x, product.x, "ir_mul")
        d_x = torch.cat([part.mT.flatten(1) for part in parts], 1)
    return d_x, d_y, d_weights, d_matrix
