"""
What kept matrices of pair sums save on small molecules: `python -m bench.molecules`.

The same models with and without them, in turns in one process, one thread: least CPU time. Random weights,
float32, default MACE backbone of 64x0e + 64x1o, density of charges and dipoles. Rows go to
bench/results/molecules-<device>.csv.
"""

from __future__ import annotations

import csv
import importlib
import time
from typing import Any

import numpy as np
import torch
from ase.build import molecule

from scfmlip.mace_torch.batches import make_batch

from .progress import Bar, say
from .record import RESULTS, slug, surroundings
from .rules import RULES, step

MOLECULES = {"H2O": 2, "C6H6": 8}
CASES = ("short_range", "equilibrated", "functional", "fixed_point, affine", "fixed_point, mlp")
ROUNDS = 7
COLUMNS = (
    "rule",
    "systems",
    "mode",
    "dtype",
    "recomputed_ms",
    "kept_ms",
    "ratio",
    *surroundings(torch.device("cpu")),
)


def build(rule: str) -> Any:
    """A model of the rule for organic molecules."""
    import scfmlip.models

    chosen, constraint = RULES[rule]
    backbone = {"hidden_irreps": "64x0e+64x1o", "r_max": 4.0, "avg_num_neighbors": 5.0}
    return scfmlip.models.build(
        {"elements": ["H", "C", "O"], "rule": chosen, "constraint": constraint, "backbone": backbone}
        | {"density": {"l_max": 1, "sigma": 1.0}, "dtype": "float32"}
    )


def main() -> None:
    """Measure and write rows."""
    torch.set_num_threads(1)
    cpu: Any = importlib.import_module("scfmlip_kernels.gaussian_pairs.cpu")
    kept, rows, common = cpu._KEPT_BYTES, [], surroundings(torch.device("cpu"))
    generator = np.random.default_rng(0)
    models = {rule: build(rule) for rule in CASES}
    for name, count in Bar(list(MOLECULES.items()), "molecule"):
        frames = [molecule(name) for _ in range(count)]
        for frame in frames:
            frame.positions += generator.normal(scale=0.05, size=frame.positions.shape)
            frame.info["charge"] = 0
        for rule, model in models.items():
            batch = make_batch(model, frames, torch.device("cpu"), torch.float32)
            for mode in ("forces", "train"):
                least = {-1: float("inf"), kept: float("inf")}
                for _ in range(ROUNDS):
                    for limit in least:
                        cpu._KEPT_BYTES = limit
                        start = time.process_time()
                        step(model, batch, mode)
                        least[limit] = min(least[limit], time.process_time() - start)
                before, now = 1000 * least[-1], 1000 * least[kept]
                row = {"rule": rule, "systems": f"{count} x {name}", "mode": mode, "dtype": "float32"}
                row |= {
                    "recomputed_ms": f"{before:.4g}",
                    "kept_ms": f"{now:.4g}",
                    "ratio": f"{before / now:.3g}",
                }
                rows.append(row | common)
                say(*row.values())
    with (RESULTS / f"molecules-{slug(str(common['device']))}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
