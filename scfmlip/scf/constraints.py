"""
Constraints on charges: totals of groups of atoms (whole systems, or fragments of them), spins, and the
closure that moves charge to where a response says it goes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..segments import Segments


@dataclass(frozen=True)
class ChargeGroups:
    """
    Disjoint groups of atoms whose charges add up to given totals.

    Attributes:
        segments: The group of each atom.
        system: ``[n_groups]`` int64 system of each group.
        whole: Whether each group is a whole system.
    """

    segments: Segments
    system: Tensor
    whole: bool


def make_groups(fragments: Tensor | None, systems: Segments) -> ChargeGroups:
    """
    Groups from the fragment of each atom; whole systems if None.

    Args:
        fragments: ``[n_atoms]`` int64, numbered over the whole batch from 0, every number used, no fragment
            in two systems.
        systems: The system of each atom.

    Raises:
        TypeError: for numbers that are not integers.
        ValueError: for another shape, gaps in the numbering, or a fragment in two systems.
    """
    system_of_atom, n_systems = systems.index, systems.n_segments
    if fragments is None:
        return ChargeGroups(systems, torch.arange(n_systems, device=system_of_atom.device), True)
    if not isinstance(fragments, Tensor) or fragments.dtype not in (torch.int64, torch.int32):
        got = fragments.dtype if isinstance(fragments, Tensor) else type(fragments).__name__
        raise TypeError(f"fragments must be an int64 tensor, got {got}")
    if fragments.shape != system_of_atom.shape:
        raise ValueError(
            f"fragments must have shape {list(system_of_atom.shape)}, got {list(fragments.shape)}"
        )
    index = fragments.to(system_of_atom.device, torch.int64)
    if len(index) == 0:
        raise ValueError("fragments need atoms")
    n_groups = int(index.max()) + 1
    if int(index.min()) < 0 or n_groups > len(index):
        raise ValueError(
            f"fragments must be numbered from 0 without gaps, got {int(index.min())} to {n_groups - 1} for "
            f"{len(index)} atoms"
        )
    low = torch.full((n_groups,), n_systems, device=index.device)
    low = low.scatter_reduce(0, index, system_of_atom, "amin")
    high = torch.full((n_groups,), -1, device=index.device).scatter_reduce(0, index, system_of_atom, "amax")
    if bool((high < 0).any()):
        missing = torch.nonzero(high < 0).flatten().tolist()[:5]
        raise ValueError(f"fragments must be numbered from 0 without gaps; there is no atom in {missing}")
    if bool((low != high).any()):
        bad = int(torch.nonzero(low != high)[0])
        raise ValueError(
            f"fragment {bad} has atoms in systems {int(low[bad])} and {int(high[bad])}: number the fragments "
            "of every system apart"
        )
    return ChargeGroups(Segments.of(index, n_groups), low, False)


def spin_charges(total_charge: Tensor, multiplicity: Tensor) -> Tensor:
    """
    Charges of the two spin channels, ``(Q + M - 1) / 2`` and ``(Q - M + 1) / 2``.

    Args:
        total_charge: ``[n_systems]`` e.
        multiplicity: ``[n_systems]`` spin multiplicity M = 2 S + 1, at least 1.

    Returns:
        ``[n_systems, 2]`` e, in the floating dtype of the two; their sum is Q, their difference M - 1.
        Conventions of MACE-POLAR-1, arXiv:2602.19411.

    Raises:
        ValueError: for different shapes, or a multiplicity below 1.
    """
    if total_charge.shape != multiplicity.shape or total_charge.ndim != 1:
        raise ValueError(
            "total_charge and multiplicity must both have shape [n_systems], got "
            f"{list(total_charge.shape)} and {list(multiplicity.shape)}"
        )
    if not torch.compiler.is_compiling() and bool((multiplicity < 1).any()):
        bad = int(torch.nonzero(multiplicity < 1)[0])
        raise ValueError(
            f"multiplicity of system {bad} is {float(multiplicity[bad]):g}: it is 2 S + 1, at least 1"
        )
    dtype = torch.promote_types(total_charge.dtype, multiplicity.dtype)
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    charge, unpaired = total_charge.to(dtype), multiplicity.to(dtype) - 1
    return 0.5 * torch.stack((charge + unpaired, charge - unpaired), -1)


def redistribute_charge(
    charges: Tensor,
    total_charge: Tensor,
    response: Tensor,
    ptr: Tensor,
    index: Tensor,
    *,
    sign: int = 0,
    floor: float = 1e-3,
) -> Tensor:
    """
    Charges with the right totals: what is missing goes where the response is.

    ``q_i + w_i / (sum_j w_j) (Q - sum_j q_j)`` with positive weights w. Dividing by the sum of the responses
    themselves, as Fukui functions are normalised elsewhere, moves any amount of charge between atoms where
    responses of both signs cancel, and fails where they vanish. Here every weight lies between 0 and 1 and
    they add up to 1, so no atom gets more than what is missing; atoms whose response is small beside
    ``floor`` share alike; and all of it is differentiable any number of times. For responses of one sign,
    large beside ``floor``, it is that normalisation.

    Args:
        charges: ``[n_atoms]`` or ``[n_atoms, n_channels]`` e.
        total_charge: ``[n_systems]`` or ``[n_systems, n_channels]`` e.
        response: As ``charges``: learned, or dq_i/dmu; any scale that ``floor`` shares.
        ptr: ``[n_systems + 1]`` int64 first atom of each system.
        index: ``[n_atoms]`` int64 system of each atom.
        sign: What sign a response should have: +1 or -1 (dq/dmu of a stable system whose charges fall as the
            potential rises): atoms with the other one get next to nothing. 0: only its size counts.
        floor: Response that counts as none, in the response's unit.

    Returns:
        As ``charges``.

    Raises:
        ValueError: for shapes that do not fit, another sign, or a floor that is not positive.
    """
    if charges.shape != response.shape or charges.ndim not in (1, 2):
        raise ValueError(
            "charges and response must share a shape [n_atoms] or [n_atoms, n_channels], got "
            f"{list(charges.shape)} and {list(response.shape)}"
        )
    if total_charge.shape != (len(ptr) - 1, *charges.shape[1:]):
        raise ValueError(
            f"total_charge must have shape {[len(ptr) - 1, *charges.shape[1:]]}, got "
            f"{list(total_charge.shape)}"
        )
    if sign not in (-1, 0, 1) or not (math.isfinite(floor) and floor > 0):
        raise ValueError(f"sign must be -1, 0 or 1 and floor positive, got {sign!r} and {floor!r}")
    # squares of tiny responses would vanish in float32
    scaled = response.double() / floor
    size = (scaled**2 + 1).sqrt()
    if sign:
        along = sign * scaled
        # (size + along) / 2 without cancellation where the sign is wrong
        opposite = along < 0
        safe = torch.where(opposite, size - along, torch.ones_like(size))
        size = torch.where(opposite, 0.5 / safe, 0.5 * (size + along))
    atoms = Segments(ptr, index)
    share = (total_charge.double() - atoms.sum(charges.double())) / atoms.sum(size)
    return (charges.double() + size * atoms.expand(share)).to(charges.dtype)
