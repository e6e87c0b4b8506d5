"""Shadow dynamics: orders of its errors, counts of its work, and energy along trajectories of water."""

import pytest
import torch
from tolerances import assert_close

from bench import water as md
from scf import oracles
from scfmlip import Coulomb, charge_equilibration
from scfmlip.scf import ExtendedLagrangian, Status, shadow_equilibration

F64 = torch.float64


def crystal(generator, n=27):
    positions = torch.cartesian_prod(*(2.2 * torch.arange(3, dtype=F64),) * 3)
    positions = positions + 0.3 * torch.rand(n, 3, generator=generator, dtype=F64)
    chi = torch.randn(n, generator=generator, dtype=F64)
    hardness = 1 + torch.rand(n, generator=generator, dtype=F64)
    return positions, 6.6 * torch.eye(3, dtype=F64), chi, hardness


@pytest.mark.parametrize("fragments", [None, torch.arange(27) % 3])
def test_orders_of_the_errors(fragments, generator):
    """Energy of second order in the start's error; forces, stress and charges of first, but smaller."""
    positions, cell, chi, hardness = crystal(generator)
    operator = Coulomb(l_max=0, sigma=1.0, tolerance=1e-12)
    wrong = torch.randn(27, 1, generator=generator, dtype=F64)
    total = torch.tensor([0.5] if fragments is None else [0.5, -0.2, 0.1], dtype=F64)
    leaves = [t.clone().requires_grad_() for t in (positions, cell, chi, total)]

    def all_of(solve, **options):
        geometry = operator.prepare(leaves[0], leaves[1])
        solution = solve(geometry, leaves[2], hardness, leaves[3], fragments=fragments, **options)
        return [solution.energy.detach(), *torch.autograd.grad(solution.energy.sum(), leaves), solution]

    want = all_of(charge_equilibration, method="dense")
    errors, plain = [], []
    for size in (0.02, 0.01):
        auxiliary = want[-1].state + size * wrong
        got = all_of(shadow_equilibration, auxiliary=auxiliary, iterations=0)
        errors.append([float((a - b).abs().max()) for a, b in zip(got[:-1], want[:-1], strict=True)])
        assert got[-1].iterations.tolist() == [0]
        assert_close(got[-1].charges.sum(), want[-1].charges.sum(), 1e-10)
        options = {"method": "cg", "max_iterations": 0, "on_failure": "ignore"}
        got = all_of(charge_equilibration, initial=auxiliary, **options)
        plain.append([float((a - b).abs().max()) for a, b in zip(got[:-1], want[:-1], strict=True)])
    ratios = [a / b for a, b in zip(*errors, strict=True)]
    assert 3.8 < ratios[0] < 4.2
    assert all(1.8 < r < 2.4 for r in ratios[1:4])
    assert 4 * errors[1][0] < plain[1][0]
    assert all(2 * a < b for a, b in zip(errors[1][1:4], plain[1][1:4], strict=True))
    again = all_of(shadow_equilibration, auxiliary=want[-1].state, iterations=1)
    for a, b in zip(again[:-1], want[:-1], strict=True):
        assert_close(a, b, 1e-9)


def test_the_work_is_fixed(generator, monkeypatch):
    """Products with the operator: one more than the iterations."""
    from scfmlip.scf.quadratic import QuadraticProblem

    positions, cell, chi, hardness = crystal(generator)
    geometry = Coulomb(l_max=0, sigma=1.0).prepare(positions, cell)
    start = charge_equilibration(geometry, chi, hardness).state
    start = start + 0.01 * torch.randn(27, 1, generator=generator, dtype=F64)
    count = []
    original = QuadraticProblem.apply
    monkeypatch.setattr(QuadraticProblem, "apply", lambda *a: (count.append(1), original(*a))[1])
    for iterations in (0, 1, 3):
        count.clear()
        solution = shadow_equilibration(geometry, chi, hardness, auxiliary=start, iterations=iterations)
        assert len(count) == iterations + 1
        assert solution.status.tolist() == [Status.CONVERGED]
    lost = shadow_equilibration(geometry, chi, hardness, auxiliary=start + chi[:, None], iterations=0)
    assert lost.status.tolist() == [Status.ITERATIONS]


def test_no_second_derivative(generator):
    positions, cell, chi, hardness = crystal(generator)
    geometry = Coulomb(l_max=0, sigma=1.0).prepare(positions.requires_grad_(), cell)
    solution = shadow_equilibration(geometry, chi, hardness, auxiliary=torch.zeros(27, 1, dtype=F64))
    with pytest.raises(NotImplementedError, match="train with charge_equilibration"):
        torch.autograd.grad(solution.energy.sum(), positions, create_graph=True)
    with pytest.raises(ValueError, match=r"auxiliary must have shape \[27, 1\], got \[27\]"):
        shadow_equilibration(geometry, chi, hardness, auxiliary=chi)
    with pytest.raises(ValueError, match="order must be one of"):
        ExtendedLagrangian(order=2)


def test_auxiliary_motion_is_stable():
    """An oscillation is followed at its frequency; a shape that changes starts afresh."""
    for order in range(3, 8):
        propagator = ExtendedLagrangian(order)
        assert propagator.guess() is None
        errors = []
        for t in range(400):
            state = torch.tensor([[0.5 + 0.3 * torch.tensor(0.1 * t).double().cos()]], dtype=F64)
            propagator.add(state)
            following = torch.tensor(0.1 * (t + 1)).double().cos()
            errors.append(abs(float(propagator.guess()) - 0.5 - 0.3 * float(following)))
        assert max(errors[200:]) < 0.01
    propagator.add(torch.zeros(2, 1, dtype=F64))
    assert_close(propagator.guess(), torch.zeros(2, 1, dtype=F64))


def liquid():
    """128 molecules at 300 K, from ab initio dynamics."""
    (atoms,) = oracles.frames("water_wannier.xyz", [0])
    positions, cell, _ = oracles.tensors(atoms)
    return md.from_frame(positions, torch.tensor(atoms.numbers), float(cell[0, 0]))


def test_warm_starts_in_water():
    """At most 4 iterations to 1e-6 in steps of 0.5 fs; from zero twice as many."""
    trace = md.run(liquid(), 8)
    assert max(trace.iterations[3:]) <= 4
    assert trace.iterations[0] > 4


def test_shadow_energy_in_water():
    """The total energy, step by step, is that of converged charges to a hundredth of its fluctuation."""
    water = md.lattice(27)
    exact = torch.tensor(md.run(water, 20, tolerance=1e-10).energy, dtype=F64)
    spread = float(exact.std())
    shadow = torch.tensor(md.run(water, 20, "shadow").energy, dtype=F64)
    assert float((shadow - exact).abs().max()) < 1e-2 * spread


@pytest.mark.slow
@pytest.mark.parametrize("iterations", [0, 1])
def test_no_drift_in_water(iterations):
    """Half a picosecond: the drift is below a thousandth of kT per degree of freedom and picosecond."""
    trace = md.run(md.lattice(27), 1000, "shadow", shadow_iterations=iterations)
    slope, _ = md.drift(trace, 0.5, 200)
    assert abs(slope) / (3 * 81) < 1e-3 * md.BOLTZMANN * 300
    assert max(trace.residual[6:]) < 0.05
