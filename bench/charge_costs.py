"""
What charge solves cost on a GPU, measured for `scfmlip_kernels.charge_solve.choice`.

Most constants are differences of two times: walks of few and of more iterations, small and large systems.
What was counted (launches, iterations, waves for each atom) stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

import scfmlip
from scfmlip.scf.equilibration import Method
from scfmlip_kernels import charge_solve
from scfmlip_kernels.charge_solve.kernel import MAX_ATOMS, solve_options

from .timing import interleaved

Call = Callable[[], Any]

DENSITY = 0.1  # atoms/angstrom^3


class Sizes(NamedTuple):
    """
    Atoms and iterations of what is timed.

    Attributes:
        few, many: Of one system in the kernel, two numbers that need different tiles.
        made_few, made_many: Of one system whose matrix is made.
        small: Of a system whose iterations are bound by their launches.
        large: Of one whose iterations are bound by its wave vectors.
        short, long: Iterations.
        read: Numbers of an array that is read.
    """

    few: int = 256
    many: int = 1000
    made_few: int = 250
    made_many: int = 1000
    small: int = 100
    large: int = 4000
    short: int = 2
    long: int = 6
    read: int = 1 << 27


QUICK = Sizes(16, 128, 4, 8, 4, 8, 1, 2, 1 << 10)


def _kernel(n: int, iterations: int, dtype: torch.dtype, device: torch.device) -> Call:
    """The solve of one system in one launch, so badly conditioned that it does not end."""
    generator = torch.Generator().manual_seed(20261121)
    ramp = torch.logspace(0, 8, n, dtype=torch.float64)
    matrix = torch.outer(ramp.sqrt(), ramp.sqrt()) / n + torch.diag(ramp)
    source = torch.randn(n, generator=generator, dtype=torch.float64).to(device)
    ptr, start = torch.tensor([0, n]), torch.zeros(1, dtype=torch.float64, device=device)
    starts = (ptr.to(device), torch.tensor([0, n * n], device=device))
    matrices = matrix.flatten().to(device, dtype)
    return partial(
        charge_solve,
        matrices,
        source,
        start,
        ptr,
        tolerance=0.0,
        max_iterations=iterations,
        starts=starts,
    )


def _solve(n: int, iterations: int, method: Method, dtype: torch.dtype, device: torch.device) -> Call:
    """A charge equilibration of a crystal that is cut after some iterations."""
    generator = torch.Generator().manual_seed(20261121)
    edge = (n / DENSITY) ** (1 / 3)

    def uniform(*shape: int) -> Tensor:
        values = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return values.to(device, dtype)

    positions, cell = edge * uniform(n, 3), edge * torch.eye(3, dtype=dtype, device=device)
    operator = scfmlip.Coulomb(l_max=0, sigma=1.0, method="direct", validate=False)
    geometry = operator.prepare(positions, cell, True)
    return partial(
        scfmlip.charge_equilibration,
        geometry,
        4 + uniform(n),
        8 + uniform(n),
        0.0,
        method=method,
        tolerance=0.0,
        max_iterations=iterations,
        on_failure="ignore",
    )


def calls(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> dict[str, Call]:
    """What is timed; "made" needs a table that solves its systems in one launch."""
    found: dict[str, Call] = {}
    for steps in (sizes.short, sizes.long):
        for n in (sizes.few, sizes.many):
            found[f"kernel {n} {steps}"] = _kernel(n, steps, dtype, device)
        for n in (sizes.small, sizes.large):
            found[f"many {n} {steps}"] = _solve(n, steps, "cg", dtype, device)
    for n in (sizes.made_few, sizes.made_many):
        found[f"made {n}"] = _solve(n, sizes.short, "auto", dtype, device)
    array = torch.zeros(sizes.read, dtype=dtype, device=device)
    found["read"] = array.sum
    return found


def fit(
    times: dict[str, float], sizes: Sizes, costs: dict[str, Any], kernel: dict[str, int], dtype: torch.dtype
) -> dict[str, Any]:
    """
    The constants that explain times.

    Args:
        times: Milliseconds of `calls`.
        sizes: Of the calls.
        costs: The table so far, with what was counted.
        kernel: The kernel's table, for its tiles.
        dtype: Of the matrices.
    """
    steps = sizes.long - sizes.short

    def each(name: str) -> float:
        """Nanoseconds of an iteration."""
        return 1e6 * (times[f"{name} {sizes.long}"] - times[f"{name} {sizes.short}"]) / steps

    def tiles(n: int) -> int:
        return triton.cdiv(n, solve_options(n, kernel)[1])

    few, many = each(f"kernel {sizes.few}"), each(f"kernel {sizes.many}")
    tile = (many - few) / (tiles(sizes.many) - tiles(sizes.few))
    made = 1e6 * (times[f"made {sizes.made_many}"] - times[f"made {sizes.made_few}"])
    found = {
        "launch": each(f"many {sizes.small}") / costs["iteration_launches"],
        "tile": tile,
        "step": few - tiles(sizes.few) * tile,
        "byte": 1e6 * times["read"] / (sizes.read * dtype.itemsize),
        "cube": made / (sizes.made_many**3 - sizes.made_few**3),
        "pair": each(f"many {sizes.large}") / (sizes.large**2 * costs["waves_per_atom"]),
    }
    bad = [name for name, cost in found.items() if not cost > 0]
    if bad:
        raise RuntimeError(f"charge solves: the times give no {', '.join(bad)}: {times}")
    return {**costs, "measured": True, **found}


def measure(
    table: dict[str, dict[str, Any]], device: torch.device, dtype: torch.dtype, quick: bool, seconds: float
) -> dict[str, Any]:
    """
    The entry of "charge_solve_costs" for this device.

    Args:
        table: Of launch parameters and costs, as the solvers read it.
        device: Where.
        dtype: Of the matrices.
        quick: Whether only to try.
        seconds: For each call.
    """
    name, sizes = str(dtype).removeprefix("torch."), QUICK if quick else Sizes()
    costs = table["charge_solve_costs"][name]
    made, always = calls(sizes, dtype, device), costs["always"]
    costs["always"] = MAX_ATOMS  # the matrices of all sizes are made, whatever the costs so far say
    try:
        times = interleaved(made, device, seconds * len(made), 2 if quick else 20)
    finally:
        costs["always"] = always
    found = fit(
        {call: t.median for call, t in times.items()}, sizes, costs, table["charge_solve"][name], dtype
    )
    if device.type == "cuda":
        found["processors"] = torch.cuda.get_device_properties(device).multi_processor_count
    return found
