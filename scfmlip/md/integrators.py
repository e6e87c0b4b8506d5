"""ASE's integrators by name, and what of each has to be kept so that a run goes on exactly."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.md.bussi import Bussi
from ase.md.langevin import Langevin
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import MTKNPT, IsotropicMTKNPT, MaskedMTKNPT, NoseHooverChainNVT
from ase.md.verlet import VelocityVerlet

from .config import MdConfig

_CHAIN = ("_q", "_p", "_thermostat._eta", "_thermostat._p_eta")
_BAROSTAT = ("_barostat._xi", "_barostat._p_xi")


@dataclasses.dataclass(frozen=True)
class Method:
    """
    One integrator.

    Attributes:
        make: ``(atoms, timestep in ASE's unit, config, generator)`` -> integrator.
        state: Attributes that change from step to step, beside positions, momenta, cell and the generator.
        conserved: ``integrator -> eV`` that it conserves; None for one without such a quantity.
    """

    make: Callable[[Atoms, float, MdConfig, np.random.Generator], Any]
    state: tuple[str, ...] = ()
    conserved: Callable[[Any], float] | None = None


def _langevin(atoms: Atoms, step: float, config: MdConfig, rng: np.random.Generator) -> Langevin:
    friction = 1 / (config.thermostat_time * units.fs)
    return Langevin(atoms, step, temperature_K=config.temperature, friction=friction, fixcm=False, rng=rng)


def _baoab(atoms: Atoms, step: float, config: MdConfig, rng: np.random.Generator) -> LangevinBAOAB:
    return LangevinBAOAB(
        atoms, step, temperature_K=config.temperature, T_tau=config.thermostat_time * units.fs, rng=rng
    )


def _bussi(atoms: Atoms, step: float, config: MdConfig, rng: np.random.Generator) -> Bussi:
    return Bussi(atoms, step, config.temperature, taut=config.thermostat_time * units.fs, rng=rng)


def _nose_hoover(atoms: Atoms, step: float, config: MdConfig, _: Any) -> NoseHooverChainNVT:
    assert config.temperature is not None
    return NoseHooverChainNVT(atoms, step, config.temperature, tdamp=config.thermostat_time * units.fs)


def _npt(atoms: Atoms, step: float, config: MdConfig, _: Any) -> IsotropicMTKNPT | MTKNPT:
    kind: Any = {"isotropic": IsotropicMTKNPT, "full": MTKNPT, "axes": MaskedMTKNPT}[config.barostat_cell]
    # as an array: ASE indexes with it, and a tuple of truth values picks nothing
    axes = np.array([i in config.barostat_axes for i in range(3)])
    mask: dict[str, Any] = {"mask": axes} if kind is MaskedMTKNPT else {}
    return kind(
        atoms,
        step,
        temperature_K=config.temperature,
        pressure_au=config.pressure * units.GPa,
        tdamp=config.thermostat_time * units.fs,
        pdamp=config.barostat_time * units.fs,
        **mask,
    )


def _total(dynamics: MolecularDynamics) -> float:
    return float(dynamics.atoms.get_total_energy())


def _own(dynamics: Any) -> float:
    return float(dynamics.get_conserved_energy())


_METHODS = {
    "nve": Method(lambda atoms, step, config, rng: VelocityVerlet(atoms, step), conserved=_total),
    "langevin": Method(_langevin),
    "baoab": Method(_baoab),
    "bussi": Method(
        _bussi, ("transferred_energy",), lambda dynamics: _total(dynamics) - dynamics.transferred_energy
    ),
    "nose_hoover": Method(_nose_hoover, _CHAIN, _own),
    "npt/isotropic": Method(_npt, (*_CHAIN, *_BAROSTAT, "_eps", "_p_eps", "_volume0", "_cell0"), _own),
    "npt/full": Method(_npt, (*_CHAIN, *_BAROSTAT, "_h", "_p_g"), _own),
    "npt/axes": Method(_npt, (*_CHAIN, *_BAROSTAT, "_h", "_p_c", "_h0_basis"), _own),
}


def method_of(config: MdConfig) -> Method:
    """The integrator of a run."""
    return _METHODS[f"npt/{config.barostat_cell}" if config.ensemble == "npt" else config.ensemble]


def _find(dynamics: Any, path: str) -> tuple[Any, str]:
    *parts, name = path.split(".")
    for part in parts:
        dynamics = getattr(dynamics, part)
    return dynamics, name


def integrator_state(method: Method, dynamics: Any, rng: np.random.Generator) -> dict[str, Any]:
    """What an integrator goes on from, as plain types and tensors."""
    state: dict[str, Any] = {"generator": json.dumps(rng.bit_generator.state)}
    for path in method.state:
        owner, name = _find(dynamics, path)
        state[path] = torch.tensor(np.asarray(getattr(owner, name), dtype=float))
    return state


def restore_integrator(
    method: Method, dynamics: Any, rng: np.random.Generator, state: dict[str, Any]
) -> None:
    """Put back what `integrator_state` returned."""
    rng.bit_generator.state = json.loads(state["generator"])
    for path in method.state:
        owner, name = _find(dynamics, path)
        value = state[path].numpy().copy()
        setattr(owner, name, value if value.ndim else float(value))
