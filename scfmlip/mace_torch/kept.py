"""What an accelerated model keeps between calls, so that a GPU's host does not wait for it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..electrostatics import Coulomb, CoulombPlan
from ..segments import Segments

V = TypeVar("V")
# by model and name; not in the models, which are copied, pickled and restored
_VALUES: WeakKeyDictionary[torch.nn.Module, dict[str, tuple[Any, Any]]] = WeakKeyDictionary()


def kept_of_buffers(model: torch.nn.Module, name: str, buffers: Sequence[Tensor], make: Callable[[], V]) -> V:
    """
    A value made from buffers of a model, until one of them is replaced or written to.

    Args:
        model: The model.
        name: Of the value.
        buffers: What it is made from.
        make: Makes it, by reading them.
    """
    try:
        key = tuple((b.data_ptr(), b._version, b.dtype) for b in buffers)
    except RuntimeError:  # tensors of inference mode have no version
        return make()
    known = _VALUES.setdefault(model, {})
    if name not in known or known[name][0] != key:
        known[name] = key, make()
    return known[name][1]


def kept_plan(
    model: torch.nn.Module,
    coulomb: Coulomb,
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    segments: Segments,
) -> CoulombPlan:
    """
    The plan of a call, which is that of the last one while cells, periodicity and the batch stay.

    The host waits once, for the comparison. Only for operators whose plans do not depend on positions.

    Args:
        model: Whose plan it is.
        coulomb: The operator.
        positions: ``[n_atoms, 3]`` angstrom.
        cell: ``[n_systems, 3, 3]`` angstrom.
        pbc: ``[n_systems, 3]`` bool.
        segments: The system of each atom.
    """
    made_of = (cell.detach(), pbc, segments.index)
    known = _VALUES.setdefault(model, {})
    if not segments.shared and "plan" in known:
        (operator, before), plan = known["plan"]
        same = operator == coulomb and all(
            a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
            for a, b in zip(made_of, before, strict=True)
        )
        if same and bool(torch.stack([(a == b).all() for a, b in zip(made_of, before, strict=True)]).all()):
            return plan
    plan = coulomb.plan(cell, pbc, segments, len(positions), positions.device, positions)
    if not segments.shared:
        known["plan"] = (coulomb, tuple(t.clone() for t in made_of)), plan
    return plan
