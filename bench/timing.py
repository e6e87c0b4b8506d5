"""Clocks and memory meters."""

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from .registry import Case, Mode, Size

ROOT = Path(__file__).parents[1]


class Times(NamedTuple):
    """Milliseconds of one call."""

    median: float
    p20: float
    p80: float
    repeats: int


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def summarize(seconds: list[float]) -> Times:
    """Median and spread of at least one measurement."""
    ordered = sorted(1e3 * s for s in seconds)

    def quantile(q: float) -> float:
        place = q * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return Times(quantile(0.5), quantile(0.2), quantile(0.8), len(ordered))


def _once_cpu(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _once_cuda(call: Callable[[], object]) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return 1e-3 * start.elapsed_time(stop)


def interleaved(
    calls: dict[str, Callable[[], object]], device: torch.device, seconds: float, most: int
) -> dict[str, Times]:
    """
    Times of several calls, taken in turns so that a busy machine is busy for all of them.

    Args:
        calls: By name; each was run before.
        device: Decides the clock: CUDA events, or the wall.
        seconds: Each call's share of time; every call is timed at least twice, slow ones once.
        most: Largest number of repeats.
    """
    once = _once_cuda if device.type == "cuda" else _once_cpu
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        once(call)
    gc.collect()
    gc.disable()  # its pauses belong to nobody
    try:
        for _ in range(most):
            for name, call in calls.items():
                spent = sum(found[name])
                if not found[name] or spent + spent / len(found[name]) <= seconds:
                    found[name].append(once(call))
    finally:
        gc.enable()
    return {name: summarize(values) for name, values in found.items()}


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """The call as a CUDA graph; raises RuntimeError where it cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def cuda_memory(call: Callable[[], object]) -> float:
    """MiB that a call takes at its peak beyond what is allocated before and after."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def resident_memory(call: Callable[[], object]) -> float:
    """MiB by which a call raises the process' resident memory at its peak. Linux only."""
    gc.collect()
    # another libc may reuse freed memory: the result is then a lower bound
    with contextlib.suppress(OSError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    call()
    return max(0.0, _status("VmHWM") - before)


def cpu_memory(
    case: Case, size: Size, provider: str, mode: Mode, dtype: str, threads: int, timeout: float = 300
) -> float | None:
    """`resident_memory` of one call in a fresh process, or None if that fails."""
    arguments = [case.name, str(size), provider, mode, dtype, str(threads)]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.memory", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=True,
        )
        return float(json.loads(done.stdout.splitlines()[-1])["peak_mib"])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        print(f"    memory of {provider} not measured: {type(error).__name__}", flush=True)
        return None
