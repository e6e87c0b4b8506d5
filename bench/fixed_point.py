"""
Self-consistent charges beside linear mixing: `python -m bench.fixed_point`.

Charges that answer to their own potential, ``p = p0 - S f(K p)``, on crystals of Gaussians of 1 angstrom:
affine (f(v) = v, the default of self-consistent MACE models) or saturating (f = tanh). The reference mixes a
quarter of every new state into the old one, the published default, and is differentiated by unrolling its
steps. Both stop at the same residual, ``|F(p) - p| < 1e-6 |F(p0)|``. Evaluations of the map, each one product
with the Coulomb operator, and time and peak memory (of PyTorch's allocator, in a second run) of energy and
its gradient in positions, p0 and S, in a fresh process; rows without memory are from before that was so.

"Al-water model" is the trained fixed-point model of the package on its metal-water interface and a supercell:
evaluations alone. On a metal a quarter of every new state diverges; the largest share of 1/4, 1/8, ... that
converges within 500 evaluations is taken for mixing, and named; without such a share there is no row.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from scfmlip import Coulomb, fixed_point

from .allocations import peak_allocated
from .equilibration import F64, SIGMA, crystal
from .progress import Bar, say
from .record import RESULTS, commit, device_name
from .timing import clock, cuda_memory

COLUMNS = (
    "atoms",
    "map",
    "program",
    "mixing",
    "evaluations",
    "seconds",
    "peak_mib",
    "residual",
    "error",
    "device",
)
COLUMNS = (*COLUMNS, "threads", "torch", "commit", "date")
TOLERANCE = 1e-6
MIXING = 0.25


def measure(atoms: int, kind: str, program: str, device: torch.device) -> dict:
    """In this process."""
    generator = torch.Generator().manual_seed(0)
    positions, cell, first, _ = crystal(atoms, generator)
    strength = 0.05 * torch.rand(atoms, generator=generator, dtype=F64)
    positions, cell, first, strength = (t.to(device) for t in (positions, cell, first, strength))
    operator = Coulomb(l_max=0, sigma=SIGMA)
    plan = operator.plan(cell, None, None, atoms)
    count = 0

    def update(state: Tensor, positions: Tensor, first: Tensor, strength: Tensor) -> Tensor:
        nonlocal count
        count += 1
        potential = operator.prepare(positions, cell, plan=plan).potential(state, self_interaction=True)
        return first - strength * (potential if kind == "affine" else 2 * torch.tanh(potential / 2))

    leaves: list[Tensor] = [
        t.clone().requires_grad_() for t in (positions, first[:, None], strength[:, None])
    ]

    def step() -> tuple[Tensor, Tensor, Sequence[Tensor], int]:
        nonlocal count
        count = 0
        if program == "scfmlip":
            solution = fixed_point(update, leaves[1].detach(), leaves, tolerance=TOLERANCE)
            state, evaluations = solution.state, solution.evaluations
        else:
            state, (moved, origin, response) = leaves[1], leaves
            new = update(state, moved, origin, response)
            scale = float(new.detach().norm())
            while float((new - state).detach().norm()) > TOLERANCE * scale:
                state = state + MIXING * (new - state)
                new = update(state, moved, origin, response)
            evaluations = count
        energy = operator.prepare(leaves[0], cell, plan=plan).energy(state).sum() + (state**2).sum()
        return state, energy, torch.autograd.grad(energy, leaves), evaluations

    if device.type == "cuda":
        step()  # compiles the kernels
    start = clock(device)
    state, energy, grads, evaluations = step()
    seconds = clock(device) - start
    peak = cuda_memory(step) if device.type == "cuda" else peak_allocated(step)
    with torch.no_grad():
        moved, origin, response = leaves
        residual = float((update(state, moved, origin, response) - state).norm() / leaves[1].norm())
    probe = [float(energy.detach()), *grads[0][:5].flatten().tolist()]
    return {
        "evaluations": evaluations,
        "seconds": seconds,
        "peak_mib": peak,
        "residual": residual,
        "probe": probe,
    }


def mix(update: Callable[[Tensor], Tensor], state: Tensor, share: float) -> tuple[Tensor, int] | None:
    """The fixed point by linear mixing, and evaluations it took; None where it does not converge."""
    scale = None
    for count in range(1, 501):
        new = update(state)
        scale = float(new.norm()) if scale is None else scale
        residual = float((new - state).norm()) / scale
        if residual <= TOLERANCE:
            return new, count
        if not residual < 1e3:
            return None
        state = state + share * (new - state)
    return None


def measure_model() -> list[dict]:
    """Evaluations that the package's trained model needs, and that mixing would."""
    from scfmlip.ase import Calculator
    from scfmlip.cli.plot import read_frame
    from scfmlip.data import path
    from scfmlip.models.rules.fixed_point import rule

    rows: list[dict] = []

    def both(update: Callable[..., Tensor], first: Tensor, parameters: Sequence[Tensor], **options: Any):
        options["tolerance"] = TOLERANCE
        solution = fixed_point(update, first, parameters, **options)
        constants = [t.detach() for t in parameters]
        potential = solution.chemical_potential
        assert potential is not None
        common = {"atoms": len(first), "map": "Al-water model"}
        with torch.no_grad():
            for share in (MIXING / 2**n for n in range(6)):
                # at the potential found, which mixing would have to find too
                mixed = mix(lambda p: update(p, potential, *constants), first.detach(), share)
                if mixed is not None:
                    state, evaluations = mixed
                    common["error"] = float((state - solution.state).abs().max() / state.abs().max())
                    row = {"program": "linear mixing", "mixing": share, "evaluations": evaluations}
                    rows.append({**common, **row})
                    break
        rows.append({**common, "program": "scfmlip", "evaluations": solution.evaluations})
        return solution

    with mock.patch.object(rule, "fixed_point", both):
        for repeat in (1, 2):
            atoms = read_frame(path("al_water.xyz"), 0)
            large = atoms.repeat((repeat, repeat, 1))
            large.info = dict(atoms.info)
            calculator = Calculator(path("models/al_water-fixed_point.safetensors"), dtype="float64")
            calculator.get_property("energy", large)
    return rows


def append(file: Path, row: dict) -> None:
    """Append a row."""
    fresh = not file.exists()
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})


def main() -> None:
    """Measure, append rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--atoms", type=int, nargs="+", default=[216, 1000])
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.worker:
        atoms, kind, program, device = options.worker
        print(json.dumps(measure(int(atoms), kind, program, torch.device(device))))
        return
    name = device_name(torch.device(options.device))
    file = options.out or RESULTS / f"equilibration-fixed-point-{name.lower().replace(' ', '-')}.csv"
    common = {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}
    common |= {"commit": commit(), "date": time.strftime("%Y-%m-%d")}
    for row in measure_model() if options.device == "cpu" else ():
        append(file, {**row, **common})
        say(
            f"{row['atoms']:5d} {row['map']:14s} {row['program']:13s} {row['evaluations']:4d} evaluations "
            f"{'' if row['program'] == 'scfmlip' else 'of ' + format(row['mixing'], 'g')}"
        )
    for atoms, kind in Bar(list(itertools.product(options.atoms, ("affine", "saturating")))):
        pair = {}
        for program in ("linear mixing", "scfmlip"):
            command = [sys.executable, "-m", "bench.fixed_point", "--worker", str(atoms), kind, program]
            done = subprocess.run([*command, options.device], capture_output=True, text=True, check=True)
            pair[program] = json.loads(done.stdout.splitlines()[-1])
        ours, other = pair["scfmlip"], pair["linear mixing"]
        error = max(abs(a - b) for a, b in zip(ours["probe"], other["probe"], strict=True))
        error /= max(abs(b) for b in ours["probe"])
        if error > 1e-4:
            raise SystemExit(f"{atoms} {kind}: answers differ by {error:.1e}; no row written")
        for program, row in pair.items():
            say(
                f"{atoms:5d} {kind:10s} {program:13s} {row['evaluations']:4d} evaluations "
                f"{row['seconds']:7.2f} s {row['peak_mib']:8.1f} MiB  residual {row['residual']:.1e}"
            )
            share = {"mixing": MIXING} if program == "linear mixing" else {}
            line = {"atoms": atoms, "map": kind, "program": program, "error": error}
            append(file, {**line, **share, **row, **common})


if __name__ == "__main__":
    main()
