"""A solve whose derivatives are taken leaves no memory behind."""

import gc
from pathlib import Path

import pytest
import torch

from scfmlip import Coulomb, charge_equilibration, fixed_point

STATM = Path("/proc/self/statm")
pytestmark = pytest.mark.skipif(not STATM.exists(), reason="the size of a process is read from /proc")
F64 = torch.float64
ATOMS = 400


def size() -> float:
    """Of this process, MiB."""
    return int(STATM.read_text().split()[1]) * 4096 / 2**20


def respond(operator, cell, plan):
    """Charges that answer the potential they make."""

    def update(state, positions, chi, hardness):
        potential = operator.prepare(positions, cell, plan=plan).features(state)
        return -(chi[:, None] + potential) / hardness[:, None]

    return update


@pytest.mark.parametrize("solve", ["charge_equilibration", "fixed_point"])
def test_memory_does_not_grow(solve, generator):
    """Ten solves with second derivatives; one that kept its tables would add 2 MiB a solve."""
    edge = (ATOMS / 0.1) ** (1 / 3)
    operator = Coulomb(l_max=0, sigma=1.5)
    cell = edge * torch.eye(3, dtype=F64)
    positions = edge * torch.rand(ATOMS, 3, generator=generator, dtype=F64)
    chi = torch.randn(ATOMS, generator=generator, dtype=F64)
    hardness = 20 + torch.rand(ATOMS, generator=generator, dtype=F64)
    plan = operator.plan(cell, None, None, ATOMS)

    def run() -> None:
        leaves = [t.clone().requires_grad_() for t in (positions, chi, hardness)]
        geometry = operator.prepare(leaves[0], cell, plan=plan)
        if solve == "charge_equilibration":
            solution = charge_equilibration(geometry, *leaves[1:])
            energy, state = solution.energy, solution.state
        else:
            state = fixed_point(respond(operator, cell, plan), torch.zeros(ATOMS, 1, dtype=F64), leaves).state
            energy = geometry.energy(state)
        forces = torch.autograd.grad(energy.sum(), leaves[0], create_graph=True)[0]
        torch.autograd.grad((forces**2).sum() + (state**2).sum(), leaves)

    for _ in range(4):
        run()
    gc.collect()
    before = size()
    for _ in range(10):
        run()
    gc.collect()
    assert size() - before < 12
