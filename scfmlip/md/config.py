"""What a run of molecular dynamics is told: typed options, read from YAML, every mistake named."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..models.config import check_numbers, from_dict
from ..training.plain import read_options

Ensemble = Literal["nve", "langevin", "baoab", "bussi", "nose_hoover", "npt"]
WarmStart = Literal["polynomial", "extended_lagrangian", "none"]
# with a temperature of their own
THERMOSTATS = ("langevin", "baoab", "bussi", "nose_hoover", "npt")
# ASE's integrators that count every atom as free
_WITHOUT_CONSTRAINTS = ("nose_hoover", "npt")
# names in the output folder that others have
_TAKEN = {"restart.pt", "log.csv", "md.png", "last_good.xyz", "config.yaml"}


@dataclasses.dataclass(frozen=True)
class Ramp:
    """
    A value that changes with time: straight lines between given points, constant before and after them.

    Attributes:
        times: fs, increasing.
        values: One for each time: numbers, or lists of three.
    """

    times: tuple[float, ...]
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        check_numbers("a ramp", self, "times", least=0)
        check_numbers("a ramp", self, "values")
        if not self.times or len(self.times) != len(self.values):
            raise ValueError(
                f"a ramp needs as many values as times, got {len(self.times)} times and {len(self.values)} "
                "values"
            )
        if any(b <= a for a, b in zip(self.times, self.times[1:], strict=False)):
            raise ValueError(f"times of a ramp must increase, got {list(self.times)}")


@dataclasses.dataclass(frozen=True)
class MdConfig:
    """
    A whole run.

    Attributes:
        structure: File of the first frame, any format ASE reads; its ``info`` (charge, spin, external
            charges, counter-charge, head) counts as in `scfmlip.ase.Calculator`, its constraints
            (``move_mask``) hold.
        model: ``*.safetensors`` of `scfmlip.save`, or the file mace wrote, see ``trust_pickle``.
        steps: Number of steps in all; a finished run goes on when it is raised.
        index: Of the frame in the file.
        output: Folder of everything that is written.
        ensemble: "nve" (velocity Verlet); at constant temperature "langevin" (Vanden-Eijnden and Ciccotti),
            "baoab" (Langevin after Leimkuhler and Matthews), "bussi" (stochastic velocity rescaling),
            "nose_hoover" (chains of three); "npt" (Martyna, Tobias and Klein, with such chains). All ASE's.
        timestep: fs.
        temperature: K; of the thermostat, and of velocities that are drawn.
        thermostat_time: fs, the inverse friction of "langevin" and "baoab", the time constant of the others.
        pressure: GPa, of "npt".
        barostat_time: fs, of "npt".
        barostat_cell: "isotropic", "full" (every component) or "axes" (the lengths of ``barostat_axes``).
        barostat_axes: Lattice vectors, of 0, 1, 2, whose lengths may change; periodic ones.
        velocities: "thermal" draws them, "file" takes the structure's momenta, "zero"; "auto": the file's
            if it has any, else thermal. Drawn ones have no total momentum unless atoms are fixed.
        seed: Of drawn velocities and of stochastic thermostats.
        fixed_atoms: Numbers of atoms that do not move, beside those the file fixes.
        charge: Total charge of a structure whose info has none, e.
        spin: Multiplicity 2S+1 of a structure whose info has none.
        counter_charge: Of a slab whose info has none: lower and upper end, angstrom along its normal, of what
            balances its charge, see `scfmlip.Coulomb`.
        head: Of a multi-head model.
        fermi_level: Constant potential: the electrons' Fermi level, eV, a number or a ramp. The charge
            follows at once, whatever it was.
        external_field: V/angstrom, three numbers or one along z, constant or a ramp.
        field_convention: "mace", as in ``atoms.info``: the energy is E + field . dipole, a charge q is pushed
            by -q field; "physical": E - field . dipole, q is pushed by q field.
        warm_start: What a self-consistent model starts every step's solve from: a "polynomial" through the
            last densities, the auxiliary densities of the "extended_lagrangian", or "none".
        warm_start_order: Of the polynomial, at least 0 (None: 3), or of the extended Lagrangian's damping, 3
            to 7 (None: 5).
        skin: angstrom by which the list of neighbours reaches beyond the cutoff, so that it lasts some steps.
        dtype: "float64" or "float32"; None for the model's.
        device: "auto", "cpu", "cuda", ...
        cuda_graph: Capture steps on a GPU as CUDA graphs, see `scfmlip.accelerate`.
        trust_pickle: Read a model's pickle, which runs the code it holds.
        trajectory: Name in the output folder: ``*.xyz``, ``*.extxyz`` or ``*.traj``.
        trajectory_interval, log_interval, restart_interval: Steps between frames, rows of ``log.csv`` and
            restart files.
    """

    structure: str
    model: str
    steps: int
    index: int = 0
    output: str = "md"
    ensemble: Ensemble = "nve"
    timestep: float = 0.5
    temperature: float | None = None
    thermostat_time: float = 100.0
    pressure: float = 0.0
    barostat_time: float = 1000.0
    barostat_cell: Literal["isotropic", "full", "axes"] = "isotropic"
    barostat_axes: tuple[int, ...] = ()
    velocities: Literal["auto", "thermal", "file", "zero"] = "auto"
    seed: int = 0
    fixed_atoms: tuple[int, ...] = ()
    charge: float | None = None
    spin: float | None = None
    counter_charge: tuple[float, ...] | None = None
    head: str | None = None
    fermi_level: float | Ramp | None = None
    external_field: Any = None
    field_convention: Literal["mace", "physical"] = "mace"
    warm_start: WarmStart = "polynomial"
    warm_start_order: int | None = None
    skin: float = 0.5
    dtype: Literal["float32", "float64"] | None = "float64"
    device: str = "auto"
    cuda_graph: bool = False
    trust_pickle: bool = False
    trajectory: str = "trajectory.xyz"
    trajectory_interval: int = 10
    log_interval: int = 1
    restart_interval: int = 100

    def __post_init__(self) -> None:
        check_numbers("", self, "steps", "seed", least=0)
        check_numbers("", self, "timestep", "thermostat_time", "barostat_time", above=0)
        check_numbers("", self, "temperature", "skin", least=0)
        check_numbers("", self, "pressure", "charge", "spin", "index", "counter_charge")
        ends = self.counter_charge
        if ends is not None and not (len(ends) == 2 and ends[0] < ends[1]):
            raise ValueError(f"counter_charge must be a lower and an upper end, angstrom, got {list(ends)}")
        check_numbers("", self, "trajectory_interval", "log_interval", "restart_interval", least=1)
        self._check_ensemble()
        self._check_drive()
        self._check_warm_start()
        if not self.output:
            raise ValueError("output must be the name of a folder, got ''")
        name = Path(self.trajectory)
        if name.suffix not in (".xyz", ".extxyz", ".traj") or name.name != self.trajectory:
            raise ValueError(
                f"trajectory must be a name in the output folder that ends in .xyz, .extxyz or .traj, got "
                f"{self.trajectory!r}"
            )
        if self.trajectory in _TAKEN:
            raise ValueError(f"trajectory: {self.trajectory} is another file of the run")

    def _check_ensemble(self) -> None:
        hot = self.temperature is not None and self.temperature > 0
        if self.ensemble in THERMOSTATS and not hot:
            raise ValueError(f"ensemble: {self.ensemble} needs temperature, K, above 0")
        if self.velocities == "thermal" and self.temperature is None:
            raise ValueError("velocities: thermal needs temperature, K")
        if self.fixed_atoms and self.ensemble in _WITHOUT_CONSTRAINTS:
            raise ValueError(
                f"fixed_atoms: ASE's integrator of ensemble: {self.ensemble} counts every atom as free; take "
                "nve, langevin, baoab or bussi"
            )
        if min(self.fixed_atoms, default=0) < 0:
            raise ValueError(f"fixed_atoms must be numbers of atoms from 0 on, got {list(self.fixed_atoms)}")
        axes = sorted(set(self.barostat_axes))
        if (self.barostat_cell == "axes") != bool(axes) or not set(axes) <= {0, 1, 2}:
            raise ValueError(
                "barostat_cell: axes needs barostat_axes of 0, 1 and 2, and only that takes them; got "
                f"barostat_cell: {self.barostat_cell} and barostat_axes: {list(self.barostat_axes)}"
            )

    def _check_drive(self) -> None:
        field = self.external_field
        given = field.values if isinstance(field, Ramp) else () if field is None else (field,)
        for value in given:
            several = isinstance(value, (list, tuple))
            numbers = value if several else (value,)
            if len(numbers) != (3 if several else 1) or any(
                isinstance(n, bool) or not isinstance(n, (int, float)) for n in numbers
            ):
                raise ValueError(
                    f"external_field must be three numbers or one along z, V/angstrom, got {value!r}"
                )
        if len({isinstance(value, (list, tuple)) for value in given}) > 1:
            raise ValueError("values of external_field's ramp must be all numbers, or all lists of three")
        level = self.fermi_level
        if not isinstance(level, Ramp):
            check_numbers("", self, "fermi_level")
            return
        if any(isinstance(v, (bool, list, tuple)) for v in level.values):
            raise ValueError(f"values of the ramp of fermi_level must be numbers, eV, got {level.values!r}")

    def _check_warm_start(self) -> None:
        order, kind = self.warm_start_order, self.warm_start
        allowed = {"polynomial": range(11), "extended_lagrangian": range(3, 8), "none": range(0)}[kind]
        if order is not None and order not in allowed:
            text = f"must be {allowed[0]} to {allowed[-1]}" if allowed else "has no meaning"
            raise ValueError(f"warm_start_order {text} with warm_start: {kind}, got {order}")


def config_from_dict(values: Mapping[str, Any]) -> MdConfig:
    """
    A run's options from a plain mapping.

    Raises:
        ValueError, TypeError: name the option that is unknown, missing or wrong.
    """
    values = dict(values)
    for name in ("fermi_level", "external_field"):
        if isinstance(values.get(name), Mapping):
            try:
                values[name] = from_dict(Ramp, values[name], name)
            except (ValueError, TypeError) as error:
                text = str(error)
                raise type(error)(text if name in text else f"{name}: {text}") from None
    return from_dict(MdConfig, values, "the run")


def load_config(path: str | Path) -> MdConfig:
    """
    A run's options from a YAML file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError, TypeError: as `config_from_dict`, or if the file is no YAML, or names an option twice.
    """
    return config_from_dict(read_options(path, "structure, model and steps"))


def config_to_dict(config: MdConfig) -> dict[str, Any]:
    """The plain dictionary of a run's options."""
    return dataclasses.asdict(config)
