"""
Triton source of the derivatives of `generate_radial`: edge weights and their gradients stay in registers.

With ``w = hidden @ matrix``, g the gradient, and ``d_w[e, p, c] = sum_ijk C^p_ijk x[sender_e, i, c] y[e, j]
g[receiver_e, k, c]``, there are two families of kernels. Both take edges in tiles, sorted by receiver:
neighbouring rows then read the same gradient, and tiles are full however many neighbours a node has.

* Edges: one program owns a tile of edges and runs over paths and blocks of channels. It computes the ``w`` of
  a path where d_x or d_y need it. ``d_hidden += d_w @ matrix^T``, ``[edges, n_hidden]``, and d_y stay in
  registers to the end, so no sum over blocks of channels remains. Rows of d_x are written per edge, and the
  launcher adds them over the senders: a pass over senders would have to compute w again.
* Matrix: one program owns a block of channels of some paths of one segment of x, a block of hidden features
  and a chunk of edges, ``d_matrix += hidden^T @ d_w``. There are few chunks; the launcher adds them in order.

Each family computes ``d_w`` of a tile for itself: a few multiplications per component, against n_hidden of
them in the matrix product that follows. Products too large for the registers are split: in the first family
by components of results (`generate.pieces`; a kernel adds to what the one before wrote), in the second by
paths. d_hidden of a tile is not split: 128 hidden features fit into registers, 256 are correct but spill.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..codegen import kernel_of
from ..layouts import made_once
from .generate import _attribute_terms, _entries, _total, _Writer, pieces
from .generate_radial import WEIGHTS
from .product import ChannelwiseProduct

_TABLES = """
edge = tl.load(by_receiver_ptr + slot, mask=there, other=0)
node = tl.load(receiver_ptr + slot, mask=there, other=0)
sender = tl.load(sender_ptr + edge, mask=there, other=0)
row = there[:, None]
"""

_EDGES = """
slot = tl.program_id(0).to(tl.int64) * BLOCK_EDGES + tl.arange(0, BLOCK_EDGES)
there = slot < n_edges
dtype = x_ptr.dtype.element_ty
part = tl.arange(0, BLOCK_HIDDEN)
feature = tl.arange(0, PADDED_HIDDEN)
"""

# This loop runs once. The compiler does not know n_hidden and still sees a loop, as it does for w. Without
# loops it interleaves loads and products of all paths, which do not fit into registers (3 KB spilled, not 0).
_D_HIDDEN = """
for begin in range(0, n_hidden, PADDED_HIDDEN):
    h = begin + feature
    mask = (channel < CHANNELS)[:, None] & (h < N_HIDDEN)[None, :]
    turned = tl.load(column[:, None] + h[None, :] * W_COLUMNS, mask=mask, other=0.0)
    d_hidden = tl.dot(d_w, turned, d_hidden, input_precision=PRECISION, out_dtype=dtype)
"""

_MATRIX = """
channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
h = tl.program_id(1) * BLOCK_HIDDEN + tl.arange(0, BLOCK_HIDDEN)
chunk = tl.program_id(2).to(tl.int64)
known = (h < N_HIDDEN)[:, None]
first = chunk * chunk_edges
last = tl.minimum(first + chunk_edges, n_edges)
dtype = x_ptr.dtype.element_ty
"""

_TILE = """
slot = start + tl.arange(0, BLOCK_EDGES)
there = slot < last
"""

_HIDDEN = """
left = tl.load(hidden_ptr + edge[None, :] * N_HIDDEN + h[:, None], mask=known & there[None, :], other=0.0)
"""


def radial_edges_source(product: ChannelwiseProduct, most: int, piece: int, wanted: Sequence[bool]) -> str:
    """
    Source of ``kernel``: one program differentiates a tile of edges.

    Args:
        product: The product.
        most: Most components of results in one kernel, see `generate.pieces`.
        piece: Which of the kernels; they run one after the other, and each starts from the sums before.
        wanted: Which of the derivatives in x, y and hidden are wanted. All are written per edge.
    """
    cut = pieces(product, most)
    to = _Writer(product, cut[piece])
    started = {product.paths[p].x for earlier in cut[:piece] for p in earlier}
    used = {path.x for path in product.paths}
    wants_x, wants_y, wants_hidden = wanted
    pointers = "x y hidden matrix grad d_x d_y d_hidden by_receiver receiver sender"
    to.header(
        pointers,
        "n_edges n_hidden",
        "BLOCK_CHANNELS BLOCK_EDGES N_HIDDEN PADDED_HIDDEN BLOCK_HIDDEN PRECISION",
    )
    to.add_block(_EDGES + _TABLES.lstrip("\n"), 1)
    if wants_x or wants_y:
        to.add(1, "hidden_row = hidden_ptr + edge * N_HIDDEN")

    # what a kernel adds to, by name: address, mask, and the shape of the zeros to start from
    sums: dict[str, tuple[str, str, str]] = {}
    if wants_hidden:
        place = "d_hidden_ptr + edge[:, None] * N_HIDDEN + feature[None, :]"
        sums["d_hidden"] = place, "row & (feature < N_HIDDEN)[None, :]", "BLOCK_EDGES, PADDED_HIDDEN"
    # the first kernel writes zeros for segments of y without a path
    for n in (to.used_y if piece else range(len(product.y))) if wants_y else ():
        for j in range(product.y[n]):
            place = f"d_y_ptr + edge * {product.y_dim} + {to.y_first[n] + j}"
            sums[f"d_y_{n}_{j}"] = place, "there", "BLOCK_EDGES,"
    _start(to, 1, sums, piece > 0)
    for n, (channels, dim) in enumerate(product.x):
        writes_x = wants_x and (n in to.used_x or (n not in used and piece == 0))
        if not (writes_x or n in to.used_x):
            continue
        to.add(1, f"for block in range(0, ({channels} + BLOCK_CHANNELS - 1) // BLOCK_CHANNELS):")
        to.add(2, "channel = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)")
        to.add(2, f"inside = (channel < {channels})[None, :]")
        if n in to.used_x and (wants_y or wants_hidden):
            _load_x(to, n)
        rows: dict[str, tuple[str, str, str]] = {}
        for i in range(dim) if writes_x else ():
            place = f"d_x_ptr + edge[:, None] * {product.x_dim} + ({to.x_place(n, i)})[None, :]"
            rows[f"d_x_{n}_{i}"] = place, "row & inside", "BLOCK_EDGES, BLOCK_CHANNELS"
        _start(to, 2, rows, n in started)
        for p in to.paths_of.get(n, []):
            _edges_path(to, p, wanted)
        _finish(to, 2, rows)
    _finish(to, 1, sums)
    return to.source()


def _start(to: _Writer, depth: int, sums: dict[str, tuple[str, str, str]], started: bool) -> None:
    for name, (place, mask, shape) in sums.items():
        before = f"tl.load({place}, mask={mask}, other=0.0)"
        to.add(depth, f"{name} = {before if started else f'tl.zeros(({shape}), dtype)'}")


def _finish(to: _Writer, depth: int, sums: dict[str, tuple[str, str, str]]) -> None:
    for name, (place, mask, _) in sums.items():
        to.add(depth, f"tl.store({place}, {name}, mask={mask})")


def _edges_path(to: _Writer, p: int, wanted: Sequence[bool]) -> None:
    path = to.product.paths[p]
    wants_x, wants_y, wants_hidden = wanted
    components = sorted({i for i, _ in _entries(path)})
    to.add(2, f"column = matrix_ptr + {to.w_first[p]} + channel")
    _load_gradient(to, p)
    if wants_x or wants_hidden:
        _without_weights(to, p)
    if wants_hidden:
        _derivative_in_weights(to, p)
        to.add_block(_D_HIDDEN.replace("CHANNELS", str(to.product.x[path.x][0])), 2)
    if not (wants_x or wants_y):
        return
    to.add(2, "place = column[None, :]")
    to.add_block(WEIGHTS.replace("(0, N_HIDDEN,", "(0, n_hidden,"))
    to.add(2, "w = made_once(w)")
    if wants_x:
        for i in components:
            to.add(2, f"d_x_{path.x}_{i} += w * r_{i}")
    if wants_y:
        for i in components:
            to.add(2, f"z_{i} = w * x_{path.x}_{i}")
        for j, terms in _attribute_terms(path, "g"):
            to.add(2, f"d_y_{path.y}_{j} += tl.sum({terms}, 1)")


def _load_x(to: _Writer, n: int) -> None:
    for i in range(to.product.x[n][1]):
        place = f"x_ptr + sender[:, None] * {to.product.x_dim} + ({to.x_place(n, i)})[None, :]"
        to.add(2, f"x_{n}_{i} = tl.load({place}, mask=row & inside, other=0.0)")


def _load_gradient(to: _Writer, p: int) -> None:
    for k in sorted({k for _, k in _entries(to.product.paths[p])}):
        place = f"grad_ptr + node[:, None] * {to.product.out_dim} + ({to.out_place(p, k)})[None, :]"
        to.add(2, f"g_{k} = tl.load({place}, mask=row & inside, other=0.0)")


def _without_weights(to: _Writer, p: int) -> None:
    """``r_i``: the derivative in ``x_i`` without the factor w."""
    path = to.product.paths[p]
    for j in sorted({j for _, j, _, _ in path.coefficients}):
        place = f"y_ptr + edge * {to.product.y_dim} + {to.y_first[path.y] + j}"
        to.add(2, f"y_{path.y}_{j} = tl.load({place}, mask=there, other=0.0)")
    to.small_matrix(p)
    entries = _entries(path)
    for i in sorted({i for i, _ in entries}):
        to.add(2, f"r_{i} = {_total(f'm_{i}_{k}[:, None] * g_{k}' for a, k in entries if a == i)}")


def _derivative_in_weights(to: _Writer, p: int) -> None:
    path = to.product.paths[p]
    terms = [f"x_{path.x}_{i} * r_{i}" for i in sorted({i for i, _ in _entries(path)})]
    to.add(2, f"d_w = {_total(terms) if terms else 'tl.zeros((BLOCK_EDGES, BLOCK_CHANNELS), dtype)'}")


@lru_cache(maxsize=512)
def path_groups(product: ChannelwiseProduct, most: int) -> tuple[tuple[int, ...], ...]:
    """The paths of each kernel for the matrix's derivative: at most ``most``, all from one segment of x."""
    found = []
    for n in range(len(product.x)):
        mine = [p for p, path in enumerate(product.paths) if path.x == n]
        found += [tuple(mine[start : start + most]) for start in range(0, len(mine), most)]
    return tuple(found)


def radial_matrix_source(product: ChannelwiseProduct, most: int, group: int) -> str:
    """
    Source of ``kernel``: one program sums ``hidden^T @ d_w`` over a chunk of edges, for some paths.

    Args:
        product: The product.
        most: Paths in one kernel, see `path_groups`.
        group: Which of the kernels; each writes its own columns.
    """
    to = _Writer(product, path_groups(product, most)[group])
    (n,) = to.used_x
    pointers = "x y hidden grad d_matrix by_receiver receiver sender"
    constants = "BLOCK_CHANNELS BLOCK_EDGES N_HIDDEN BLOCK_HIDDEN PRECISION"
    to.header(pointers, "n_edges chunk_edges", constants)
    to.add_block(_MATRIX, 1)
    to.add(1, f"inside = (channel < {product.x[n][0]})[None, :]")
    for p, _ in to.paths:
        to.add(1, f"sum_{p} = tl.zeros((BLOCK_HIDDEN, BLOCK_CHANNELS), dtype)")
    to.add(1, "for start in range(first, last, BLOCK_EDGES):")
    to.add_block(_TILE + _TABLES.lstrip("\n") + _HIDDEN.lstrip("\n"), 2)
    _load_x(to, n)
    for p, _ in to.paths:
        _load_gradient(to, p)
        _without_weights(to, p)
        _derivative_in_weights(to, p)
        # products of float32 hold all numbers of a row in each thread: it gains nothing there on NVIDIA
        to.add(2, "d_w = made_once(d_w) if dtype == tl.float64 else d_w")
        to.add(2, f"sum_{p} = tl.dot(left, d_w, sum_{p}, input_precision=PRECISION, out_dtype=dtype)")
    to.add_block("row = d_matrix_ptr + (chunk * N_HIDDEN + h)[:, None] * W_COLUMNS", 1)
    for p, _ in to.paths:
        place = f"row + ({to.w_first[p]} + channel)[None, :]"
        to.add(1, f"tl.store({place}, sum_{p}, mask=known & inside)")
    return to.source()


@lru_cache(maxsize=512)
def radial_edges_kernel(
    product: ChannelwiseProduct, most: int, piece: int, wanted: tuple[bool, bool, bool]
) -> Any:
    """The kernel of `radial_edges_source`, compiled on first use."""
    source = radial_edges_source(product, most, piece, wanted)
    return kernel_of(source, "channelwise_conv", ("n_edges", "n_hidden"), ("made_once", made_once))


@lru_cache(maxsize=512)
def radial_matrix_kernel(product: ChannelwiseProduct, most: int, group: int) -> Any:
    """The kernel of `radial_matrix_source`, compiled on first use."""
    source = radial_matrix_source(product, most, group)
    return kernel_of(source, "channelwise_conv", ("n_edges", "chunk_edges"), ("made_once", made_once))
