"""
torch-sim: a model for its batched integrators, optimisers and Monte Carlo.

Needs torch-sim 0.4 or later, and with that Python 3.12. What the energy depends on beside the atoms comes
from the state's extras, under torch-sim's names: ``total_charge`` or ``charge``, ``total_spin`` or ``spin``
``[n_systems]``, ``external_E_field [n_systems, 3]`` (V/angstrom, torch-sim's sign: energy - field . dipole),
and ``fermi_level [n_systems]`` (eV).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from torch import Tensor
from torch_sim.models.interface import ModelInterface  # pyright: ignore[reportMissingImports]

from ..scf import SolverMemory, StateExtrapolator
from ..transfers import to_host
from .ase import Calculator

# the state's extras and what atoms.info calls them, with the sign that leads from one to the other
_EXTRAS = {
    "charge": ("charge", 1.0),
    "total_charge": ("charge", 1.0),
    "spin": ("spin", 1.0),
    "total_spin": ("spin", 1.0),
    "external_E_field": ("external_field", -1.0),
    "fermi_level": ("fermi_level", 1.0),
}
# what of the model's outputs goes back, with a leading size of atoms or systems
_OUTPUTS = {
    "charges": "partial_charges",
    "density_coefficients": "density_coefficients",
    "dipole": "dipole",
    "fermi_level": "found_fermi_level",
    "scf_iterations": "scf_iterations",
    "scf_residual": "scf_residual",
}


class TorchSimModel(ModelInterface):
    """
    A model of ours or mace-torch's, as torch-sim calls it.

    Args:
        model: As of `scfmlip.ase.Calculator`, whose options these are.
        device: Of the model, and of the states.
        dtype: torch.float64 or torch.float32.
        compute_forces: Whether forces are wanted.
        compute_stress: Whether the stress is.
        extrapolation: Order of the polynomial through the densities of the last calls that solves start from;
            0 repeats the last ones, for Monte Carlo and other jumps, None uses nothing of earlier calls.
        options: Further options of the calculator: head, charge, spin, fermi_level, trust_pickle.

    Outputs: ``energy [n_systems]`` eV, ``forces [n_atoms, 3]``, ``stress [n_systems, 3, 3]`` eV/angstrom^3,
    and for models with charges ``partial_charges [n_atoms]`` e, ``density_coefficients``, ``dipole
    [n_systems, 3]`` e angstrom, ``found_fermi_level``, ``scf_iterations``, ``scf_residual`` ``[n_systems]``.

    A self-consistent model starts from the densities of the last calls, fixed points also with the
    approximate inverse of their solves, where those had the same elements in the same systems.

    Raises:
        ValueError: for another dtype, or an order that is none; as `scfmlip.ase.Calculator`.
    """

    def __init__(
        self,
        model: torch.nn.Module | str | Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float64,
        *,
        compute_forces: bool = True,
        compute_stress: bool = True,
        extrapolation: int | None = 3,
        **options: Any,
    ) -> None:
        super().__init__()
        names = {torch.float32: "float32", torch.float64: "float64"}
        if dtype not in names:
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype!r}")
        self._calc = Calculator(model, device=device, dtype=names[dtype], extrapolation=None, **options)
        self.model = self._calc.model
        self._device, self._dtype = self._calc.device, dtype
        self._compute_forces, self._compute_stress = compute_forces, compute_stress
        self._memory_scales_with = "n_atoms_x_density"
        self._warm: _WarmStart | None = None
        if extrapolation is not None and self._calc.ours and self.model.has_charges:
            self._warm = _WarmStart(extrapolation) if self.model.rule.iterates else None

    @ModelInterface.compute_stress.setter
    def compute_stress(self, value: bool) -> None:
        """Whether the stress is wanted."""
        self._compute_stress = value

    @ModelInterface.compute_forces.setter
    def compute_forces(self, value: bool) -> None:
        """Whether forces are wanted."""
        self._compute_forces = value

    def _frames(self, state: Any) -> list[Atoms]:
        """The systems of a state."""
        given = {"positions": state.positions, "numbers": state.atomic_numbers, "pbc": state.pbc}
        given |= {"cells": state.row_vector_cell, "index": state.system_idx}
        found = {k: v.numpy() for k, v in to_host({**state.system_extras, **given}).items()}
        positions, numbers, pbc, cells, index = (found[k] for k in given)
        extras = {k: found[k] for k in state.system_extras if k in _EXTRAS}
        frames = []
        for i in range(state.n_systems):
            mine = index == i
            frame = Atoms(numbers[mine], positions[mine], cell=cells[i], pbc=pbc)
            for key, values in extras.items():
                name, sign = _EXTRAS[key]
                # both names of one number: the frame is asked whether they agree
                frame.info[key if name in frame.info else name] = sign * values[i]
            frames.append(frame)
        return frames

    def forward(self, state: Any, **_: Any) -> dict[str, Tensor]:
        """
        Evaluate a state.

        Args:
            state: ``torch_sim.SimState``; it is not changed.

        Raises:
            ValueError: as `scfmlip.ase.Calculator`, for states without what the energy depends on.
            ConvergenceError: for a solve that failed; names the systems.
        """
        calc = self._calc
        frames, start = self._frames(state), {} if self._warm is None else self._warm.start(state)
        out = calc.evaluate(frames, start, self._compute_forces, self._compute_stress)
        found: dict[str, Tensor] = {"energy": out["energy"]}
        if self._compute_forces:
            found["forces"] = out["forces"]
        if self._compute_stress:
            found["stress"] = out["stress"]
        for name, called in _OUTPUTS.items():
            if out.get(name) is not None:
                found[called] = out[name]
        if self._warm is not None:
            self._warm.add(state, out)
        return {name: value.detach().to(self._dtype) for name, value in found.items()}


class _WarmStart:
    """
    What solves of the last calls leave to the next one.

    Args:
        order: Of the polynomial through densities and Fermi levels.
    """

    def __init__(self, order: int) -> None:
        self._densities, self._levels = StateExtrapolator(order), StateExtrapolator(order)
        self._memory = SolverMemory()
        self._systems: tuple[Tensor, Tensor] | None = None
        self._places: tuple[Tensor, Tensor] | None = None

    def start(self, state: Any) -> dict[str, Any]:
        """Options of `scfmlip.models.Model` for a state; nothing of calls that had other systems."""
        systems = state.atomic_numbers, state.system_idx
        if not _equal(self._systems, systems):
            self._systems, self._places = (systems[0].clone(), systems[1].clone()), None
            self._densities.states, self._levels.states, self._memory = [], [], SolverMemory()
        start: dict[str, Any] = {"solver_memory": self._memory}
        # of a geometry that it has had, from what it found there
        again = self._again(state)
        parts = {"initial_density": self._densities, "initial_level": self._levels}
        for name, part in parts.items():
            guess = part.states[-1] if again and part.states else part.guess()
            if guess is not None:
                start[name] = guess
        return start

    def add(self, state: Any, out: dict[str, Any]) -> None:
        """Keep what a call found."""
        if self._again(state):
            return
        self._places = state.positions.detach().clone(), state.cell.detach().clone()
        self._densities.add(out["density_coefficients"])
        if out.get("fermi_level") is not None:
            self._levels.add(out["fermi_level"])
        if out.get("solver_memory") is not None:
            self._memory = out["solver_memory"]

    def _again(self, state: Any) -> bool:
        return _equal(self._places, (state.positions, state.cell))


def _equal(known: tuple[Tensor, Tensor] | None, given: tuple[Tensor, Tensor]) -> bool:
    return known is not None and all(torch.equal(a, b) for a, b in zip(known, given, strict=True))
