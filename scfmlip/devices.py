"""Choice of the device, and its free memory."""

from __future__ import annotations

import math

import torch


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """
    Choose a device by name.

    Raises:
        ValueError: for an unknown name, or a device that this machine does not have.
    """
    if name == "auto":
        name = f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu"
    elif name == "cuda":
        name = f"cuda:{local_rank}"
    return find_device(name)


def find_device(name: str | torch.device) -> torch.device:
    """
    Check that torch can compute on a device here.

    Raises:
        ValueError: for an unknown device, or one that this machine does not have.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = torch.device("meta")
    if device.type == "meta":  # holds no data
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch finds no CUDA device here: use cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {device}, but there are {torch.cuda.device_count()} CUDA devices here")
    return device


def peak_memory() -> float:
    """
    MiB of memory that this process has had at most.

    Linux's figure for the program that runs now: `resource.getrusage` counts what the parent had when it
    started this process, which hides all that is smaller.
    """
    try:
        with open("/proc/self/status") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
        return float(lines["VmHWM"].split()[0]) / 1024
    except (OSError, KeyError, ValueError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def free_memory(device: torch.device) -> float:
    """Bytes that can be allocated on a device; infinity if unknown."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return 1024.0 * float(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return math.inf
