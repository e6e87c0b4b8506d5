"""
Plans that a model keeps from one call to the next, while what they were made from stays.

A plan is a function of cells, periodicity, the systems of the atoms, dtype and device, and of the thickness
of slabs and the extents of isolated systems, counted in whole steps. All of these are compared by value, in
one wait of the host: tensors that are equal but not the same count as equal, and the same tensor with other
values does not. Neighbours of
narrow Gaussians depend on every position, and are found anew. A plan that is kept is therefore the one that
would be made.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from scfmlip_kernels.dispatch import needs_kernel_tables

from ..segments import Segments
from ..waiting import late, read
from .coulomb import Coulomb
from .plan import CoulombPlan
from .slab import extents_of, slab_extents, slab_steps

# operators of one model whose plans are kept
_MOST = 8
_FROZEN: contextvars.ContextVar[bool] = contextvars.ContextVar("scfmlip.electrostatics.kept", default=False)
# by model: not in the models, which are copied, pickled and restored
_KEPT: WeakKeyDictionary[object, KeptPlans] = WeakKeyDictionary()
P = ParamSpec("P")
R = TypeVar("R")


def _eagerly(function: Callable[P, R]) -> Callable[P, R]:
    return cast(Callable[P, R], torch.compiler.disable(function))


class _Batch(NamedTuple):
    """What plans are made from: values that belong to nobody else, and how they are stored."""

    cell: Tensor
    pbc: Tensor
    segments: Segments
    kind: tuple

    @classmethod
    def of(cls, positions: Tensor, cell: Tensor, pbc: Tensor, segments: Segments) -> _Batch:
        """A copy: the caller may write into theirs."""
        copied = Segments(segments.ptr.clone(), segments.index.clone())
        return cls(cell.clone(), pbc.clone(), copied, _kind(positions, cell, pbc, segments))

    def same(self, cell: Tensor, pbc: Tensor, segments: Segments) -> list[Tensor]:
        """Bools, all of which hold for the same values."""
        pairs = [(self.cell, cell), (self.pbc, pbc)]
        if len(cell) > 1:  # with one system there is nothing that an index could say
            pairs.append((self.segments.index, segments.index))
        return [(a == b).all() for a, b in pairs]


def _kind(positions: Tensor, cell: Tensor, pbc: Tensor, segments: Segments) -> tuple:
    """Shapes, dtypes and devices, which tables kernels need, and whether autograd would refuse them."""
    tensors = (positions, cell, pbc, segments.ptr, segments.index)
    modes = needs_kernel_tables(positions.device), torch.is_inference_mode_enabled()
    return *((t.shape, t.dtype, t.device) for t in tensors), *modes


class Plans:
    """
    The plans of one call, made when they are asked for.

    Args:
        positions: ``[n_atoms, 3]`` angstrom, without a graph.
        cell, pbc: ``[n_systems, 3, 3]`` angstrom, ``[n_systems, 3]``.
        segments: The system of each atom.
        known: Plans of earlier calls that hold in this one; those that are made join them. None keeps none.
        facts: What is known of cells, periodicity and systems.
    """

    def __init__(
        self,
        positions: Tensor,
        cell: Tensor,
        pbc: Tensor,
        segments: Segments,
        known: list[tuple[Coulomb, CoulombPlan]] | None,
        facts: dict[str, Any],
    ) -> None:
        self._given = (cell, pbc, segments, len(positions), positions.device, positions)
        self._known, self._facts = known, facts
        self._mine: list[tuple[Coulomb, CoulombPlan]] = []
        self._bound: tuple = ()

    def bind(self, positions: Tensor, cell: Tensor, pbc: Tensor, segments: Segments) -> None:
        """Say which objects hold the values that these plans are made from, see `are_of`."""
        self._bound = positions, cell, pbc, segments

    def are_of(self, positions: Tensor, cell: Tensor, pbc: Tensor, segments: Segments) -> bool:
        """Whether these are the very objects of `bind`."""
        given = positions, cell, pbc, segments
        return bool(self._bound) and all(a is b for a, b in zip(self._bound, given, strict=True))

    @_eagerly
    def plan(self, coulomb: Coulomb) -> CoulombPlan:
        """The plan of an operator."""
        for operator, plan in self._mine:
            if operator == coulomb:
                return plan
        plan = next((plan for operator, plan in self._known or () if operator == coulomb), None)
        if plan is None:
            plan = coulomb.plan(*self._given)
            self._keep(coulomb, plan)
        elif plan.near is not None:
            plan = plan.with_neighbours(self._given[-1], self._given[0])
        self._mine.append((coulomb, plan))
        return plan

    @property
    def known(self) -> tuple[CoulombPlan, ...]:
        """Plans of earlier calls that hold in this one."""
        return tuple(plan for _, plan in self._known or ())

    def fact(self, name: str, ask: Callable[[], R]) -> R:
        """
        What follows from cells, periodicity and systems alone; asked once.

        Args:
            name: Of the fact.
            ask: Finds it.
        """
        if name not in self._facts:
            self._facts[name] = ask()
        return self._facts[name]

    def _keep(self, coulomb: Coulomb, plan: CoulombPlan) -> None:
        if self._known is not None:
            if plan.near is not None:  # neighbours are those of this call
                plan = dataclasses.replace(plan, near=dataclasses.replace(plan.near, found=None))
            self._known.append((coulomb, plan))
            del self._known[:-_MOST]


@contextlib.contextmanager
def frozen() -> Iterator[None]:
    """Inside, plans hold and answers are those of the last `KeptPlans.look`: the caller has looked."""
    token = _FROZEN.set(True)
    try:
        yield
    finally:
        _FROZEN.reset(token)


class KeptPlans:
    """
    The plans of the last batch of a model; see `kept_plans`.

    Example:
        >>> import torch, scfmlip
        >>> from scfmlip.electrostatics.kept import KeptPlans
        >>> from scfmlip.segments import Segments
        >>> kept, coulomb = KeptPlans(), scfmlip.Coulomb(l_max=0)
        >>> pbc, one = torch.ones(1, 3, dtype=torch.bool), Segments.of(torch.zeros(2, dtype=torch.int64), 1)
        >>> batch = 9.0 * torch.eye(3)[None], pbc, one
        >>> plans = [kept.look(torch.rand(2, 3), *batch)[0].plan(coulomb) for _ in range(2)]
        >>> plans[0] is plans[1]  # the atoms have moved, the plan holds
        True
    """

    def __init__(self) -> None:
        self._answers: list[bool] = []
        self._last: tuple[_Batch, list[tuple[Coulomb, CoulombPlan]], dict[str, Any]] | None = None

    @_eagerly
    def look(
        self,
        positions: Tensor,
        cell: Tensor,
        pbc: Tensor,
        segments: Segments,
        questions: Sequence[Tensor] = (),
    ) -> tuple[Plans, list[bool]]:
        """
        The plans of a call, in one wait of the host.

        Args:
            positions: ``[n_atoms, 3]`` angstrom.
            cell: ``[n_systems, 3, 3]`` angstrom.
            pbc: ``[n_systems, 3]`` bool.
            segments: The system of each atom.
            questions: Bools that the host wants to know too.

        Returns:
            Plans, and the answers to the questions.
        """
        positions, cell = positions.detach(), cell.detach()
        # processes that share a system plan together, and would have to agree on what they keep
        alone = segments.shared or segments.order is not None
        if alone or torch._C._are_functorch_transforms_active():
            return Plans(positions, cell, pbc, segments, None, {}), read(*questions)
        last, plans, facts, batch = self._last, [], {}, None
        if last is not None and (
            _FROZEN.get() or self._looks_late(positions, cell, pbc, segments, questions)
        ):
            known = last[0].cell, last[0].pbc, last[0].segments, last[1], last[2]
            return Plans(positions, *known), self._answers
        if last is None or last[0].kind != _kind(positions, cell, pbc, segments):
            answers = read(*questions)
        else:
            asked = [_holds(plan, positions, cell) for _, plan in last[1]]
            slabs = [flag for flag in asked if flag is not None]
            same = last[0].same(cell, pbc, segments)
            flags = iter(read(*same, *slabs, *questions))
            unchanged = all([next(flags) for _ in same])
            holds = [flag is None or next(flags) for flag in asked]
            answers = list(flags)
            if unchanged:
                batch, facts = last[0], last[2]
                plans = [both for both, good in zip(last[1], holds, strict=True) if good]
        batch = _Batch.of(positions, cell, pbc, segments) if batch is None else batch
        self._last, self._answers = (batch, plans, facts), answers
        return Plans(positions, batch.cell, batch.pbc, batch.segments, plans, facts), answers

    def _looks_late(
        self, positions: Tensor, cell: Tensor, pbc: Tensor, segments: Segments, questions: Sequence[Tensor]
    ) -> bool:
        """Whether plans and answers are taken to be the last ones, which is looked at later."""
        pending, last = late(positions.device), self._last
        if pending is None or last is None or last[0].kind != _kind(positions, cell, pbc, segments):
            return False
        if len(questions) != len(self._answers):
            return False
        asked = [_holds(plan, positions, cell) for _, plan in last[1]]
        flags = [*last[0].same(cell, pbc, segments), *(flag for flag in asked if flag is not None)]
        flags += [q if answer else ~q for q, answer in zip(questions, self._answers, strict=True)]
        pending.add(~torch.stack(flags).all(), _changed)
        return True


def _changed() -> None:
    raise RuntimeError(
        "inside scfmlip.late_checks(), cells, periodicity, systems, an external field, or the extent of a "
        "slab or an isolated system changed from one step to the next, or positions are NaN: results since "
        "then are wrong. Call the model once outside after such a change, or leave late_checks out"
    )


def _holds(plan: CoulombPlan, positions: Tensor, cell: Tensor) -> Tensor | None:
    """One bool: whether slabs and isolated systems are as large as those of the plan; None if all may be."""
    sub, opened, flags = plan.lattice, plan.open, []
    if sub is not None and sub.slabs is not None:
        slabs = sub.slabs
        cells = cell if sub.atoms is None else cell.index_select(0, sub.systems)
        low, high = slab_extents(sub.take(positions), slabs.normals(cells.double())[0], sub.segments)
        flags.append((~slabs.slab | (slab_steps(high - low) == slabs.thickness)).all())
    if opened is not None and plan.open_extents is not None:
        lengths = extents_of(opened.take(positions), opened.segments)
        flags.append((slab_steps(lengths) == plan.open_extents).all())
    if len(flags) == 2:
        return flags[0] & flags[1]
    return flags[0] if flags else None


def kept_plans(owner: object) -> KeptPlans:
    """
    What is kept for a model, as long as it lives.

    Args:
        owner: The model, or its rule.
    """
    return _KEPT.setdefault(owner, KeptPlans())
