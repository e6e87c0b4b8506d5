"""Arguments of `Coulomb`: cells, periodicity and values of systems, in all supported shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..segments import Segments
from . import checks
from .boundary import Boundary
from .plan import CoulombPlan


class Systems(NamedTuple):
    """
    The systems of a batch.

    Attributes:
        cells: ``[n_systems, 3, 3]`` angstrom, or None.
        pbc: Periodicity of each system.
        atom_ptr: ``[n_systems + 1]`` int64 on the CPU, first atom of each.
    """

    cells: Tensor | None
    pbc: list[tuple[bool, bool, bool]]
    atom_ptr: Tensor


def to_cells(cell: Tensor | None) -> Tensor | None:
    """``[n, 3, 3]`` from ``[3, 3]``, ``[n, 3, 3]`` or MACE's stacked ``[3 n, 3]``."""
    if cell is None:
        return None
    checks.check_tensor("cell", cell, "[3, 3] or [n_systems, 3, 3] in angstrom")
    whole = (cell.ndim == 2 and cell.shape[0] % 3 == 0) or (cell.ndim == 3 and cell.shape[1] == 3)
    if not whole or cell.shape[-1] != 3 or not len(cell):
        raise ValueError(f"cell must have shape [3, 3] or [n_systems, 3, 3], got {list(cell.shape)}")
    return cell.reshape(-1, 3, 3)


def read_systems(
    cell: Tensor | None,
    pbc: Tensor | Sequence | bool | None,
    batch_idx: Tensor | Segments | None,
    n_atoms: int,
) -> Systems:
    """
    Read the systems from arguments of `Coulomb.plan`.

    Raises:
        TypeError, ValueError: for arguments that contradict each other; names them.
    """
    if isinstance(batch_idx, Segments):
        batch_idx = batch_idx.index
    cells = to_cells(cell)
    flags = checks.check_pbc([[cells is not None] * 3] if pbc is None else pbc)
    if batch_idx is not None:
        checks.check_tensor("batch_idx", batch_idx, "[n_atoms] of integers, the system of each atom")
    n_systems = max(len(flags), 1 if cells is None else len(cells))
    if batch_idx is not None and batch_idx.numel() and cells is None and len(flags) == 1:
        n_systems = checks.count_systems(batch_idx)
    numbers = {len(flags), 1 if cells is None else len(cells)}
    if not numbers <= {1, n_systems}:
        raise ValueError(
            f"cell and pbc describe different numbers of systems: {0 if cells is None else len(cells)} "
            f"and {len(flags)}"
        )
    if batch_idx is not None:
        atom_ptr = checks.check_batch(batch_idx, n_atoms, n_systems)
    elif n_systems == 1:
        atom_ptr = torch.tensor([0, n_atoms])
    else:
        raise ValueError(f"batch_idx is needed to assign the atoms to {n_systems} systems")
    rows = [(a, b, c) for a, b, c in flags.expand(n_systems, 3).tolist()]
    return Systems(None if cells is None else cells.expand(n_systems, 3, 3), rows, atom_ptr)


def to_systems(
    name: str,
    value: Tensor | Sequence | float | None,
    n_systems: int,
    shape: tuple[int, ...],
    like: Tensor,
    finite: bool,
) -> Tensor | None:
    """
    Convert a value to ``[n_systems, *shape]``; values of one system apply to all. None stays None.

    Args:
        name: Name of the argument, for messages.
        value: The user's value.
        n_systems: Number of systems.
        shape: Shape of one system's values.
        like: Gives dtype and device of the result.
        finite: Whether to refuse NaN and infinity.
    """
    if value is None:
        return None
    whole = [n_systems, *shape]
    what = f"numbers of shape {whole} (or one for all)"
    tensor = checks.to_tensor(name, value, what, dtype=like.dtype, device=like.device)
    try:
        tensor = tensor.expand(n_systems, *shape)
    except RuntimeError:
        raise ValueError(
            f"{name} must have shape {whole} (or one for all), got {list(tensor.shape)}"
        ) from None
    if finite:
        checks.check_finite(name, tensor.reshape(n_systems, -1), "")
    return tensor


def check_counter_charge(bounds: Tensor, boundaries: list[Boundary]) -> None:
    """Refuse counter-charges ``[n_systems, 2]`` with ends in the wrong order, or without a slab."""
    if bool((bounds[:, 1] <= bounds[:, 0]).any()):
        raise ValueError(
            "counter_charge must be (lower, upper) with lower < upper, in angstrom along the slab "
            f"normal, got {bounds.tolist()}"
        )
    others = [i for i, kind in enumerate(boundaries) if kind != Boundary.SLAB]
    if others:
        raise ValueError(f"counter_charge is for slabs: systems {others} are none")


def check_field(fields: Tensor, cell: Tensor | None, plan: CoulombPlan) -> None:
    """Refuse external fields ``[n_systems, 3]`` along periodic directions."""
    host = fields.detach().to("cpu", torch.float64)
    for i, kind in enumerate(plan.boundaries):
        if kind not in (Boundary.PERIODIC, Boundary.SLAB) or not bool(host[i].any()):
            continue
        along = torch.ones(3, dtype=torch.bool)
        if kind == Boundary.SLAB:
            assert plan.lattice is not None
            local = plan.lattice.systems.tolist().index(i)
            along[int(plan.lattice.slab_axis[local])] = False
        assert cell is not None
        lattice = cell[i].detach().to("cpu", torch.float64)[along]
        drop = (lattice @ host[i]).abs() / lattice.norm(dim=1)
        if float(drop.max()) > 4 * torch.finfo(fields.dtype).eps * float(host[i].norm()):
            raise ValueError(
                f"external_field {host[i].tolist()} V/angstrom of system {i} has a component along a "
                "periodic direction, where a potential -E.r is not periodic and the energy is not "
                "defined: apply it along the open axis only, or use boundary='open'"
            )
