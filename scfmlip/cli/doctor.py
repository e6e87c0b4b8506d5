"""``scfmlip doctor``: versions, devices, back ends, and combinations known not to work."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
from collections.abc import Callable

from packaging.requirements import Requirement

PACKAGES = (
    "scfmlip",
    "torch",
    "triton",
    "numpy",
    "mace-torch",
    "graph-longrange",
    "les",
    "e3nn",
    "cuequivariance",
    "cuequivariance-torch",
    "cuequivariance-ops-torch-cu12",
    "cuequivariance-ops-torch-cu13",
    "ase",
    "openmm",
    "ipi",
    "torch-sim-atomistic",
    "matplotlib",
)
OPERATORS = (
    "channelwise_conv",
    "charge_solve",
    "gaussian_pairs",
    "indexed_linear",
    "lattice_field",
    "listed_pairs",
    "mesh_gather",
    "mesh_spread",
    "structure_factor",
    "symmetric_contraction",
)


def add_command(commands: argparse._SubParsersAction) -> None:
    """Register the command."""
    parser = commands.add_parser(
        "doctor",
        help="print versions, devices, back ends and known bad combinations",
        description="Print what is installed, which back end each operator takes on each device, and "
        "combinations of versions known not to work together. Exit status 1 if there is one.",
    )
    parser.set_defaults(run=run)


def version_of(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    out = []
    for part in version.split("+")[0].split("."):
        digits = "".join(c for c in part if c.isdigit())
        out.append(int(digits or 0))
    return tuple(out)


def find_problems(versions: dict[str, str | None]) -> list[str]:
    """
    Known bad combinations among installed versions, each with what to do.

    Args:
        versions: Version of each package, None where it is missing.
    """
    problems = []

    def got(name: str) -> tuple[int, ...]:
        version = versions.get(name)
        return _numbers(version) if version else ()

    def say(*names: str) -> str:
        return " with ".join(f"{name} {versions[name]}" for name in names)

    mace, longrange = got("mace-torch"), got("graph-longrange")
    if mace and mace <= (0, 3, 16) and longrange >= (0, 4, 3):
        problems.append(
            f"{say('mace-torch', 'graph-longrange')}: PolarMACE's own forward fails with an unexpected "
            "keyword 'force_pbc_evaluator'. scfmlip.accelerate(model) works; for the original install "
            "graph-longrange==0.4.0"
        )
    if mace and mace > (0, 3, 16):
        problems.append(
            f"{say('mace-torch')}: scfmlip supports PolarMACE of 0.3.16 and refuses to accelerate others; "
            "install mace-torch==0.3.16 for that"
        )
    elif mace and (0, 3, 14) <= mace < (0, 3, 16):
        problems.append(
            f"{say('mace-torch')}: it has no PolarMACE. scfmlip.accelerate takes MACE, ScaleShiftMACE and "
            "MACELES; MACE-POLAR, scfmlip.models, training and `scfmlip demo` need mace-torch==0.3.16"
        )
    elif mace and mace < (0, 3, 14):
        problems.append(
            f"{say('mace-torch')}: 0.3.14 is the oldest version that scfmlip was tested with; install "
            "mace-torch==0.3.16"
        )
    if got("torch") and got("torch") < (2, 11):
        problems.append(f"{say('torch')}: scfmlip needs 2.11 or newer")
    if got("triton") and got("triton") < (3, 6):
        problems.append(f"{say('triton')}: scfmlip's kernels need 3.6 or newer")
    cue, cue_torch = got("cuequivariance"), got("cuequivariance-torch")
    if cue and cue_torch and cue[:2] != cue_torch[:2]:
        problems.append(
            f"{say('cuequivariance', 'cuequivariance-torch')}: mismatched releases fall back to slow code; "
            "install equal ones"
        )
    if got("e3nn") and got("e3nn") < (0, 5) and got("torch") >= (2, 6) and not mace:
        problems.append(
            f"{say('e3nn', 'torch')}: importing e3nn fails unless mace is imported first, or "
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 is set"
        )
    return problems


def _triton_matches_torch(show: Callable[[str], None]) -> list[str]:
    """Check the triton version that torch requires: another one is a frequent cause of compiler errors."""
    try:
        needs = [Requirement(text) for text in importlib.metadata.requires("torch") or []]
    except importlib.metadata.PackageNotFoundError:
        return []
    problems = []
    for need in needs:
        installed = version_of(need.name)
        applies = need.marker is None or need.marker.evaluate({"extra": ""})
        if "triton" not in need.name or not applies or not need.specifier or installed is None:
            continue
        show(f"  torch requires {need.name}{need.specifier}")
        if not need.specifier.contains(installed, prereleases=True):
            problems.append(
                f"{need.name} {installed} with a torch that requires {need.name}{need.specifier}: "
                f"pip install '{need.name}{need.specifier}'"
            )
    return problems


def run(arguments: argparse.Namespace, show: Callable[[str], None] = print) -> int:
    """The command."""
    import torch

    import scfmlip_kernels
    from scfmlip_kernels.dispatch import interpreting
    from scfmlip_kernels.tuned import tuned_for

    versions = {name: version_of(name) for name in PACKAGES}
    show(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name, version in versions.items():
        show(f"  {name:30s} {version or '-'}")
    show(f"CPU: {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(i)
            show(f"GPU {i}: {p.name}, {p.total_memory / 2**30:.0f} GiB, {p.multi_processor_count} processors")
            show(f"  launch parameters: {tuned_for(p.name)}")
    else:
        show("GPU: none that torch can use")
    ops = [n for n in scfmlip_kernels.__all__ if n in OPERATORS]
    cpu = "Triton's interpreter (TRITON_INTERPRET=1: slow)" if interpreting() else "CPU path"
    gpu = "Triton" if torch.cuda.is_available() else "Triton, if there were one"
    for op in ops:
        show(f"{op:22s} CPU tensors: {cpu:12s} GPU tensors: {gpu}")
    problems = find_problems(versions) + _triton_matches_torch(show)
    if interpreting() and torch.cuda.is_available():
        problems.append(
            "TRITON_INTERPRET=1 is set on a machine with a GPU: kernels run in the interpreter. Unset it"
        )
    for problem in problems:
        show(f"PROBLEM: {problem}")
    if not problems:
        show("no known bad combination")
    return 1 if problems else 0
