"""
What self-consistency costs: every charge rule beside its own short-range backbone, `python -m bench.rules`.

One process, rounds that alternate between the models, medians of the ratios: energies and forces, and a
training step (forces in the loss, backward); with ``--modes graph`` forces as CUDA graphs. A supercell of the
quartz that ships with the project; random weights; 64x0e + 64x1o, two layers, r_max 5 angstrom. Rows go to
bench/results/rules-<device>.csv.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path
from typing import Any

import ase.io
import torch

import scfmlip.models
from scfmlip.data import path as data_path
from scfmlip.mace_torch.batches import make_batch

from .progress import Bar, say
from .record import RESULTS, slug, surroundings
from .timing import clock

RULES: dict[str, tuple[Any, str]] = {
    "short_range": ("short_range", "none"),
    "local": ("local", "charge"),
    "local_split": ({"name": "local_split", "charges": {"Si": 2.0, "O": -1.0}}, "charge"),
    "latent": ({"name": "latent", "channels": 2}, "none"),
    "equilibrated": ("equilibrated", "charge"),
    "equilibrated, covalent widths": ({"name": "equilibrated", "sigma": "covalent"}, "charge"),
    "equilibrated, feedback": ({"name": "equilibrated", "feedback": {}}, "charge"),
    "functional": ("functional", "charge"),
    "fixed_point, affine": ("fixed_point", "charge"),
    "fixed_point, mlp": ({"name": "fixed_point", "response": "mlp"}, "charge"),
    "fixed_point, many_body": ({"name": "fixed_point", "response": "many_body"}, "charge"),
    "fixed_point, passive": (
        {"name": "fixed_point", "response": "passive", "energy": "variational"},
        "charge",
    ),
}
MODES = ("forces", "train", "graph")
COLUMNS = (
    "rule",
    "atoms",
    "mode",
    "l_max",
    "dtype",
    "seconds",
    "short_range_seconds",
    "ratio",
    "iterations",
    "device",
    "threads",
    "torch",
    "commit",
    "date",
)


def build(rule: Any, constraint: str, options: argparse.Namespace) -> scfmlip.models.Model:
    """A model of the rule."""
    network = {"hidden_irreps": options.hidden_irreps, "r_max": options.cutoff, "avg_num_neighbors": 40.0}
    return scfmlip.models.build(
        {
            "elements": ["Si", "O"],
            "rule": rule,
            "constraint": constraint,
            "backbone": network,
            "density": {"l_max": options.l_max},
            "dtype": options.dtype,
        }
    )


def step(model: scfmlip.models.Model, batch: dict[str, torch.Tensor], mode: str) -> dict:
    """One evaluation, or one training step."""
    if mode != "train":
        return model(batch)
    out = model(batch, training=True)
    forces, energy = out["forces"], out["energy"]
    assert forces is not None
    assert energy is not None
    ((forces**2).mean() + energy.sum() * 1e-3).backward()
    model.zero_grad(set_to_none=True)
    return {k: v.detach() for k, v in out.items() if v is not None}


def main() -> None:
    """Measure and append rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeat", type=int, nargs=3, default=(2, 2, 2), help="of the 72-atom cell")
    parser.add_argument("--atoms", type=int, help="the first so many alone, to try the script; default all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--l-max", type=int, default=1)
    parser.add_argument("--hidden-irreps", default="64x0e+64x1o")
    parser.add_argument("--cutoff", type=float, default=5.0, help="angstrom")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["forces", "train"])
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if "graph" in arguments.modes and arguments.device == "cpu":
        parser.error("--modes graph captures steps on a GPU: add --device cuda")
    atoms = ase.io.read(data_path("sio2_vacancy.xyz"), 0)
    assert isinstance(atoms, ase.Atoms)
    atoms = atoms.repeat(tuple(arguments.repeat))[: arguments.atoms]
    atoms.info = {"charge": 0}
    names = ["short_range", *(r for r in arguments.rules if r != "short_range")]
    device = torch.device(arguments.device)
    models = {name: build(*RULES[name], arguments).to(device) for name in names}
    dtype = getattr(torch, arguments.dtype)
    batch = make_batch(models["short_range"], [atoms], device, dtype)
    common = surroundings(device)
    path = arguments.out or RESULTS / f"rules-{slug(str(common['device']))}.csv"
    rows = []
    for mode in sorted(arguments.modes, key=MODES.index):
        if mode == "graph":
            models = {name: model.with_cuda_graphs() for name, model in models.items()}
        outs = {name: step(model, batch, mode) for name, model in models.items()}  # warm up
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in Bar(range(arguments.rounds), f"{mode} round"):
            for name, model in models.items():
                start = clock(device)
                step(model, batch, mode)
                seconds[name].append(clock(device) - start)
        for name in names:
            ratios = [a / b for a, b in zip(seconds[name], seconds["short_range"], strict=True)]
            iterations = outs[name].get("scf_iterations")
            rows.append(
                {
                    "rule": name,
                    "atoms": len(atoms),
                    "mode": mode,
                    "l_max": arguments.l_max,
                    "dtype": arguments.dtype,
                    "seconds": f"{statistics.median(seconds[name]):.4g}",
                    "short_range_seconds": f"{statistics.median(seconds['short_range']):.4g}",
                    "ratio": f"{statistics.median(ratios):.4g}",
                    "iterations": "" if iterations is None else int(iterations.max()),
                    **{k: v for k, v in common.items() if k in COLUMNS},
                }
            )
            say(f"{mode:7s} {name:24s} {rows[-1]['seconds']:>8s} s  x{rows[-1]['ratio']}")
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
