"""
Linear maps of the same features, in one launch.

What reads the features of a layer (its readout, its charges, the next layer) does so through linear maps of
its own. `join` runs them all at once; each module that asks for its map of the same features finds it.
"""

# mace-torch's and e3nn's modules are untyped: for torch.nn.Module every attribute is Tensor | Module
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from scfmlip_kernels import Block, BlockMap, BlockPath, block_linear
from scfmlip_kernels.block_linear.op import parts_of

from .packed import packed_vector

# by map: the features it was run on, and the result
_RESULTS: ContextVar[dict[int, tuple[Tensor, Tensor]] | None] = ContextVar("results", default=None)
# by first map: all of them, and the joint one
_MAPS: WeakKeyDictionary[torch.nn.Module, tuple[tuple[int, ...], BlockMap]] = WeakKeyDictionary()


@contextlib.contextmanager
def joining() -> Iterator[None]:
    """Inside, results of `join` are kept."""
    token = _RESULTS.set({})
    try:
        yield
    finally:
        _RESULTS.reset(token)


def joined_result(linear: Any, features: Tensor) -> Tensor | None:
    """What a map gives for these very features, if it is known."""
    known = _RESULTS.get()
    found = None if known is None else known.get(id(linear))
    return found[1] if found is not None and found[0] is features else None


def joinable(linears: Sequence[Any]) -> list[Any]:
    """Those maps that can run together: of the same irreps as the first one, without biases."""
    found: list[Any] = []
    for linear in linears:
        fits = getattr(linear, "_scfmlip_map", None) is not None and not linear.bias.numel()
        if fits and (not found or linear.irreps_in == found[0].irreps_in) and linear not in found:
            found.append(linear)
    return found


def _joint(linears: Sequence[Any]) -> BlockMap:
    ids = tuple(map(id, linears))
    known = _MAPS.get(linears[0])
    if known is not None and known[0] == ids:
        return known[1]
    out: list[Block] = []
    paths: list[BlockPath] = []
    column = weight = 0
    for linear in linears:
        mine: BlockMap = linear._scfmlip_map
        first = len(out)
        paths += [path._replace(out=path.out + first, first=path.first + weight) for path in mine.paths]
        out += [block._replace(first=block.first + column) for block in mine.out]
        column, weight = column + mine.out_dim, weight + mine.n_weights
    widths = tuple(linear._scfmlip_map.out_dim for linear in linears)
    joint = BlockMap(linears[0]._scfmlip_map.x, tuple(out), tuple(paths), weight, out_parts=widths)
    _MAPS[linears[0]] = ids, joint
    return joint


def join(features: Tensor, linears: Sequence[Any], key: Any) -> None:
    """
    Run maps of the same features in one launch; inside `joining` alone.

    Args:
        features: ``[n, irreps_in.dim]``.
        linears: The maps, from `joinable`.
        key: Of their weights in `packed.packed_vector`.
    """
    known = _RESULTS.get()
    if known is None or len(linears) < 2 or not features.is_cuda:
        return
    joint = _joint(linears)
    weights = packed_vector(key, [linear.weight for linear in linears])
    parts = parts_of(block_linear(features, weights, joint), joint.out_parts)
    for linear, part in zip(linears, parts, strict=True):
        known[id(linear)] = features, part
