"""What charge equilibration is given: checks, shapes, and the problem they make."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..electrostatics import Geometry
from .constraints import make_groups
from .quadratic import QuadraticProblem


class Given(NamedTuple):
    """
    The functional ``source.s + 1/2 s.(J + K) s`` and its constraint.

    Attributes:
        problem: All but positions, cells and hardness.
        electronegativity, hardness: ``[n_atoms, dim]``.
        source: ``[n_atoms, dim]``, the electronegativity with external fields and given potentials.
        target: ``[n_groups]`` total charges, or potentials at constant potential.
        totals: ``[n_groups]`` total charges, 0 at constant potential.
    """

    problem: QuadraticProblem
    electronegativity: Tensor
    hardness: Tensor
    source: Tensor
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
    problem = QuadraticProblem(coulomb, plan, slots, groups, constrained, geometry.counter_bounds)
    source = chi
    if geometry.external_field is not None or geometry.external_potential is not None:
        nothing = positions.new_zeros((n_atoms, coulomb.source.dim))
        source = source + problem.collect(geometry.potential(nothing, self_interaction=True))
    if not constrained:
        shift = groups.expand(given)
        source = torch.cat(((source[:, 0] - shift)[:, None], source[:, 1:]), 1)
    totals = given if constrained else torch.zeros_like(given)
    return Given(problem, chi, stiff, source, given, totals)


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
    tensor = torch.as_tensor(value, dtype=positions.dtype, device=positions.device)
    if tensor.ndim > 1 or (tensor.ndim == 1 and tensor.shape[0] not in (1, n_groups)):
        raise ValueError(f"{name} must be a number or have shape [{n_groups}], got {list(tensor.shape)}")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds NaN or infinity: {tensor.tolist()}")
    return tensor.expand(n_groups)
