"""
Where the time of a workload goes: `PYTHONPATH=kernels:. python profiling/cpu_profile.py [--size 100]`.

Prints the median time, the number of PyTorch calls and the costliest of them, and with --trace writes a
Chrome trace. On a GPU (--device cuda) kernels are listed too; --plain only runs the workload, for ncu.
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from bench.problems import make_problem
from bench.providers import providers
from bench.registry import CASES, Size
from bench.verify import make_call


def main() -> None:
    """Profile one provider on one workload."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", default="polar", choices=list(CASES))
    parser.add_argument("--provider", default="scfmlip", choices=list(providers()))
    parser.add_argument("--mode", default="forward_backward")
    parser.add_argument("--size", type=Size.parse, default=Size(100), help="2000, 100x16, ~100x16")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--rows", type=int, default=15)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--plain", action="store_true", help="run without a profiler")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    problem = make_problem(CASES[options.case], options.size, getattr(torch, options.dtype), device)
    call = make_call(problem, providers()[options.provider].build(problem), options.mode)
    for _ in range(3):
        call()

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    times = []
    for _ in range(options.repeats):
        finish()
        start = time.perf_counter()
        call()
        finish()
        times.append(1e3 * (time.perf_counter() - start))
    what = f"{options.case} {options.size} {options.mode} {options.dtype}, {options.provider}"
    print(f"{what}: {statistics.median(times):.2f} ms without a profiler")
    if options.plain:
        return
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as found:
        for _ in range(options.repeats):
            call()
        finish()
    events = found.key_averages()
    total = sum(e.self_cpu_time_total for e in events)
    aten = sum(e.count for e in events if e.key.startswith("aten::"))
    ours = sum(e.count for e in events if e.key.startswith("scfmlip::"))
    n = options.repeats
    print(
        f"{aten / n:.0f} aten calls and {ours / n:.0f} scfmlip operators, {1e-3 * total / n:.2f} ms profiled"
    )
    print("| call | self ms | share | number |\n|---|---|---|---|")
    for event in sorted(events, key=lambda e: -e.self_cpu_time_total)[: options.rows]:
        own = 1e-3 * event.self_cpu_time_total / n
        print(f"| {event.key[:60]} | {own:.3f} | {1e3 * own * n / total:.1%} | {event.count / n:.0f} |")
    if device.type == "cuda":
        print(events.table(sort_by="self_cuda_time_total", row_limit=options.rows))
    if options.trace:
        found.export_chrome_trace(str(options.trace))


if __name__ == "__main__":
    main()
