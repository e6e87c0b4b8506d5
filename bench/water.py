"""
Flexible water with equilibrated charges, what warm starts and shadow dynamics save: `python -m bench.water`.

A model for measurements, not of water: harmonic molecules, Lennard-Jones oxygen (SPC), a short repulsion
that keeps hydrogen off other molecules' oxygen, and Gaussian charges from `scfmlip.charge_equilibration` with
about -0.7 e on oxygen. Everything is PyTorch float64 and differentiable.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from scfmlip import ChargeSolution, Coulomb, charge_equilibration
from scfmlip.scf import ExtendedLagrangian, StateExtrapolator, shadow_equilibration

from .progress import Bar, say
from .record import RESULTS, commit, device_name

F64 = torch.float64
BOLTZMANN = 8.617333262e-5  # eV/K
MASS_UNIT = 103.642696  # eV fs^2/angstrom^2 of a dalton


class Water(NamedTuple):
    """
    Molecules in a cubic box: numbers of their atoms, positions and the box edge.

    Attributes:
        positions: ``[n_atoms, 3]`` float64 angstrom.
        edge: Angstrom.
        oxygen, first, second: ``[n_molecules]`` int64 atoms of each molecule.
    """

    positions: Tensor
    edge: float
    oxygen: Tensor
    first: Tensor
    second: Tensor

    @property
    def n_atoms(self) -> int:
        """Three for a molecule."""
        return len(self.positions)

    def per_element(self, oxygen: float, hydrogen: float) -> Tensor:
        """``[n_atoms]`` float64."""
        values = torch.full((self.n_atoms,), hydrogen, dtype=F64)
        values[self.oxygen] = oxygen
        return values


def from_frame(positions: Tensor, numbers: Tensor, edge: float) -> Water:
    """Molecules of a frame by each oxygen's nearest hydrogen atoms; raises where that is ambiguous."""
    oxygen, hydrogen = torch.nonzero(numbers == 8).flatten(), torch.nonzero(numbers == 1).flatten()
    delta = positions[oxygen, None] - positions[None, hydrogen]
    delta = delta - edge * (delta / edge).round()
    pair = delta.norm(dim=-1).topk(2, largest=False).indices
    if len(pair.unique()) != len(hydrogen):
        raise ValueError("not water: hydrogen atoms cannot be given to the oxygen atoms next to them")
    return Water(positions.double(), edge, oxygen, hydrogen[pair[:, 0]], hydrogen[pair[:, 1]])


def lattice(n_molecules: int, seed: int = 0) -> Water:
    """Randomly oriented molecules on a cubic lattice at 1 g/cm^3: a start, not a liquid."""
    generator = torch.Generator().manual_seed(seed)
    edge = (29.9 * n_molecules) ** (1 / 3)
    side = math.ceil(n_molecules ** (1 / 3) - 1e-9)
    axis = (torch.arange(side, dtype=F64) + 0.5) * edge / side
    centre = torch.cartesian_prod(axis, axis, axis)[:n_molecules]
    frame = torch.linalg.qr(torch.randn(n_molecules, 3, 3, generator=generator, dtype=F64)).Q
    half = math.radians(52.9)
    along, across = 0.97 * math.cos(half) * frame[:, 0], 0.97 * math.sin(half) * frame[:, 1]
    positions = torch.stack((centre, centre + along + across, centre + along - across), 1).flatten(0, 1)
    number = 3 * torch.arange(n_molecules)
    return Water(positions, edge, number, number + 1, number + 2)


def molecular_energy(water: Water, positions: Tensor) -> Tensor:
    """All but the charges' energy, eV."""

    def nearest(vector: Tensor) -> Tensor:
        return vector - water.edge * (vector.detach() / water.edge).round()

    oxygen = positions[water.oxygen]
    bonds = [nearest(positions[h] - oxygen) for h in (water.first, water.second)]
    lengths = [b.norm(dim=-1) for b in bonds]
    energy = sum(24.0 * ((r - 0.97) ** 2).sum() for r in lengths)
    cosine = (bonds[0] * bonds[1]).sum(-1) / (lengths[0] * lengths[1])
    energy = energy + 2.1 * ((cosine - math.cos(math.radians(105.8))) ** 2).sum()
    n = len(water.oxygen)
    apart = (nearest(oxygen[:, None] - oxygen[None]) ** 2).sum(-1) + 1e6 * torch.eye(n, dtype=F64)
    inverse = (3.166**2 / apart) ** 3
    energy = energy + 0.5 * (0.02696 * (inverse**2 - inverse)).sum()
    other = 1 - torch.eye(n, dtype=F64)
    for h in (water.first, water.second):
        r = nearest(oxygen[:, None] - positions[None, h]).norm(dim=-1)
        energy = energy + (other * 0.2 * torch.exp((1.6 - r) / 0.2)).sum()
    return energy


class Trace(NamedTuple):
    """
    A trajectory's record, one number a step.

    Attributes:
        energy: Total energy, eV.
        iterations: Of the charges' solve.
        residual: Relative, at its end.
        temperature: K.
    """

    energy: list[float]
    iterations: list[int]
    residual: list[float]
    temperature: list[float]


def run(
    water: Water,
    steps: int,
    mode: str = "extrapolated",
    *,
    shadow_iterations: int = 1,
    tolerance: float = 1e-6,
    time_step: float = 0.5,
    temperature: float = 300.0,
    seed: int = 0,
) -> Trace:
    """
    Velocity Verlet from thermal velocities.

    Args:
        water: The start.
        steps: Of ``time_step``, fs.
        mode: "cold" solves anew, "extrapolated" from a quadratic through the last states, both to
            ``tolerance``; "shadow" takes ``shadow_iterations`` from the extended Lagrangian's state.
        shadow_iterations: Conjugate gradient steps of that.
        tolerance: Relative residual of a solve.
        time_step: fs.
        temperature: K, of the first velocities.
        seed: Of these.
    """
    n = water.n_atoms
    chi, hardness = water.per_element(5.6, -1.9), water.per_element(6.0, 8.0)
    which = water.per_element(0, 1).long()
    operator = Coulomb(l_max=0, sigma=(0.8, 0.6))
    cell = water.edge * torch.eye(3, dtype=F64)
    plan = operator.plan(cell, None, None, n)
    mass = MASS_UNIT * water.per_element(15.999, 1.008)[:, None]
    generator = torch.Generator().manual_seed(seed)
    velocity = torch.randn(n, 3, generator=generator, dtype=F64) * (BOLTZMANN * temperature / mass).sqrt()
    velocity = velocity - (mass * velocity).sum(0) / mass.sum()
    extrapolator, auxiliary = StateExtrapolator(order=2), ExtendedLagrangian()

    def charges(positions: Tensor) -> ChargeSolution:
        geometry = operator.prepare(positions, cell, plan=plan)
        start = auxiliary.guess()
        if mode == "shadow" and start is not None:
            return shadow_equilibration(
                geometry, chi, hardness, width_index=which, auxiliary=start, iterations=shadow_iterations
            )
        guess = extrapolator.guess() if mode == "extrapolated" else None
        accuracy = 1e-10 if mode == "shadow" else tolerance
        return charge_equilibration(
            geometry, chi, hardness, width_index=which, method="cg", initial=guess, tolerance=accuracy
        )

    def forces(positions: Tensor) -> tuple[float, Tensor]:
        leaf = positions.detach().requires_grad_()
        solution = charges(leaf)
        extrapolator.add(solution.state)
        auxiliary.add(solution.state)
        trace.iterations.append(int(solution.iterations.max()))
        trace.residual.append(float(solution.residual.max()))
        energy = solution.energy.sum() + molecular_energy(water, leaf)
        (slope,) = torch.autograd.grad(energy, leaf)
        return float(energy.detach()), -slope

    trace = Trace([], [], [], [])
    positions = water.positions
    _, force = forces(positions)
    for _ in range(steps):
        velocity = velocity + 0.5 * time_step * force / mass
        positions = positions + time_step * velocity
        energy, force = forces(positions)
        velocity = velocity + 0.5 * time_step * force / mass
        kinetic = 0.5 * float((mass * velocity**2).sum())
        trace.energy.append(energy + kinetic)
        trace.temperature.append(2 * kinetic / (3 * n * BOLTZMANN))
    return trace


def drift(trace: Trace, time_step: float, skip: int) -> tuple[float, float]:
    """Slope, eV/ps, and standard deviation about it, eV, of the total energy after ``skip`` steps."""
    energy = torch.tensor(trace.energy[skip:], dtype=F64)
    at = torch.arange(len(energy), dtype=F64) * time_step / 1000
    at, energy = at - at.mean(), energy - energy.mean()
    slope = float((at * energy).sum() / (at**2).sum())
    return slope, float((energy - slope * at).std())


def main() -> None:
    """Measure, append rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--molecules", type=int, default=27)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    name = device_name(torch.device("cpu"))
    file = options.out or RESULTS / f"equilibration-water-{name.lower().replace(' ', '-')}.csv"
    start = lattice(options.molecules)
    modes = [("cold", 0, 1e-6), ("extrapolated", 0, 1e-6), ("shadow", 0, 0.0), ("shadow", 1, 0.0)]
    rows = []
    for mode, shadow_iterations, tolerance in Bar(modes, "run"):
        trace = run(start, options.steps, mode, shadow_iterations=shadow_iterations, tolerance=tolerance)
        slope, spread = drift(trace, 0.5, options.steps // 5)
        late = trace.iterations[10:]
        row = {
            "atoms": start.n_atoms,
            "steps": options.steps,
            "mode": mode if mode != "shadow" else f"shadow {shadow_iterations}",
            "mean_iterations": sum(late) / len(late),
            "most_iterations": max(late),
            "drift_mev_per_atom_ps": 1e3 * slope / start.n_atoms,
            "spread_mev_per_atom": 1e3 * spread / start.n_atoms,
            "temperature": sum(trace.temperature[-200:]) / len(trace.temperature[-200:]),
            "device": name,
            "torch": torch.__version__,
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d"),
        }
        rows.append({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})
        say(rows[-1])
    fresh = not file.exists()
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
