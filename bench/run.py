"""Measure: `python -m bench.run [--case NAME ...] [--device cpu|cuda] [--quick] [--out FILE]`."""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from .problems import make_problem
from .progress import Bar, say
from .providers import Unavailable, package_version, providers
from .record import RESULTS, Row, append, device_name, slug, surroundings
from .registry import CASES, LARGEST, Case, Mode, Size
from .timing import captured, cpu_memory, cuda_memory, interleaved
from .verify import Call, Disagreement, check_judge, verified_call


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs="+", choices=list(CASES), help="default: all")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    parser.add_argument("--provider", nargs="+", help="default: all that can do the case")
    parser.add_argument("--mode", nargs="+", help="default: those of the case")
    parser.add_argument("--dtype", nargs="+", help="default: those of the case")
    parser.add_argument("--size", nargs="+", type=Size.parse, help="2000, 100x16 (systems), ~100x16 (ragged)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (1)")
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement (3)")
    parser.add_argument("--repeats", type=int, default=50, help="at most, per measurement (50)")
    parser.add_argument("--budget", type=float, default=float("inf"), help="seconds; none begins later")
    parser.add_argument("--quick", action="store_true", help="smallest size only, two repeats")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--graphs", action="store_true", help="time captured CUDA graphs too")
    parser.add_argument("--commit", help="to record where there is no git")
    parser.add_argument("--out", type=Path, help="default: bench/results/<device>.csv")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.repeats = 0.5, 2
    return options


class Run:
    """One invocation: its options, and what is the same for all rows."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.device = torch.device(name)
        torch.set_num_threads(options.threads)
        self.out = options.out or RESULTS / f"{slug(device_name(self.device))}.csv"
        self.common = surroundings(self.device, options.commit)
        self.began = time.monotonic()
        self.failed: list[str] = []

    def sizes(self, case: Case) -> tuple[Size, ...]:
        """Those of the command line, else those of the case."""
        if self.options.size:
            return tuple(self.options.size)
        sizes = case.gpu if self.device.type == "cuda" else case.cpu
        return sizes[:1] if self.options.quick else sizes

    def calls(self, problem, mode: Mode) -> dict[str, tuple[Call, float]]:
        """Every provider that can do this and agrees."""
        wanted = self.options.provider or problem.case.providers
        truth: dict = {}
        found = {}
        for name in (p for p in problem.case.providers if p in wanted):
            if sum(problem.counts) > LARGEST.get((name, self.device.type), 10**9):
                continue
            try:
                found[name] = verified_call(problem, name, mode, truth)
            except Unavailable as reason:
                say(f"    {name}: skipped, {reason}")
            except Disagreement as reason:
                say(f"    {name}: DISAGREES, {reason}: not timed")
                if name.startswith("scfmlip"):
                    self.failed.append(f"{problem.case.name} {problem.size} {mode} {problem.dtype}")
            except Exception as error:  # of a peer: the others are measured all the same
                say(f"    {name}: FAILED, {type(error).__name__}: {str(error)[:300]}")
                if name.startswith("scfmlip"):
                    self.failed.append(f"{problem.case.name} {problem.size} {mode} {problem.dtype}")
        return found

    def measure(self, case: Case, size: Size, mode: Mode, dtype: str) -> None:
        """All providers on one problem; writes their rows."""
        problem = make_problem(case, size, getattr(torch, dtype), self.device)
        points = 0 if case.open_boundary else int((problem.grid.weight == 1).sum())
        say(f"{case.name} {size} {mode} {dtype}")
        calls = self.calls(problem, mode)
        timed: dict[str, Callable[[], object]] = {name: call for name, (call, _) in calls.items()}
        if self.options.graphs and self.device.type == "cuda":
            for name in [n for n in timed if n.startswith("scfmlip")]:
                try:
                    timed[f"{name} captured"] = captured(timed[name])
                except RuntimeError as error:
                    say(f"    {name}: not captured, {str(error).splitlines()[0][:160]}")
        times = interleaved(timed, self.device, self.options.seconds, self.options.repeats)
        rows = []
        for label, t in times.items():
            name, _, graph = label.partition(" ")
            peak = None if graph else self.peak(case, size, name, mode, dtype, timed[name])
            package = providers()[name].package
            rows.append(
                Row(
                    op=case.name,
                    provider=name,
                    provider_version=package_version(package) or str(self.common["commit"]),
                    mode=mode,
                    dtype=dtype,
                    atoms=sum(size.counts),
                    systems=size.systems,
                    ragged=size.ragged,
                    points=points,
                    captured=bool(graph),
                    median_ms=t.median,
                    p20_ms=t.p20,
                    p80_ms=t.p80,
                    repeats=t.repeats,
                    peak_mib=peak,
                    error=calls[name][1],
                    **self.common,  # type: ignore[arg-type]
                )
            )
            memory = "" if peak is None else f"{peak:9.1f} MiB"
            say(
                f"    {label:26} {t.median:10.3f} ms [{t.p20:.3f}, {t.p80:.3f}] x{t.repeats:<3}{memory} "
                f" error {calls[name][1]:.0e}"
            )
        append(self.out, rows)

    def peak(
        self, case: Case, size: Size, name: str, mode: Mode, dtype: str, call: Callable[[], object]
    ) -> float | None:
        """Memory of one call, if asked for."""
        if self.options.no_memory:
            return None
        if self.device.type == "cuda":
            return cuda_memory(call)
        return cpu_memory(case, size, name, mode, dtype, self.options.threads)

    def wanted(self, case: Case) -> tuple[list[Mode], list[str]]:
        """Modes and dtypes of a case that were asked for."""
        modes: list[Mode] = [m for m in case.modes if m in (self.options.mode or case.modes)]
        return modes, [d for d in case.dtypes if d in (self.options.dtype or case.dtypes)]

    def count(self, case: Case) -> int:
        """How many problems a case has."""
        modes, dtypes = self.wanted(case)
        return len(modes) * len(dtypes) * len(self.sizes(case))

    def case(self, case: Case, advance: Callable[[int], object] = lambda n: None) -> None:
        """Every size, mode and dtype of a case, smallest first."""
        modes, dtypes = self.wanted(case)
        for mode in modes:
            problem = make_problem(case, Size(24), torch.float64, self.device)
            try:
                check_judge(problem, mode)
            except Disagreement as reason:
                say(f"{case.name} {mode}: DISAGREES, {reason}: not timed")
                self.failed.append(f"{case.name} {mode}")
                advance(len(dtypes) * len(self.sizes(case)))
                continue
            for dtype in dtypes:
                for size in self.sizes(case):
                    advance(1)
                    if time.monotonic() - self.began > self.options.budget:
                        say(f"{case.name} {size} {mode} {dtype}: no time left")
                        continue
                    try:
                        self.measure(case, size, mode, dtype)
                    except torch.OutOfMemoryError:
                        say(f"{case.name} {size} {mode} {dtype}: out of memory")
                    if self.device.type == "cuda":
                        torch.cuda.empty_cache()


def main() -> None:
    """Run the cases asked for; exits 1 if ours disagreed anywhere."""
    warnings.simplefilter("ignore")  # peers' deprecations
    run = Run(_arguments())
    say(", ".join(f"{key} {value}" for key, value in run.common.items() if value != ""))
    cases = [CASES[name] for name in run.options.case or CASES]
    with Bar(total=sum(map(run.count, cases)), unit="problem") as bar:
        for case in cases:
            run.case(case, bar.update)
    say(f"rows in {run.out.name}")
    if run.failed:
        raise SystemExit(f"scfmlip disagreed: {run.failed}")


if __name__ == "__main__":
    main()
