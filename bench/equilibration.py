"""
Charge equilibration beside a loop of dense solves: `python -m bench.equilibration`.

Two references in plain PyTorch float64, differentiated by autograd, both a loop over systems of bordered
`torch.linalg.solve`: "tensor" holds the phases of all pairs, ``[n_k, n, n]``, as NequIP-LR's public code
does (arXiv:2503.17949; repository nequip-lr, branch develop); "matrix" takes two matrix products instead,
the best a dense loop can do. Ours: `scfmlip.charge_equilibration`, whichever method "auto" picks. Times are
of energy, charges and the derivatives of ``sum E + sum q^2`` in positions, electronegativity and hardness, on
crystals with Gaussians of 1 angstrom; peak memory is that of a fresh process. Beyond 5000 atoms the wide part
is summed over wave vectors and the rest over neighbours (`widths`), their list included.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from scfmlip import Coulomb, charge_equilibration
from scfmlip.devices import peak_memory
from scfmlip.units import COULOMB_CONSTANT

from .progress import Bar, say
from .record import RESULTS, commit, device_name
from .timing import clock

F64 = torch.float64
SIGMA = 1.0
# of the smooth part of large systems
SPLIT_SIGMA = 1.5
COLUMNS = (
    "atoms",
    "systems",
    "program",
    "seconds",
    "peak_mib",
    "iterations",
    "error",
    "device",
    "threads",
    "torch",
)
COLUMNS = (*COLUMNS, "commit", "date")
SIZES = ((100, 1), (100, 16), (100, 64), (300, 4), (1000, 1), (2000, 1), (20000, 1))
# what each reference can hold
LARGEST = {"tensor": 500, "matrix": 2000}


def crystal(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions, cell, electronegativity and hardness."""
    edge, side = (n / 0.1) ** (1 / 3), math.ceil(n ** (1 / 3) - 1e-9)
    axis = (torch.arange(side, dtype=F64) + 0.5) * edge / side
    positions = torch.cartesian_prod(axis, axis, axis)[:n]
    positions = positions + 0.3 * torch.rand(n, 3, generator=generator, dtype=F64)
    chi = torch.randn(n, generator=generator, dtype=F64)
    return positions, edge * torch.eye(3, dtype=F64), chi, 1 + torch.rand(n, generator=generator, dtype=F64)


def dense(positions: Tensor, cell: Tensor, chi: Tensor, hardness: Tensor, cutoff: float, whole: bool):
    """Energy and charges of one neutral system."""
    reciprocal = 2 * math.pi * torch.linalg.inv(cell).T
    top = math.ceil(cutoff * float(cell.norm(dim=1).max()) / (2 * math.pi))
    k = torch.cartesian_prod(*(torch.arange(-top, top + 1, dtype=F64, device=cell.device),) * 3)
    half = (k[:, 0] > 0) | ((k[:, 0] == 0) & ((k[:, 1] > 0) | ((k[:, 1] == 0) & (k[:, 2] > 0))))
    k = k[half] @ reciprocal
    k = k[(k**2).sum(1) <= cutoff**2]
    squared = (k**2).sum(1)
    weight = 8 * math.pi * COULOMB_CONSTANT / torch.linalg.det(cell)
    weight = weight * torch.exp(-(SIGMA**2) * squared) / squared
    if whole:
        delta = positions[:, None] - positions[None]
        phases = torch.einsum("kx,ijx->kij", k, delta)
        matrix = (torch.cos(phases) * weight[:, None, None]).sum(0)
    else:
        phase = positions @ k.T
        cos, sin = phase.cos(), phase.sin()
        matrix = (cos * weight) @ cos.T + (sin * weight) @ sin.T
    matrix = matrix + torch.diag(hardness)
    n = len(chi)
    border = torch.cat((chi.new_ones(n), chi.new_zeros(1)))
    bordered = torch.cat((torch.cat((matrix, border[:n, None]), 1), border[None]))
    q = torch.linalg.solve(bordered, torch.cat((-chi, chi.new_zeros(1))))[:n]
    return chi @ q + 0.5 * q @ matrix @ q, q


def measure(atoms: int, systems: int, program: str, device: torch.device) -> dict:
    """Time and memory in this process, and values to compare."""
    generator = torch.Generator().manual_seed(0)
    parts = [crystal(atoms, generator) for _ in range(systems)]
    split = program == "scfmlip" and atoms > 5000
    operator = Coulomb(l_max=0, sigma=SPLIT_SIGMA if split else SIGMA)
    widths = torch.full((atoms * systems,), SIGMA, dtype=F64) if split else None
    positions, chi, hardness = (torch.cat([p[i] for p in parts]) for i in (0, 2, 3))
    cells = torch.stack([p[1] for p in parts])
    index = torch.arange(systems).repeat_interleave(atoms)
    positions, chi, hardness, cells, index = (t.to(device) for t in (positions, chi, hardness, cells, index))
    widths = None if widths is None else widths.to(device)
    plan = operator.plan(cells, None, index, len(positions))
    iterations = 0

    def run() -> tuple[Tensor, Tensor]:
        nonlocal iterations
        leaves = [t.clone().requires_grad_() for t in (positions, chi, hardness)]
        if program == "scfmlip":
            geometry = operator.prepare(leaves[0], cells, plan=plan)
            solution = charge_equilibration(geometry, leaves[1], leaves[2], widths=widths)
            iterations = int(solution.iterations.max())
            energy, charges = solution.energy, solution.charges
        else:
            split = [t.split(atoms) for t in leaves]
            both = [
                dense(r, cells[i], c, j, operator.cutoff, program == "tensor")
                for i, (r, c, j) in enumerate(zip(*split, strict=True))
            ]
            energy, charges = torch.stack([b[0] for b in both]), torch.cat([b[1] for b in both])
        grads = torch.autograd.grad(energy.sum() + (charges**2).sum(), leaves)
        return energy.detach(), grads[0]

    before = peak_memory()
    seconds: list[float] = []
    energy = forces = torch.zeros(0)
    while not seconds or (sum(seconds) < 3 and len(seconds) < 10):
        start = clock(device)
        energy, forces = run()
        seconds.append(clock(device) - start)
    peak = peak_memory() - before
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**20
    probe = [float(energy.sum()), *forces[:5].flatten().tolist()]
    return {"seconds": min(seconds), "peak_mib": peak, "iterations": iterations, "probe": probe}


def measured(atoms: int, systems: int, device: str) -> dict[str, dict]:
    """A row of each program in a process of its own; one that fails or differs is named and left out."""
    rows: dict[str, dict] = {}
    for program in ("tensor", "matrix", "scfmlip"):
        if atoms > LARGEST.get(program, atoms):
            continue
        worker = ["--worker", str(atoms), str(systems), program, device]
        command = [sys.executable, "-m", "bench.equilibration", *worker]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no message"])[-1]
            say(f"{systems:3d} x {atoms:5d}  {program}: FAILED ({done.returncode}) {why[:300]}")
        else:
            rows[program] = json.loads(done.stdout.splitlines()[-1])
    if "scfmlip" not in rows:
        return {}
    ours = rows["scfmlip"]
    truth = ours.pop("probe")
    for program, row in list(rows.items()):
        probe = row.pop("probe", truth)
        largest = max(map(abs, truth))
        row["error"] = max(abs(a - b) for a, b in zip(probe, truth, strict=True)) / largest
        if row["error"] > 1e-4:
            say(f"{systems:3d} x {atoms:5d}  {program} DIFFERS by {row['error']:.1e}: no rows written")
            return {}
        ratio = row["seconds"] / ours["seconds"]
        memory = row["peak_mib"] / max(ours["peak_mib"], 0.1)
        say(
            f"{systems:3d} x {atoms:5d}  {program:8s} {1e3 * row['seconds']:9.1f} ms  x{ratio:6.1f}  "
            f"{row['peak_mib']:8.1f} MiB  x{memory:6.1f}  error {row['error']:.0e}"
        )
    return rows


def main() -> None:
    """Measure all sizes, append rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", nargs="+", help="100x64, 2000")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.worker:
        atoms, systems, program, device = options.worker
        print(json.dumps(measure(int(atoms), int(systems), program, torch.device(device))))
        return
    sizes = SIZES
    if options.size:
        sizes = [tuple(map(int, [*s.split("x"), "1"][:2])) for s in options.size]
    name = device_name(torch.device(options.device))
    file = options.out or RESULTS / f"equilibration-{name.lower().replace(' ', '-')}.csv"
    common = {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit(),
    }
    common["date"] = time.strftime("%Y-%m-%d")
    failed = False
    for atoms, systems in Bar(sizes):
        rows = measured(atoms, systems, options.device)
        failed = failed or "scfmlip" not in rows
        if not rows:
            continue
        fresh = not file.exists()
        with file.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore")
            if fresh:
                writer.writeheader()
            for program, row in rows.items():
                shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}
                line = {"atoms": atoms, "systems": systems, "program": program, **shown, **common}
                writer.writerow({c: line[c] for c in COLUMNS})
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
