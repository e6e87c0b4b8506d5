"""What a notebook shows of our objects: short, and true."""

import copy

import pytest
import torch

import scfmlip
from scfmlip.data import path
from scfmlip.scf import minimize_functional


@pytest.fixture
def geometry(generator):
    positions = 5 * torch.rand(9, 3, generator=generator, dtype=torch.float64)
    cell = 5 * torch.eye(3, dtype=torch.float64)
    batch_idx = torch.tensor([0] * 4 + [1] * 5)
    pbc = torch.tensor([[True] * 3, [False] * 3])
    return scfmlip.Coulomb(l_max=0, sigma=1.0).prepare(positions, torch.stack([cell, cell]), pbc, batch_idx)


def test_coulomb():
    assert repr(scfmlip.Coulomb()) == "Coulomb(l_max=1, sigma=1.5)"
    coulomb = scfmlip.Coulomb(l_max=0, sigma=(1.0, 2.0), method="mesh")
    assert repr(coulomb) == "Coulomb(l_max=0, sigma=(1.0, 2.0), method='mesh')"
    assert eval(repr(coulomb), {"Coulomb": scfmlip.Coulomb}) == coulomb


def test_geometry(geometry):
    shown = repr(geometry)
    assert shown.startswith("Geometry(9 atoms; 2 systems: 1 periodic, 1 open; ")
    assert "wave vectors; float64 on cpu" in shown


def test_solutions(geometry, generator):
    chi = torch.randn(9, generator=generator, dtype=torch.float64)
    solution = scfmlip.charge_equilibration(geometry, chi, 5 + chi.abs(), 0.0)
    shown = repr(solution)
    assert shown.startswith("ChargeSolution(2 converged; ")
    assert f"charges {solution.charges.min():.6g} to {solution.charges.max():.6g} e" in shown
    state = torch.zeros(2, 1, dtype=torch.float64)
    fixed = scfmlip.fixed_point(torch.cos, state)
    assert repr(fixed).startswith("FixedPointSolution(1 converged; ")
    least = minimize_functional(lambda s: ((s - 1) ** 2).sum()[None], state)
    assert "energy " in repr(least)
    lost = scfmlip.fixed_point(
        lambda s: 3 * s + 1, state, solver="anderson", max_iterations=1, on_failure="ignore"
    )
    assert "1 iterations" in repr(lost)


def test_model():
    model = scfmlip.load(path("models/al_water-fixed_point.safetensors"))
    shown = repr(model)
    assert len(shown.splitlines()) < 12
    assert "charge rule: fixed_point, constraint charge" in shown
    assert f"{sum(p.numel() for p in model.parameters()):,} float32" in shown
    assert "float64" in repr(copy.deepcopy(model).double())
