"""
Launches and iterations of charge solves on a simulated GPU, which "charge_solve_costs" in `tuned` holds.

``TRITON_INTERPRET=1 python -m simulated_gpu.charge_solves``, from ``tests/``, prints them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

import scfmlip
import scfmlip_kernels
from simulated_gpu.device import simulated_gpu, to_gpu

F64 = torch.float64


class Count(NamedTuple):
    """
    Of one way of solving.

    Attributes:
        launches: Without those of iterations.
        iteration_launches: Of one iteration.
        iterations: Of the slowest system.
    """

    launches: float
    iteration_launches: float
    iterations: int


def count(one: bool, n_atoms: int = 24, tolerance: float = 1e-12, hardness: float = 8.0) -> Count:
    """
    Solve once for all tables that are kept, then once more with few and once with all iterations.

    Args:
        one: In one launch, or in many.
        n_atoms: Of a crystal, 0.1 an angstrom cubed.
        tolerance: Relative residual.
        hardness: The smallest, V/e; the largest is 1 V/e more.
    """
    generator = torch.Generator().manual_seed(0)
    edge = (n_atoms / 0.1) ** (1 / 3)
    frac, chi, more = torch.rand(5, n_atoms, generator=generator, dtype=F64).split([3, 1, 1])
    operator = scfmlip.Coulomb(l_max=0, sigma=1.0, validate=False)
    with scfmlip_kernels.backend("auto"), simulated_gpu() as log, torch.no_grad():
        cell = to_gpu(edge * torch.eye(3, dtype=F64))
        positions, chi, hard = (to_gpu(x) for x in (edge * frac.T, 4 + chi[0], hardness + more[0]))
        plan = operator.plan(cell, True, None, n_atoms, positions.device, positions)
        geometry = operator.prepare(positions, cell, plan=plan)

        def solve(most: int) -> tuple[int, int]:
            log.clear()
            found = scfmlip.charge_equilibration(
                geometry,
                chi,
                hard,
                0.5,
                method="auto" if one else "cg",
                tolerance=tolerance,
                max_iterations=most,
                on_failure="ignore",
            )
            assert log.kernels["_charge_solve_kernel"] == int(one)
            return log.launches, int(found.iterations.max())

        solve(2)
        if one:
            launches, iterations = solve(200)
            return Count(launches, 0.0, iterations)
        # walks that are cut; the last iteration of one that is not is found later
        (few, short), (more, longer), (_, iterations) = solve(2), solve(6), solve(200)
    assert (short, longer) == (2, 6)
    each = (more - few) / (longer - short)
    return Count(few - short * each, each, iterations)


if __name__ == "__main__":
    for way in (True, False):
        print("in one launch" if way else "in many", count(way))
