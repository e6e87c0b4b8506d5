"""Second half of the demo: trained models on a metal-water interface, with a field, an ion, and dynamics."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from ...files import replacing

# name, file of the package, colour
MODELS = (
    ("charge equilibration", "al_water-equilibrated.safetensors", "tab:blue"),
    ("fixed point", "al_water-fixed_point.safetensors", "tab:orange"),
)
FIELD = 0.1  # V/angstrom along z
STEPS = 20
# an ion below the bare side of the metal, e and angstrom, and the cells around it
ION, DEPTH, REPEAT = 0.5, 5.0, (5, 3, 1)
# between layers of Al(100), angstrom
LAYER = 2.025


def compare_with_dft() -> list[dict[str, Any]]:
    """Errors of the trained models on the shipped interface without a field, which was not in training."""
    from ...data import path
    from ...interfaces.ase import Calculator
    from ...structures import read_frame

    rows = []
    atoms = read_frame(path("al_water.xyz"), 0)
    for name, file, _ in MODELS:
        atoms.calc = Calculator(path(f"models/{file}"))
        energy = atoms.get_potential_energy() - atoms.info["REF_energy"]
        forces = atoms.get_forces() - atoms.arrays["REF_forces"]
        charges = atoms.get_charges() - atoms.arrays["REF_hirshfeld"]
        rows.append(
            {
                "model": name,
                "energy": 1e3 * energy / len(atoms),
                "forces": float(np.sqrt((forces**2).mean())),
                "charges": float(np.sqrt((charges**2).mean())),
                "dipole": float(atoms.get_dipole_moment()[2]),
                "reference": float(np.asarray(atoms.info["REF_dipole"])[2]),
            }
        )
    return rows


def draw_response(output: Path) -> Path:
    """Plot planar averages of the potential, and the change of charge due to a field or an ion."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from ...data import path
    from ...interfaces.ase import Calculator
    from ...structures import read_frame
    from ...units import FIELD_CONSTANT
    from ..plot import planar_averages

    atoms = read_frame(path("al_water.xyz"), 0)
    fig, axes = plt.subplots(1, 3, figsize=(13.5, 4.2), constrained_layout=True)
    sigma = 1.5
    area = np.linalg.norm(np.cross(*atoms.cell.array[:2]))
    step = 0.5 * FIELD_CONSTANT * np.asarray(atoms.info["REF_dipole"])[2] / area
    for level, name in ((-step, "vacuum by DFT's dipole"), (step, None)):
        axes[0].axhline(level, color="k", ls="--", lw=0.8, label=name)
    metal = atoms.numbers == 13
    for name, file, colour in MODELS:
        calc = Calculator(path(f"models/{file}"))
        still = np.asarray(calc.get_property("density_coefficients", atoms), dtype=float)
        rows = still[:, [0, 3, 1, 2]]  # from mace's order to Cartesian
        z, (values,) = planar_averages(atoms, rows, sigma, ("potential",), 2, 160)
        axes[0].plot(z, values, color=colour, label=name)
        pushed = atoms.copy()
        pushed.info["external_field"] = np.array([0.0, 0.0, -FIELD])
        change = np.asarray(calc.get_property("charges", pushed)) - still[:, 0]
        height = atoms.positions[:, 2]
        axes[1].plot(height[metal], 1e3 * change[metal], "o", color=colour, label=f"{name}: Al")
        axes[1].plot(height[~metal], 1e3 * change[~metal], "x", color=colour, ms=4, label="water")
    axes[0].set(xlabel="z (Å)", ylabel="planar average of the potential (V)")
    axes[1].set(xlabel="z (Å)", ylabel=f"change of charge in {FIELD} V/Å (10⁻³ e)")
    _answer_to_an_ion(axes[2])
    for ax in axes:
        ax.legend(fontsize=7)
    fig.suptitle("Al(100) and water: trained models", fontsize=10)
    file = output / "al_water_response.png"
    with replacing(file) as part:
        fig.savefig(part, dpi=140)
    plt.close(fig)
    return file


def _answer_to_an_ion(axis: Any) -> None:
    """Plot the charge of the metal's bottom layer around an ion below it, with that of an ideal metal."""
    from ...data import path
    from ...interfaces.ase import Calculator
    from ...structures import read_frame

    atoms = read_frame(path("al_water.xyz"), 0).repeat(REPEAT)
    atoms.info = {"charge": 0, "spin": 1}
    # a wide cell needs more vacuum
    atoms.cell[2] = [0.0, 0.0, 60.0]
    metal = atoms.numbers == 13
    heights = atoms.positions[:, 2]
    bottom = metal & (heights < heights[metal].min() + 0.5 * LAYER)
    mean, middle = heights[bottom].mean(), atoms.cell.array[:2].sum(0)[:2] / 2
    lateral = atoms.positions[:, :2] - middle
    place = atoms.positions[bottom][np.linalg.norm(lateral[bottom], axis=1).argmin()].copy()
    place[2] = mean - DEPTH
    distance = np.linalg.norm(atoms.positions[:, :2] - place[:2], axis=1)
    ion = {"external_charges": [ION], "external_positions": [place]}
    for name, file, colour in MODELS:
        calc = Calculator(path(f"models/{file}"))
        still = np.asarray(calc.get_property("charges", atoms)).copy()
        beside = atoms.copy()
        beside.info |= ion
        change = np.asarray(calc.get_property("charges", beside)) - still
        axis.plot(distance[bottom], 1e3 * change[bottom], "o", ms=4, color=colour, label=name)
    # an ideal metal that begins at the jellium edge, half a layer below, with images of all cells
    gap = DEPTH - 0.5 * LAYER
    area = np.linalg.norm(np.cross(*atoms.cell.array[:2]))
    steps = np.arange(-20, 21)
    first, second = atoms.cell.array[:2]
    images = (steps[:, None, None] * first + steps[:, None] * second).reshape(-1, 3)
    r = np.linspace(0, 12, 80)
    square = (r[:, None] - images[:, 0]) ** 2 + images[:, 1] ** 2
    density = -ION * gap / (2 * np.pi) * ((square + gap**2) ** -1.5).sum(1)
    # the metal is neutral: half of the mean charge is on its other side
    density += ION / (2 * area)
    axis.plot(r, 1e3 * density * area / bottom.sum(), "k--", lw=0.8, label="ideal metal")
    axis.set(xlim=(0, 12), xlabel="lateral distance from the ion (Å)")
    axis.set(ylabel=f"change of charge by an ion of {ION} e, {DEPTH:g} Å below (10⁻³ e)")


def run_dynamics() -> dict[str, Any]:
    """Run a few steps at constant energy with the fixed-point model, from 300 K."""
    import ase.units
    from ase.md.verlet import VelocityVerlet
    from tqdm import trange

    from ...data import path
    from ...interfaces.ase import Calculator
    from ...structures import read_frame

    atoms = read_frame(path("al_water.xyz"), 0)
    name, file, _ = MODELS[1]
    atoms.calc = Calculator(path(f"models/{file}"))
    spread = np.sqrt(atoms.get_masses() * 300 * ase.units.kB)[:, None]
    atoms.set_momenta(spread * np.random.default_rng(0).normal(size=(len(atoms), 3)))
    energies, iterations = [], []
    dynamics = VelocityVerlet(atoms, timestep=0.5 * ase.units.fs)
    start = time.perf_counter()
    for _ in trange(STEPS, desc="dynamics", unit="step", disable=None, leave=False):
        dynamics.run(1)
        energies.append(atoms.get_total_energy())
        iterations.append(int(atoms.calc.results["scf_iterations"]))
    return {
        "model": name,
        "atoms": len(atoms),
        "seconds per step": (time.perf_counter() - start) / STEPS,
        "drift of the total energy, meV/atom": 1e3 * (energies[-1] - energies[0]) / len(atoms),
        "iterations of the last step": iterations[-1],
        "temperature, K": float(atoms.get_temperature()),
    }


def physics(output: Path) -> list[Path]:
    """
    Print and draw the results of the trained models.

    Args:
        output: Folder of the picture.

    Returns:
        Files written.
    """
    print("\nTrained models (23 frames of our own DFT data) on an Al-water interface they have not seen:")
    for row in compare_with_dft():
        print(
            f"  {row['model']:20s} energy {row['energy']:6.2f} meV/atom, forces {row['forces']:.3f} eV/A,"
            f" charges {row['charges']:.4f} e, dipole {row['dipole']:.3f} (DFT {row['reference']:.3f}) e A"
        )
    run = run_dynamics()
    print(f"Dynamics, {run.pop('model')}, {STEPS} steps of 0.5 fs from 300 K:")
    print("  " + ", ".join(f"{key} {value:.4g}" for key, value in run.items()))
    return [draw_response(output)]
