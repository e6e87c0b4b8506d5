"""
Whole models: mace-torch as it is, and after `scfmlip.accelerate`, on boxes of water and crystals of MgO.

    python -m bench.models                          # all; appends to bench/results/models-<device>.csv
    python -m bench.models --case polar-s --size 375 --mode forces
    python -m bench.models --case mace-medium --size 200 --mode forces --beside 4

Every measurement runs in a process of its own, so that peak memory is its own; both programs take their turn
in one run. Weights are random (the released ones are not needed to time an architecture), float32. A row is
written only if energy and forces agree. Seconds are the least of up to five calls, ``worst_seconds`` the
most; ``beside`` counts the busy processes that this program started on the same cores.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import importlib.util
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scfmlip.devices import peak_memory

from .backbone import backbone_share, peak_beside_backbone
from .progress import Bar, say
from .record import RESULTS, commit, device_name
from .timing import clock

CASES = {
    "mace-medium": {"hidden": "128x0e + 128x1o", "layers": 2},
    "mace-medium-solid": {"hidden": "128x0e + 128x1o", "layers": 2, "system": "solid"},
    "mace-small": {"hidden": "128x0e", "layers": 2},
    "polar-s": {"hidden": "512x0e", "layers": 1},
    "polar-m": {"hidden": "512x0e + 512x1o", "layers": 2, "edge": "128x0e + 128x1o"},
    # to try this script, not to time anything
    "mace-tiny": {"hidden": "4x0e + 4x1o", "layers": 2},
    "polar-tiny": {"hidden": "4x0e", "layers": 1, "edge": "4x0e"},
}
TIMED = tuple(sorted(case for case in CASES if not case.endswith("-tiny")))
COLUMNS = (
    *("case", "atoms", "edges", "mode", "program"),
    *("seconds", "worst_seconds", "backbone_seconds", "peak_mib", "rest_peak_mib"),
    *("energy_error", "force_error", "device", "threads", "beside", "torch", "mace", "commit", "date"),
)
# relative differences of energy per atom and forces that float32 allows
TOLERANCE = 2e-4


def water(n_atoms: int) -> Any:
    """A periodic box of water molecules, randomly turned, at 0.1 atoms / angstrom^3."""
    import ase
    from ase.build import molecule

    generator = np.random.default_rng(0)
    n = round(n_atoms / 3)
    edge = (n * 29.9) ** (1 / 3)
    per_side = math.ceil(n ** (1 / 3))
    box = ase.Atoms(cell=[edge] * 3, pbc=True)
    sites = list(np.ndindex(per_side, per_side, per_side))
    for i in np.linspace(0, len(sites) - 1, n).round().astype(int):
        one = molecule("H2O")
        one.rotate(generator.uniform(0, 360), generator.normal(size=3))
        one.translate((np.array(sites[i]) + 0.5) * edge / per_side)
        box += one
    box.info.update(charge=0.0, spin=1.0, external_field=np.zeros(3))
    return box


def solid(n_atoms: int) -> Any:
    """A periodic, rattled crystal of MgO of at least so many atoms."""
    from ase.build import bulk

    side = math.ceil((n_atoms / 2) ** (1 / 3) - 1e-9)
    box = bulk("MgO", "rocksalt", a=4.212) * (side, side, side)
    box.rattle(0.05, seed=0)
    box.info.update(charge=0.0, spin=1.0, external_field=np.zeros(3))
    return box


def build(case: str) -> torch.nn.Module:
    """A model of the case's architecture with random weights."""
    import mace  # noqa: F401  (before e3nn, which it teaches to load its constants)
    from e3nn import o3
    from mace import modules

    from scfmlip.cli.demo.command import polar_model

    shape = CASES[case]
    if case.startswith("polar"):
        return polar_model([1, 8], shape["hidden"], shape["layers"], shape.get("edge"))
    torch.manual_seed(0)
    return modules.ScaleShiftMACE(
        r_max=6.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        num_interactions=shape["layers"],
        num_elements=2,  # H and O, or O and Mg
        hidden_irreps=o3.Irreps(shape["hidden"]),
        MLP_irreps=o3.Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(2),
        avg_num_neighbors=84.0,
        atomic_numbers=[8, 12] if shape.get("system") == "solid" else [1, 8],
        correlation=3,
        radial_MLP=[64, 64, 64],
        radial_type="bessel",
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )


def peak(device: torch.device) -> float:
    """Of this process so far, or of what it has on a GPU, MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_memory()


def measure(case: str, atoms: int, mode: str, program: str, threads: int, device_type: str, out: str) -> None:
    """The work of one process; results go to ``out`` (.json and .npy)."""
    from scfmlip import accelerate
    from scfmlip.mace_torch.batches import make_batch

    torch.set_num_threads(threads)
    device = torch.device(device_type)
    model = build(case).float().to(device)
    model.requires_grad_(mode == "train")
    if program == "scfmlip":
        model = accelerate(model)
    elif program == "cuequivariance":
        from mace.cli.convert_e3nn_cueq import run as convert

        converted = convert(model, device=device_type)
        assert converted is not None
        model = converted.to(device)
    box = (solid if CASES[case].get("system") == "solid" else water)(atoms)

    def batch(n: int) -> dict[str, torch.Tensor]:
        made = make_batch(model, [box[:n]], device, torch.float32)
        return {k: v.clone() if torch.is_tensor(v) else v for k, v in made.items()}

    def run(n: int) -> dict[str, Any]:
        data = batch(n)
        start = clock(device)
        result = model(data, training=mode == "train")
        if mode == "train":
            loss = result["energy"].sum() ** 2 + (result["forces"] ** 2).sum()
            torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
        return {**result, "seconds": clock(device) - start}

    run(6)
    before = peak(device)
    seconds: list[float] = []
    result = run(len(box))
    added = peak(device) - before
    seconds.append(result["seconds"])
    while sum(seconds) < 20 and len(seconds) < 5:
        seconds.append(run(len(box))["seconds"])
    backbone_seconds = rest_peak = None
    if case.startswith("polar") and mode == "forces" and device.type == "cpu":
        shares = []
        for _ in range(3 if min(seconds) < 5 else 1):
            data = batch(len(box))
            shares.append(backbone_share(model, lambda data=data: model(data, training=False)))
        backbone_seconds = min(seconds) * statistics.median(shares)
        data = batch(len(box))
        rest_peak = peak_beside_backbone(model, lambda: model(data, training=False))
    found = {
        "atoms": len(box),
        "seconds": min(seconds),
        "worst_seconds": max(seconds),
        "backbone_seconds": backbone_seconds,
        "peak_mib": added,
        "rest_peak_mib": rest_peak,
        "edges": int(batch(len(box))["edge_index"].shape[1]),
        "energy": float(result["energy"].detach()),
    }
    np.save(f"{out}.npy", result["forces"].detach().cpu().numpy())
    Path(f"{out}.json").write_text(json.dumps(found))


def main() -> None:
    """Run the cases and append rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=sorted(CASES), default=TIMED)
    parser.add_argument("--size", nargs="+", type=int, default=[200, 375, 1000])
    parser.add_argument("--mode", nargs="+", choices=("forces", "train"), default=["forces", "train"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--beside", type=int, default=0, help="busy processes on the same cores")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=7, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        case, atoms, mode, program, threads, device, out = arguments.worker
        measure(case, int(atoms), mode, program, int(threads), device, out)
        return
    name = device_name(torch.device(arguments.device))
    file = arguments.out or RESULTS / f"models-{name.lower().replace(' ', '-')}.csv"
    common = {
        "device": name,
        "threads": arguments.threads,
        "beside": arguments.beside,
        "torch": torch.__version__,
        "mace": importlib.metadata.version("mace-torch"),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.beside)]
    try:
        work = list(itertools.product(arguments.case, arguments.size, arguments.mode))
        for case, size, mode in Bar(work):
            rows = compare(case, 3 * round(size / 3), mode, arguments.threads, arguments.device)
            write(file, [{**row, **common} for row in rows])
    finally:
        for process in busy:
            process.kill()


def programs(case: str, device: str) -> list[str]:
    """Who takes part: cuequivariance where its own CUDA kernels are installed, for plain MACE."""
    kernels = device == "cuda" and importlib.util.find_spec("cuequivariance_ops_torch") is not None
    return ["mace-torch", "scfmlip", *(["cuequivariance"] if kernels and case.startswith("mace") else [])]


def compare(case: str, atoms: int, mode: str, threads: int, device: str) -> list[dict[str, Any]]:
    """Both programs on one case; prints a line and returns the rows."""
    found: dict[str, dict[str, Any]] = {}
    forces: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        for program in programs(case, device):
            out = f"{folder}/{program}"
            command = [sys.executable, "-m", "bench.models", "--worker", case, str(atoms), mode, program]
            done = subprocess.run(
                [*command, str(threads), device, out], capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                say(f"{case} {atoms} {mode} {program}: failed ({done.returncode})", done.stderr[-300:])
                continue
            found[program] = json.loads(Path(f"{out}.json").read_text())
            forces[program] = np.load(f"{out}.npy")
    rows = []
    for program, row in found.items():
        errors = {"energy_error": 0.0, "force_error": 0.0}
        if "mace-torch" in found and program != "mace-torch":
            want = found["mace-torch"]["energy"]
            errors["energy_error"] = abs(row["energy"] - want) / max(abs(want), 1e-12)
            scale = np.abs(forces["mace-torch"]).max()
            errors["force_error"] = float(np.abs(forces[program] - forces["mace-torch"]).max() / scale)
            if max(errors.values()) > TOLERANCE:
                raise SystemExit(f"{case} {atoms} {mode}: {program} differs, {errors}: no row written")
        keep = {k: v for k, v in row.items() if k != "energy"}
        rows.append({"case": case, "mode": mode, "program": program, **keep, **errors})
    if "cuequivariance" in found:
        say(f"{case:17s} cuequivariance {found['cuequivariance']['seconds']:.3f} s")
    if {"mace-torch", "scfmlip"} <= set(found):
        a, b = found["mace-torch"], found["scfmlip"]
        line = (
            f"{case:17s} {a['atoms']:5d} atoms {a['edges']:7d} edges {mode:7s} {a['seconds']:8.2f} s -> "
            f"{b['seconds']:7.2f} s  x{a['seconds'] / b['seconds']:.1f}   "
            f"at worst {a['worst_seconds']:.2f} -> {b['worst_seconds']:.2f} s   "
            f"memory {a['peak_mib']:7.0f} -> "
            f"{b['peak_mib']:6.0f} MiB  x{a['peak_mib'] / max(b['peak_mib'], 1):.1f}"
        )
        if a["backbone_seconds"] is not None:
            rest = [f["seconds"] - f["backbone_seconds"] for f in (a, b)]
            line += f"   without backbone {rest[0]:.2f} -> {rest[1]:.2f} s"
            line += f", {a['rest_peak_mib']:.0f} -> {b['rest_peak_mib']:.0f} MiB"
        ours = next(row for row in rows if row["program"] == "scfmlip")
        say(line, f"  errors {ours['energy_error']:.0e} {ours['force_error']:.0e}")
    return rows


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = not file.exists()
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, extrasaction="raise")
        if fresh:
            writer.writeheader()
        for row in rows:
            rounded = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow({k: "" if v is None else v for k, v in rounded.items()})


if __name__ == "__main__":
    main()
