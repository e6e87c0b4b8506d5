"""
Products of MACE-POLAR's field blocks on rows as they are, for a GPU: a few launches, nothing transposed.

An invariant is ``sum_d x_ud (W y)_ud`` with y a sum of linear maps of a few inputs. The maps' matrices are
multiplied by W first, all of them in one launch, so that one map leads from the inputs to ``W y``.
"""

# mace-torch's and e3nn's modules are untyped: for torch.nn.Module every attribute is Tensor | Module
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import mace  # noqa: F401  (import it before e3nn, which fails to load its constants otherwise)
import torch
from e3nn import o3
from torch import Tensor

from scfmlip_kernels import (
    Block,
    BlockMap,
    BlockPath,
    SpeciesOrder,
    block_linear,
    grouped_dot,
    grouped_scale,
)
from scfmlip_kernels.constants import constant

from .linear import irreps_blocks
from .packed import packed_vector


class DotMaps(NamedTuple):
    """
    How to multiply features with linear maps of inputs.

    Attributes:
        compose: From rows of the maps' matrices to those times W; a species for each degree.
        order, ptr: Those rows sorted by species.
        mixed: From the inputs, one behind the other, to ``W y``.
        groups: Invariant of each column of the features.
        n_invariants: Their number.
        n_biases: Numbers at the end of the matrices that are added to the result of ``mixed``.
    """

    compose: BlockMap
    order: tuple[int, ...]
    ptr: tuple[int, ...]
    mixed: BlockMap
    groups: tuple[int, ...]
    n_invariants: int
    n_biases: int


class ScaleMaps(NamedTuple):
    """
    How to multiply features with mixtures of scalars.

    Attributes:
        mixtures: From the scalars to a number for each channel.
        groups: The number that each column is multiplied by.
    """

    mixtures: BlockMap
    groups: tuple[int, ...]


# by product: the linear maps that it was made for, and how; None where it cannot be done
_DOTS: WeakKeyDictionary[torch.nn.Module, tuple[tuple[Any, ...], DotMaps | None]] = WeakKeyDictionary()
_SCALES: WeakKeyDictionary[torch.nn.Module, ScaleMaps | None] = WeakKeyDictionary()


def _path_parts(product: Any) -> list[tuple[int, int, int, int, float, int, int]]:
    """Blocks of x, of y and of the output, first weight, factor, and shape of the weights of each path."""
    parts = []
    for ins, meta in zip(product.instructions, product._path_meta, strict=True):
        start, _, path_weight, _, mul1, mul2, d = meta[6:13]
        parts.append((ins.i_in1, ins.i_in2, ins.i_out, start, path_weight / d**0.5, mul1, mul2))
    return parts


def _channels(blocks: tuple[Block, ...]) -> list[int]:
    """Channel of each column."""
    return [u for block in blocks for u in range(block.channels) for _ in range(block.dim)]


def _dot_maps(product: Any, linears: tuple[Any, ...]) -> DotMaps | None:
    x, n = irreps_blocks(product.irreps_in1), product.irreps_out.dim
    paths = _path_parts(product)
    if x is None or product.layout != "mul_ir" or product.irreps_in2 != product.irreps_in1:
        return None
    if len(product.irreps_out) != 1 or any(block.channels != n for block in x):
        return None
    if any(i1 != i2 or start != k * n * n for k, (i1, i2, _, start, *_) in enumerate(paths)):
        return None
    degree = {i2: k for k, (_, i2, *_) in enumerate(paths)}
    species, inputs, mixed, column = [], [], [], 0
    biased = [ins.i_out for linear in linears for ins in linear.instructions if ins.i_in < 0]
    # of one map, to one block of scalars that are multiplied; its factor is in the matrices already
    if biased and (len(linears) > 1 or len(biased) > 1 or biased[0] not in degree or x[biased[0]].dim != 1):
        return None
    shared = paths[degree[biased[0]]][4] if biased else 1.0
    for linear in linears:
        blocks = irreps_blocks(linear.irreps_in) if isinstance(linear, o3.Linear) else None
        if blocks is None or linear.irreps_out != product.irreps_in1:
            return None
        for ins in linear.instructions:
            if ins.i_in < 0:
                continue
            k, first = degree.get(ins.i_out), len(species) * n
            species += [0 if k is None else k] * ins.path_shape[0]
            if k is not None:
                scale = ins.path_weight * paths[k][4] / shared
                mixed.append(BlockPath(len(inputs) + ins.i_in, ins.i_out, first, (0, n, 1), scale))
        inputs += [block._replace(first=block.first + column) for block in blocks]
        column += linear.irreps_in.dim
    n_weights = len(species) * n
    biases = [-1] * len(x)
    for i_out in biased:
        biases[i_out] = 0
        species.append(degree[i_out])
    one, n_species = Block(0, n, 1), len(paths)
    compose = BlockMap(
        (one,), (one,), (BlockPath(0, 0, 0, (n * n, 1, n), shared),), product.weight.numel(), n_species
    )
    counts = [species.count(k) for k in range(n_species)]
    order = tuple(sorted(range(len(species)), key=lambda row: species[row]))
    whole = BlockMap(tuple(inputs), x, tuple(mixed), n_weights, biases=tuple(biases) if biased else ())
    groups = tuple(_channels(x))
    return DotMaps(compose, order, (0, *accumulate(counts)), whole, groups, n, len(biased) * n)


def dot_tensors(linears: Sequence[Any]) -> list[Tensor]:
    """The parameters of linear maps in the order of `DotMaps`."""
    return [*(linear.weight for linear in linears), *(l.bias for l in linears if l.bias.numel())]


def flat_dot(product: Any, x: Tensor, sources: list[tuple[Any, Tensor]]) -> Tensor | None:
    """
    The product of features with a sum of linear maps, ``[n, n_invariants]``; None if it has another form.

    Args:
        product: A sparse product to invariants.
        x: ``[n, irreps.dim]`` features.
        sources: Linear maps to the second factor, and the input of each.
    """
    linears = tuple(linear for linear, _ in sources)
    known = _DOTS.get(product)
    if (
        known is None
        or len(known[0]) != len(linears)
        or any(a is not b for a, b in zip(known[0], linears, strict=True))
    ):
        known = _DOTS[product] = (linears, _dot_maps(product, linears))
    maps = known[1]
    if maps is None:
        return None
    rows = packed_vector(id(product), dot_tensors(linears)).view(-1, maps.n_invariants)
    species = SpeciesOrder(*(constant(t, torch.int64, x.device) for t in (maps.order, maps.ptr)))
    matrices = block_linear(rows, product.weight, maps.compose, species).flatten()
    inputs = sources[0][1] if len(sources) == 1 else torch.cat([values for _, values in sources], 1)
    bias = None
    if maps.n_biases:
        matrices, bias = matrices.split((maps.mixed.n_weights, maps.n_biases))
    mixed = block_linear(inputs, matrices, maps.mixed, None, bias)
    return grouped_dot(x, mixed, maps.groups, maps.n_invariants)


def _scale_maps(product: Any) -> ScaleMaps | None:
    x, scalars = irreps_blocks(product.irreps_in1), irreps_blocks(product.irreps_in2)
    paths = _path_parts(product)
    if x is None or scalars is None or len(scalars) != 1 or scalars[0].dim != 1:
        return None
    fits = product.layout == "mul_ir" and product.irreps_out == product.irreps_in1
    if not fits or [p[:3] for p in paths] != [(k, 0, k) for k in range(len(x))]:
        return None
    out, each, groups, column = [], [], [], 0
    for k, block in enumerate(x):
        _, _, _, start, factor, _, mul2 = paths[k]
        out.append(Block(column, block.channels, 1))
        each.append(BlockPath(0, k, start, (0, 1, mul2), factor))
        groups += [column + u for u in _channels((block,))]
        column += block.channels
    linear = BlockMap(scalars, tuple(out), tuple(each), product.weight.numel())
    return ScaleMaps(linear, tuple(groups))


def flat_scale(product: Any, x: Tensor, scalars: Tensor) -> Tensor | None:
    """The ``l x 0 -> l`` product of features with scalars; None if it has another form."""
    if product not in _SCALES:
        _SCALES[product] = _scale_maps(product)
    maps = _SCALES[product]
    if maps is None:
        return None
    return grouped_scale(block_linear(scalars, product.weight, maps.mixtures), x, maps.groups)
