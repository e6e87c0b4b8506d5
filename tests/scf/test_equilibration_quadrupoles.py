"""Charge equilibration with quadrupoles: the minimum, by every solver and in every boundary."""

import pytest
import torch
from tolerances import assert_close

import scfmlip

F64 = torch.float64
CELL = 6 * torch.eye(3, dtype=F64)


@pytest.mark.parametrize("where", ["crystal", "slab", "molecule"])
@pytest.mark.parametrize("method", ["dense", "cg"])
def test_the_gradient_vanishes(where, method, generator):
    pbc = {"crystal": True, "slab": [True, True, False], "molecule": False}[where]
    positions = torch.rand(6, 3, generator=generator, dtype=F64) * 6
    operator = scfmlip.Coulomb(l_max=2, sigma=1.0, self_interaction=True)
    geometry = operator.prepare(positions, None if where == "molecule" else CELL, pbc)
    chi = torch.randn(6, 9, generator=generator, dtype=F64)
    hardness = torch.tensor([8.0] + [6.0] * 3 + [5.0] * 5, dtype=F64).expand(6, -1)
    state = scfmlip.charge_equilibration(geometry, chi, hardness, 0.5, method=method, tolerance=1e-12).state
    gradient = chi + hardness * state + geometry.potential(state)
    gradient[:, 0] -= gradient[:, 0].mean()
    assert_close(gradient + chi, chi, 1e-10)  # of the solve
    # charges alone answer: quadrupoles of the state are 0
    alone = scfmlip.charge_equilibration(geometry, chi[:, 0], hardness[:, 0], 0.5)
    assert not alone.state[:, 1:].any()
