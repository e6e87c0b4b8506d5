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
    x_dim: int
    out_dim: int
    channels: int
    x_columns: slice  # of all segments with components outermost
    y_columns: slice
    out_columns: slice
    w_columns: slice
    terms: Tensor  # [y components, x components * out components]


@lru_cache(maxsize=256)
def _paths(product: ChannelwiseProduct, dtype: torch.dtype) -> tuple[_Path, ...]:
    x_first = offsets([c * d for c, d in product.x])
    y_first = offsets(list(product.y))
    out_first = offsets([c * d for c, d in product.out])
    w_first = offsets([c for c, _ in product.out])
    found = []
    for n, path in enumerate(product.paths):
        channels, dim = product.x[path.x]
        terms = torch.zeros(product.y[path.y], dim, path.dim, dtype=torch.float64)
        for i, j, k, value in path.coefficients:
            terms[j, i, k] = value
        found.append(
            _Path(
                path.x,
                dim,
                path.dim,
                channels,
                slice(x_first[path.x], x_first[path.x] + channels * dim),
                slice(y_first[path.y], y_first[path.y] + product.y[path.y]),
                slice(out_first[n], out_first[n] + channels * path.dim),
                slice(w_first[n], w_first[n] + channels),
                terms.flatten(1).to(dtype),
            )
        )
    return tuple(found)


def _transposed(values: Tensor, segments: tuple[tuple[int, int], ...], to_mul_ir: bool) -> Tensor:
    """The other layout of every segment."""
    parts = values.split([c * d for c, d in segments], 1)
    return torch.cat(
        [
            part.unflatten(1, (d, c) if to_mul_ir else (c, d)).mT.flatten(1)
            for part, (c, d) in zip(parts, segments, strict=True)
        ],
        1,
    )


class _Block(NamedTuple):
    nodes: Tensor
    degree: int
    edges: Tensor  # of each slot; padding repeats the node's last edge
    kept: Tensor | None  # slots that are not padding, None if all


def _blocks(order: Tensor, ptr: Tensor) -> Iterator[_Block]:
    degrees = ptr.diff()
    sizes, nodes = torch.sort(degrees, stable=True)
    limit = _EDGES * torch.get_num_threads()
    bounds, first, slots = [], 0, 0
    for n, size in enumerate(sizes.tolist()):
        if size == 0:
            first = n + 1
            continue
        count = n - first
        if count and ((count + 1) * size > limit or (count + 1) * size - slots - size > _WASTE * (slots + size)):
            bounds.append((first, n))
            first, slots = n, 0
        slots += size
    if first < len(sizes):
        bounds.append((first, len(sizes)))
    for first, last in bounds:
        degree = int(sizes[last - 1])
        mine, size = nodes[first:last], sizes[first:last, None]
        slot = torch.arange(degree)
        edges = order[(ptr[mine][:, None] + torch.minimum(slot, size - 1)).flatten()]
        kept = None
        if int(sizes[first]) < degree:
            kept = (slot < size).flatten().nonzero()[:, 0]
        yield _Block(mine, degree, edges, kept)


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
    if product.layout == "mul_ir":
        x = _transposed(x, product.x, False)
    out = x.new_zeros(len(receiver_ptr) - 1, product.out_dim)
    buffers = _Buffers(x)
    for block in _blocks(by_receiver, receiver_ptr):
        w = _edge_weights(weights, matrix, block, buffers)
        sent = buffers.rows("x", x, sender[block.edges])
        attributes = _attributes(y, block, buffers)
        sums = buffers("sums", len(block.nodes), product.out_dim)
        for p in paths:
            m = _small_matrices(attributes, p, block.degree, buffers)
            z = buffers("z", len(w), p.x_dim, p.channels)
            torch.mul(w[:, None, p.w_columns], sent[:, p.x_columns].unflatten(1, (p.x_dim, -1)), out=z)
            total = buffers("total", len(m), p.out_dim, p.channels)
            torch.bmm(m.mT, z.view(len(m), -1, p.channels), out=total)
            sums[:, p.out_columns] = total.flatten(1)
        out.index_copy_(0, block.nodes, sums)
    return _transposed(out, product.out, True) if product.layout == "mul_ir" else out


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
    wants_x, wants_y, wants_weights, wants_matrix = wanted
    wants_w = wants_weights or wants_matrix
    if product.layout == "mul_ir":
        x, grad = _transposed(x, product.x, False), _transposed(grad, product.out, False)
    # every edge stands in one block, every node may stand in none
    d_x = x.new_zeros(x.shape if wants_x else 0)
    d_y = y.new_empty(y.shape if wants_y else 0)
    d_weights = y.new_empty(weights.shape if wants_weights else 0)
    d_matrix = y.new_zeros(matrix.shape if matrix is not None and wants_matrix else 0)
    buffers = _Buffers(x)
    for block in _blocks(by_receiver, receiver_ptr):
        w = _edge_weights(weights, matrix, block, buffers)
        from_node = sender[block.edges]
        sent = buffers.rows("x", x, from_node)
        attributes = _attributes(y, block, buffers)
        g_nodes = buffers.rows("g", grad, block.nodes)
        d_sent, d_w = buffers("d_sent", *sent.shape), buffers("d_w", *w.shape)
        d_attributes = buffers("d_attributes", *attributes.shape).zero_()
        started = set()
        for p in paths:
            g = g_nodes[:, p.out_columns].unflatten(1, (p.out_dim, p.channels))
            x_i = sent[:, p.x_columns].unflatten(1, (p.x_dim, p.channels))
            w_p = w[:, None, p.w_columns]
            z = buffers("z", *x_i.shape)
            if wants_x or wants_w:
                m = _small_matrices(attributes, p, block.degree, buffers)
                r = buffers("r", *x_i.shape)
                torch.bmm(m, g, out=r.view(len(m), -1, p.channels))
                if wants_w:
                    d_w_p = d_w[:, p.w_columns]
                    torch.mul(x_i[:, 0], r[:, 0], out=d_w_p)
                    for i in range(1, p.x_dim):
                        d_w_p.addcmul_(x_i[:, i], r[:, i])
                if wants_x:
                    d_x_i = d_sent[:, p.x_columns].unflatten(1, (p.x_dim, p.channels))
                    if p.x in started:
                        d_x_i.addcmul_(w_p, r)
                    else:
                        torch.mul(w_p, r, out=d_x_i)
                        started.add(p.x)
            if wants_y:
                torch.mul(w_p, x_i, out=z)
                d_m = buffers("d_m", len(g), block.degree * p.x_dim, p.out_dim)
                torch.bmm(z.view(len(g), -1, p.channels), g.mT, out=d_m)
                d_attributes[:, p.y_columns].addmm_(d_m.view(len(w), -1), p.terms.mT)
        if wants_x:
            for n, (begin, end) in enumerate(_ends(product)):
                if n not in started:
                    d_sent[:, begin:end].zero_()
            d_x.index_add_(0, from_node, d_sent)
        if wants_y:
            _scattered(d_y, block, d_attributes)
        if wants_weights:
            _scattered(d_weights, block, d_w if matrix is None else d_w @ matrix.mT)
        if wants_matrix:
            d_matrix.addmm_(buffers.rows("weights", weights, block.edges).mT, d_w)
    if wants_x and product.layout == "mul_ir":
        d_x = _transposed(d_x, product.x, True)
    return d_x, d_y, d_weights, d_matrix


def _ends(product: ChannelwiseProduct) -> list[tuple[int, int]]:
    """First and last column of each segment of x."""
    sizes = [channels * dim for channels, dim in product.x]
    return [(a, a + n) for a, n in zip(offsets(sizes), sizes, strict=True)]
