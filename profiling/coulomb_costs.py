"""
What sums over waves, meshes, neighbours and pairs cost on this machine: the table that `Coulomb` chooses by.

    python -m profiling.coulomb_costs [--write kernels/scfmlip_kernels/tuned/cpu.json]

Energy and forces of charges, and of charges and dipoles, on one thread, best of several runs of CPU time:
jittered lattices of different sizes, several widths and tolerances. Lines through the times give a constant
and what a wave, a mesh point, an atom and a pair cost, ns, by least squares of relative errors.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

from scfmlip import Coulomb
from scfmlip.electrostatics.mesh_error import mesh_cost
from scfmlip.electrostatics.near_field import NearField

SIZES, DENSITY = (100, 300, 1000, 3000), 0.1
FIELDS = {
    "direct": ("direct", "wave", "table"),
    "mesh": ("mesh", "point"),
    "near": ("near", "pair"),
    "open": ("open",),
}


def jittered(n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """About n atoms on a jittered cubic lattice, 0.1 of them in a cubic angstrom, and their cell."""
    side = round(n ** (1 / 3))
    edge = (side**3 / DENSITY) ** (1 / 3)
    places = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64),) * 3) * (edge / side)
    generator = torch.Generator().manual_seed(0)
    places = places + 0.4 * torch.rand(len(places), 3, generator=generator, dtype=torch.float64)
    return places.to(dtype), (edge * torch.eye(3)).to(dtype)


def best(function: Callable[[], object], repeats: int) -> float:
    """Ns of CPU time, the least of several runs after one that warms up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return 1e9 * min(times)


def energy_and_forces(
    operator: Coulomb, positions: torch.Tensor, cell: torch.Tensor | None, plan
) -> Callable:
    """What is timed: at new positions, but for the plan."""
    rows = torch.randn(len(positions), operator.source.dim).to(positions.dtype)

    def run() -> None:
        r = positions.clone().requires_grad_()
        operator.prepare(r, cell, plan=plan).energy(rows).sum().backward()

    return run


def waves_rows(method: str, l_max: int, dtype: torch.dtype, repeats: int) -> list[tuple[list[float], float]]:
    """Of every size and width: what there is to do, and ns."""
    rows = []
    for n in SIZES:
        positions, cell = jittered(n, dtype)
        for sigma, tolerance in ((2.0, 1e-3), (1.5, 1e-4), (1.0, 1e-3), (0.8, 1e-4)):
            operator = Coulomb(l_max=l_max, sigma=sigma, method=method, tolerance=tolerance, smooth=0.0)
            plan = operator.plan(cell, None, None, len(positions))
            volume = float(torch.linalg.det(cell.double()))
            if method == "direct":
                waves = volume * float(plan.resolution) ** 3 / (12 * np.pi**2)
                if waves * len(positions) > 3e8:
                    continue
                work = [1.0, len(positions) * waves, waves]
            else:
                work = [1.0, mesh_cost(plan.resolution, len(positions), volume)]
            rows.append((work, best(energy_and_forces(operator, positions, cell, plan), repeats)))
    return rows


def near_rows(l_max: int, dtype: torch.dtype, repeats: int) -> list[tuple[list[float], float]]:
    """The neighbours' part alone, with the search for them."""
    rows = []
    for n in SIZES:
        positions, cell = jittered(n, dtype)
        for smooth in (0.4, 0.6, 0.9):
            operator = Coulomb(l_max=l_max, sigma=0.3, method="mesh", tolerance=1e-4, smooth=smooth)
            plan = operator.plan(cell, None, None, len(positions))
            sub, cells = plan.lattice, cell.double()[None]
            moments = torch.randn(len(positions), 1, 1, operator.source.dim).to(dtype)
            counted = []

            def run(sub=sub, plan=plan, cells=cells, moments=moments, positions=positions, counted=counted):
                r = positions.clone().requires_grad_()
                near = NearField(sub, plan.smoothing, plan.near, r, cells, torch.linalg.det(cells))
                field = near.field(moments, plan.smoothing.widths, l_max)
                energy = 0.5 * (field * moments.double()).sum()
                charges = sub.segments.sum(moments[..., 0].double())
                (energy - near.level_energy(charges).sum()).backward()
                counted[:] = [len(near.near.pairs.near)]

            elapsed = best(run, repeats)
            rows.append(([1.0, float(counted[0])], elapsed))
    return rows


def open_rows(l_max: int, dtype: torch.dtype, repeats: int) -> list[tuple[list[float], float]]:
    """Isolated systems, summed over all pairs: the number of pairs."""
    rows = []
    for n in SIZES[2:]:
        positions, _ = jittered(n, dtype)
        operator = Coulomb(l_max=l_max, sigma=1.5, method="direct")
        plan = operator.plan(None, False, None, len(positions))
        run = energy_and_forces(operator, positions, None, plan)
        rows.append(([float(len(positions) ** 2)], best(run, repeats)))
    return rows


def fit(rows: list[tuple[list[float], float]], names: tuple[str, ...]) -> tuple[dict[str, float], float]:
    """Costs in ns, none below 0, and the largest relative error."""
    work = np.array([row for row, _ in rows])
    times = np.array([elapsed for _, elapsed in rows])
    costs, _ = nnls(work / times[:, None], np.ones(len(times)))
    error = np.abs(work @ costs / times - 1).max()
    return {name: float(f"{cost:.3g}") for name, cost in zip(names, costs, strict=True)}, float(error)


def measure(dtype: torch.dtype, repeats: int) -> dict:
    """The table's entry of one dtype."""
    entry: dict = {"measured": True}
    for name, l_max in (("charges", 0), ("dipoles", 1)):
        entry[name] = {}
        for kind, names in FIELDS.items():
            if kind in ("near", "open"):
                rows = (near_rows if kind == "near" else open_rows)(l_max, dtype, repeats)
            else:
                rows = waves_rows(kind, l_max, dtype, repeats)
            costs, error = fit(rows, names)
            print(f"{dtype} {name} {kind}: {costs}, off by {error:.0%} at most, {len(rows)} runs", flush=True)
            entry[name] |= costs
    return entry


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, help="table to put the family 'coulomb' into")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kinds = (torch.float32, torch.float64)
    family = {str(kind).removeprefix("torch."): measure(kind, arguments.repeats) for kind in kinds}
    if arguments.write is not None:
        table = json.loads(arguments.write.read_text()) if arguments.write.exists() else {}
        arguments.write.write_text(json.dumps(table | {"coulomb": family}, indent=2) + "\n")


if __name__ == "__main__":
    main()
