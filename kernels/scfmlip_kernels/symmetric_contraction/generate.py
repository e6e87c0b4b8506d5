"""
Straight-line Triton for one polynomial: values, gradients in x, gradients of the weights.

A polynomial becomes one tree per output: ``const + sum_v x_v * child_v``, with linear combinations of weights
as constants, and the variable that occurs in most terms factored out first. Values evaluate the tree from its
leaves; gradients walk the same tree and carry the product of the factors so far.
"""

import math
from collections import Counter
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from ..codegen import SourceWriter, kernel_of
from ..indexed_linear.tiles import species_tile
from .polynomial import SymmetricPolynomial, Term, polynomial_of

Kind = Literal["values", "inputs", "weights"]


class _Node(NamedTuple):
    constant: tuple[tuple[int, float], ...]  # weights and their coefficients
    children: "tuple[tuple[int, _Node], ...]"  # keyed by the input that multiplies each


def _tree(terms: list[tuple[tuple[int, ...], int, float]]) -> _Node:
    constant = tuple((weight, value) for factors, weight, value in terms if not factors)
    rest = [term for term in terms if term[0]]
    children = []
    while rest:
        count = Counter(i for factors, *_ in rest for i in set(factors))
        v = max(count, key=lambda i: (count[i], -i))
        taken = []
        for factors, weight, value in rest:
            if v in factors:
                i = factors.index(v)
                taken.append((factors[:i] + factors[i + 1 :], weight, value))
        rest = [term for term in rest if v not in term[0]]
        children.append((v, _tree(taken)))
    return _Node(constant, tuple(children))


def _sum(constant: tuple[tuple[int, float], ...]) -> str:
    """A linear combination of weights."""
    parts = []
    for weight, value in constant:
        sign = "-" if value < 0 else "+"
        size = abs(value)
        parts.append(f"{sign} w{weight}" if size == 1 else f"{sign} {size!r} * w{weight}")
    return " ".join(parts).removeprefix("+ ")


class _Writer(SourceWriter):
    """Statements of a kernel's body; every call of `name` returns a new variable."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth, self.count, self.started = depth, 0, set()

    def name(self) -> str:
        self.count += 1
        return f"t{self.count}"

    def put(self, line: str) -> None:
        self.add(self.depth, line)

    def add_to(self, name: str, value: str) -> None:
        """Add to a variable, creating it on first use."""
        self.put(f"{name} {'+=' if name in self.started else '='} {value}")
        self.started.add(name)

    def leaf(self, node: _Node) -> str:
        """The value of a leaf, as a factor."""
        text = _sum(node.constant)
        return text if len(node.constant) == 1 and text[0] == "w" else f"({text})"

    def value(self, node: _Node, name: str) -> str:
        """Evaluate a node from its leaves."""
        if node.constant:
            self.add_to(name, _sum(node.constant))
        for v, child in node.children:
            inner = self.value(child, self.name()) if child.children else self.leaf(child)
            self.add_to(name, f"x{v} * {inner}")
        return name

    def inputs(self, node: _Node, outside: str, name: str | None, wanted: int) -> str | None:
        """Add ``outside`` times each child to its input's gradient, and compute its value if named."""
        if node.constant and name:
            self.add_to(name, _sum(node.constant))
        for v, child in node.children:
            if child.children:
                product, inner = self.name(), self.name()
                self.put(f"{product} = {outside} * x{v}")
                self.inputs(child, product, inner, wanted)
            else:
                inner = self.name()
                self.put(f"{inner} = {_sum(child.constant)}")
            if v < wanted:
                self.add_to(f"d{v}", f"{outside} * {inner}")
            if name:
                self.add_to(name, f"x{v} * {inner}")
        return name

    def weights(self, node: _Node, outside: str) -> None:
        """Add ``outside`` times each coefficient to its weight's gradient."""
        for weight, value in node.constant:
            self.put(f"d{weight} += {value!r} * {outside}")
        for v, child in node.children:
            product = self.name()
            self.put(f"{product} = {outside} * x{v}")
            self.weights(child, product)


_HEADS = {
    "values": """
def _symmetric_contraction_kernel(
    x_ptr,  # [n_atoms, N_CHANNELS, n_inputs]
    weights_ptr,  # [n_species, n_weights, N_CHANNELS]
    index_ptr,  # [n_atoms] int64
    out_ptr,  # [n_atoms, N_CHANNELS, n_outputs]
    N_CHANNELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
""",
    "inputs": """
def _symmetric_contraction_inputs_kernel(
    x_ptr,  # [n_atoms, N_CHANNELS, n_inputs]
    weights_ptr,  # [n_species, n_weights, N_CHANNELS]
    grad_ptr,  # [n_atoms, N_CHANNELS, n_outputs]
    index_ptr,  # [n_atoms] int64
    out_ptr,  # [n_atoms, N_CHANNELS, n_wanted]
    N_CHANNELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
""",
    "weights": """
def _symmetric_contraction_weights_kernel(
    x_ptr,  # [n_atoms, N_CHANNELS, n_inputs]
    grad_ptr,  # [n_atoms, N_CHANNELS, n_outputs]
    order_ptr,  # [n_atoms] int64
    ptr_ptr,  # [n_species + 1] int64
    out_ptr,  # [n_tiles, n_weights, N_CHANNELS]
    n_species,
    N_CHANNELS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SPECIES: tl.constexpr,
):
""",
}


class _Piece(NamedTuple):
    members: list[int]  # outputs that the kernel writes, or weights if it computes their gradients
    terms: list[Term]


def _pieces(polynomial: SymmetricPolynomial, kind: Kind, most: int) -> list[_Piece]:
    """The pieces, one per kernel; members without terms come first."""
    by_weight = kind == "weights"
    n = polynomial.n_weights if by_weight else polynomial.n_outputs
    terms: dict[int, list[Term]] = {i: [] for i in range(n)}
    for term in polynomial.terms:
        _, weight, output, _ = term
        terms[weight if by_weight else output].append(term)
    found = [_Piece([i for i in range(n) if not terms[i]], [])]
    for i, mine in terms.items():
        # gradients in the inputs add up over the kernels, so even the terms of one output can be split
        n_parts = math.ceil(len(mine) / most) if kind == "inputs" else 1
        size = math.ceil(len(mine) / max(1, n_parts))
        for part in range(n_parts if mine else 0):
            chosen = mine[part * size : (part + 1) * size]
            if found[-1].terms and len(found[-1].terms) + len(chosen) > most:
                found.append(_Piece([], []))
            found[-1].members.append(i)
            found[-1].terms.extend(chosen)
    return found


@lru_cache(maxsize=1024)
def n_pieces(text: str, kind: Kind, most: int) -> int:
    """
    Number of kernels that a large polynomial is split into; each writes its own outputs or weights.

    Kernels have about ``most`` terms; more would spill registers and take minutes to compile.
    """
    return len(_pieces(polynomial_of(text), kind, most))


def source(polynomial: SymmetricPolynomial, kind: Kind, most: int, piece: int, wanted: int) -> str:
    """
    Source text of a kernel.

    Args:
        polynomial: What to compute.
        kind: Values, gradients in the inputs, or gradients of the weights (one part per tile of atoms).
        most: Approximate number of terms per kernel.
        piece: Index of the kernel. Later pieces add their gradients in the inputs to those of the first.
        wanted: Number of leading inputs whose gradients are wanted.
    """
    n_inputs, n_outputs, n_weights, _ = polynomial
    members, terms = _pieces(polynomial, kind, most)[piece]
    trees = {}
    for output in sorted({output for _, _, output, _ in terms}):
        trees[output] = _tree([(f, w, v) for f, w, o, v in terms if o == output])
    head = _Writer(1)
    head.put("channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)")
    head.put("inside = channel < N_CHANNELS")
    body = _Writer(2 if kind == "weights" else 1)
    if kind == "weights":
        head.put("dtype = x_ptr.dtype.element_ty")
        head.put("tile = tl.program_id(0).to(tl.int64)")
        found = "species_tile(tile, ptr_ptr, n_species, SCALE, BLOCK_ROWS, BLOCK_SPECIES)"
        head.put(f"_, first, last = {found}")
        for w in members:
            head.put(f"d{w} = tl.zeros((BLOCK_CHANNELS,), dtype)")
        head.put("for place in range(first, last):")
        body.put("atom = tl.load(order_ptr + place)")
    else:
        head.put("atom = tl.program_id(0).to(tl.int64)")
        head.put("species = tl.load(index_ptr + atom)")
        head.put(f"weights = weights_ptr + species * ({n_weights} * N_CHANNELS) + channel")
        for w in sorted({weight for _, weight, _, _ in terms}):
            head.put(f"w{w} = tl.load(weights + {w} * N_CHANNELS, mask=inside, other=0.0)")
    body.put("row = atom * N_CHANNELS + channel")
    inputs = sorted({i for factors, *_ in terms for i in factors})
    for i in inputs:
        body.put(f"x{i} = tl.load(x_ptr + row * {n_inputs} + {i}, mask=inside, other=0.0)")
    if kind == "inputs" and piece > 0:
        for i in inputs:
            if i < wanted:
                body.add_to(f"d{i}", f"tl.load(out_ptr + row * {wanted} + {i}, mask=inside, other=0.0)")
    for output, tree in trees.items():
        if kind == "values":
            body.value(tree, f"out{output}")
            continue
        body.put(f"g = tl.load(grad_ptr + row * {n_outputs} + {output}, mask=inside, other=0.0)")
        if kind == "inputs":
            body.inputs(tree, "g", None, wanted)
        else:
            body.weights(tree, "g")
    tail = _Writer(1)
    if kind == "weights":
        for w in members:
            place = f"out_ptr + (tile * {n_weights} + {w}) * N_CHANNELS + channel"
            tail.put(f"tl.store({place}, d{w}, mask=inside)")
    else:
        n, letter = (n_outputs, "out") if kind == "values" else (wanted, "d")
        stored = members if kind == "values" else range(wanted)
        tail.put("zero = tl.zeros((BLOCK_CHANNELS,), x_ptr.dtype.element_ty)")
        for i in stored:
            name = f"{letter}{i}"
            if name in body.started or piece == 0:
                value = name if name in body.started else "zero"
                tail.put(f"tl.store(out_ptr + row * {n} + {i}, {value}, mask=inside)")
    return _HEADS[kind].lstrip() + "\n".join((*head.lines, *body.lines, *tail.lines)) + "\n"


@lru_cache(maxsize=1024)
def kernel(text: str, kind: Kind, most: int, piece: int = 0, wanted: int = 0) -> Any:
    """The kernel for a polynomial's text, see `source`."""
    written = source(polynomial_of(text), kind, most, piece, wanted)
    sizes = ("n_species",) if kind == "weights" else ()
    return kernel_of(written, "symmetric_contraction", sizes, ("species_tile", species_tile))
