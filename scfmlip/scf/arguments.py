"""What charge equilibration is given: checks, shapes, and the problem they make."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..electrostatics import Boundary, Geometry
from ..electrostatics.checks import to_tensor
from .constraints import ChargeGroups, make_groups
from .quadratic import QuadraticProblem
from .short_range import NeighbourPairs, neighbour_pairs, pair_cutoff


class Given(NamedTuple):
    """
    The functional ``source.s + 1/2 s.(J + K) s`` and its constraint.

    Attributes:
        problem: All but positions, cells and hardness.
        electronegativity, hardness: ``[n_atoms, dim]``.
        source: ``[n_atoms, dim]``, the electronegativity with external fields and given potentials.
        widths: ``[n_atoms]`` Gaussian widths, where atoms have their own, else None.
        target: ``[n_groups]`` total charges, or potentials at constant potential.
        totals: ``[n_groups]`` total charges, 0 at constant potential.
    """

    problem: QuadraticProblem
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
) -> Given:
    """
    Arguments as `charge_equilibration`.

    Raises:
        ValueError, TypeError: as that.
    """
    coulomb, plan, positions = geometry.coulomb, geometry.plan, geometry.positions
    n_atoms = len(positions)
    slots, dim = _slots(geometry, width_index)
    chi = _per_atom("electronegativity", electronegativity, n_atoms, dim, positions, fill=0.0)
    stiff = _per_atom("hardness", hardness, n_atoms, dim, positions, fill=None)
    if geometry.validate:
        for name, values in (("electronegativity", chi), ("hardness", stiff)):
            if not bool(torch.isfinite(values).all()):
                raise ValueError(f"{name} holds NaN or infinity: check what produced it")
    if (total_charge is None) == (chemical_potential is None):
        raise ValueError("give either total_charge or chemical_potential, and None for the other")
    groups = make_groups(fragments, plan.index, plan.ptr, plan.n_systems)
    constrained = chemical_potential is None
    given = _per_group(
        "total_charge" if constrained else "chemical_potential",
        total_charge if constrained else chemical_potential,
        groups.n_groups,
        positions,
    )
    if constrained and geometry.validate:
        _check_somebody_holds(given, groups)
    if widths is not None:
        widths, pairs = _own_widths(geometry, widths, pairs)
    elif pairs is not None:
        raise ValueError("pairs are for atoms with widths of their own: pass widths [n_atoms] too")
    problem = QuadraticProblem(coulomb, plan, slots, groups, constrained, geometry.counter_bounds, pairs)
    source = chi
    if geometry.external_field is not None or geometry.external_potential is not None:
        nothing = positions.new_zeros((n_atoms, coulomb.source.dim))
        source = source + problem.collect(geometry.potential(nothing, self_interaction=True))
    if not constrained:
        shift = groups.expand(given)
        source = torch.cat(((source[:, 0] - shift)[:, None], source[:, 1:]), 1)
    totals = given if constrained else torch.zeros_like(given)
    return Given(problem, chi, stiff, source, widths, given, totals)


def _check_somebody_holds(totals: Tensor, groups: ChargeGroups) -> None:
    """A charge needs atoms."""
    empty = groups.sum(torch.ones_like(groups.index, dtype=totals.dtype)) == 0
    bad = torch.nonzero(empty & (totals.detach() != 0)).flatten().tolist()
    if bad:
        raise ValueError(
            f"system {bad[0]} has no atoms and cannot hold total_charge {float(totals[bad[0]].detach()):g} e"
        )


def _slots(geometry: Geometry, width_index: Tensor | None) -> tuple[Tensor | None, int]:
    """Columns of the operator's rows that an atom's state fills, and how many they are."""
    source = geometry.coulomb.source
    dim = (source.l_max + 1) ** 2
    if source.n_widths == 1 and width_index is None:
        return None, dim
    if width_index is None:
        raise ValueError(
            f"the operator has {source.n_widths} Gaussian widths: pass width_index [n_atoms], which of them "
            "each atom has"
        )
    n_atoms = len(geometry.positions)
    if width_index.shape != (n_atoms,) or width_index.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"width_index must be int64 of shape [{n_atoms}], got {width_index.dtype} "
            f"{list(width_index.shape)}"
        )
    if n_atoms and (int(width_index.min()) < 0 or int(width_index.max()) >= source.n_widths):
        raise ValueError(f"width_index must lie between 0 and {source.n_widths - 1}")
    index = width_index.to(geometry.positions.device, torch.int64)
    columns = source.columns()
    return columns.to(index.device)[index], dim


def _own_widths(
    geometry: Geometry, widths: Tensor, pairs: NeighbourPairs | None
) -> tuple[Tensor, NeighbourPairs]:
    """Checked widths, and neighbours that reach far enough for them."""
    coulomb, positions = geometry.coulomb, geometry.positions
    if coulomb.source.l_max > 0 or coulomb.source.n_widths > 1 or coulomb.compat is not None:
        raise ValueError(
            "widths of the atoms' own need an operator of charges with one smooth width: "
            "Coulomb(l_max=0, sigma=S) without compat"
        )
    if any(kind == Boundary.MOLECULE_IN_BOX for kind in geometry.plan.boundaries):
        raise ValueError(
            "widths of the atoms' own are not for molecules in a box, whose correction knows one width: use "
            "boundary='open', or several widths of the operator with width_index"
        )
    if geometry.counter_bounds is not None:
        raise ValueError("counter_charge knows the operator's width only: leave one of it and widths out")
    if widths.shape != (len(positions),) or widths.dtype != positions.dtype:
        raise ValueError(
            f"widths must be {positions.dtype} of shape {[len(positions)]}, got {widths.dtype} "
            f"{list(widths.shape)}"
        )
    if not len(positions):
        raise ValueError("widths need atoms")
    if geometry.validate and not bool((widths > 0).all()):
        raise ValueError("widths must be positive numbers in angstrom")
    smooth, widest = coulomb.source.widths[0], float(widths.detach().max())
    need = pair_cutoff(smooth, widest, coulomb.tolerance)
    plan, axes = geometry.plan, _slab_axes(geometry)
    if pairs is None:
        periodic = [
            [kind != Boundary.OPEN] * 3 if kind != Boundary.SLAB else [a != axis for a in range(3)]
            for kind, axis in zip(plan.boundaries, axes, strict=True)
        ]
        return widths, neighbour_pairs(positions, geometry.cell, periodic, plan.index, need)
    if pairs.cutoff < 0.999 * need:
        raise ValueError(
            f"pairs reach to {pairs.cutoff:g} angstrom, but widths up to {max(smooth, widest):g} angstrom at "
            f"the operator's tolerance of {coulomb.tolerance:g} eV need {need:.3f}: use a longer list, a "
            "narrower operator, or a looser tolerance"
        )
    if bool((pairs.edge_index[0].diff() < 0).any()):
        order = torch.argsort(pairs.edge_index[0], stable=True)
        pairs = NeighbourPairs(pairs.edge_index[:, order], pairs.edge_shift[order], pairs.cutoff)
    return widths, pairs


def _slab_axes(geometry: Geometry) -> list[int]:
    """Lattice direction along which each system ends; meant for slabs only."""
    plan = geometry.plan
    axes = [2] * plan.n_systems
    if plan.lattice is not None:
        for system, axis in zip(plan.lattice.systems.tolist(), plan.lattice.slab_axis.tolist(), strict=True):
            axes[system] = axis
    return axes


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
    raise ValueError(f"{name} must have shape {[n_atoms, dim]}, got {list(values.shape)}")


def _per_group(name: str, value: Tensor | float | None, n_groups: int, positions: Tensor) -> Tensor:
    """``[n_groups]`` from a number or a tensor."""
    what = f"a number or numbers of shape [{n_groups}]"
    tensor = to_tensor(name, value, what, dtype=positions.dtype, device=positions.device)
    if tensor.ndim > 1 or (tensor.ndim == 1 and tensor.shape[0] not in (1, n_groups)):
        raise ValueError(f"{name} must be a number or have shape [{n_groups}], got {list(tensor.shape)}")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds NaN or infinity: {tensor.tolist()}")
    return tensor.expand(n_groups)
