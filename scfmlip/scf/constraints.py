"""
Constraints on charges: totals of groups of atoms (whole systems or fragments), spins, and the correction that
distributes missing charge according to a response.
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
    Build the groups from the fragment of each atom; whole systems if None.

    Args:
        fragments: ``[n_atoms]`` int64, numbered over the whole batch from 0 without gaps; a fragment must lie
            within one system.
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
        raise ValueError("fragments need at least one atom")
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
        ``[n_systems, 2]`` e, in the floating dtype of the arguments; the sum is Q, the difference M - 1.
        Conventions of MACE-POLAR-1, arXiv:2602.19411.

    Raises:
        ValueError: for different shapes, or a multiplicity below 1.

    Example:
        >>> import torch
        >>> from scfmlip.scf import spin_charges
        >>> spin_charges(torch.tensor([0.0, -1.0]), torch.tensor([3.0, 2.0]))  # O2 (triplet), O2- (doublet)
        tensor([[ 1., -1.],
                [ 0., -1.]])
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
    Correct charges to the given totals; missing charge goes to atoms in proportion to their response.

    The result is ``q_i + w_i / (sum_j w_j) (Q - sum_j q_j)`` with positive weights w. Fukui functions are
    usually divided by the sum of the responses themselves. That moves arbitrary amounts of charge between
    atoms if responses of both signs cancel, and fails if they vanish. Here every normalised weight lies
    between 0 and 1, so no atom gets more than the missing charge. Atoms whose response is small compared with
    ``floor`` share equally. The result is differentiable any number of times. For responses of one sign that
    are large compared with ``floor``, it agrees with the usual normalisation.

    Args:
        charges: ``[n_atoms]`` or ``[n_atoms, n_channels]`` e.
        total_charge: ``[n_systems]`` or ``[n_systems, n_channels]`` e.
        response: Same shape as ``charges``: learned, or dq_i/dmu; in the same unit as ``floor``.
        ptr: ``[n_systems + 1]`` int64 first atom of each system.
        index: ``[n_atoms]`` int64 system of each atom.
        sign: Expected sign of the response: +1, or -1 (dq/dmu of a stable system, whose charges fall as the
            potential rises). Atoms with the other sign get almost nothing. With 0, only the magnitude counts.
        floor: Response below which an atom counts as unresponsive, in the response's unit.

    Returns:
        Same shape and dtype as ``charges``.

    Raises:
        ValueError: for shapes that do not match, another sign, or a floor that is not positive.

    Example:
        >>> import torch
        >>> from scfmlip.scf import redistribute_charge
        >>> charges = torch.tensor([-0.8, 0.3, 0.3])  # of a water molecule, 0.2 e short of neutral
        >>> response = torch.tensor([2.0, 1.0, 1.0])
        >>> ptr, index = torch.tensor([0, 3]), torch.tensor([0, 0, 0])
        >>> redistribute_charge(charges, torch.zeros(1), response, ptr, index)
        tensor([-0.7000,  0.3500,  0.3500])
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
    # squares of tiny responses would underflow in float32
    scaled = response.double() / floor
    size = (scaled**2 + 1).sqrt()
    if sign:
        along = sign * scaled
        # (size + along) / 2, without cancellation for the wrong sign
        opposite = along < 0
        safe = torch.where(opposite, size - along, torch.ones_like(size))
        size = torch.where(opposite, 0.5 / safe, 0.5 * (size + along))
    atoms = Segments(ptr, index)
    share = (total_charge.double() - atoms.sum(charges.double())) / atoms.sum(size)
    return (charges.double() + size * atoms.expand(share)).to(charges.dtype)
