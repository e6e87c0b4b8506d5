"""ASE calculator for mace-torch models, accelerated, and for the design space's own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes

from ..devices import find_device, pick_device
from ..mace_torch.accelerate import accelerate as accelerate_model
from ..mace_torch.batches import make_batch, split_outputs
from ..mace_torch.building import running
from ..mace_torch.inputs import INPUTS, changes_energy, number, resolve_head, set_default
from ..mace_torch.protocol import embedding_specs, is_density_model, required_info
from ..neighbours import SkinList
from ..scf import ExtendedLagrangian, StateExtrapolator
from .loading import load_model

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def _equal(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return old.keys() == new.keys() and all(np.array_equal(old[k], new[k]) for k in old)


def _joined(out: dict[str, Any]) -> torch.Tensor:
    """``[n_atoms + 1, dim]``: the density's rows, and one that begins with the Fermi level."""
    density, level = out["density_coefficients"].detach(), out.get("fermi_level")
    last = density.new_zeros(1, density.shape[1])
    if level is not None:
        last[0, 0] = level.detach()[0]
    return torch.cat((density, last))


class Calculator(AseCalculator):
    """
    ASE calculator of a mace-torch model (MACE, ScaleShiftMACE, PolarMACE, MACELES) or of `scfmlip.models`.

    Charge, spin and field come from ``atoms.info``: ``charge`` (e), ``spin`` (multiplicity 2S+1),
    ``external_field`` (3 numbers, V/angstrom, mace's sign: energy + field.dipole), ``head``, and for models
    of ours ``fermi_level`` (eV), ``counter_charge`` (see `scfmlip.Coulomb`) and charges outside the model:
    ``external_charges`` (``[n]`` e) at ``external_positions`` (``[n, 3]`` angstrom), Gaussians that the
    density feels; their energy with it counts, that among themselves does not. A model whose energy depends
    on charge and spin refuses atoms without them, unless they are given here; initial charges and magnetic
    moments are no totals. mace_run_train's names (``total_charge``, ...) are understood. A change of any of
    them, in place too, recomputes, like a change of positions. Self-consistent models start from the
    densities of the last steps.

    Args:
        model: The model, or its file: ``*.safetensors`` of `scfmlip.save`, or the one mace wrote (a pickle,
            see ``trust_pickle``).
        device: "cpu", "cuda", "auto" (CUDA where there is one), ...
        dtype: "float32", "float64", or None to keep the model's.
        accelerate: Run `scfmlip.accelerate` on it.
        head: Of a multi-head model, for all atoms; if None the one ``info["head"]`` names, else the only one
            or that called "default".
        charge: Total charge of atoms whose info has none, e.
        spin: Multiplicity of atoms whose info has none.
        fermi_level: Constant potential: run a model of ours at this level of the electrons, eV, whatever its
            charge; ``info["fermi_level"]`` of the atoms comes first.
        extrapolation: Order of the polynomial through the last densities that a self-consistent model
            starts from, or an object that guesses, `scfmlip.scf.ExtendedLagrangian`; None starts afresh at
            every step.
        skin: angstrom by which the list of neighbours reaches beyond the cutoff, see
            `scfmlip.neighbours.SkinList`: results are those of a list of their own.
        trust_pickle: Read the file mace wrote, a pickle, which runs whatever code its author put there; see
            `scfmlip convert` for a file that does not.

    Properties: energy, free_energy, energies (eV), forces, stress (eV/angstrom^3, Voigt), and for models
    with charges: charges (e), dipole (e angstrom; of a periodic system it depends on where it is cut),
    spins, density_coefficients (e, e angstrom; rows [q, d_y, d_z, d_x]), electrostatic_energy,
    electron_energy (eV). Models of ours add response_energy, fermi_level (eV), potential (V at each atom, of
    all others), scf_iterations, scf_residual, scf_status, and when asked for by `get_property` born_charges
    (e), polarizability (e angstrom^2/V) and work_functions (eV, of a slab's lower and upper side).
    With external charges, external_forces (eV/angstrom) are among the results.

    Raises:
        FileNotFoundError, TypeError: for a model that is none.
        ValueError: for a pickle without ``trust_pickle``, a device this machine or a head the model does not
            have, or a charge that is no number; at calculation, for atoms the model cannot evaluate; names
            the cause.
    """

    def __init__(
        self,
        model: torch.nn.Module | str | Path,
        device: str | torch.device = "cpu",
        dtype: str | None = None,
        accelerate: bool = True,
        head: str | None = None,
        charge: float | None = None,
        spin: float | None = None,
        fermi_level: float | None = None,
        extrapolation: int | StateExtrapolator | ExtendedLagrangian | None = 2,
        trust_pickle: bool = False,
        skin: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if dtype is not None and (not isinstance(dtype, str) or dtype not in _DTYPES):
            raise ValueError(f"dtype must be 'float32', 'float64' or None, got {dtype!r}")
        self.device = pick_device("auto") if device == "auto" else find_device(device)
        loaded = load_model(model, self.device, trust_pickle)
        if loaded is model:
            # the caller's model keeps its dtype, device and requires_grad
            loaded = copy.deepcopy(loaded)
        loaded = loaded.to(self.device)
        self.dtype = next(loaded.parameters()).dtype if dtype is None else _DTYPES[dtype]
        loaded = loaded.to(self.dtype).eval()
        for parameter in loaded.parameters():
            parameter.requires_grad_(False)
        self.head = head
        if head is not None:
            resolve_head(list(getattr(loaded, "heads", None) or ["Default"]), head)
        given = {"total_charge": charge, "total_spin": spin, "fermi_level": fermi_level}
        self.given = {k: number(v, INPUTS[k].names[0]) for k, v in given.items() if v is not None}
        self.implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]
        self.ours = is_density_model(loaded)
        self.neighbours = SkinList(skin)
        extrapolator = None
        if isinstance(extrapolation, StateExtrapolator | ExtendedLagrangian):
            extrapolator = extrapolation
        elif extrapolation is not None:
            extrapolator = StateExtrapolator(extrapolation)
        self._states: StateExtrapolator | ExtendedLagrangian | None = None
        self._told: dict[str, Any] = {}
        self._last: torch.Tensor | None = None
        # who has asked for it once is given it with the forces, not by another evaluation
        self._always_stress = False
        self.model: Any
        if self.ours:
            self._adopt(loaded, fermi_level, extrapolator)
            return
        if fermi_level is not None:
            raise ValueError(
                f"a {type(loaded).__name__} has no constant-potential mode: fermi_level is for models of "
                "scfmlip.models with a self-consistent charge rule"
            )
        self.model = accelerate_model(loaded) if accelerate else loaded
        if required_info(self.model):
            self.implemented_properties += [
                "charges",
                "dipole",
                "spins",
                "density_coefficients",
                "electrostatic_energy",
                "electron_energy",
            ]
        if hasattr(self.model, "les"):
            self.implemented_properties += ["latent_charges", "les_energy"]

    def _adopt(
        self,
        model: Any,
        fermi_level: float | None,
        extrapolator: StateExtrapolator | ExtendedLagrangian | None,
    ) -> None:
        """A model of `scfmlip.models`."""
        if fermi_level is not None and model.config.constraint != "fermi_level":
            model = model.with_constraint("fermi_level")
        self.model = model
        if not model.has_charges:
            return
        self.implemented_properties += [
            "charges",
            "latent_charges",
            "dipole",
            "density_coefficients",
            "electrostatic_energy",
            "response_energy",
            "fermi_level",
            "potential",
            "spins",
            "scf_iterations",
            "scf_residual",
            "scf_status",
            "born_charges",
            "polarizability",
            "work_functions",
        ]
        if model.rule.iterates:
            self._states = extrapolator

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation; "info" when charge, spin or field did."""
        changes = super().check_state(atoms, tol=tol)
        if not changes and self.atoms is not None and not _equal(self._told, self._reads(atoms)):
            return ["info"]
        return changes

    def _reads(self, atoms: Atoms) -> dict[str, Any]:
        """Copies of what else of the atoms changes the energy."""
        embedded = {spec.get("key", name) for name, spec in embedding_specs(self.model).items()}
        read = {k: v for k, v in atoms.info.items() if changes_energy(k) or k in embedded}
        return copy.deepcopy(read | {k: v for k, v in atoms.arrays.items() if k in embedded})

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Fill ``self.results``."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        self._told = self._reads(self.atoms)
        frame = self.atoms.copy()
        for which, value in self.given.items():
            set_default(frame, which, value)
        wanted = properties or ["energy"]
        # else it is one more property of what was evaluated before
        moved = bool(system_changes) or not self.results
        stress = "stress" in wanted
        if stress and frame.cell.rank < 3:
            raise PropertyNotImplementedError("stress needs a cell with a volume")
        self._always_stress |= stress
        names = ["the system"]
        batch = make_batch(
            self.model, [frame], self.device, self.dtype, self.head, names, neighbours=self.neighbours
        )
        crystal = bool(frame.pbc.all())
        options: dict[str, Any] = {
            "compute_stress": crystal or (self._always_stress and frame.cell.rank == 3)
        }
        if self.ours and self.model.has_charges:
            options["compute_potential"] = self.model.rule.has_geometry
            options["compute_response"] = bool({"born_charges", "polarizability"} & set(wanted))
            options |= self._guess(moved, system_changes)
        with running(self.model):
            out = self.model(batch, **options)
        if self._states is not None:
            self._last = _joined(out)
            if moved:
                self._states.add(self._last)
        self.results = split_outputs(out, [frame])[0]
        if "work_functions" in wanted:
            from ..models import work_functions

            self.results["work_functions"] = work_functions(self.model, batch)[0].cpu().numpy()

    def evaluate(
        self,
        frames: Sequence[Atoms],
        start: Mapping[str, torch.Tensor] | None = None,
        compute_force: bool = True,
        compute_stress: bool = False,
    ) -> dict[str, Any]:
        """
        The model's outputs for several frames in one batch, as tensors; ``self.results`` stays what it is.

        Args:
            frames: With ``info`` as for one; charge, spin and Fermi level that it lacks are the calculator's.
            start: ``initial_density`` and ``initial_level`` of the batch, see `scfmlip.models.Model`.
            compute_force: Whether forces are wanted.
            compute_stress: Whether the stress is.

        Raises:
            ValueError, ConvergenceError: as for one frame; names it by its number.
        """
        copies = [atoms.copy() for atoms in frames]
        for frame in copies:
            for which, value in self.given.items():
                set_default(frame, which, value)
        batch = make_batch(self.model, copies, self.device, self.dtype, self.head)
        with running(self.model):
            return self.model(
                batch, compute_force=compute_force, compute_stress=compute_stress, **(start or {})
            )

    def _guess(self, moved: bool, system_changes: list[str]) -> dict[str, torch.Tensor]:
        """Where a solve starts: of a geometry that it has had, from what it found there."""
        if self._states is None:
            return {}
        if "numbers" in system_changes:
            self._states.states, self._last = [], None
        found = self._states.guess() if moved else self._last
        return {} if found is None else {"initial_density": found[:-1], "initial_level": found[-1, :1]}

    def get_state(self) -> dict[str, Any]:
        """
        What the next results depend on beside the atoms, as plain types and tensors, for an exact restart.

        Results, the last densities, and the geometry whose neighbours are listed.
        """
        origin = self.neighbours.origin
        states = [] if self._states is None else self._states.states
        return {
            "results": {k: torch.tensor(np.asarray(v)) for k, v in self.results.items()},
            "single": [k for k, v in self.results.items() if not isinstance(v, np.ndarray)],
            "densities": [state.cpu() for state in states],
            "last": None if self._last is None else self._last.cpu(),
            "neighbours": None if origin is None else [torch.tensor(part) for part in origin],
            "always_stress": self._always_stress,
        }

    def set_state(self, state: dict[str, Any], atoms: Atoms) -> None:
        """
        Put back what `get_state` returned, of a calculator of the same arguments.

        Args:
            state: From there.
            atoms: Those of the results, which count as calculated.
        """
        self.atoms = atoms.copy()
        self._told = self._reads(self.atoms)
        self.results = {
            k: v.item() if k in state["single"] else v.numpy().copy() for k, v in state["results"].items()
        }
        if self._states is not None:
            self._states.states = [density.to(self.device) for density in state["densities"]]
        self._last = None if state["last"] is None else state["last"].to(self.device)
        self._always_stress = state["always_stress"]
        if state["neighbours"] is not None:
            positions, cell = (part.numpy() for part in state["neighbours"])
            cutoff = float(self.model.r_max)
            self.neighbours.build(positions, cell, np.asarray(atoms.pbc), cutoff)
