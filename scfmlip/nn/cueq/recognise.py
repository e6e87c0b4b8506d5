"""
Recognise segmented polynomials that are convolutions, symmetric contractions or indexed linear maps.

A polynomial is recognised by what it computes, not by its origin: modes may have any names, coefficient modes
may be flattened or not, and modes of extent 1 squeezed or not.
"""

# cuequivariance's objects are untyped here
from __future__ import annotations

import math
from itertools import permutations
from typing import Any, NamedTuple

from scfmlip_kernels import ChannelwiseProduct, ProductPath, SymmetricPolynomial


class ConvolutionPlan(NamedTuple):
    """
    A channel-wise tensor product, layout "ir_mul".

    Attributes:
        product: Segments, paths and coefficients.
        weights, x, y: Numbers of these inputs.
    """

    product: ChannelwiseProduct
    weights: int
    x: int
    y: int


class ContractionPlan(NamedTuple):
    """
    A polynomial in one input and linear in the other; inputs and output are ``[segments, channels]``.

    Attributes:
        polynomial: Its terms.
        weights, x: Numbers of these inputs.
        n_channels: Extent of every segment.
    """

    polynomial: SymmetricPolynomial
    weights: int
    x: int
    n_channels: int


class LinearPath(NamedTuple):
    """
    One matrix product of a linear map.

    Attributes:
        weights, x, out: First columns of the segments.
        rows: Number of components and of channels of x, ``(i, u)``.
        columns: Number of channels of the output.
        coefficient: Factor.
    """

    weights: int
    x: int
    out: int
    rows: tuple[int, int]
    columns: int
    coefficient: float


class LinearPlan(NamedTuple):
    """
    Linear maps of segments, ``[i, u] @ [u, v]``.

    Attributes:
        paths: The matrices.
        weights, x: Numbers of these inputs.
        size: Columns of the output.
        weights_transposed, x_transposed, out_transposed: Whether a segment is stored as ``[v, u]``,
            ``[u, i]`` or ``[v, i]``.
    """

    paths: tuple[LinearPath, ...]
    weights: int
    x: int
    size: int
    weights_transposed: bool
    x_transposed: bool
    out_transposed: bool


Plan = ConvolutionPlan | ContractionPlan | LinearPlan


def recognise(polynomial: Any) -> Plan | None:
    """The plan of an operator that computes a ``cuequivariance.SegmentedPolynomial``; None without one."""
    if polynomial.num_outputs != 1 or not polynomial.operations:
        return None
    if polynomial.num_inputs == 3:
        return _convolution(polynomial)
    if polynomial.num_inputs == 2:
        return _contraction(polynomial) or _linear(polynomial)
    return None


def _flat(product: Any) -> Any | None:
    """The same product with scalar coefficients, or None if its modes do not allow it."""
    if not product.coefficient_subscripts:
        return product
    try:
        return product.flatten_coefficient_modes()
    except ValueError:
        return None


def _long_modes(product: Any) -> set[str]:
    """Modes with an extent other than 1 in some path."""
    return {m for m in product.subscripts.modes() if product.get_dims(m) != {1}}


def _sizes(product: Any, operand: int) -> list[int]:
    return [math.prod(shape) for shape in product.operands[operand].segments]


def _convolution(polynomial: Any) -> ConvolutionPlan | None:
    if len(polynomial.operations) != 1:
        return None
    operation, product = polynomial.operations[0]
    if sorted(operation.buffers) != [0, 1, 2, 3]:
        return None
    product = _flat(product)
    if product is None or len(_long_modes(product)) > 1:
        return None
    place = {buffer: n for n, buffer in enumerate(operation.buffers)}
    sizes = [_sizes(product, place[buffer]) for buffer in range(4)]
    terms = [([path.indices[place[b]] for b in range(4)], float(path.coefficients)) for path in product.paths]
    # segments with multiplicity 0 have no columns
    numbers = [{n: i for i, n in enumerate(i for i, size in enumerate(mine) if size)} for mine in sizes]
    terms = [
        ([number[n] for number, n in zip(numbers, path, strict=True)], value)
        for path, value in terms
        if all(n in number for number, n in zip(numbers, path, strict=True))
    ]
    sizes = [[size for size in mine if size] for mine in sizes]
    if not terms:
        return None
    for w, x, y in permutations(range(3)):
        if any(size != 1 for size in sizes[y]):
            continue
        chosen = [(i[w], i[x], i[y], i[3], value) for i, value in terms]
        # the mode must have a single extent in each path
        if any(not sizes[w][a] == sizes[x][b] == sizes[3][k] for a, b, _, k, _ in chosen):
            continue
        found = _channelwise(chosen, len(sizes[w]), sizes[x], len(sizes[y]), len(sizes[3]))
        if found is not None:
            return ConvolutionPlan(found, w, x, y)
    return None


def _intervals(groups: list[set[int]], n: int) -> list[range] | None:
    """Merge groups that share elements; None unless each result is an interval of 0 .. n - 1."""
    joined: list[set[int]] = []
    for group in [*groups, *({i} for i in range(n))]:
        touching = [other for other in joined if other & group]
        joined = [other for other in joined if not other & group] + [group.union(*touching)]
    found = sorted((range(min(g), max(g) + 1) for g in joined), key=lambda r: r.start)
    return (
        found if all(len(r) == len(g) for r, g in zip(found, sorted(joined, key=min), strict=True)) else None
    )


def _channelwise(
    terms: list[tuple[int, int, int, int, float]], n_w: int, x_sizes: list[int], n_y: int, n_out: int
) -> ChannelwiseProduct | None:
    """Make the plan from terms ``(w, x, y, out, value)`` with scalar coefficients."""
    of_weight: list[list[tuple[int, int, int, float]]] = [[] for _ in range(n_w)]
    for w, *places, value in terms:
        x, y, out = map(int, places)
        of_weight[w].append((x, y, out, value))
    if not all(of_weight):
        return None
    used_x, used_y, used_out = ([{int(t[i]) for t in mine} for mine in of_weight] for i in range(3))
    xs, ys = _intervals(used_x, len(x_sizes)), _intervals(used_y, n_y)
    if xs is None or ys is None:
        return None
    paths, start = [], 0
    for w, mine in enumerate(of_weight):
        # outputs in the order of the weights, none shared, none missing
        outs = range(start, start + len(used_out[w]))
        if used_out[w] != set(outs):
            return None
        start = outs.stop
        a = next(n for n, r in enumerate(xs) if mine[0][0] in r)
        b = next(n for n, r in enumerate(ys) if mine[0][1] in r)
        merged: dict[tuple[int, int, int], float] = {}
        for i, j, k, value in mine:
            term = (i - xs[a].start, j - ys[b].start, k - outs.start)
            merged[term] = merged.get(term, 0.0) + value
        kept = tuple((*term, value) for term, value in sorted(merged.items()) if value)
        paths.append(ProductPath(a, b, kept, len(outs)))
    if start != n_out or any(len({x_sizes[i] for i in r}) > 1 for r in xs):
        return None
    segments = tuple((x_sizes[r.start], len(r)) for r in xs)
    return ChannelwiseProduct(segments, tuple(len(r) for r in ys), tuple(paths), "ir_mul")


def _contraction(polynomial: Any) -> ContractionPlan | None:
    counts = [[op.buffers.count(b) for op, _ in polynomial.operations] for b in range(3)]
    weights = next((b for b in (0, 1) if set(counts[b]) == {1}), None)
    if weights is None or set(counts[2]) != {1} or not all(counts[1 - weights]):
        return None
    merged: dict[tuple[tuple[int, ...], int, int], float] = {}
    extents: set[int] = set()
    numbers = [polynomial.operands[b].num_segments for b in range(3)]
    for operation, product in polynomial.operations:
        long = _long_modes(product)
        if product.coefficient_subscripts or len(long) > 1:
            return None
        # every operand has the channel mode
        if any(not long <= set(mode) for mode in product.subscripts.operands):
            return None
        extents.update(size for n in range(product.num_operands) for size in _sizes(product, n))
        for path in product.paths:
            of = {0: [], 1: [], 2: []}
            for buffer, index in zip(operation.buffers, path.indices, strict=True):
                of[buffer].append(index)
            term = (tuple(sorted(of[1 - weights])), of[weights][0], of[2][0])
            merged[term] = merged.get(term, 0.0) + float(path.coefficients)
    if len(extents) != 1:
        return None
    terms = tuple((*term, value) for term, value in sorted(merged.items()) if value)
    if not terms:
        return None
    found = SymmetricPolynomial(numbers[1 - weights], numbers[2], numbers[weights], terms)
    return ContractionPlan(found, weights, 1 - weights, extents.pop())


def _linear(polynomial: Any) -> LinearPlan | None:
    if len(polynomial.operations) != 1:
        return None
    operation, product = polynomial.operations[0]
    if sorted(operation.buffers) != [0, 1, 2] or product.coefficient_subscripts:
        return None
    place = {buffer: n for n, buffer in enumerate(operation.buffers)}
    for weights in (0, 1):
        x = 1 - weights
        modes = [product.subscripts.operands[place[b]] for b in (weights, x, 2)]
        w_modes, x_modes, out_modes = map(set, modes)
        u, v, i = (w_modes & x_modes) - out_modes, (w_modes & out_modes) - x_modes, x_modes & out_modes
        if w_modes & i or w_modes != u | v or x_modes != u | i or out_modes != v | i:
            continue
        if max(map(len, (u, v, i))) > 1 or any(len(m) != len(set(m)) for m in modes):
            continue
        slices = [product.operands[place[b]].segment_slices() for b in (weights, x, 2)]
        paths = []
        for path in product.paths:
            indices = [path.indices[place[b]] for b in (weights, x, 2)]
            extent = {m: d for b in range(3) for m, d in _extents(product, path, place, (weights, x, 2)[b])}
            rows = (math.prod(extent[m] for m in i), math.prod(extent[m] for m in u))
            first, first_x, first_out = (slices[n][index].start for n, index in enumerate(indices))
            columns = math.prod(extent[m] for m in v)
            paths.append(LinearPath(first, first_x, first_out, rows, columns, float(path.coefficients)))
        orders = ((*u, *v), (*i, *u), (*i, *v))
        transposed = [tuple(mode) != order for mode, order in zip(modes, orders, strict=True)]
        return LinearPlan(tuple(paths), weights, x, polynomial.outputs[0].size, *transposed)
    return None


def _extents(product: Any, path: Any, place: dict[int, int], buffer: int) -> list[tuple[str, int]]:
    shape = product.get_segment_shape(place[buffer], path)
    return list(zip(product.subscripts.operands[place[buffer]], shape, strict=True))
