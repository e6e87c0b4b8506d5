"""The run itself: from a configuration to a trajectory, and on from where it stopped."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.constraints import FixAtoms
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from tqdm import tqdm

from ..devices import pick_device
from ..files import check_writable, locked, write_whole
from ..interfaces.ase import Calculator
from ..scf import ExtendedLagrangian, StateExtrapolator
from ..structures import read_frame
from .config import MdConfig, config_to_dict
from .integrators import integrator_state, method_of, restore_integrator
from .output import Log, frame_of, open_trajectory, read_log
from .report import plot_log, summarise
from .restart import digest, load_restart, save_restart
from .schedule import Schedule
from .shadow import shadow_of

# what may differ between a run and its continuation
_FREE = ("steps", "output", "device", "cuda_graph", "restart_interval", "structure", "model", "trust_pickle")


class MdError(RuntimeError):
    """A run that cannot go on; what it had reached is on disk."""


class DrivenCalculator(Calculator):
    """
    `scfmlip.ase.Calculator` whose field and Fermi level are those of a time.

    Attributes:
        schedule: Time in fs -> what ``atoms.info`` holds then.
        time: fs, of the geometry that is evaluated next.
    """

    schedule: Callable[[float], dict[str, Any]] | None = None
    time = 0.0

    def calculate(self, atoms: Atoms | None = None, *arguments: Any, **options: Any) -> None:
        """Fill ``self.results``; ``atoms.info`` is told before."""
        if atoms is not None and self.schedule is not None:
            atoms.info.update(self.schedule(self.time))
        super().calculate(atoms, *arguments, **options)


def make_calculator(config: MdConfig) -> DrivenCalculator:
    """
    The model of a run.

    Raises:
        FileNotFoundError, TypeError, ValueError: as `scfmlip.ase.Calculator`; for a Fermi level or field that
            the model does not know.
    """
    order = config.warm_start_order
    warm: Any = None
    if config.warm_start == "polynomial":
        warm = StateExtrapolator(3 if order is None else order)
    elif config.warm_start == "extended_lagrangian":
        warm = ExtendedLagrangian(5 if order is None else order)
    schedule = Schedule(config)
    level = schedule(0.0).get("fermi_level")
    calc = DrivenCalculator(
        config.model,
        device=pick_device(config.device),
        dtype=config.dtype,
        head=config.head,
        charge=config.charge,
        spin=config.spin,
        fermi_level=level,
        extrapolation=warm,
        trust_pickle=config.trust_pickle,
        skin=config.skin,
        cuda_graph=config.cuda_graph,
    )
    calc.schedule = schedule
    if config.external_field is not None and calc.ours and not calc.model.has_charges:
        raise ValueError("external_field: this model has no charges that could feel it")
    return calc


def make_atoms(config: MdConfig) -> Atoms:
    """
    The first frame, with constraints and without velocities of its own making.

    Raises:
        FileNotFoundError, ValueError: for a file that cannot be read, or options that do not fit the frame.
    """
    atoms = read_frame(Path(config.structure), config.index)
    # results of the file are not the model's
    atoms.calc = None
    if config.counter_charge is not None:
        atoms.info.setdefault("counter_charge", np.array(config.counter_charge))
    if max(config.fixed_atoms, default=-1) >= len(atoms):
        raise ValueError(f"fixed_atoms names atom {max(config.fixed_atoms)}, there are {len(atoms)}")
    if config.fixed_atoms:
        atoms.set_constraint([*atoms.constraints, FixAtoms(list(config.fixed_atoms))])
    if atoms.constraints and config.ensemble in ("nose_hoover", "npt"):
        raise ValueError(
            f"{config.structure} holds constraints (move_mask), and ASE's integrator of ensemble: "
            f"{config.ensemble} counts every atom as free; take nve, langevin, baoab or bussi"
        )
    if len(atoms) and atoms.get_number_of_degrees_of_freedom() < 1:
        raise ValueError("fixed_atoms: every atom is fixed, nothing can move")
    if config.ensemble == "npt":
        moves = config.barostat_axes if config.barostat_cell == "axes" else (0, 1, 2)
        still = [i for i in moves if not atoms.pbc[i]]
        if still or atoms.cell.rank < 3:
            raise ValueError(
                f"ensemble: npt changes lattice vectors {list(moves)}, but {config.structure} has "
                f"pbc={atoms.pbc.tolist()} and cell {atoms.cell.array.tolist()}: take barostat_cell: axes "
                "with the periodic ones, and a cell of three vectors"
            )
    return atoms


def set_velocities(atoms: Atoms, config: MdConfig, rng: np.random.Generator) -> None:
    """
    Give the first frame its velocities.

    Raises:
        ValueError: for a file without momenta where they are wanted, or no temperature to draw them at.
    """
    there = atoms.has("momenta") and bool(atoms.get_momenta().any())
    kind = config.velocities
    if kind == "auto":
        kind = "file" if there else "thermal"
    if kind == "file" and not there:
        raise ValueError(f"velocities: file, but {config.structure} holds no momenta")
    if kind == "thermal" and config.temperature is None:
        raise ValueError(
            f"{config.structure} holds no momenta: give temperature (K) to draw them at, or velocities: zero"
        )
    if kind == "thermal":
        assert config.temperature is not None
        thermalize_momenta(atoms, config.temperature, rng=rng)
        if not atoms.constraints and len(atoms) > 1:
            Stationary(atoms)
    elif kind == "zero":
        atoms.set_momenta(np.zeros((len(atoms), 3)))
    if config.ensemble == "bussi" and not atoms.get_momenta().any():
        raise ValueError(
            "ensemble: bussi scales velocities, of which there are none: take velocities: thermal"
        )


@dataclasses.dataclass
class Moment:
    """
    One step's numbers.

    Attributes:
        row: Of the log.
        frame: Of the trajectory.
    """

    row: dict[str, Any]
    frame: Atoms


class Run:
    """
    A run of molecular dynamics in a folder.

    Args:
        config: The run.
        fresh: Start over, whatever the folder holds.

    Raises:
        FileNotFoundError, ValueError, TypeError: for options, files and models that cannot be; as `resume`.
    """

    def __init__(self, config: MdConfig, fresh: bool = False) -> None:
        self.config, self.folder = config, Path(config.output)
        self.files = {n: self.folder / n for n in ("restart.pt", "log.csv", "md.png", "last_good.xyz")}
        self.trajectory = open_trajectory(self.folder / config.trajectory)
        self.log = Log(self.files["log.csv"])
        for path in (*self.files.values(), self.trajectory.path):
            check_writable(path)
        known = self.files["restart.pt"]
        state = load_restart(known) if known.is_file() and not fresh else None
        if state is None and not fresh and (self.trajectory.path.exists() or self.log.path.exists()):
            raise FileExistsError(
                f"{self.folder} holds a run without a restart file: take another output, or --fresh"
            )
        self.atoms = make_atoms(config)
        self.calc = make_calculator(config)
        self.digests = {"structure": digest(config.structure), "model": digest(config.model)}
        self.rng = np.random.default_rng(config.seed)
        self.step, self.first, self.good = 0, math.nan, None
        self._written: dict[str, int] | None = None
        if state is not None:
            self._check_same(state)
            self._resume(state)
        else:
            self._start()

    @property
    def time(self) -> float:
        """Since the first frame, fs."""
        return self.step * self.config.timestep

    def _start(self) -> None:
        set_velocities(self.atoms, self.config, self.rng)
        self.atoms.calc = self.calc
        atoms = self.atoms
        atoms.get_forces()
        if self.config.ensemble == "npt":
            # asked for once, it comes with every step's forces
            atoms.get_stress()
        self._check_finite()
        self.method = method_of(self.config)
        self.dynamics = self._make_dynamics()

    def _make_dynamics(self) -> Any:
        step = self.config.timestep * units.fs
        self.shadow = shadow_of(self.config, self.atoms, step)
        return self.method.make(self.atoms, step, self.config, self.rng)

    def _check_same(self, state: dict[str, Any]) -> None:
        """
        Refuse a restart file of another run.

        Raises:
            ValueError: names what differs.
        """
        path, new = self.files["restart.pt"], plain_config(self.config)
        # options that came after the file was written had their defaults
        first = {name: new[name] for name in ("structure", "model", "steps")}
        old = {**plain_config(MdConfig(**first)), **state["config"]}
        changed = [k for k in new if k not in _FREE and old.get(k) != new[k]]
        if changed:
            was = ", ".join(f"{k} was {old.get(k)!r} and is {new[k]!r}" for k in changed)
            raise ValueError(
                f"{path} belongs to a run with other options ({was}): choose another output, or --fresh"
            )
        for name, value in self.digests.items():
            if state["digests"][name] != value:
                raise ValueError(
                    f"{path} belongs to a run of another {name}: {getattr(self.config, name)} has changed. "
                    "Choose another output, or --fresh"
                )

    def _resume(self, state: dict[str, Any]) -> None:
        """Take over what a restart file knows; `go` cuts trajectory and log back to it."""
        self.step, self.first = int(state["step"]), float(state["first"])
        atoms = self.atoms
        atoms.set_cell(state["cell"].numpy(), scale_atoms=False)
        atoms.set_positions(state["positions"].numpy(), apply_constraint=False)
        atoms.set_momenta(state["momenta"].numpy(), apply_constraint=False)
        assert self.calc.schedule is not None
        atoms.info.update(self.calc.schedule(self.time))
        self.calc.time = self.time
        self.calc.set_state(state["calculator"], atoms)
        atoms.calc = self.calc
        self.method = method_of(self.config)
        self.dynamics = self._make_dynamics()
        restore_integrator(self.method, self.dynamics, self.rng, state["integrator"])
        self.dynamics.nsteps = self.step
        self._written = state["written"]

    def save(self) -> None:
        """Write the restart file, after all that it counts on."""
        atoms = self.atoms
        save_restart(
            self.files["restart.pt"],
            {
                "config": plain_config(self.config),
                "digests": self.digests,
                "step": self.step,
                "numbers": torch.tensor(atoms.numbers),
                "positions": torch.tensor(atoms.positions),
                "cell": torch.tensor(atoms.cell.array),
                "momenta": torch.tensor(atoms.get_momenta()),
                "integrator": integrator_state(self.method, self.dynamics, self.rng),
                "calculator": self.calc.get_state(),
                "first": self.first,
                "written": {"trajectory": self.trajectory.sync(), "log": self.log.sync()},
            },
        )

    def moment(self) -> Moment:
        """The numbers of the step that is done."""
        atoms, results = self.atoms, self.calc.results
        kinetic, potential = float(atoms.get_kinetic_energy()), float(results["energy"])
        conserved = None if self.method.conserved is None else self.method.conserved(self.dynamics)
        self.first = conserved if conserved is not None and math.isnan(self.first) else self.first
        row: dict[str, Any] = {
            "step": self.step,
            "time": self.time,
            "temperature": float(atoms.get_temperature()),
            "potential_energy": potential,
            "kinetic_energy": kinetic,
            "total_energy": potential + kinetic,
            "conserved": conserved,
            "drift": self._per_atom(conserved),
            "shadow_drift": self._per_atom(self.shadow and self.shadow.energy),
            "max_force": float(np.sqrt((results["forces"].astype(float) ** 2).sum(1).max())),
        }
        if atoms.cell.rank == 3:
            row["volume"] = float(atoms.get_volume())
        if "stress" in results and atoms.cell.rank == 3:
            stress = atoms.get_stress(include_ideal_gas=True, apply_constraint=False)
            row["pressure"] = float(-stress[:3].sum() / 3 / units.GPa)
        if "charges" in results:
            row["charge"] = float(np.sum(results["charges"], dtype=float))
        if "dipole" in results and np.shape(results["dipole"]) == (3,):
            row |= {f"dipole_{x}": float(d) for x, d in zip("xyz", results["dipole"], strict=True)}
        field = atoms.info.get("external_field")
        if field is not None and np.shape(field) == (3,):
            row |= {f"field_{x}": float(f) for x, f in zip("xyz", np.asarray(field), strict=True)}
        for name in ("fermi_level", "scf_iterations", "scf_residual"):
            if name in results:
                row[name] = float(results[name])
        return Moment(row, frame_of(atoms, results, self.step, self.time))

    def _per_atom(self, energy: float | None) -> float | None:
        """Its change since the first frame, meV/atom."""
        return None if energy is None else 1000 * (energy - self.first) / len(self.atoms)

    def _check_finite(self) -> None:
        """
        Refuse forces that are none.

        Raises:
            MdError: names the atom.
        """
        forces = np.asarray(self.calc.results["forces"], dtype=float)
        good = np.isfinite(forces).all(1)
        if good.all() and math.isfinite(self.calc.results["energy"]):
            return
        where = "the energy is"
        if not good.all():
            bad = int(np.flatnonzero(~good)[0])
            where = f"forces are, first on atom {bad} ({self.atoms.symbols[bad]})"
        raise MdError(
            f"{where} NaN or infinite. Atoms too near to each other, or a geometry far from what the model "
            "was trained on: look at the frames before, shorten timestep, or start from a relaxed structure"
        )

    def advance(self) -> None:
        """
        One step.

        Raises:
            MdError: for one that failed: says which, why and what to do.
        """
        number = self.step + 1
        self.calc.time = number * self.config.timestep
        try:
            if self.shadow is not None:
                self.shadow.begin(self.atoms)
            self.dynamics.step()
            self.atoms.get_forces()
            self._check_finite()
            if self.shadow is not None:
                self.shadow.end(self.atoms)
        except (ValueError, RuntimeError, ArithmeticError) as error:
            raise MdError(self._say(number, error)) from error
        self.step = self.dynamics.nsteps = number

    def _say(self, number: int, error: BaseException) -> str:
        """What went wrong in a step, and where the last good frame is."""
        from ..scf import ConvergenceError

        text = f"step {number} ({number * self.config.timestep:g} fs): {error}"
        if isinstance(error, ConvergenceError):
            text += (
                ". If it converges at rest, atoms have moved too far in a step or a drive was too sudden: "
                "shorten timestep, ramp more slowly, or start with warm_start: none"
            )
        if self.good is None:
            return text
        frame = self.good
        write_whole(
            self.files["last_good.xyz"],
            lambda file: file.write(_xyz_text(frame).encode()),
        )
        return f"{text}. The frame of step {self.step} is in {self.files['last_good.xyz']}"

    def go(self, quiet: bool = False) -> None:
        """
        Run to the last step.

        Raises:
            MdError: for a step that failed.
            ValueError: for a trajectory or log that lacks what was written before.
        """
        config, began = self.config, self.step
        if self._written is not None:
            self.trajectory.resume(self._written["trajectory"])
            self.log.resume(self._written["log"])
            self._written = None
        elif self.step == 0:
            self.trajectory.start()
            self.log.start()
            self._record(self.moment())
            self.save()
        with tqdm(
            total=config.steps,
            initial=began,
            unit="step",
            disable=quiet or None,
            dynamic_ncols=True,
            mininterval=0.5,
        ) as bar:
            while self.step < config.steps:
                self.good = frame_of(self.atoms, self.calc.results, self.step, self.time)
                self.advance()
                due = self.step % config.log_interval == 0 or self.step % config.trajectory_interval == 0
                if due or self.step == config.steps:
                    moment = self.moment()
                    self._record(moment)
                    bar.set_postfix_str(_postfix(moment.row), refresh=False)
                if self.step % config.restart_interval == 0 or self.step == config.steps:
                    self.save()
                bar.update()

    def _record(self, moment: Moment) -> None:
        if self.step % self.config.log_interval == 0:
            self.log.add(moment.row)
        if self.step % self.config.trajectory_interval == 0:
            self.trajectory.add(moment.frame)


def _xyz_text(frame: Atoms) -> str:
    import io

    from ase.io import write

    text = io.StringIO()
    write(text, frame, format="extxyz")
    return text.getvalue()


def _postfix(row: dict[str, Any]) -> str:
    """What the progress bar says of a step."""
    parts = [f"{row['temperature']:.0f} K", f"E {row['potential_energy']:.4f} eV"]
    if row.get("drift") is not None:
        parts.append(f"drift {row['drift']:+.3f} meV/atom")
    if row.get("charge") is not None:
        parts.append(f"Q {row['charge']:+.4f} e")
    if row.get("scf_iterations") is not None:
        parts.append(f"{row['scf_iterations']:.0f} iterations")
    return ", ".join(parts)


def plain_config(config: MdConfig) -> dict[str, Any]:
    """Options as plain lists, dictionaries and numbers, as they come back from a file."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value

    return plain(config_to_dict(config))


def run_md(config: MdConfig, fresh: bool = False, quiet: bool = False) -> dict[str, Any]:
    """
    A run from its first step or its restart file to its last step, with log, trajectory and figure.

    Args:
        config: The run.
        fresh: Start over, whatever the folder holds.
        quiet: No progress bar.

    Returns:
        ``steps`` in all, ``first`` of this call, ``seconds`` it took, and of the second half of the log: mean
        ``temperature``, ``charge``, ``scf_iterations``, and ``drift`` of the conserved quantity and
        ``shadow_drift`` of velocity Verlet's shadow energy in meV/atom/ps, of the whole.

    Raises:
        MdError: for a step that failed.
        BlockingIOError: if another process runs there.
        ValueError, FileNotFoundError, FileExistsError, TypeError: for wrong options, files or models.
    """
    folder = Path(config.output)
    names = ("restart.pt", "log.csv", "md.png", "last_good.xyz", config.trajectory)
    with locked(folder, "runs molecular dynamics", names):
        run = Run(config, fresh)
        began, start = run.step, time.perf_counter()
        run.go(quiet)
        seconds = time.perf_counter() - start
        table = read_log(run.log.path)
        plot_log(run.files["md.png"], table)
    found = summarise(table)
    return {"steps": run.step, "first": began, "seconds": seconds, **found}
