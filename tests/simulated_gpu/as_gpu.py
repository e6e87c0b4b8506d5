"""
A Python that has the simulated GPU: ``python -m simulated_gpu.as_gpu -m bench.models --device cuda``.

Takes what Python takes: ``-m MODULE``, ``-c CODE``, or a file, and arguments. Programs that start Python
again by `sys.executable` start this one, if the environment's ``AS_GPU`` names a command for it.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import time
import types
from typing import Any
from unittest import mock

import torch

from simulated_gpu.device import simulated_gpu, to_gpu


class _Event:
    """An event of a GPU that has always done everything."""

    def __init__(self, **_: Any) -> None:
        self.time = 0.0

    def record(self, *_: Any) -> None:
        """Now."""
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        """There is nothing to wait for."""

    def elapsed_time(self, other: _Event) -> float:
        """Milliseconds."""
        return 1e3 * (other.time - self.time)


def module_to(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
    """`torch.nn.Module.to` of a GPU; a copy, which nobody here minds."""
    target = kwargs.pop("device", None)
    rest = []
    for a in args:
        if isinstance(a, str | torch.device):
            target = torch.device(a)
        else:
            rest.append(a)
    moved = _MODULE_TO(module, *rest, **kwargs) if rest or kwargs else module
    return to_gpu(moved) if target is not None and torch.device(target).type == "cuda" else moved


_MODULE_TO = torch.nn.Module.to


def main() -> None:
    """Run it."""
    if os.environ.get("AS_GPU"):
        sys.executable = os.environ["AS_GPU"]
    kind, *rest = sys.argv[1:]
    cuda = {
        "Event": _Event,
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "empty_cache": lambda: None,
        "device_count": lambda: 1,
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(simulated_gpu())
        for name, function in cuda.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        stack.enter_context(mock.patch.object(torch.nn.Module, "to", module_to))
        if kind == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif kind == "-c":
            sys.argv = ["-c", *rest[1:]]
            module = types.ModuleType("__main__")
            exec(compile(rest[0], "<string>", "exec"), module.__dict__)
        else:
            sys.argv = [kind, *rest]
            sys.path.insert(0, os.path.dirname(kind))
            runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    main()
