"""A model as LAMMPS's ``fix external``: energy, forces, virial and charges of every step."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ...distributed import Communicator
from ...mace_torch.building import running
from ...mace_torch.domains import make_domain_batch
from ...mace_torch.memory import MemoryCheck
from ...transfers import to_host
from .engine import FIX, Atoms, Engine
from .neighbourhood import Neighbourhood
from .states import AtomStates

# f_scfmlip[1] and so on, in this order
GLOBALS = (
    "dipole_x",
    "dipole_y",
    "dipole_z",
    "total_charge",
    "fermi_level",
    "electrostatic_energy",
    "scf_iterations",
    "scf_residual",
)


# seconds that ranks wait for others to fail as they did
_PATIENCE = 5.0


class StepError(RuntimeError):
    """What went wrong in a step, told by every rank alike."""


class ForceField:
    """
    The callback of ``fix external``.

    Args:
        engine: LAMMPS.
        model: Of `scfmlip.models`, in its dtype and on its device.
        communicator: LAMMPS's ranks.
        species: ``[n_types]`` the model's number of each type's element.
        inputs: Total charge and the like, by the batch's names.
        head: Number of the model's head.
        states: First guesses of charges and what LAMMPS shows of atoms.

    Attributes:
        results: Of the last step, by the model's names, as numbers; atoms' as tensors.
        error: What ended the run, or None.
        seconds, steps: Time in the model and around it, and how often it was evaluated.
    """

    def __init__(
        self,
        engine: Engine,
        model: Any,
        communicator: Communicator,
        species: list[int],
        inputs: Mapping[str, Any],
        head: int,
        states: AtomStates,
    ) -> None:
        self.engine, self.model, self.communicator = engine, model, communicator
        self.species, self.inputs, self.head, self.states = species, dict(inputs), head, states
        parameter = next(model.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        self.cutoff = float(model.r_max)
        self.results: dict[str, Any] = {}
        self.error: BaseException | None = None
        self.seconds, self.steps = 0.0, 0
        self.near: Neighbourhood | None = None
        self._made: tuple[int, int] | None = None
        self._check_memory = MemoryCheck(model, self.device)

    def __call__(self, _: object, step: int, n_owned: int, ids: Any, positions: Any, forces: Any) -> None:
        """What LAMMPS calls; ``forces [n_owned, 3]`` is filled."""
        start = time.perf_counter()
        try:
            self._step(int(step), forces)
        except BaseException as error:
            self._stop(int(step), error)
        self.seconds += time.perf_counter() - start
        self.steps += 1

    def _step(self, step: int, forces: np.ndarray) -> None:
        engine, lmp = self.engine, self.engine.lmp
        atoms, box = engine.atoms(), engine.box()
        if self._is_new(step, atoms) or self.near is None:
            pairs = engine.pairs()
            self.near = Neighbourhood(self.communicator, atoms, box, pairs, self.species, self.device)
            self.states.follow(atoms.ids[: atoms.n_owned], self.communicator, self.device)
        near = self.near
        own = torch.tensor(atoms.positions[: atoms.n_owned], dtype=self.dtype, device=self.device)
        edges = near.edges(atoms.positions, self.cutoff)
        batch, domain = make_domain_batch(
            self.model, own, near.species, box.cell, box.pbc, edges, near.halo, self.inputs, self.head
        )
        self._check_memory(atoms.n_owned, batch["edge_index"].shape[1])
        options: dict[str, Any] = dict(self.states.start(atoms.n_owned, own))
        if self.states.potential:
            options["compute_potential"] = True
        with running(self.model):
            out = self.model(batch, compute_virials=True, domain=domain, **options)
        host = to_host(out)
        found, virial = host["forces"].double(), host["virials"][0].double()
        self._check_finite(found, virial, host["energy"])
        forces[:] = found.numpy()
        lmp.fix_external_set_energy_global(FIX, float(host["energy"][0]))
        six = virial.numpy()[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]]
        lmp.fix_external_set_virial_global(FIX, six.tolist())
        self._tell(out, host, atoms.n_owned)

    def _is_new(self, step: int, atoms: Atoms) -> bool:
        """
        Whether neighbours have to be read again, for all ranks alike.

        LAMMPS counts its lists, but not those that a run, or every frame of a rerun, begins with.
        """
        before, self._made = self._made, (self.engine.builds(), step)
        if self.near is None or before is None or before != (self._made[0], step - 1):
            return True
        stale = torch.tensor([float(self.near.is_stale(atoms, self.cutoff))])
        return bool(self.communicator.all_reduce(stale, "max"))

    def _check_finite(self, forces: torch.Tensor, virial: torch.Tensor, energy: torch.Tensor) -> None:
        """Stop together where any rank has forces that are none."""
        bad = torch.tensor([int((~torch.isfinite(forces)).any(1).sum())])
        count = int(self.communicator.all_reduce(bad))
        if count or not bool(torch.isfinite(virial).all() and torch.isfinite(energy).all()):
            raise StepError(
                f"{count} atoms have forces that are NaN or infinite: the trajectory has left what the model "
                "knows, or two atoms are in one place. Start again from before, with a shorter time step"
            )

    def _tell(self, out: dict[str, Any], host: dict[str, torch.Tensor], n_owned: int) -> None:
        """Numbers and atoms' properties for LAMMPS's output."""
        numbers: dict[str, float] = dict.fromkeys(GLOBALS, 0.0)
        numbers.update({name: float(value) for name, value in host.items() if value.numel() == 1})
        if "dipole" in host:
            numbers.update(zip(GLOBALS[:3], host["dipole"][0].tolist(), strict=True))
        for i, name in enumerate(GLOBALS, 1):
            self.engine.lmp.fix_external_set_vector(FIX, i, numbers[name])
        self.states.put(out, host, n_owned)
        atoms = ("forces", "charges", "density_coefficients", "electrostatic_potential", "latent_charges")
        atoms = (*atoms, "external_forces")
        self.results = {**numbers, **{name: out[name] for name in atoms if out.get(name) is not None}}
        self.results["virials"] = out["virials"][0]

    def _stop(self, step: int, error: BaseException) -> None:
        """End the run on every rank, with the message."""
        self.error = error
        text = f"step {step}: {error}" if str(error) else f"step {step}: {type(error).__name__}"
        error.args = (text, *error.args[1:])
        if self.communicator.all_arrive(_PATIENCE):
            # the run ends before the next step, and whoever called it is told
            self.engine.lmp.lib.lammps_force_timeout(self.engine.lmp.lmp)
            return
        # others wait for this rank where it will never come
        print(f"scfmlip, rank {self.communicator.rank}: {text}", file=sys.stderr, flush=True)
        self.communicator.abort()
