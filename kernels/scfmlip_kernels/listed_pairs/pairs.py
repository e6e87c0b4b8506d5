"""Lists of pairs between two sets of points, in both orders."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..checks import check_index


class PairList(NamedTuple):
    """
    Which sources each target sees, and by which targets each source is seen.

    Attributes:
        target_ptr: ``[n_targets + 1]`` int64, first pair of each target.
        near: ``[n_pairs]`` int64 source of each pair, sorted by target.
        source_ptr: ``[n_sources + 1]`` int64, first pair of each source.
        seen: ``[n_pairs]`` int64 target of each pair, sorted by source.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import PairList, sort_pairs
        >>> pairs = sort_pairs(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 0]), n_targets=2, n_sources=3)
        >>> isinstance(pairs, PairList), pairs.seen.tolist()
        (True, [1, 0, 0])
    """

    target_ptr: Tensor
    near: Tensor
    source_ptr: Tensor
    seen: Tensor


def sort_pairs(target: Tensor, source: Tensor, n_targets: int, n_sources: int) -> PairList:
    """
    A list in both orders, from one in any.

    Args:
        target: ``[n_pairs]`` int64 target of each pair.
        source: ``[n_pairs]`` int64 source of each pair.
        n_targets: How many targets there are.
        n_sources: How many sources there are.

    Raises:
        ValueError: for two lengths, or numbers that no target or source has.
        TypeError: for indices that are not int64.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import sort_pairs
        >>> pairs = sort_pairs(torch.tensor([1, 0, 0]), torch.tensor([0, 2, 1]), n_targets=2, n_sources=3)
        >>> pairs.target_ptr.tolist(), pairs.near.tolist()  # target 0 sees sources 2 and 1
        ([0, 2, 3], [2, 1, 0])
    """
    if target.shape != source.shape or target.ndim != 1:
        raise ValueError(
            f"sort_pairs: target and source must be [n_pairs], got {list(target.shape)} and "
            f"{list(source.shape)}"
        )
    check_index("sort_pairs", "target", target, n_targets, "targets")
    check_index("sort_pairs", "source", source, n_sources, "sources")
    if target.device.type != "cpu" or bool((target.diff() < 0).any()):
        order = torch.argsort(target, stable=True)
        target, source = target[order], source[order]
    order = torch.argsort(source, stable=True)
    return PairList(_pointers(target, n_targets), source, _pointers(source, n_sources), target[order])


def _pointers(index: Tensor, n: int) -> Tensor:
    counts = torch.bincount(index, minlength=n)
    return torch.cat((counts.new_zeros(1), counts.cumsum(0)))
