"""Self-consistent charges through the mesh: the answers and gradients of the direct sum."""

import pytest
import torch
from tolerances import assert_close

from scf.test_charge_equilibration import crystal
from scfmlip import Coulomb, charge_equilibration, fixed_point

F64 = torch.float64
OPERATORS = {
    "mesh": Coulomb(l_max=0, sigma=1.0, method="mesh", tolerance=1e-12),
    "direct": Coulomb(l_max=0, sigma=1.0, method="direct", tolerance=1e-13),
}


@pytest.mark.parametrize("method", ["dense", "cg"])
@pytest.mark.parametrize("boundary", ["periodic", "slab"])
def test_equilibrated_charges(boundary, method, generator):
    positions, cell, chi, hardness = crystal(12, generator)
    found = {}
    for name, operator in OPERATORS.items():
        leaves = [t.clone().requires_grad_() for t in (positions, cell, chi, hardness)]
        geometry = operator.prepare(leaves[0], leaves[1], [True, True, boundary == "periodic"])
        options = {"method": method, "tolerance": 1e-12, "interaction": "direct"}
        solution = charge_equilibration(geometry, *leaves[2:], 0.5, **options)
        gradients = torch.autograd.grad(solution.energy.sum() + solution.charges.square().sum(), leaves)
        found[name] = (solution.charges, solution.energy, *gradients)
    for got, want in zip(found["mesh"], found["direct"], strict=True):
        assert_close(got, want, 1e-8)


def test_a_mesh_is_not_split(generator):
    """Left alone, iterations go through the mesh itself."""
    positions, cell, chi, hardness = crystal(40, generator)
    geometry = OPERATORS["mesh"].prepare(positions, cell)
    got = charge_equilibration(geometry, chi, hardness, method="cg", tolerance=1e-12)
    want = charge_equilibration(OPERATORS["direct"].prepare(positions, cell), chi, hardness, method="dense")
    assert_close(got.charges, want.charges, 1e-8)


def test_a_fixed_point(generator):
    """P = p0 - S K p with forces through everything, twice."""
    positions = (4 * torch.rand(5, 3, generator=generator, dtype=F64)).requires_grad_()
    cell = 6.0 * torch.eye(3, dtype=F64)
    first = torch.randn(5, 4, generator=generator, dtype=F64).requires_grad_()
    response = 0.01 * torch.rand(5, 4, generator=generator, dtype=F64)
    operator = Coulomb(l_max=1, sigma=1.2, method="mesh", tolerance=1e-8)
    plan = operator.plan(cell, None, None, 5)

    def update(state, positions, first):
        return first - response * operator.prepare(positions, cell, plan=plan).potential(state)

    def energy(positions, first):
        solution = fixed_point(update, first, (positions, first), tolerance=1e-13)
        return operator.prepare(positions, cell, plan=plan).energy(solution.state).sum()

    assert torch.autograd.gradcheck(energy, (positions, first), fast_mode=True)
    assert torch.autograd.gradgradcheck(energy, (positions, first), fast_mode=True)
