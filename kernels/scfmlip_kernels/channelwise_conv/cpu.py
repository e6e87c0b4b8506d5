"""
CPU path of the channel-wise convolution: batched matrix products over blocks of nodes.

Nodes with similar numbers of neighbours form a block. Each is padded to a common number D of edges; padding
has y = 0. Within a block the small matrices ``M_p[e; i, k] = sum_j C_ijk y_ej`` do not depend on the channel.
One batched product ``[dim_out, D dim_x] @ [D dim_x, channels]`` with ``w_p x_i`` therefore contracts the
components and sums over the neighbours at once. Messages are not stored: memory is O(nodes) plus one block,
which stays in the cache.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ..threads import run_blocks, worker_threads
from .product import ChannelwiseProduct, offsets

# edges of a block per PyTorch thread; padding that a block may hold, as a fraction of its slots or a number
_EDGES = 512
_WASTE = 0.1
_WASTED = 64


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


class _Pieces(NamedTuple):
    """Nodes sorted by degree; nodes with very many edges are cut into several pieces."""

    nodes: Tensor
    starts: Tensor  # first edge of each piece, in the edges sorted by receiver
    sizes: Tensor
    limit: int  # most edges of a piece, and most slots of a block
    cut: bool  # whether a node has several pieces

    def add(self, out: Tensor, values: Tensor) -> None:
        """Add the pieces' values to their nodes; ``out`` must be 0 before."""
        if self.cut:
            out.index_add_(0, self.nodes, values)
        else:
            out[self.nodes] = values


def _pieces(ptr: Tensor) -> _Pieces:
    limit = _EDGES * worker_threads()[1]
    degrees = ptr.diff()
    counts = (degrees + limit - 1) // limit
    nodes = torch.arange(len(degrees)).repeat_interleave(counts)
    nth = torch.arange(len(nodes)) - (counts.cumsum(0) - counts)[nodes]
    sizes, order = torch.sort((degrees[nodes] - nth * limit).clamp(max=limit), stable=True)
    nodes, nth = nodes[order], nth[order]
    return _Pieces(nodes, ptr[nodes] + nth * limit, sizes, limit, len(nodes) > int((degrees > 0).sum()))


class _Block(NamedTuple):
    """Pieces with about the same number of edges."""

    pieces: slice
    n_pieces: int
    degree: int
    n_slots: int
    edges: Tensor  # of each slot; padding repeats the last edge of the piece
    targets: Tensor  # row of each slot in a table over the edges; padding goes to an extra row at the end
    padding: Tensor | None  # which slots are padding, ``[n_slots, 1]``; None if there is none


def _blocks(order: Tensor, pieces: _Pieces) -> Iterator[_Block]:
    sizes = pieces.sizes.tolist()
    bounds, first, total = [], 0, 0
    for n, size in enumerate(sizes):
        slots = (n + 1 - first) * size
        total += size
        if n > first and (slots > pieces.limit or slots - total > max(_WASTED, _WASTE * total)):
            bounds.append((first, n))
            first, total = n, size
    if sizes:
        bounds.append((first, len(sizes)))
    for first, last in bounds:
        degree, count = sizes[last - 1], last - first
        slot, padding = torch.arange(degree), None
        if sizes[first] < degree:
            size = pieces.sizes[first:last, None]
            padding = (slot >= size).view(-1, 1)
            slot = torch.minimum(slot, size - 1)
        edges = targets = order[(pieces.starts[first:last, None] + slot).flatten()]
        if padding is not None:
            targets = edges.masked_fill(padding[:, 0], len(order))
        yield _Block(slice(first, last), count, degree, count * degree, edges, targets, padding)


class _Buffers:
    """Memory for one block's intermediates, reused by the next block."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.memory: dict[str, Tensor] = {}
        self.views: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Uninitialised tensor of this shape; one name holds one tensor at a time."""
        view = self.views.get((name, shape))
        if view is None:
            size = math.prod(shape)
            memory = self.memory.get(name)
            if memory is None or memory.shape[0] < size:
                memory = self.memory[name] = self.like.new_empty(size + size // 4)
                self.views = {key: kept for key, kept in self.views.items() if key[0] != name}
            view = self.views[name, shape] = memory[:size].view(shape)
        return view

    def rows(self, name: str, values: Tensor, index: Tensor) -> Tensor:
        """``values[index]``."""
        return torch.index_select(values, 0, index, out=self(name, index.shape[0], values.shape[1]))


def _attributes(y: Tensor, block: _Block, buffers: _Buffers) -> Tensor:
    values = buffers.rows("y", y, block.edges)
    return values if block.padding is None else values.masked_fill_(block.padding, 0.0)


def _edge_weights(weights: Tensor, matrix: Tensor | None, block: _Block, buffers: _Buffers) -> Tensor:
    rows = buffers.rows("weights", weights, block.edges)
    if matrix is None:
        return rows
    return torch.mm(rows, matrix, out=buffers("w", block.n_slots, matrix.shape[1]))


def _small_matrices(attributes: Tensor, p: _Path, block: _Block, buffers: _Buffers) -> Tensor:
    """``M[e; i, k]`` of a path, ``[n_pieces, degree * x components, out components]``."""
    m = buffers("m", block.n_pieces, block.degree * p.x_dim, p.out_dim)
    torch.mm(attributes[:, p.y_columns], p.terms, out=m.view(block.n_slots, p.x_dim * p.out_dim))
    return m


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
    pieces = _pieces(receiver_ptr)
    sums = [x.new_empty(len(pieces.nodes), p.out_dim, p.channels) for p in paths]

    def work(buffers: _Buffers, block: _Block) -> None:
        w = _edge_weights(weights, matrix, block, buffers)[:, None].split(w_sizes, 2)
        sent = _segments(buffers.rows("x", x, sender[block.edges]), product.x, "ir_mul")
        attributes = _attributes(y, block, buffers)
        for p, w_p, total in zip(paths, w, sums, strict=True):
            m = _small_matrices(attributes, p, block, buffers)
            z = buffers("z", block.n_pieces, block.degree * p.x_dim, p.channels)
            torch.mul(w_p, sent[p.x], out=z.view(block.n_slots, p.x_dim, p.channels))
            torch.bmm(m.mT, z, out=total[block.pieces])

    run_blocks(list(_blocks(by_receiver, pieces)), lambda: _Buffers(x), work)
    out = x.new_zeros(len(receiver_ptr) - 1, product.out_dim)
    for part, total in zip(_segments(out, product.out, product.layout), sums, strict=True):
        pieces.add(part, total)
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
    """Derivatives of ``sum out grad`` in x, y, weights and matrix; unwanted ones are empty."""
    paths = _paths(product, x.dtype)
    w_sizes = [p.channels for p in paths]
    wants_x, wants_y, wants_weights, wants_matrix = wanted
    wants_w = wants_weights or wants_matrix
    x = _components_first(x, product.x, product.layout)
    pieces = _pieces(receiver_ptr)
    grads = [part[pieces.nodes].contiguous() for part in _segments(grad, product.out, product.layout)]
    # every edge is in one block, but a node may be in none; the extra last row receives the padding
    d_x = x.new_zeros(x.shape if wants_x else 0)
    d_y = y.new_empty((len(y) + 1, y.shape[1]) if wants_y else 0)
    d_weights = y.new_empty((len(y) + 1, weights.shape[1]) if wants_weights else 0)
    d_matrix = y.new_zeros(matrix.shape if matrix is not None and wants_matrix else 0)
    used = {p.x for p in paths}

    def work(buffers: _Buffers, block: _Block) -> tuple[Tensor, Tensor, Tensor]:
        weight_rows = _edge_weights(weights, matrix, block, buffers)
        n_slots, n_columns = block.n_slots, weight_rows.shape[1]
        w = weight_rows[:, None].split(w_sizes, 2)
        from_node = sender[block.edges]
        sent = _segments(buffers.rows("x", x, from_node), product.x, "ir_mul")
        attributes = _attributes(y, block, buffers)
        d_sent_rows = buffers("d_sent", n_slots, product.x_dim)
        d_sent = _segments(d_sent_rows, product.x, "ir_mul")
        d_w_rows = buffers("d_w", n_slots, n_columns)
        d_w = d_w_rows.split(w_sizes, 1)
        d_attributes = buffers("d_attributes", n_slots, product.y_dim).zero_()
        started = set()
        for n, p in enumerate(paths):
            g, x_i, w_p = grads[n][block.pieces], sent[p.x], w[n]
            r_rows = buffers("r", block.n_pieces, block.degree * p.x_dim, p.channels)
            r = r_rows.view(n_slots, p.x_dim, p.channels)
            if wants_x or wants_w:
                torch.bmm(_small_matrices(attributes, p, block, buffers), g, out=r_rows)
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
                torch.mul(w_p, x_i, out=r)
                d_m = buffers("m", block.n_pieces, block.degree * p.x_dim, p.out_dim)
                torch.bmm(r_rows, g.mT, out=d_m)
                d_m = d_m.view(n_slots, p.x_dim * p.out_dim)
                d_attributes[:, p.y_columns].addmm_(d_m, p.terms.mT)
        if wants_x:
            for n, part in enumerate(d_sent):
                if n not in used:
                    part.zero_()
        if wants_y:
            d_y.index_copy_(0, block.targets, d_attributes)
        part = x.new_empty(0)
        if matrix is not None:
            hidden = buffers("weights", n_slots, weights.shape[1])  # still holds this block's values
            if wants_matrix:
                part = torch.mm(hidden.mT, d_w_rows, out=buffers("matrix", *matrix.shape))
            if wants_weights:
                d_weights.index_copy_(0, block.targets, torch.mm(d_w_rows, matrix.mT, out=hidden))
        elif wants_weights:
            d_weights.index_copy_(0, block.targets, d_w_rows)
        return from_node, d_sent_rows, part

    def finish(found: tuple[Tensor, Tensor, Tensor]) -> None:
        from_node, d_sent_rows, part = found
        if wants_x:
            d_x.index_add_(0, from_node, d_sent_rows)
        if wants_matrix:
            d_matrix.add_(part)

    sums = finish if wants_x or wants_matrix else None
    run_blocks(list(_blocks(by_receiver, pieces)), lambda: _Buffers(x), work, sums)
    if wants_x and product.layout == "mul_ir":
        parts = _segments(d_x, product.x, "ir_mul")
        d_x = torch.cat([part.mT.flatten(1) for part in parts], 1)
    return d_x, d_y[: len(y)], d_weights[: len(y)], d_matrix
