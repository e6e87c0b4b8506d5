"""
CPU path of the symmetric contraction: monomials by gathers and products, then small matrix products.

Atoms are taken in the order of their species, a chunk at a time; a row is an (atom, channel) pair, and rows
are innermost. Monomials of each degree are those of the degree below times one input; 1 counts as an input,
so that lower degrees ride along. Outputs that share no monomial, like the components of a vector, form
groups: each group takes one product of its coefficients with its own monomials, and the weights of the
species come last. Derivatives recompute a chunk's monomials and go back the same way: memory is O(rows) for
inputs and results, and one chunk, which stays in the cache.
"""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .polynomial import SymmetricPolynomial, polynomial_of

# rows of a chunk
_ROWS = 1024


class _Level(NamedTuple):
    """Monomials of one more degree: rows ``a`` of the level below times rows ``k`` of the first."""

    a: Tensor
    k: Tensor


class _Group(NamedTuple):
    monomials: slice  # of the last level
    sums: slice  # pairs of an output and a weight
    matrix: Tensor  # [sums, monomials]


class _Plan(NamedTuple):
    levels: tuple[_Level, ...]
    groups: tuple[_Group, ...]
    output: Tensor  # of each sum
    weight: Tensor
    outputs: tuple[tuple[int, slice], ...]  # each output's sums


def _levels(monomials: list[tuple[int, ...]], degree: int) -> tuple[_Level, ...]:
    """How to multiply up to these monomials; as few different ones below as a greedy choice finds."""
    levels = []
    for d in range(max(degree, 2), 1, -1):
        count = Counter(m[:i] + m[i + 1 :] for m in monomials if len(m) == d for i in range(d))
        heads, inputs = [], []
        for m in monomials:
            i = max(range(d), key=lambda i: (count[m[:i] + m[i + 1 :]], i)) if len(m) == d else len(m)
            heads.append(m[:i] + m[i + 1 :])
            inputs.append(m[i] + 1 if i < len(m) else 0)
        below = sorted(set(heads))
        place = {m: n if d > 2 else m[0] + 1 for n, m in enumerate(below)}
        levels.append(_Level(torch.tensor([place[h] for h in heads]), torch.tensor(inputs)))
        monomials = below
    return tuple(levels[::-1])


def _groups(polynomial: SymmetricPolynomial) -> list[list[int]]:
    """Outputs, those that share monomials together."""
    users: dict[tuple[int, ...], int] = {}
    parent = list(range(polynomial.n_outputs))

    def root(output: int) -> int:
        while parent[output] != output:
            output = parent[output]
        return output

    for factors, _, output, _ in polynomial.terms:
        parent[root(output)] = root(users.setdefault(factors, output))
    members: dict[int, list[int]] = {}
    for output in sorted({output for _, _, output, _ in polynomial.terms}):
        members.setdefault(root(output), []).append(output)
    return list(members.values())


@lru_cache(maxsize=256)
def _plan(key: str, dtype: torch.dtype) -> _Plan:
    p = polynomial_of(key)
    groups, outputs, pairs, last = [], [], [], []
    for members in _groups(p):
        terms = [term for term in p.terms if term[2] in members]
        monomials = sorted({factors for factors, *_ in terms}, key=lambda m: (m[-1], m))
        mine = sorted({(output, weight) for _, weight, output, _ in terms})
        matrix = torch.zeros(len(mine), len(monomials), dtype=torch.float64)
        row, column = {s: n for n, s in enumerate(mine)}, {m: n for n, m in enumerate(monomials)}
        for factors, weight, output, value in terms:
            matrix[row[output, weight], column[factors]] = value
        for output in members:
            first = len(pairs) + sum(o < output for o, _ in mine)
            outputs.append((output, slice(first, first + sum(o == output for o, _ in mine))))
        sums = slice(len(pairs), len(pairs) + len(mine))
        groups.append(_Group(slice(len(last), len(last) + len(monomials)), sums, matrix.to(dtype)))
        pairs += mine
        last += monomials
    output, weight = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(1)
    return _Plan(_levels(last, p.degree), tuple(groups), output, weight, tuple(outputs))


class _Chunk(NamedTuple):
    rows: Tensor  # atoms
    species: list[tuple[int, int, int]]  # each with its first and last atom in the chunk


def _chunks(order: Tensor, ptr: Tensor, n_channels: int) -> Iterator[_Chunk]:
    size = max(1, _ROWS // max(n_channels, 1))
    bounds = ptr.tolist()
    for start in range(0, len(order), size):
        stop = min(start + size, len(order))
        species = [
            (z, max(a, start) - start, min(b, stop) - start)
            for z, (a, b) in enumerate(zip(bounds[:-1], bounds[1:], strict=True))
            if a < stop and b > start and a < b
        ]
        yield _Chunk(order[start:stop], species)


def _first_level(x: Tensor) -> Tensor:
    """``[1 + n_inputs, atoms, channels]``: 1 and the inputs."""
    out = x.new_empty((x.shape[2] + 1, x.shape[0], x.shape[1]))
    out[0] = 1
    out[1:] = x.permute(2, 0, 1)
    return out.flatten(1)


def symmetric_contraction_cpu(
    x: Tensor, weights: Tensor, index: Tensor, order: Tensor, ptr: Tensor, key: str
) -> Tensor:
    """The polynomial of every row; arguments as in `symmetric_contraction`, on the CPU."""
    plan = _plan(key, x.dtype)
    n_channels = x.shape[1]
    out = x.new_zeros((x.shape[0], n_channels, polynomial_of(key).n_outputs))
    for chunk in _chunks(order, ptr, n_channels):
        first = values = _first_level(x[chunk.rows])
        for level in plan.levels:
            values = values[level.a].mul_(first[level.k])
        gathered = weights.transpose(0, 1)[:, index[chunk.rows]].flatten(1)[plan.weight]
        sums = torch.cat([g.matrix @ values[g.monomials] for g in plan.groups])
        sums *= gathered
        found = out.new_zeros((out.shape[2], len(chunk.rows), n_channels))
        for output, mine in plan.outputs:
            found[output] = sums[mine].sum(0).view(-1, n_channels)
        out[chunk.rows] = found.permute(1, 2, 0)
    return out


def symmetric_contraction_backward_cpu(
    x: Tensor,
    weights: Tensor,
    grad: Tensor,
    index: Tensor,
    order: Tensor,
    ptr: Tensor,
    key: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor]:
    """Derivatives of ``sum out grad`` in x and weights; those not wanted are empty."""
    plan = _plan(key, x.dtype)
    n_channels = x.shape[1]
    wants_x, wants_weights = wanted
    d_x = x.new_empty(x.shape if wants_x else 0)
    d_sums = x.new_zeros((ptr.shape[0] - 1, len(plan.weight), n_channels))
    for chunk in _chunks(order, ptr, n_channels):
        first = _first_level(x[chunk.rows])
        values = [first]
        for level in plan.levels:
            values.append(values[-1][level.a].mul_(first[level.k]))
        g = grad[chunk.rows].permute(2, 0, 1).flatten(1)[plan.output]
        if wants_weights:
            sums = torch.cat([m.matrix @ values[-1][m.monomials] for m in plan.groups])
            sums = sums.mul_(g).view(len(plan.weight), -1, n_channels)
            for z, a, b in chunk.species:
                d_sums[z] += sums[:, a:b].sum(1)
        if wants_x:
            g = weights.transpose(0, 1)[:, index[chunk.rows]].flatten(1)[plan.weight].mul_(g)
            d_values = torch.cat([m.matrix.mT @ g[m.sums] for m in plan.groups])
            d_first = torch.zeros_like(first)
            for n in range(len(plan.levels) - 1, -1, -1):
                a, k = plan.levels[n]
                d_first.index_add_(0, k, d_values * values[n][a])
                below = torch.zeros_like(values[n])
                d_values = below.index_add_(0, a, d_values.mul_(first[k]))
            d_first += d_values
            d_x[chunk.rows] = d_first[1:].view(-1, len(chunk.rows), n_channels).permute(1, 2, 0)
    if not wants_weights:
        return d_x, x.new_empty(0)
    d_weights = torch.zeros_like(weights, memory_format=torch.contiguous_format)
    return d_x, d_weights.index_add_(1, plan.weight, d_sums)
