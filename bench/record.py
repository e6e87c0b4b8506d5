"""One CSV row per measurement, with everything needed to trust it later."""

import csv
import datetime
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import triton

RESULTS = Path(__file__).parent / "results"


@dataclass
class Row:
    """
    A measurement.

    Attributes:
        op: Case of the registry.
        provider, provider_version: Who computed it.
        mode, dtype: What.
        atoms, systems, ragged: Size; ``atoms`` of all systems together.
        points: Wave vectors of half the sphere, of all systems together.
        captured: Whether a CUDA graph was replayed.
        median_ms, p20_ms, p80_ms, repeats: Time of one call.
        peak_mib: Memory beyond inputs at the peak of one call, empty if not measured.
        error: Largest relative difference from our float64 values.
        device, threads, driver, torch, triton, commit, date: Where, with what, when.
    """

    op: str
    provider: str
    provider_version: str
    mode: str
    dtype: str
    atoms: int
    systems: int
    ragged: bool
    points: int
    captured: bool
    median_ms: float
    p20_ms: float
    p80_ms: float
    repeats: int
    peak_mib: float | None
    error: float
    device: str
    threads: int
    driver: str
    torch: str
    triton: str
    commit: str
    date: str


COLUMNS = [field.name for field in fields(Row)]


def commit() -> str:
    """
    Commit of the checkout, with -dirty if files other than results differ; "unknown" outside git, unless the
    environment's COMMIT names it.
    """
    if os.environ.get("COMMIT"):
        return os.environ["COMMIT"]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(RESULTS.parents[1]), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--", ".", ":!bench/results", ":!profiling/reports")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def device_name(device: torch.device) -> str:
    """Marketing name of a GPU or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    return found.group(1) if found else platform.machine()


def slug(name: str) -> str:
    """A device name as a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def driver(device: torch.device) -> str:
    """Version of the GPU's driver; empty on a CPU."""
    if device.type != "cuda":
        return ""
    try:
        return subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return torch.version.hip or ""


def surroundings(device: torch.device, commit_name: str | None = None) -> dict[str, str | int]:
    """The columns that are the same for all rows of a run."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "driver": driver(device),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "commit": commit_name or commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def _cell(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else value


def append(path: Path, rows: list[Row]) -> None:
    """Add rows to a results file, with a header if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow({name: _cell(value) for name, value in asdict(row).items()})


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a results file, as text."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
