"""
What the device itself can do: `python -m bench.ceiling [--device cuda]`.

A copy of 1 GiB within the device's memory, bytes read and written, and products of square matrices in float32
(with and without TF32) and float64, by events, the median of ten. Kernels are judged by their distance to it.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from .progress import say
from .record import RESULTS, commit, device_name, slug
from .timing import interleaved

COLUMNS: tuple[str, ...] = ("what", "value", "unit", "device", "torch", "commit", "date")


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """The median of ten."""
    call()
    return 1e-3 * interleaved({"it": call}, device, 1.0, 10)["it"].median


def main() -> None:
    """Measure, and write each row at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--edge", type=int, default=8192, help="of the matrices")
    parser.add_argument("--commit")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    name = device_name(device)
    file = options.out or RESULTS / f"ceiling-{slug(name)}.csv"
    common = {"device": name, "torch": torch.__version__, "commit": options.commit or commit()}
    common["date"] = time.strftime("%Y-%m-%d")

    def write(what: str, value: float, unit: str) -> None:
        say(f"{what}: {value:.4g} {unit}")
        fresh = not file.exists()
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            if fresh:
                writer.writeheader()
            writer.writerow({"what": what, "value": f"{value:.4g}", "unit": unit, **common})

    source = torch.rand(options.mib << 18, device=device)  # float32
    target = torch.empty_like(source)
    write("copy", 2 * source.nbytes / seconds_of(partial(target.copy_, source), device) / 1e9, "GB/s")
    del source, target
    for label, dtype, tf32 in (
        ("float32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("float64", torch.float64, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.rand(options.edge, options.edge, device=device, dtype=dtype) for _ in range(2))
        took = seconds_of(partial(torch.matmul, a, b), device)
        write(f"matrix product, {label}", 2 * options.edge**3 / took / 1e12, "TFLOP/s")


if __name__ == "__main__":
    main()
