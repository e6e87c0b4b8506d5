"""
Straight-line Triton source of a product's kernels, kept in memory.

Loops over paths, components and coefficients are unrolled: coefficients become literals, zero coefficients
cost nothing, and every component of a block of channels stays in registers. The source does not contain the
sizes of the graph, so one compilation serves every graph.

A product with more components than fit into registers is split: each kernel runs some of its paths. Results
and derivatives in the weights belong to one path each. The launcher sums derivatives in y over the kernels.
Derivatives in a segment of x start from what the kernel before has written.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from ..codegen import SourceWriter, kernel_of
from .product import ChannelwiseProduct, ProductPath, offsets

_PROGRAM = """
    program = tl.program_id(0).to(tl.int64)
    node = program // N_BLOCKS
    block = program % N_BLOCKS
    channel = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    first = tl.load(receiver_ptr + node)
    last = tl.load(receiver_ptr + node + 1)
    dtype = x_ptr.dtype.element_ty
"""

_EDGE = """
    for slot in range(first, last):
        edge = tl.load(by_receiver_ptr + slot)
        sender = tl.load(sender_ptr + edge)
        x_row = x_ptr + sender * X_COLUMNS
        y_row = y_ptr + edge * Y_COLUMNS
        w_row = w_ptr + edge * W_COLUMNS
"""

_DERIVATIVES = """
        d_x_row = d_x_ptr + edge * X_COLUMNS
        d_y_row = d_y_ptr + ((edge * N_PIECES + PIECE) * N_BLOCKS + block) * Y_COLUMNS
        d_w_row = d_w_ptr + edge * W_COLUMNS
"""


def _address(first: int, segment: tuple[int, int], component: int, layout: str) -> str:
    """Column of a component in its row, as an expression in ``channel``."""
    channels, dim = segment
    if layout == "ir_mul":
        return f"{first + component * channels} + channel"
    return f"{first + component} + channel * {dim}" if dim > 1 else f"{first} + channel"


def _total(terms: Iterable[str]) -> str:
    return " + ".join(terms)


@lru_cache(maxsize=512)
def pieces(product: ChannelwiseProduct, most: int) -> tuple[tuple[int, ...], ...]:
    """Paths of each kernel, by their segments of x, with at most ``most`` components of results together."""
    found: list[list[int]] = [[]]
    size = 0
    for n in range(len(product.x)):
        mine = [p for p, path in enumerate(product.paths) if path.x == n]
        total = sum(product.paths[p].dim for p in mine)
        for p in mine:
            dim = product.paths[p].dim
            # keep a segment of x in one kernel where possible: two kernels would both load it
            if found[-1] and size + (total if p == mine[0] else dim) > most:
                found.append([])
                size = 0
            found[-1].append(p)
            size += dim
    return tuple(tuple(piece) for piece in found)


class _Writer(SourceWriter):
    """Lines that both kernels share, for some of the paths."""

    def __init__(self, product: ChannelwiseProduct, chosen: tuple[int, ...]) -> None:
        super().__init__()
        self.product = product
        self.paths = [(p, product.paths[p]) for p in chosen]
        self.x_first = offsets([c * d for c, d in product.x])
        self.y_first = offsets(list(product.y))
        self.out_first = offsets([c * d for c, d in product.out])
        self.w_first = offsets([c for c, _ in product.out])
        self.used_x = sorted({path.x for _, path in self.paths})
        # per segment of x: its values stay in registers only as long as its paths need them
        self.paths_of = {n: [p for p, path in self.paths if path.x == n] for n in self.used_x}
        self.used_y = sorted({path.y for _, path in self.paths})

    def add_block(self, text: str, depth: int = 0) -> None:
        """Add lines with the names of column counts replaced by their numbers."""
        columns = {"X": self.product.x_dim, "Y": self.product.y_dim, "W": self.product.weight_numel}
        for name, number in columns.items():
            text = text.replace(f"{name}_COLUMNS", str(number))
        super().add_block(text, depth)

    def header(self, pointers: str, sizes: str, constants: str) -> None:
        """The ``def`` line; each argument is a string of names separated by spaces."""
        arguments = [f"{name}_ptr" for name in pointers.split()] + sizes.split()
        arguments += [f"{name}: tl.constexpr" for name in constants.split()]
        self.add(0, f"def kernel({', '.join(arguments)}):")

    def masks(self) -> None:
        for channels in sorted({self.product.x[n][0] for n in self.used_x}):
            self.add(1, f"inside_{channels} = channel < {channels}")

    def mask(self, segment: int) -> str:
        return f"mask=inside_{self.product.x[segment][0]}"

    def x_place(self, n: int, i: int) -> str:
        return _address(self.x_first[n], self.product.x[n], i, self.product.layout)

    def out_place(self, p: int, k: int) -> str:
        return _address(self.out_first[p], self.product.out[p], k, self.product.layout)

    def load_x(self, n: int) -> None:
        for i in range(self.product.x[n][1]):
            self.add(2, f"x_{n}_{i} = tl.load(x_row + {self.x_place(n, i)}, {self.mask(n)}, other=0.0)")

    def load_y(self) -> None:
        for n in self.used_y:
            for j in range(self.product.y[n]):
                self.add(2, f"y_{n}_{j} = tl.load(y_row + {self.y_first[n] + j})")

    def load_w(self, p: int) -> None:
        mask = self.mask(self.product.paths[p].x)
        self.add(2, f"w = tl.load(w_row + {self.w_first[p]} + channel, {mask}, other=0.0)")

    def small_matrix(self, p: int) -> None:
        """The sums over y, ``m_i_k``; they do not depend on the channel."""
        path = self.product.paths[p]
        for i, k in _entries(path):
            terms = [f"{c!r} * y_{path.y}_{j}" for a, j, b, c in path.coefficients if (a, b) == (i, k)]
            self.add(2, f"m_{i}_{k} = {_total(terms)}")


def _entries(path: ProductPath) -> list[tuple[int, int]]:
    """Pairs (component of x, component of the output) with a nonzero coefficient."""
    return sorted({(i, k) for i, _, k, _ in path.coefficients})


def forward_source(product: ChannelwiseProduct, most: int, piece: int) -> str:
    """
    Source of ``kernel``: one program sums the messages of one node and block of channels.

    Args:
        product: The product.
        most: Most components of results in one kernel, see `pieces`.
        piece: Which of the kernels.
    """
    to = _Writer(product, pieces(product, most)[piece])
    to.header("x y w out by_receiver receiver sender", "", "N_BLOCKS BLOCK_CHANNELS")
    to.add_block(_PROGRAM)
    to.masks()
    for p, path in to.paths:
        for k in range(path.dim):
            to.add(1, f"sum_{p}_{k} = tl.zeros((BLOCK_CHANNELS,), dtype)")
    to.add_block(_EDGE)
    to.load_y()
    for n in to.used_x:
        to.load_x(n)
        for p in to.paths_of[n]:
            path = product.paths[p]
            to.load_w(p)
            to.small_matrix(p)
            for k in range(path.dim):
                terms = [f"m_{i}_{k} * x_{n}_{i}" for i, b in _entries(path) if b == k]
                if terms:
                    to.add(2, f"sum_{p}_{k} += w * ({_total(terms)})")
    to.add(1, f"out_row = out_ptr + node * {product.out_dim}")
    for p, path in to.paths:
        for k in range(path.dim):
            to.add(1, f"tl.store(out_row + {to.out_place(p, k)}, sum_{p}_{k}, {to.mask(path.x)})")
    return to.source()


def backward_source(product: ChannelwiseProduct, most: int, piece: int, wanted: Sequence[bool]) -> str:
    """
    Source of ``kernel``: one program differentiates the edges of one node and block of channels.

    Args:
        product: The product.
        most: Most components of results in one kernel, see `pieces`.
        piece: Which of the kernels; they run one after the other.
        wanted: Which of the derivatives in x, y and the weights are wanted. Derivatives in x are written per
            edge, those in y per edge, piece and block of channels.
    """
    cut = pieces(product, most)
    to = _Writer(product, cut[piece])
    started = {product.paths[p].x for earlier in cut[:piece] for p in earlier}
    used = {path.x for path in product.paths}
    wants_x, wants_y, wants_w = wanted
    to.header("x y w grad d_x d_y d_w by_receiver receiver sender", "", "N_BLOCKS BLOCK_CHANNELS")
    to.add_block(_PROGRAM)
    to.masks()
    to.add(1, f"grad_row = grad_ptr + node * {product.out_dim}")
    for p, path in to.paths:
        for k in sorted({k for _, k in _entries(path)}):
            place = to.out_place(p, k)
            to.add(1, f"g_{p}_{k} = tl.load(grad_row + {place}, {to.mask(path.x)}, other=0.0)")
    derivatives = _DERIVATIVES.replace("N_PIECES", str(len(cut))).replace("PIECE", str(piece))
    to.add_block(_EDGE + derivatives.lstrip("\n"))
    if wants_x or wants_w:
        to.load_y()
    if wants_y:
        for n, dim in enumerate(product.y):
            for j in range(dim):
                to.add(2, f"d_y_{n}_{j} = tl.zeros((BLOCK_CHANNELS,), dtype)")
    for n, (channels, dim) in enumerate(product.x):
        if n in to.used_x and (wants_y or wants_w):
            to.load_x(n)
        mask = f"mask=channel < {channels}"
        # the first kernel also writes zeros for segments without a path
        writes_x = wants_x and (n in to.used_x or (n not in used and piece == 0))
        if writes_x:
            for i in range(dim):
                start = f"tl.load(d_x_row + {to.x_place(n, i)}, {mask}, other=0.0)"
                to.add(2, f"d_x_{n}_{i} = {start if n in started else 'tl.zeros((BLOCK_CHANNELS,), dtype)'}")
        for p in to.paths_of.get(n, []):
            _backward_path(to, p, wanted)
        if writes_x:
            for i in range(dim):
                to.add(2, f"tl.store(d_x_row + {to.x_place(n, i)}, d_x_{n}_{i}, {mask})")
    if wants_y:
        for n, dim in enumerate(product.y):
            for j in range(dim):
                to.add(2, f"tl.store(d_y_row + {to.y_first[n] + j}, tl.sum(d_y_{n}_{j}, 0))")
    return to.source()


def _backward_path(to: _Writer, p: int, wanted: Sequence[bool]) -> None:
    path = to.product.paths[p]
    wants_x, wants_y, wants_w = wanted
    entries = _entries(path)
    components = sorted({i for i, _ in entries})
    if wants_x or wants_y:
        to.load_w(p)
    if wants_x or wants_w:
        to.small_matrix(p)
        for i in components:
            terms = [f"m_{i}_{k} * g_{p}_{k}" for a, k in entries if a == i]
            to.add(2, f"r_{i} = {_total(terms)}")
    if wants_w:
        terms = [f"x_{path.x}_{i} * r_{i}" for i in components]
        value = _total(terms) if terms else "tl.zeros((BLOCK_CHANNELS,), dtype)"
        to.add(2, f"tl.store(d_w_row + {to.w_first[p]} + channel, {value}, {to.mask(path.x)})")
    if wants_x:
        for i in components:
            to.add(2, f"d_x_{path.x}_{i} += w * r_{i}")
    if wants_y:
        for i in components:
            to.add(2, f"z_{i} = w * x_{path.x}_{i}")
        for j, terms in _attribute_terms(path, f"g_{p}"):
            to.add(2, f"d_y_{path.y}_{j} += {terms}")


def _attribute_terms(path: ProductPath, gradient: str) -> Iterator[tuple[int, str]]:
    """Each component of y and the derivative in it, from ``z_i = w x_i`` and the gradient's components."""
    for j in sorted({j for _, j, _, _ in path.coefficients}):
        mine = [(i, k, c) for i, b, k, c in path.coefficients if b == j]
        terms = []
        for i in sorted({i for i, _, _ in mine}):
            inner = _total(f"{c!r} * {gradient}_{k}" for a, k, c in mine if a == i)
            terms.append(f"z_{i} * ({inner})")
        yield j, _total(terms)


@lru_cache(maxsize=1024)
def forward_kernel(product: ChannelwiseProduct, most: int, piece: int) -> Any:
    """The kernel of `forward_source`, compiled on first use."""
    return kernel_of(forward_source(product, most, piece), "channelwise_conv")


@lru_cache(maxsize=1024)
def backward_kernel(
    product: ChannelwiseProduct, most: int, piece: int, wanted: tuple[bool, bool, bool]
) -> Any:
    """The kernel of `backward_source`, compiled on first use."""
    return kernel_of(backward_source(product, most, piece, wanted), "channelwise_conv")
