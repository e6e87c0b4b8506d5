"""
Recorded launch parameters, one JSON file per GPU model; read once, never written at run time.

A file maps a kernel family to its parameters by dtype. "coulomb" holds what Coulomb sums cost, ns, which
`scfmlip.electrostatics.choice` goes by, and "charge_solve_costs" what `charge_solve.choice` goes by.
`default.json` is safe everywhere; a file named after the GPU (`h200.json`), or `cpu.json`, overrides it.
"""

import json
from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor


@cache
def _table(device: str) -> dict[str, Any]:
    """Default parameters, overridden by those of the device."""
    folder = resources.files("scfmlip_kernels.tuned")
    table = json.loads(folder.joinpath("default.json").read_text())
    for entry in folder.iterdir():
        if entry.name.endswith(".json") and entry.name[:-5] in device:
            for family, parameters in json.loads(entry.read_text()).items():
                table[family] = {**table.get(family, {}), **parameters}
    return table


def tuned_for(device_name: str) -> str:
    """Names of the recorded tables that apply to a GPU of this name, for reports."""
    folder = resources.files("scfmlip_kernels.tuned")
    names = sorted(e.name[:-5] for e in folder.iterdir() if e.name.endswith(".json"))
    own = [n for n in names if n != "default" and n in device_name.lower()]
    return ", ".join(["default", *own])


@cache
def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device).lower() if device.type == "cuda" else "cpu"


def tuned(family: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Launch parameters of a kernel family for a device and dtype."""
    return _table(_device_name(device))[family][str(dtype).removeprefix("torch.")]


def compiler_options(num_warps: int, num_stages: int, tensor: Tensor) -> dict[str, int]:
    """Compiler options of a launch; on NVIDIA without a register limit, to avoid spills."""
    options = {"num_warps": num_warps, "num_stages": num_stages}
    if tensor.is_cuda and torch.version.hip is None:
        options["maxnreg"] = 255
    return options
