"""ASE calculator for accelerated mace-torch models, and for models of the design space."""

from __future__ import annotations

import copy
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
from ..scf import StateExtrapolator
from .loading import load_model

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def _equal(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return old.keys() == new.keys() and all(np.array_equal(old[k], new[k]) for k in old)


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
    positions. Self-consistent models start from the densities of the last steps.

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
            guess of a self-consistent model; None uses no previous densities.
        trust_pickle: Allow reading a file that mace wrote. It is a pickle, and reading it runs whatever code
            its author put there; `scfmlip convert` makes a file that runs none.

    Properties: energy, free_energy, energies (eV), forces, stress (eV/angstrom^3, Voigt), and for models
    with charges: charges (e), dipole (e angstrom; in a periodic system it depends on where the cell is cut),
    spins, density_coefficients (e, e angstrom; rows [q, d_y, d_z, d_x]), electrostatic_energy,
    electron_energy (eV). Models of `scfmlip.models` add response_energy, fermi_level (eV), potential (V at
    each atom, from all others), scf_iterations, scf_residual, scf_status. On request by `get_property` they
    compute born_charges (e), polarizability (e angstrom^2/V) and work_functions (eV, lower and upper side of
    a slab). With external charges, the results include external_forces (eV/angstrom).

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
        extrapolation: int | None = 2,
        trust_pickle: bool = False,
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
        extrapolator = None if extrapolation is None else StateExtrapolator(extrapolation)
        self._states: StateExtrapolator | None = None
        self._told: dict[str, Any] = {}
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

    def _adopt(self, model: Any, fermi_level: float | None, extrapolator: StateExtrapolator | None) -> None:
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
        stress = "stress" in wanted
        if stress and frame.cell.rank < 3:
            raise PropertyNotImplementedError("stress needs a cell with a volume")
        batch = make_batch(self.model, [frame], self.device, self.dtype, self.head, names=["the system"])
        options: dict[str, Any] = {"compute_stress": stress or bool(frame.pbc.all())}
        if self.ours and self.model.has_charges:
            options["compute_potential"] = self.model.rule.has_geometry
            options["compute_response"] = bool({"born_charges", "polarizability"} & set(wanted))
            if self._states is not None:
                if "numbers" in system_changes:
                    self._states.states = []
                options["initial_density"] = self._states.guess()
        with running(self.model):
            out = self.model(batch, **options)
        if self._states is not None:
            self._states.add(out["density_coefficients"])
        self.results = split_outputs(out, [frame])[0]
        if "work_functions" in wanted:
            from ..models import work_functions

            self.results["work_functions"] = work_functions(self.model, batch)[0].cpu().numpy()
