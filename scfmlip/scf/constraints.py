"""Linear constraints on the total charge of groups of atoms: whole systems, or fragments of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scfmlip_kernels import segment_sum


@dataclass(frozen=True)
class ChargeGroups:
    """
    Disjoint groups of atoms whose charges add up to given totals.

    Attributes:
        index: ``[n_atoms]`` int64 group of each atom.
        system: ``[n_groups]`` int64 system of each group.
        n_groups: How many.
        ptr: ``[n_groups + 1]`` int64 first atom of each group where groups are contiguous, else None.
    """

    index: Tensor
    system: Tensor
    n_groups: int
    ptr: Tensor | None = None

    def sum(self, values: Tensor) -> Tensor:
        """``[n_atoms]`` -> ``[n_groups]``."""
        if self.ptr is not None:
            return segment_sum(values, self.ptr, self.index)
        return values.new_zeros(self.n_groups).index_add(0, self.index, values)

    def expand(self, values: Tensor) -> Tensor:
        """``[n_groups]`` -> ``[n_atoms]``."""
        return values.index_select(0, self.index)


def make_groups(
    fragments: Tensor | None, system_of_atom: Tensor, system_ptr: Tensor, n_systems: int
) -> ChargeGroups:
    """
    Groups from the fragment of each atom; whole systems if None.

    Args:
        fragments: ``[n_atoms]`` int64, numbered over the whole batch from 0, every number used, no fragment
            in two systems.
        system_of_atom: ``[n_atoms]`` int64.
        system_ptr: ``[n_systems + 1]`` int64.
        n_systems: Systems of the batch.

    Raises:
        TypeError: for numbers that are not integers.
        ValueError: for another shape, gaps in the numbering, or a fragment in two systems.
    """
    if fragments is None:
        numbers = torch.arange(n_systems, device=system_of_atom.device)
        return ChargeGroups(system_of_atom, numbers, n_systems, system_ptr)
    if fragments.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"fragments must hold integers (int64), got {fragments.dtype}")
    if fragments.shape != system_of_atom.shape:
        raise ValueError(
            f"fragments must have shape {list(system_of_atom.shape)}, got {list(fragments.shape)}"
        )
    index = fragments.to(system_of_atom.device, torch.int64)
    if len(index) == 0:
        raise ValueError("fragments need atoms")
    n_groups = int(index.max()) + 1
    low = torch.full((n_groups,), n_systems, device=index.device)
    low = low.scatter_reduce(0, index, system_of_atom, "amin")
    high = torch.full((n_groups,), -1, device=index.device).scatter_reduce(0, index, system_of_atom, "amax")
    if int(index.min()) < 0 or bool((high < 0).any()):
        missing = torch.nonzero(high < 0).flatten().tolist()[:5]
        raise ValueError(f"fragments must be numbered from 0 without gaps; there is no atom in {missing}")
    if bool((low != high).any()):
        bad = int(torch.nonzero(low != high)[0])
        raise ValueError(
            f"fragment {bad} has atoms in systems {int(low[bad])} and {int(high[bad])}: number the fragments "
            "of every system apart"
        )
    return ChargeGroups(index, low, n_groups)
