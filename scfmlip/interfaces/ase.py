"""ASE calculator for accelerated mace-torch models, and for models of the design space."""

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
from ..mace_torch.memory import MemoryCheck
from ..mace_torch.protocol import embedding_specs, is_density_model, required_info
from ..neighbours import SkinList
from ..scf import ExtendedLagrangian, SolverMemory, StateExtrapolator
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


def _first_guesses(
    extrapolation: int | StateExtrapolator | ExtendedLagrangian | None,
) -> tuple[StateExtrapolator | ExtendedLagrangian | None, SolverMemory]:
    """What guesses the first state of a solve, and what solves start to hand on."""
    if isinstance(extrapolation, ExtendedLagrangian):
        return extrapolation, SolverMemory(fit=None)
    if extrapolation is None or isinstance(extrapolation, StateExtrapolator):
        return extrapolation, SolverMemory()
    return StateExtrapolator(extrapolation), SolverMemory()


class Calculator(AseCalculator):
    """
    ASE calculator of a mace-torch model (MACE, ScaleShiftMACE, PolarMACE, MACELES) or of `scfmlip.models`.

    Charge, spin and field come from ``atoms.info``: ``charge`` (e), ``spin`` (multiplicity 2S+1),
    ``external_field`` (3 numbers, V/angstrom, mace's sign: energy + field.dipole) and ``head``. Models of
    `scfmlip.models` also read ``fermi_level`` (eV), ``counter_charge`` (see `scfmlip.Coulomb`), and charges
    outside the model: ``external_charges`` (``[n]`` e) at ``external_positions`` (``[n, 3]`` angstrom). These
    are Gaussians that interact with the density; the energy excludes their interaction with each other. A
    model whose energy depends on charge and spin refuses atoms without them, unless they are given here;
    initial charges and magnetic moments do not count as totals. mace_run_train's names (``total_charge``,
    ...) work too. A change of any of these, also in place, triggers a new calculation, like a change of
    positions. Self-consistent models start from the densities of the last steps, fixed points also with the
    approximate inverse of their solves.

    Args:
        model: The model, or its file: ``*.safetensors`` from `scfmlip.save`, or a file that mace wrote (a
            pickle, see ``trust_pickle``).
        device: "cpu", "cuda", "auto" (CUDA if available), ...
        dtype: "float32", "float64", or None to keep the model's.
        accelerate: Whether to run `scfmlip.accelerate` on the model.
        head: Head of a multi-head model, for all atoms. If None, the head in ``info["head"]``, else the only
            one or the one called "default".
        charge: Total charge, e, of atoms whose info has none.
        spin: Multiplicity of atoms whose info has none.
        fermi_level: Constant potential: run a model of `scfmlip.models` at this Fermi level of the electrons,
            eV, instead of a given charge; ``info["fermi_level"]`` of the atoms has priority.
        extrapolation: Order of the polynomial extrapolation of the last densities, which gives the first
            guess of a self-consistent model where no combination of them is nearer (`SolverMemory`), or an
            object that guesses: `scfmlip.scf.ExtendedLagrangian` always gives the first guess itself. None
            uses nothing of previous steps.
        skin: angstrom by which the neighbour list reaches beyond the cutoff, see
            `scfmlip.neighbours.SkinList`; results are those of a new list.
        cuda_graph: Capture steps on a GPU as CUDA graphs, see `scfmlip.accelerate`.
        trust_pickle: Allow reading a file that mace wrote. It is a pickle, and reading it runs whatever code
            its author put there; `scfmlip convert` makes a file that runs none.

    Properties: energy, free_energy, energies (eV), forces, stress (eV/angstrom^3, Voigt), and for models
    with charges: charges (e), dipole (e angstrom; in a periodic system it depends on where the cell is cut),
    spins, density_coefficients (e, e angstrom; rows [q, d_y, d_z, d_x]), electrostatic_energy,
    electron_energy (eV). Models of `scfmlip.models` add response_energy, fermi_level (eV), potential (V at
    each atom, from all others), scf_iterations, scf_residual, scf_status. On request by `get_property` they
    compute born_charges (e), polarizability (e angstrom^2/V) and work_functions (eV, lower and upper side of
    a slab). With external charges, the results include external_forces (eV/angstrom).

    Attributes:
        memory_check: Its ``needed`` is the estimate of bytes that the last step takes beside what was there.

    Raises:
        FileNotFoundError, TypeError: for a missing file, or an object that is not a model.
        ValueError: for a pickle without ``trust_pickle``, an unavailable device or head, or a charge that is
            not a number; in calculations, for atoms that the model cannot evaluate. Names the cause.

    Example:
        >>> import ase.io, scfmlip
        >>> from scfmlip.data import path
        >>> slab = ase.io.read(path("al_water.xyz"), 0)  # 36 atoms; its info holds the total charge
        >>> slab.calc = scfmlip.ase.Calculator(path("models/al_water-equilibrated.safetensors"))
        >>> round(slab.get_potential_energy(), 1)  # eV
        -3821.3
        >>> slab.get_charges().shape, abs(round(float(slab.get_charges().sum()), 3))
        ((36,), 0.0)
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
        extrapolation: int | StateExtrapolator | ExtendedLagrangian | None = 3,
        trust_pickle: bool = False,
        skin: float = 0.5,
        cuda_graph: bool = False,
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
        extrapolator, self._empty = _first_guesses(extrapolation)
        self._states: StateExtrapolator | ExtendedLagrangian | None = None
        self._told: dict[str, Any] = {}
        self._last: torch.Tensor | None = None
        self._memory = self._empty
        # who has asked for it once is given it with the forces, not by another evaluation
        self._always_stress = False
        self.model: Any
        if cuda_graph and not accelerate:
            raise ValueError(
                "cuda_graph=True is for models that are accelerated: leave it out with accelerate=False"
            )
        self.memory_check = MemoryCheck(loaded, self.device)
        if self.ours:
            self._adopt(loaded, fermi_level, extrapolator)
            self.model = self.model.with_cuda_graphs() if cuda_graph else self.model
            return
        if fermi_level is not None:
            raise ValueError(
                f"a {type(loaded).__name__} has no constant-potential mode: fermi_level is for models of "
                "scfmlip.models with a self-consistent charge rule"
            )
        self.model = accelerate_model(loaded, cuda_graph=cuda_graph) if accelerate else loaded
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
        """Set up a model of `scfmlip.models`."""
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
        """Names of changes since the last calculation; "info" if charge, spin or field changed."""
        changes = super().check_state(atoms, tol=tol)
        if not changes and self.atoms is not None and not _equal(self._told, self._reads(atoms)):
            return ["info"]
        return changes

    def _reads(self, atoms: Atoms) -> dict[str, Any]:
        """Copies of the other data of the atoms that affect the energy."""
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
        self.memory_check(len(frame), batch["edge_index"].shape[1])
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
        memory = out.pop("solver_memory", None)
        if self._states is not None:
            self._last = _joined(out)
            if moved:
                self._states.add(self._last)
                self._memory = self._memory if memory is None else memory
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

    def _guess(self, moved: bool, system_changes: list[str]) -> dict[str, Any]:
        """Where a solve starts: of a geometry that it has had, from what it found there."""
        if self._states is None:
            return {}
        if "numbers" in system_changes:
            self._states.states, self._last = [], None
        if {"numbers", "pbc"} & set(system_changes):
            self._memory = self._empty
        found, known = self._states.guess() if moved else self._last, {"solver_memory": self._memory}
        if getattr(self.model, "captures_steps", False):  # a graph reads tensors alone
            known = {}
        if found is None:
            return known
        return known | {"initial_density": found[:-1], "initial_level": found[-1, :1]}

    def get_state(self) -> dict[str, Any]:
        """
        What the next results depend on beside the atoms, as plain types and tensors, for an exact restart.

        Results, the last densities, what solves hand on, and the geometry whose neighbours are listed.
        """
        origin = self.neighbours.origin
        states = [] if self._states is None else self._states.states
        return {
            "results": {k: torch.tensor(np.asarray(v)) for k, v in self.results.items()},
            "single": [k for k, v in self.results.items() if not isinstance(v, np.ndarray)],
            "densities": [state.cpu() for state in states],
            "last": None if self._last is None else self._last.cpu(),
            "memory": self._memory.state_dict(),
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
        # of a file from before there was one: the next solve makes it
        memory = state.get("memory")
        self._memory = self._empty if memory is None else SolverMemory.from_state(memory, self.device)
        self._always_stress = state["always_stress"]
        if state["neighbours"] is not None:
            positions, cell = (part.numpy() for part in state["neighbours"])
            cutoff = float(self.model.r_max)
            self.neighbours.build(positions, cell, np.asarray(atoms.pbc), cutoff)
