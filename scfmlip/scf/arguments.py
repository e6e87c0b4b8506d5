"""Arguments of charge equilibration: checks, shapes, and the problem that they define."""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import Tensor

from scfmlip_kernels.charge_solve.choice import one_launch_pays
from scfmlip_kernels.dispatch import runs_triton

from ..electrostatics import Geometry
from ..electrostatics.checks import to_tensor
from ..electrostatics.range_split import NeighbourPairs
from ..waiting import any_bad, when
from .constraints import ChargeGroups, make_groups
from .options import check_numbers
from .quadratic import QuadraticProblem
from .splitting import Interaction, Split, split_operator, split_widths


class Given(NamedTuple):
    """
    The functional ``source.s + 1/2 s.(J + K) s`` and its constraint.

    Attributes:
        problem: Everything except positions, cells and hardness.
        padding: Columns of the operator's rows that hold no state: dipoles that cannot respond.
        electronegativity, hardness: ``[n_atoms, dim]``.
        source: ``[n_atoms, dim]``, the electronegativity plus external fields and given potentials.
        widths: ``[n_atoms]`` Gaussian widths if atoms have their own, else None.
        target: ``[n_groups]`` total charges, or potentials at constant potential.
        totals: ``[n_groups]`` total charges, 0 at constant potential.
    """

    problem: QuadraticProblem
    padding: int
    electronegativity: Tensor
    hardness: Tensor
    source: Tensor
    widths: Tensor | None
    target: Tensor
    totals: Tensor


def read_arguments(
    geometry: Geometry,
    electronegativity: Tensor,
    hardness: Tensor,
    total_charge: Tensor | float | None,
    chemical_potential: Tensor | float | None,
    fragments: Tensor | None,
    width_index: Tensor | None,
    widths: Tensor | None,
    pairs: NeighbourPairs | None,
    tolerance: float,
    interaction: Interaction,
    one_launch: bool = False,
) -> Given:
    """
    Read the arguments of `charge_equilibration`. With ``one_launch``, batches that a GPU solves in one launch
    are not split.

    Raises:
        ValueError, TypeError: as documented in `charge_equilibration`.
    """
    if not isinstance(geometry, Geometry):
        raise TypeError(f"geometry must come from Coulomb.prepare, got {type(geometry).__name__}")
    if interaction not in get_args(Interaction):
        raise ValueError(f"interaction must be 'auto', 'direct' or 'split', got {interaction!r}")
    plan, positions = geometry.plan, geometry.positions
    n_atoms = len(positions)
    slots, dim, padding = _slots(geometry, width_index), (geometry.coulomb.source.l_max + 1) ** 2, 0
    if dim > 1 and isinstance(hardness, Tensor) and hardness.shape == (n_atoms,):
        # only charges respond: one column of each atom's row
        if isinstance(electronegativity, Tensor) and electronegativity.ndim == 2:
            raise ValueError(
                f"hardness {[n_atoms]} is of charges alone, but electronegativity "
                f"{list(electronegativity.shape)} acts on dipoles too: give hardness {[n_atoms, dim]}, or "
                f"electronegativity {[n_atoms]}"
            )
        own = geometry.coulomb.source.columns(positions.device)[:1].expand(n_atoms, dim)
        slots, padding, dim = (own if slots is None else slots)[:, :1], dim - 1, 1
    chi = _per_atom("electronegativity", electronegativity, n_atoms, dim, positions, fill=0.0)
    stiff = _per_atom("hardness", hardness, n_atoms, dim, positions, fill=None)
    if geometry.validate:
        for name, values in (("electronegativity", chi), ("hardness", stiff)):
            _check_finite(name, values)
    if (total_charge is None) == (chemical_potential is None):
        raise ValueError("pass either total_charge or chemical_potential, and None for the other")
    groups = make_groups(fragments, plan.segments)
    constrained = chemical_potential is None
    given = _per_group(
        "total_charge" if constrained else "chemical_potential",
        total_charge if constrained else chemical_potential,
        groups.segments.n_segments,
        positions,
    )
    known = groups.whole and not plan.segments.shared  # the host knows who has atoms
    full = known and bool((plan.atom_ptr.diff() > 0).all())
    if constrained and geometry.validate and not full:
        _check_charge_has_atoms(given, groups)
    split = _choose_split(geometry, slots, dim, widths, pairs, tolerance, interaction, one_launch)
    if split is not None:
        geometry, widths, pairs = split
        plan, slots = geometry.plan, None
    coulomb = geometry.coulomb
    problem = QuadraticProblem(coulomb, plan, slots, groups, constrained, geometry.counter_bounds, pairs)
    source = chi
    if geometry.external_field is not None or geometry.external_potential is not None:
        nothing = positions.new_zeros((n_atoms, coulomb.source.dim))
        source = source + problem.collect(geometry.potential(nothing, self_interaction=True))
    if not constrained:
        shift = groups.segments.expand(given)
        source = torch.cat(((source[:, 0] - shift)[:, None], source[:, 1:]), 1)
    totals = given if constrained else torch.zeros_like(given)
    return Given(problem, padding, chi, stiff, source, widths, given, totals)


def _choose_split(
    geometry: Geometry,
    slots: Tensor | None,
    dim: int,
    widths: Tensor | None,
    pairs: NeighbourPairs | None,
    tolerance: float,
    interaction: Interaction,
    one_launch: bool,
) -> Split | None:
    """The smooth operator, widths and neighbours that replace the operator's own sum; None to keep it."""
    if widths is not None:
        if interaction == "direct":
            raise ValueError("interaction='direct' is the operator's own sum: leave it or widths out")
        return split_widths(geometry, widths, pairs, tolerance)
    if pairs is not None:
        raise ValueError("pairs are for atoms with widths of their own: pass widths [n_atoms] too")
    if interaction == "split" and dim > 1:
        raise ValueError(
            "interaction='split' is for charges: give hardness [n_atoms], or an operator with l_max=0"
        )
    largest = 0 if interaction == "direct" or dim > 1 else max(geometry.plan.atom_counts, default=0)
    if not largest:
        return None
    counts, like = geometry.plan.atom_ptr.diff(), geometry.positions
    alone = one_launch and not geometry.plan.segments.shared
    if interaction == "auto" and alone and runs_triton(like) and one_launch_pays(counts, like):
        return None
    return split_operator(geometry, None if slots is None else slots[:, 0], tolerance, interaction)


def _check_finite(name: str, values: Tensor) -> None:
    def refuse() -> None:
        raise ValueError(f"{name} holds NaN or infinity: check what produced it")

    when(any_bad(values), refuse)


def _check_charge_has_atoms(totals: Tensor, groups: ChargeGroups) -> None:
    """Refuse a charge in a system without atoms."""
    bad = (groups.segments.counts == 0) & (totals.detach() != 0)

    def refuse() -> None:
        i = int(torch.nonzero(bad)[0])
        raise ValueError(
            f"system {i} has no atoms and cannot hold total_charge {float(totals[i].detach()):g} e: give it 0"
        )

    when(bad.any(), refuse)


def _slots(geometry: Geometry, width_index: Tensor | None) -> Tensor | None:
    """``[n_atoms, dim]`` columns of the operator's rows that hold an atom's state; None for all columns."""
    source = geometry.coulomb.source
    if source.n_widths == 1 and width_index is None:
        return None
    if width_index is None:
        raise ValueError(
            f"the operator has {source.n_widths} Gaussian widths: pass width_index [n_atoms] to say which of "
            "them each atom has"
        )
    n_atoms = len(geometry.positions)
    if not isinstance(width_index, Tensor):
        raise TypeError(f"width_index must be an int64 tensor {[n_atoms]}, got {type(width_index).__name__}")
    if width_index.shape != (n_atoms,) or width_index.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"width_index must be int64 of shape [{n_atoms}], got {width_index.dtype} "
            f"{list(width_index.shape)}"
        )

    def refuse() -> None:
        raise ValueError(f"width_index must lie between 0 and {source.n_widths - 1}")

    # a GPU is asked later: no index may lead beyond the table
    inside = width_index.clamp(0, source.n_widths - 1)
    when((inside != width_index).any(), refuse)
    index = inside.to(geometry.positions.device, torch.int64)
    return source.columns(index.device)[index]


def _per_atom(
    name: str, values: Tensor, n_atoms: int, dim: int, positions: Tensor, fill: float | None
) -> Tensor:
    """``[n_atoms, dim]`` from ``[n_atoms]`` or ``[n_atoms, dim]``."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(values).__name__}")
    if values.dtype != positions.dtype or values.device != positions.device:
        raise TypeError(
            f"{name} is {values.dtype} on {values.device}, positions are {positions.dtype} on "
            f"{positions.device}: convert one of them"
        )
    if values.shape == (n_atoms, dim):
        return values
    if values.shape == (n_atoms,):
        if dim == 1:
            return values[:, None]
        if fill is not None:
            return torch.cat((values[:, None], values.new_full((n_atoms, dim - 1), fill)), 1)
    alone = f": of charges and dipoles, or {[n_atoms]} of charges alone" if dim > 1 else ""
    raise ValueError(f"{name} must have shape {[n_atoms, dim]}, got {list(values.shape)}{alone}")


def _per_group(name: str, value: Tensor | float | None, n_groups: int, positions: Tensor) -> Tensor:
    """``[n_groups]`` from a number or a tensor."""
    what = f"a number or numbers of shape [{n_groups}]"
    tensor = to_tensor(name, value, what, dtype=positions.dtype, device=positions.device)
    if tensor.ndim > 1 or (tensor.ndim == 1 and tensor.shape[0] not in (1, n_groups)):
        raise ValueError(f"{name} must be a number or have shape [{n_groups}], got {list(tensor.shape)}")
    check_numbers(name, tensor)
    return tensor.expand(n_groups)
