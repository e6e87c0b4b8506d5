"""
CPU path of the symmetric contraction: monomials by gathers and products, then one sparse product.

Atoms are processed in chunks. A row is an (atom, channel) pair, and rows are the innermost dimension. The
monomials of each degree are those of the degree below times one input, sorted by that input; the constant 1
counts as an input, so lower degrees are carried along. The sparse product with the coefficients gives one sum
per output and weight, which is then multiplied by the species' weights. Derivatives recompute a chunk's
monomials and run the same steps backwards. Memory is O(rows) for inputs and results, plus one chunk, which
stays in the cache.
"""

import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .polynomial import polynomial_of

_Monomial = tuple[int, ...]

# entries in a chunk's table of monomials, and fewest and most rows of a chunk
_CHUNK, _MIN_ROWS, _MAX_ROWS = 1 << 20, 512, 8192
# warning filters belong to the process, so threads take turns
_FILTERS = threading.Lock()


class _Sparse(NamedTuple):
    """A constant sparse matrix with entries sorted by row; in CSR form where PyTorch supports the product."""

    n_rows: int
    row: Tensor
    column: Tensor
    value: Tensor
    csr: Tensor | None

    def times(self, dense: Tensor, out: Tensor) -> Tensor:
        """The product with a dense matrix."""
        if self.csr is not None:
            return torch.addmm(out, self.csr, dense, beta=0, out=out)
        terms = dense.index_select(0, self.column).mul_(self.value[:, None])
        return out.zero_().index_add_(0, self.row, terms)


class _Scratch:
    """Memory that all chunks of a call reuse: fresh pages cost more than the arithmetic on them."""

    def __init__(self, like: Tensor) -> None:
        self.like, self.kept = like, {}

    def table(self, name: str, n: int, rows: int) -> Tensor:
        """Uninitialised ``[n, rows]``."""
        if name not in self.kept or self.kept[name].numel() < n * rows:
            self.kept[name] = self.like.new_empty(n * rows)
        return self.kept[name][: n * rows].view(n, rows)

    def select(self, name: str, values: Tensor, rows: Tensor) -> Tensor:
        """Rows of a table."""
        out = self.table(name, len(rows), values.shape[1])
        return torch.index_select(values, 0, rows, out=out)


class _Level(NamedTuple):
    """Monomials of the next degree: rows ``below`` of the level below, each range times one input."""

    below: Tensor
    factor: Tensor  # index of the input that multiplies each row
    inputs: tuple[tuple[int, slice], ...]  # the same as ranges, without those multiplied by 1


class _Plan(NamedTuple):
    levels: tuple[_Level, ...]
    matrix: _Sparse  # [sums, monomials of the last level]
    transposed: _Sparse
    output: Tensor  # output component of each sum
    weight: Tensor
    outputs: tuple[tuple[int, slice], ...]  # sums of each output
    n_outputs: int
    n_monomials: int


def _sparse(shape: tuple[int, int], entries: list[tuple[int, int, float]], dtype: torch.dtype) -> _Sparse:
    entries = sorted(entries)
    row = torch.tensor([r for r, _, _ in entries], dtype=torch.int64)
    column = torch.tensor([c for _, c, _ in entries], dtype=torch.int64)
    value = torch.tensor([v for _, _, v in entries], dtype=dtype)
    csr = None
    if torch.backends.mkl.is_available():
        ptr = torch.searchsorted(row, torch.arange(shape[0] + 1))
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # says that the layout is in beta
            csr = torch.sparse_csr_tensor(ptr, column, value, shape)
    return _Sparse(shape[0], row, column, value, csr)


def _levels(monomials: list[_Monomial], degree: int) -> tuple[list[_Monomial], tuple[_Level, ...]]:
    """The monomials in output order, and the levels that build them; a greedy choice keeps levels small."""
    levels, last = [], []
    for d in range(max(degree, 2), 1, -1):
        count = Counter(m[:i] + m[i + 1 :] for m in monomials if len(m) == d for i in range(d))
        split = []
        for m in monomials:
            i = max(range(d), key=lambda i: (count[m[:i] + m[i + 1 :]], i)) if len(m) == d else len(m)
            split.append((m[i] + 1 if i < len(m) else 0, m[:i] + m[i + 1 :], m))
        split.sort()
        last = last or [m for *_, m in split]
        # the level below may be reordered, so refer to its monomials by name for now
        levels.append((split, [m for *_, m in split]))
        monomials = sorted({head for _, head, _ in split})
    found = []
    for n, (split, _) in enumerate(levels):
        if n + 1 < len(levels):
            place = {m: i for i, m in enumerate(levels[n + 1][1])}
        else:
            place = {m: m[0] + 1 for m in monomials}
        inputs = [k for k, *_ in split]
        ranges = []
        for k in sorted(set(inputs) - {0}):
            first = inputs.index(k)
            ranges.append((k, slice(first, first + inputs.count(k))))
        below = torch.tensor([place[head] for _, head, _ in split], dtype=torch.int64)
        found.append(_Level(below, torch.tensor(inputs, dtype=torch.int64), tuple(ranges)))
    return last, tuple(found[::-1])


@lru_cache(maxsize=256)
def _plan(text: str, dtype: torch.dtype) -> _Plan:
    p = polynomial_of(text)
    monomials, levels = _levels(sorted({factors for factors, *_ in p.terms}), p.degree)
    pairs = sorted({(output, weight) for _, weight, output, _ in p.terms})
    row = {pair: n for n, pair in enumerate(pairs)}
    column = {m: n for n, m in enumerate(monomials)}
    entries = [(row[output, weight], column[factors], value) for factors, weight, output, value in p.terms]
    found = [output for output, _ in pairs]
    return _Plan(
        levels,
        _sparse((len(pairs), len(monomials)), entries, dtype),
        _sparse((len(monomials), len(pairs)), [(c, r, v) for r, c, v in entries], dtype),
        torch.tensor(found, dtype=torch.int64),
        torch.tensor([weight for _, weight in pairs], dtype=torch.int64),
        tuple((o, slice(found.index(o), found.index(o) + found.count(o))) for o in sorted(set(found))),
        p.n_outputs,
        len(monomials),
    )


def _chunks(plan: _Plan, x: Tensor, order: Tensor) -> Iterator[tuple[int, Tensor]]:
    """First atom and atoms of each chunk, sorted by species."""
    rows = min(max(_CHUNK // max(plan.n_monomials, 1), _MIN_ROWS), _MAX_ROWS)
    size = max(1, rows // max(x.shape[1], 1))
    for first in range(0, x.shape[0] if x.shape[1] and plan.n_monomials else 0, size):
        yield first, order[first : first + size]


def _with_channels(scratch: _Scratch, values: Tensor, atoms: Tensor) -> Tensor:
    """From ``[n_atoms, n_channels, n]`` for all atoms to ``[n, rows]`` for some of them."""
    out = scratch.table("outer", values.shape[2], len(atoms) * values.shape[1])
    out.view(-1, len(atoms), values.shape[1]).copy_(values[atoms].permute(2, 0, 1))
    return out


def _first_level(scratch: _Scratch, x: Tensor, atoms: Tensor, constant: float) -> Tensor:
    """``[1 + n_inputs, rows]``: a constant and the inputs."""
    out = scratch.table(f"first {constant}", x.shape[2] + 1, len(atoms) * x.shape[1])
    out[0] = constant
    out[1:].view(-1, len(atoms), x.shape[1]).copy_(x[atoms].permute(2, 0, 1))
    return out


def _gathered(scratch: _Scratch, weights: Tensor, index: Tensor, atoms: Tensor, numbers: Tensor) -> Tensor:
    """``[n_numbers, rows]`` weights of the atoms' species; ``weights [n_weights, n_species, n_channels]``."""
    values = weights.index_select(1, index[atoms]).flatten(1)
    return scratch.select("weights", values, numbers)


def _times_inputs(values: Tensor, first: Tensor, level: _Level) -> Tensor:
    """Multiply each range by its input, in place."""
    for k, rows in level.inputs:
        values[rows].mul_(first[k])
    return values


def _add_products(out: Tensor, values: Tensor, first: Tensor, level: _Level) -> None:
    """Add each range of the values times its input."""
    for k, rows in level.inputs:
        out[rows].addcmul_(values[rows], first[k])


def _add_outputs(out: Tensor, atoms: Tensor, plan: _Plan, sums: Tensor) -> None:
    """Add the weighted sums to their outputs."""
    found = sums.new_zeros((plan.n_outputs, len(atoms), out.shape[1]))
    for output, mine in plan.outputs:
        found[output] = sums[mine].sum(0).view(len(atoms), -1)
    out.index_copy_(0, atoms, found.permute(1, 2, 0))


class _WeightSums:
    """Gradients of the weights, summed over the atoms of each species chunk by chunk."""

    def __init__(self, plan: _Plan, weights: Tensor, ptr: Tensor) -> None:
        self.plan, self.weights, self.bounds, self.species = plan, weights, ptr.tolist(), 0
        self.sums = weights.new_zeros((weights.shape[0], len(plan.weight), weights.shape[2]))

    def add(self, start: int, products: Tensor) -> None:
        """Add ``products [sums, rows]`` of the atoms that begin at ``start``."""
        products = products.view(len(self.plan.weight), -1, self.weights.shape[2])
        stop = start + products.shape[1]
        while True:
            first, last = self.bounds[self.species : self.species + 2]
            if last > first:
                mine = products[:, max(first - start, 0) : min(last, stop) - start]
                self.sums[self.species] += mine.sum(1)
            if last > stop or self.species + 2 == len(self.bounds):
                return
            self.species += 1
            if self.bounds[self.species] >= stop:
                return

    def total(self) -> Tensor:
        """The gradients, in the shape of the weights."""
        out = torch.zeros_like(self.weights, memory_format=torch.contiguous_format)
        return out.index_add_(1, self.plan.weight, self.sums)


def symmetric_contraction_cpu(x: Tensor, weights: Tensor, index: Tensor, order: Tensor, text: str) -> Tensor:
    """The polynomial of every row; arguments as in `symmetric_contraction`, on the CPU."""
    plan = _plan(text, x.dtype)
    by_weight = weights.transpose(0, 1).contiguous()
    out = x.new_zeros((x.shape[0], x.shape[1], plan.n_outputs))
    scratch = _Scratch(x)
    for _, atoms in _chunks(plan, x, order):
        first = values = _first_level(scratch, x, atoms, 1.0)
        for n, level in enumerate(plan.levels):
            values = _times_inputs(scratch.select(f"level {n}", values, level.below), first, level)
        sums = plan.matrix.times(values, scratch.table("sums", len(plan.weight), first.shape[1]))
        sums *= _gathered(scratch, by_weight, index, atoms, plan.weight)
        _add_outputs(out, atoms, plan, sums)
    return out


def symmetric_contraction_backward_cpu(
    x: Tensor,
    weights: Tensor,
    grad: Tensor,
    index: Tensor,
    order: Tensor,
    ptr: Tensor,
    text: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    """Derivatives of ``sum out grad`` in x and weights; unwanted ones are empty."""
    plan = _plan(text, x.dtype)
    wants_x, wants_weights = wanted
    by_weight = weights.transpose(0, 1).contiguous()
    d_x = x.new_zeros(x.shape if wants_x else 0)
    d_weights = _WeightSums(plan, weights, ptr)
    scratch = _Scratch(x)
    last = len(plan.levels) - 1
    for start, atoms in _chunks(plan, x, order):
        first = values = _first_level(scratch, x, atoms, 1.0)
        n_rows = first.shape[1]
        below = []  # monomials before each level's last factor
        for n, level in enumerate(plan.levels):
            values = scratch.select(f"below {n}", values, level.below)
            below.append(values)
            if n < last:
                copy = scratch.table(f"level {n}", *values.shape).copy_(values)
                values = _times_inputs(copy, first, level)
        outer = _with_channels(scratch, grad, atoms)
        g = scratch.select("grad", outer, plan.output)
        if wants_x:
            weighted = _gathered(scratch, by_weight, index, atoms, plan.weight).mul_(g)
            d_values = plan.transposed.times(weighted, scratch.table("d", plan.n_monomials, n_rows))
            d_first = scratch.table("d first", *first.shape).zero_()
            for n in range(last, -1, -1):
                level = plan.levels[n]
                products = torch.mul(d_values, below[n], out=scratch.table("products", *d_values.shape))
                d_first.index_add_(0, level.factor, products)
                _times_inputs(d_values, first, level)
                if n:
                    next_values = scratch.table(f"d {n}", len(plan.levels[n - 1].below), n_rows)
                    d_values = next_values.zero_().index_add_(0, level.below, d_values)
                else:
                    d_first.index_add_(0, level.below, d_values)
            d_x.index_copy_(0, atoms, d_first[1:].view(-1, len(atoms), x.shape[1]).permute(1, 2, 0))
        if wants_weights:
            values = _times_inputs(below[-1], first, plan.levels[-1])
            sums = plan.matrix.times(values, scratch.table("sums", len(plan.weight), n_rows))
            d_weights.add(start, sums.mul_(g))
    return d_x, d_weights.total() if wants_weights else x.new_empty(0)


def symmetric_contraction_second_cpu(
    x: Tensor,
    weights: Tensor,
    grad: Tensor,
    along_x: Tensor,
    along_weights: Tensor | None,
    index: Tensor,
    order: Tensor,
    ptr: Tensor,
    text: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Derivatives of the first derivatives times ``along_x`` and ``along_weights``, in x, weights and grad.

    A single sweep: monomials, their derivatives along the direction, and the backward pass of both.
    """
    plan = _plan(text, x.dtype)
    wants_x, wants_weights, wants_grad = wanted
    by_weight = weights.transpose(0, 1).contiguous()
    along_by_weight = None if along_weights is None else along_weights.transpose(0, 1).contiguous()
    d_x = x.new_zeros(x.shape if wants_x else 0)
    d_grad = x.new_zeros(grad.shape if wants_grad else 0)
    d_weights = _WeightSums(plan, weights, ptr)
    scratch = _Scratch(x)
    last = len(plan.levels) - 1
    for start, atoms in _chunks(plan, x, order):
        first = values = _first_level(scratch, x, atoms, 1.0)
        along_first = along = _first_level(scratch, along_x, atoms, 0.0)
        n_rows = first.shape[1]
        below, along_below = [], []
        for n, level in enumerate(plan.levels):
            values = scratch.select(f"below {n}", values, level.below)
            along = scratch.select(f"along below {n}", along, level.below)
            below.append(values)
            along_below.append(along)
            if n < last:
                along = scratch.table(f"along {n}", *along.shape).copy_(along)
                _times_inputs(along, first, level)
                _add_products(along, values, along_first, level)
                values = scratch.table(f"level {n}", *values.shape).copy_(values)
                _times_inputs(values, first, level)
        outer = _with_channels(scratch, grad, atoms)
        g = scratch.select("grad", outer, plan.output)
        gathered = _gathered(scratch, by_weight, index, atoms, plan.weight)
        along_gathered = None
        if along_by_weight is not None:
            found = along_by_weight.index_select(1, index[atoms]).flatten(1)
            along_gathered = scratch.select("along weights", found, plan.weight)
        if wants_x:
            weighted = torch.mul(gathered, g, out=scratch.table("weighted", *g.shape))
            d_values = plan.transposed.times(weighted, scratch.table("d", plan.n_monomials, n_rows))
            along_d = None
            if along_gathered is not None:
                weighted = torch.mul(along_gathered, g, out=scratch.table("weighted", *g.shape))
                table = scratch.table("along d", plan.n_monomials, n_rows)
                along_d = plan.transposed.times(weighted, table)
            d_first = scratch.table("d first", *first.shape).zero_()
            for n in range(last, -1, -1):
                level = plan.levels[n]
                products = scratch.table("products", *d_values.shape)
                torch.mul(d_values, along_below[n], out=products)
                if along_d is not None:
                    products.addcmul_(along_d, below[n])
                d_first.index_add_(0, level.factor, products)
                # derivative of d_values times the inputs; along_first is 0 for ranges multiplied by 1
                products.zero_() if along_d is None else products.copy_(_times_inputs(along_d, first, level))
                _add_products(products, d_values, along_first, level)
                if n == 0:
                    d_first.index_add_(0, level.below, products)
                    break
                _times_inputs(d_values, first, level)
                shape = (len(plan.levels[n - 1].below), n_rows)
                along_d = scratch.table(f"along d {n}", *shape).zero_().index_add_(0, level.below, products)
                d_values = scratch.table(f"d {n}", *shape).zero_().index_add_(0, level.below, d_values)
            d_x.index_copy_(0, atoms, d_first[1:].view(-1, len(atoms), x.shape[1]).permute(1, 2, 0))
        if wants_weights or wants_grad:
            level = plan.levels[-1]
            along = _times_inputs(along_below[-1], first, level)
            _add_products(along, below[-1], along_first, level)
            sums = plan.matrix.times(along, scratch.table("sums", len(plan.weight), n_rows))
            if wants_weights:
                d_weights.add(start, g.mul_(sums))
            if wants_grad:
                sums *= gathered
                if along_gathered is not None:
                    values = _times_inputs(below[-1], first, level)
                    table = scratch.table("more sums", len(plan.weight), n_rows)
                    sums.addcmul_(plan.matrix.times(values, table), along_gathered)
                _add_outputs(d_grad, atoms, plan, sums)
    return d_x, d_weights.total() if wants_weights else x.new_empty(0), d_grad
