"""
What stays with atoms while they move from rank to rank: what solves start from.

The last densities are kept in a ``fix property/atom`` of LAMMPS, whose values go where their atoms go. Rows
of what solves hand on are sent after them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...distributed import Communicator, build_halo
from ...scf import SolverMemory, StateExtrapolator
from .engine import STATE, Engine


class AtomStates:
    """
    Atom properties of LAMMPS: ``d_scfmlip_charge`` (e), ``d_scfmlip_potential`` (V) and the last densities.

    Args:
        engine: LAMMPS.
        model: Of `scfmlip.models`.
        extrapolation: Order of the polynomial through the last densities; None starts afresh at every step.
        potential: Also compute potentials at atoms.

    Attributes:
        keeps: Whether densities are kept.
        potential: Whether potentials are asked for.
    """

    def __init__(self, engine: Engine, model: Any, extrapolation: int | None, potential: bool) -> None:
        self.engine = engine
        self.charges = bool(model.has_charges)
        self.keeps = self.charges and model.rule.iterates and extrapolation is not None
        self.potential = potential and self.charges
        if potential and not (self.charges and model.rule.has_geometry):
            raise ValueError("this model has no density, and no potentials at atoms: leave potential out")
        self.dim = (model.config.density.l_max + 1) ** 2 if self.charges else 0
        self._extrapolator = StateExtrapolator(extrapolation or 0)
        # the Fermi levels that belong to them, the same on every rank
        self._levels = StateExtrapolator(extrapolation or 0)
        self._known = 0
        self._memory, self._ids = SolverMemory(), np.zeros(0, dtype=np.int64)
        names = ["d_scfmlip_charge"] * self.charges + ["d_scfmlip_potential"] * self.potential
        if self.keeps:
            names.append(f"d2_{STATE} {self.dim * (self._extrapolator.order + 1)}")
        if names:
            engine.lmp.command(f"fix {STATE} all property/atom {' '.join(names)}")

    def start(self, n_owned: int, like: Tensor) -> dict[str, Any]:
        """
        What `Model.forward` starts a solve from, by name.

        A density, the Fermi level if it has one, and what earlier solves hand on.
        """
        if not self.keeps:
            return {}
        density, level = self.guess(n_owned, like), self._levels.guess()
        start: dict[str, Any] = {"solver_memory": self._memory}
        if density is not None:
            start["initial_density"] = density
            if level is not None:
                start["initial_level"] = level.to(like)
        return start

    def follow(self, ids: NDArray[np.int64], communicator: Communicator, device: torch.device) -> None:
        """
        Let what solves hand on go where the atoms have gone; every rank calls it together.

        Args:
            ids: ``[n_owned]`` of own atoms, as they are now.
            communicator: The ranks.
            device: Of tensors.
        """
        before, self._ids = self._ids, ids.copy()
        if not (self.keeps and self._memory.holds_rows):
            return
        changed = torch.tensor([float(not np.array_equal(before, ids))])
        if not bool(communicator.all_reduce(changed, "max")):
            return
        self._memory = _moved(self._memory, before, ids, communicator, device)

    def guess(self, n_owned: int, like: Tensor) -> Tensor | None:
        """``[n_owned, dim]`` rows ``[q, d_y, d_z, d_x]``; None before the first step."""
        if not self._known:
            return None
        array = self.engine.per_atom(f"d2_{STATE}", n_owned)
        kept = np.zeros((0, self._width)) if array is None else np.array(array)
        each = (
            torch.tensor(kept, dtype=torch.float64)
            .view(n_owned, self._extrapolator.order + 1, self.dim)
            .unbind(1)
        )
        self._extrapolator.states = list(each[len(each) - self._known :])
        guess = self._extrapolator.guess()
        assert guess is not None
        return guess.to(like)

    @property
    def _width(self) -> int:
        return self.dim * (self._extrapolator.order + 1)

    def put(self, out: dict[str, Any], host: dict[str, Tensor], n_owned: int) -> None:
        """Show what a step found, whose tensors ``host`` has; keep its density as the last."""
        if self._known <= self._extrapolator.order:
            self._known += 1
        if out.get("fermi_level") is not None:
            self._levels.add(out["fermi_level"].double())
        if out.get("solver_memory") is not None:
            self._memory = out["solver_memory"]
        if n_owned == 0:
            return
        shown = {"d_scfmlip_charge": "charges" if self.charges else None}
        shown["d_scfmlip_potential"] = "electrostatic_potential" if self.potential else None
        for name, key in shown.items():
            array = None if key is None else self.engine.per_atom(name, n_owned)
            if array is not None and key is not None:
                array[:] = host[key].double().numpy()
        if self.keeps:
            array = self.engine.per_atom(f"d2_{STATE}", n_owned)
            assert array is not None
            last = host["density_coefficients"].double().numpy()
            array[:] = np.concatenate((np.array(array)[:, self.dim :], last), 1)


def _moved(
    memory: SolverMemory,
    before: NDArray[np.int64],
    now: NDArray[np.int64],
    communicator: Communicator,
    device: torch.device,
) -> SolverMemory:
    """What solves hand on, for own atoms ``now`` that were ``before``; an empty one where atoms are new."""
    own = torch.tensor(before, device=device)
    try:
        wanted = np.setdiff1d(now, before)
        halo, ghost = build_halo(communicator, own, torch.tensor(wanted, device=device))
    except ValueError:
        # of ids that nobody had, on every rank
        return SolverMemory()
    ids = np.concatenate((before, wanted))
    place = np.concatenate((np.arange(len(before)), len(before) + ghost.cpu().numpy()))
    order = np.argsort(ids)
    rows = torch.tensor(place[order[np.searchsorted(ids, now, sorter=order)]], device=device)
    return memory.moved(len(before), lambda values: halo.copy_out(values)[rows])
