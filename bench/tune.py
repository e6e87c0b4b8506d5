"""
Sweep launch parameters on this GPU and propose a `tuned/<gpu>.json`: `python -m bench.tune --out DIR`.

Block sizes of the Coulomb sums are fixed into tables that both dtypes share (the launchers read float32's),
so one choice must serve both; warps and the precision of float32 products are free per dtype. A float32
configuration whose error against float64 exceeds that of the default by more than a factor of two is left
out, and so is a lower precision of products that errs by more than 1e-6 of the largest value. Pairs of high
rank have entries of their own in the table of pairs, taken over if these keep the block they were measured
with. Convolutions compute a last radial layer inside their kernels ("fused") where values and all derivatives
together take less time so, with the parameters found. What charge solves cost is measured at the end
(`charge_costs`). Compilation is what takes the time: worker processes fill Triton's cache first, all at once.
"""

import argparse
import csv
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scfmlip_kernels import tuned as table_module

from . import charge_costs, convolution, matrices
from .problems import Problem, make_problem
from .progress import Bar, say
from .providers import providers
from .record import device_name
from .registry import CASES, Size
from .timing import interleaved
from .verify import difference, make_call, reference

DTYPES = ("float32", "float64")
OPS = {
    "lattice": ("structure_factor_1", "lattice_field_1", "lattice_field_2"),
    "pairs": ("gaussian_pairs_1",),
}
SIZES = {
    "lattice": (Size(1000), Size(5000), Size(100, 64)),
    "pairs": (Size(200), Size(2000)),
}
# kernels of the convolution with the radial layer inside, and the numbers of nodes they are judged by
RADIAL = ("radial", "radial_edges", "radial_matrix")
NODES = (200, 2000)
# families, what matters most first, and which parameters both dtypes must share
SHARED: dict[str, tuple[str, ...]] = {
    "indexed_linear": (),
    "norm_network": (),
    "lattice": ("rows", "l", "atoms", "field_atoms"),
    **dict.fromkeys(RADIAL, ()),
    "pairs": ("block",),
    "high_pairs": ("block",),
}
# the families whose parameters stand in another one's table
TABLES = {"high_pairs": "pairs"}
HIGH = ("high_sources", "high_warps")
# largest error of products that are not float32's own, relative to the largest value
PRECISE = 1e-6


@dataclass(frozen=True)
class Candidate:
    """Parameters of one kernel family and dtype."""

    family: str
    dtype: str
    parameters: tuple[tuple[str, Any], ...]

    @property
    def table(self) -> str:
        """The family whose table it stands in."""
        return TABLES.get(self.family, self.family)

    @property
    def precision(self) -> str:
        """Of products of float32 matrices."""
        return dict(self.parameters).get("precision", "ieee")

    @property
    def shared(self) -> tuple[Any, ...]:
        """Those that the other dtype must have too."""
        return tuple(dict(self.parameters)[name] for name in SHARED[self.family])


def _grid(family: str, dtype: str, quick: bool) -> dict[str, tuple[Any, ...]]:
    """What is tried of each parameter."""
    grid: dict[str, tuple[Any, ...]]
    if family == "lattice":
        grid = {"rows": (16, 32, 64), "l": (16, 32), "atoms": (16, 32, 64), "num_warps": (4, 8)}
        grid |= {"field_atoms": (32, 64), "field_warps": (4, 8)} if not quick else {}
    elif family in RADIAL:
        grid = {"channels": (16, 32), "edges": (16, 32, 64), "num_warps": (4, 8)}
        if family != "radial_matrix":
            grid["hidden"] = (16, 32)
    elif family == "indexed_linear":
        grid = {"rows": (32, 64, 128), "in": (16, 32), "num_warps": (4, 8)}
    elif family == "norm_network":
        grid = {"rows": (16, 32, 64), "num_warps": (4, 8)}
    elif family == "high_pairs":
        return {"high_sources": (2, 4, 8), "high_warps": (4, 8, 16)}
    else:
        return {"block": (32, 64, 128), "sources": (8, 16, 32), "num_warps": (2, 4, 8)}
    if dtype == "float32":
        grid["precision"] = ("ieee", "tf32x3")
    return grid


def _possible(family: str, chosen: dict[str, Any]) -> bool:
    """Whether the registers may do."""
    if family == "lattice":  # larger tiles cannot stay in registers
        return chosen["rows"] * chosen["l"] <= 1024
    if family == "high_pairs":  # a thread owns a pair or two
        return 1 <= chosen["block"] * chosen["high_sources"] / (32 * chosen["high_warps"]) <= 2
    return True


def candidates(quick: bool) -> Iterator[Candidate]:
    """What is tried; the default comes first."""
    defaults = table_module._table("")
    for family, dtype in itertools.product(SHARED, DTYPES):
        base: dict[str, Any] = dict(defaults[TABLES.get(family, family)][dtype])
        grid = _grid(family, dtype, quick)
        if quick:
            # of precisions the last, which has to be judged
            grid = {name: values[-1:] if name == "precision" else values[:1] for name, values in grid.items()}
        yield Candidate(family, dtype, tuple(sorted(base.items())))
        for values in itertools.product(*grid.values()):
            chosen = {**base, **dict(zip(grid, values, strict=True))}
            if quick or _possible(family, chosen):
                yield Candidate(family, dtype, tuple(sorted(chosen.items())))


class Tuner:
    """Runs candidates on one device."""

    def __init__(self, device: torch.device, quick: bool) -> None:
        self.device, self.quick = device, quick
        self.table = table_module._table(table_module._device_name(device))
        self.problems: dict[tuple[str, str, Size], Problem] = {}
        self.truth: dict[tuple[str, Size], Any] = {}
        self.errors: dict[str, float] = {}
        self.convolutions: dict[tuple[str, int], dict[str, convolution.Call]] = {}
        self.matrices: dict[tuple[str, str], dict[str, matrices.Call]] = {}
        self.exact: dict[str, dict[str, tuple[torch.Tensor, ...]]] = {}

    def workload(self, family: str) -> Iterator[tuple[str, Size]]:
        """Operators and sizes a family is judged by."""
        sizes = (Size(8),) if self.quick else SIZES[family]
        return itertools.product(OPS[family], sizes)

    def problem(self, op: str, dtype: str, size: Size) -> Problem:
        """Inputs made once, with tables of their own that have the blocks of now."""
        key = op, dtype, size
        if key not in self.problems:
            self.problems[key] = make_problem(CASES[op], size, getattr(torch, dtype), self.device)
        return self.problems[key].to(getattr(torch, dtype))

    def calls(self, candidate: Candidate) -> dict[str, Any]:
        """The family's operators under a candidate; raises if one does not compile or errs."""
        # the table is what the launchers read; they take float32's blocks for both dtypes
        for dtype in DTYPES:
            entry = self.table[candidate.table][dtype]
            entry.update(zip(SHARED[candidate.family], candidate.shared, strict=True))
        self.table[candidate.table][candidate.dtype] = dict(candidate.parameters)
        if candidate.family in RADIAL:
            return self.radial_calls(candidate)
        if candidate.family in matrices.WORKLOADS:
            return self.matrix_calls(candidate)
        found = {}
        for op, size in self.workload(candidate.family):
            problem = self.problem(op, candidate.dtype, size)
            call = make_call(problem, providers()["scfmlip"].build(problem), "forward")
            got = call()
            if (op, size) not in self.truth:
                self.truth[op, size] = reference(problem, "forward", "torch" if self.quick else "scfmlip")
            error = difference(problem, got, self.truth[op, size])
            self.judge(f"{op} {size} {candidate.dtype}", error, candidate.precision)
            found[f"{op} {size}"] = call
        return found

    def judge(self, name: str, error: float, precision: str) -> None:
        """
        Raise if the error is more than twice the first one, which is the default's.

        Products that are less precise than float32's own may err by `PRECISE` at most.
        """
        allowed = self.errors.setdefault(name, max(2 * error, 1e-9))
        if precision != "ieee":
            allowed = min(allowed, PRECISE)
        if not error <= allowed:
            raise RuntimeError(f"{name}: error {error:.1e}, allowed {allowed:.1e}")

    def matrix_calls(self, candidate: Candidate) -> dict[str, Any]:
        """The family's calls on inputs made once, judged by those of float64 with its first parameters."""
        family, quick = candidate.family, self.quick
        for dtype in ("float64", candidate.dtype):
            if (family, dtype) not in self.matrices:
                made = matrices.calls(family, quick, getattr(torch, dtype), self.device)
                self.matrices[family, dtype] = made
                if dtype == "float64":
                    self.exact[family] = {name: call() for name, call in made.items()}
        found = self.matrices[family, candidate.dtype]
        for name, call in found.items():
            error = matrices.difference(call(), self.exact[family][name])
            self.judge(f"{family} {name} {candidate.dtype}", error, candidate.precision)
        return dict(found)

    def convolution_calls(self, dtype: str, n_nodes: int) -> dict[str, convolution.Call]:
        """Of inputs made once."""
        key = dtype, n_nodes
        if key not in self.convolutions:
            channels = 16 if self.quick else 128
            kind = getattr(torch, dtype)
            self.convolutions[key] = convolution.calls(n_nodes, channels, kind, self.device)
        return self.convolutions[key]

    def radial_calls(self, candidate: Candidate) -> dict[str, Any]:
        """The family's part of the convolution, with the radial layer inside; judged without, in float64."""
        found, family, dtype = {}, candidate.family, candidate.dtype
        for n_nodes in (4,) if self.quick else NODES:
            key = family, Size(n_nodes)
            if key not in self.truth:
                self.table["radial"]["float64"]["fused"] = False
                self.truth[key] = self.convolution_calls("float64", n_nodes)[family]()
            self.table["radial"][dtype]["fused"] = True
            call = self.convolution_calls(dtype, n_nodes)[family]
            error = convolution.difference(call(), self.truth[key])
            self.judge(f"{family} {n_nodes} {dtype}", error, candidate.precision)
            found[f"{family} {n_nodes}"] = call
        return found

    def decide_fusion(self, chosen: dict[str, dict[str, Any]], seconds: float) -> None:
        """Set "fused" of what was chosen where values and derivatives take less time so."""
        for family in RADIAL:
            self.table[family] = {**self.table[family], **chosen.get(family, {})}
        for dtype in DTYPES if "radial" in chosen else ():
            for n_nodes in (4,) if self.quick else NODES[-1:]:
                calls = self.convolution_calls(dtype, n_nodes)
                took = {}
                for fused in (False, True):
                    self.table["radial"][dtype]["fused"] = fused
                    both: dict[str, Any] = {name: calls[name] for name in ("radial", "all")}
                    times = interleaved(both, self.device, seconds, 2 if self.quick else 20)
                    took[fused] = sum(t.median for t in times.values())
                print(
                    f"{dtype}, radial layer apart {took[False]:.4f} ms, inside {took[True]:.4f} ms",
                    flush=True,
                )
                chosen["radial"][dtype]["fused"] = took[True] < took[False]

    def costs(self, seconds: float) -> dict[str, dict[str, Any]]:
        """What charge solves cost, for the table; empty where times make no sense of the model."""
        found = {}
        for dtype in DTYPES:
            kind = getattr(torch, dtype)
            try:
                found[dtype] = charge_costs.measure(self.table, self.device, kind, self.quick, seconds)
            except RuntimeError as error:
                say(str(error))
                return {}
        return {"charge_solve_costs": found}

    def score(self, candidate: Candidate, seconds: float) -> float:
        """Geometric mean of milliseconds."""
        times = interleaved(self.calls(candidate), self.device, seconds, 2 if self.quick else 20)
        return math.exp(sum(math.log(t.median) for t in times.values()) / len(times))


def warm(candidate_list: list[Candidate], device: str, quick: bool, seconds: float) -> None:
    """Compile all candidates in as many processes as there are cores."""
    n = min(len(candidate_list), os.cpu_count() or 1, 14)
    flags = ["--device", device, *(["--quick"] if quick else [])]
    workers = [
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "bench.tune",
                "--worker",
                str(i),
                str(n),
                "--budget",
                str(seconds),
                *flags,
            ],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.DEVNULL,
        )
        for i in range(n)
    ]
    deadline = time.monotonic() + seconds + 20
    for worker in workers:
        try:
            worker.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()


def best(scores: dict[Candidate, float]) -> dict[str, dict[str, Any]]:
    """Per family, the shared blocks whose dtypes do best together, and their other parameters."""
    chosen: dict[str, dict[str, Any]] = {}
    for family in SHARED:
        groups: dict[tuple[Any, ...], dict[str, tuple[float, Candidate]]] = {}
        for candidate, score in scores.items():
            if candidate.family != family:
                continue
            group = groups.setdefault(candidate.shared, {})
            if candidate.dtype not in group or score < group[candidate.dtype][0]:
                group[candidate.dtype] = (score, candidate)
        complete = [g for g in groups.values() if len(g) == len(DTYPES)]
        if complete:
            # float32 is what users run: it counts double
            winner = min(complete, key=lambda g: 2 * math.log(g["float32"][0]) + math.log(g["float64"][0]))
            chosen[family] = {dtype: dict(c.parameters) for dtype, (_, c) in winner.items()}
    return _joined(chosen)


def _joined(chosen: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Entries of pairs of high rank, in the table of all pairs if these have the same block."""
    high = chosen.pop("high_pairs", None)
    if high is None:
        return chosen
    pairs = chosen.setdefault("pairs", high)
    for dtype, entry in high.items():
        if pairs[dtype]["block"] == entry["block"]:
            pairs[dtype] |= {name: entry[name] for name in HIGH}
        else:
            say(f"pairs {dtype}: {', '.join(HIGH)} were measured with blocks of {entry['block']}, not taken")
    return chosen


def main() -> None:
    """Sweep, then write ``tune.csv`` and ``<gpu>.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="two candidates on 8 atoms, to try the script")
    parser.add_argument("--budget", type=float, default=150, help="seconds, half of them to compile (150)")
    parser.add_argument("--out", type=Path, default=Path("bench/results/tuned"))
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise SystemExit("on a CPU set TRITON_INTERPRET=1: the sweep then runs, its times mean nothing")
    began = time.monotonic()
    tuner = Tuner(torch.device(options.device), options.quick)
    work = list(dict.fromkeys(candidates(options.quick)))
    # both dtypes of the same blocks next to each other, in case time runs out
    work.sort(key=lambda c: (list(SHARED).index(c.family), c.shared))
    if options.worker:
        i, n = options.worker
        for candidate in work[i::n]:
            if time.monotonic() - began > options.budget:
                return
            try:
                tuner.calls(candidate)
            except Exception as error:
                print(candidate, error)
        return
    if options.device == "cuda":
        warm(work, options.device, options.quick, 0.5 * options.budget)
    # the defaults of every family and dtype first, they set the allowed errors
    defaults = list({(c.family, c.dtype): c for c in reversed(list(candidates(options.quick)))}.values())
    work = [*defaults, *(c for c in work if c not in defaults)]
    scores: dict[Candidate, float] = {}
    for candidate in Bar(work, "candidate"):
        if time.monotonic() - began > options.budget:
            say("no time left")
            break
        try:
            scores[candidate] = tuner.score(candidate, 0.05)
            said = f"{scores[candidate]:.4f} ms"
        except Exception as error:  # out of registers or shared memory, or not accurate
            said = str(error)[:120]
        say(f"{candidate.family} {candidate.dtype} {dict(candidate.parameters)}: {said}")
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "tune.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["family", "dtype", "parameters", "mean_ms"])
        for c, score in sorted(scores.items(), key=lambda item: (item[0].family, item[0].dtype, item[1])):
            writer.writerow([c.family, c.dtype, json.dumps(dict(c.parameters)), f"{score:.4g}"])
    model = re.search(r"\b[a-z]+\d+\w*", device_name(tuner.device).lower())
    name = model.group(0) if model and options.device == "cuda" else "interpreter"
    chosen = best(scores)
    tuner.decide_fusion(chosen, 0.05)
    # written before the last part too, should the time be up
    for more in (dict, partial(tuner.costs, 0.05)):
        chosen |= more()
        (options.out / f"{name}.json").write_text(json.dumps(chosen, indent=2) + "\n")
    say(f"proposed: {name}.json")


if __name__ == "__main__":
    main()
