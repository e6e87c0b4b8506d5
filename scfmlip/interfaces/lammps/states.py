"""
What stays with atoms while they move from rank to rank: the last densities, which solves start from.

They are kept in a ``fix property/atom`` of LAMMPS, whose values go where their atoms go.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...scf import StateExtrapolator
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
        names = ["d_scfmlip_charge"] * self.charges + ["d_scfmlip_potential"] * self.potential
        if self.keeps:
            names.append(f"d2_{STATE} {self.dim * (self._extrapolator.order + 1)}")
        if names:
            engine.lmp.command(f"fix {STATE} all property/atom {' '.join(names)}")

    def start(self, n_owned: int, like: Tensor) -> dict[str, Tensor]:
        """What `Model.forward` starts a solve from, by name: a density, and the Fermi level if it has one."""
        density = self.guess(n_owned, like) if self.keeps else None
        if density is None:
            return {}
        level = self._levels.guess()
        return {"initial_density": density} | ({} if level is None else {"initial_level": level.to(like)})

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

    def put(self, out: dict[str, Any], n_owned: int) -> None:
        """Show what a step found, and keep its density as the last."""
        if self._known <= self._extrapolator.order:
            self._known += 1
        if out.get("fermi_level") is not None:
            self._levels.add(out["fermi_level"].double())
        if n_owned == 0:
            return
        shown = {"d_scfmlip_charge": "charges" if self.charges else None}
        shown["d_scfmlip_potential"] = "electrostatic_potential" if self.potential else None
        for name, key in shown.items():
            array = None if key is None else self.engine.per_atom(name, n_owned)
            if array is not None and key is not None:
                array[:] = out[key].double().cpu().numpy()
        if self.keeps:
            array = self.engine.per_atom(f"d2_{STATE}", n_owned)
            assert array is not None
            last = out["density_coefficients"].double().cpu().numpy()
            array[:] = np.concatenate((np.array(array)[:, self.dim :], last), 1)
