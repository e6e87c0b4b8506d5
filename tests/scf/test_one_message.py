"""Conjugate gradients of ranks that share a system: equal to one process, one message an iteration."""

import math

import pytest
import torch
from tolerances import assert_close

import scfmlip
from scfmlip.distributed import Communicator, Traffic, shared_segments
from scfmlip.electrostatics.joint import energy_with
from scfmlip.scf import ConvergenceError, Status

F64 = torch.float64


class Pretended(Communicator):
    """The first of two ranks, of which the second has no atoms: what it sends is counted, and right."""

    def __init__(self):
        super().__init__(0, 2)

    def _reduce(self, values, operation):
        return values

    def _exchange(self, rows, out, send, receive):
        out[receive[0] :] = 0  # what derivatives leave at ghosts there: no atom has used them

    def all_arrive(self, seconds):
        return True

    def abort(self):
        raise AssertionError


def system(kind, generator, dtype=F64, n=24):
    """Positions, cell, pbc, electronegativity, hardness; l_max."""
    edge = (n / 0.1) ** (1 / 3)
    axis = (torch.arange(3, dtype=F64) + 0.5) * edge / 3
    positions = (
        torch.cartesian_prod(axis, axis, axis)[:n] + 0.4 * torch.rand(n, 3, generator=generator).double()
    )
    cell = edge * torch.eye(3, dtype=F64) + 0.1 * torch.rand(3, 3, generator=generator).double()
    pbc = torch.tensor([True, True, kind not in ("slab", "flat")]) & torch.tensor(kind != "cluster")
    if kind in ("slab", "flat"):
        cell[2, 2] *= 2.5
    l_max = 1 if kind in ("dipoles", "narrow", "cluster") else 0
    size = 4 if l_max else 1
    chi = 8 + torch.randn(n, size, generator=generator).double()
    hardness = 1 + 2 * torch.rand(n, size, generator=generator).double()
    parts = (positions.to(dtype), cell.to(dtype), pbc, chi.to(dtype), hardness.to(dtype))
    return (*parts, l_max)


def solve(given, shared, total=0.0, **options):
    """The solution, and how many messages it took."""
    positions, cell, pbc, chi, hardness, l_max, *more = given
    ranks = Pretended()
    segments = shared_segments(len(positions), ranks, positions.device) if shared else None
    coulomb = scfmlip.Coulomb(l_max=l_max, sigma=1.2, **(more[0] if more else {"method": "direct"}))
    geometry = coulomb.prepare(positions, cell, pbc, segments)
    before = ranks.traffic.copy()
    options = {"tolerance": 1e-10, "method": "auto" if shared else "cg", **options}
    solution = scfmlip.charge_equilibration(geometry, chi, hardness, total, **options)
    sent = ranks.traffic.since(before)
    waves = geometry.openspace is None or geometry.plan.boxes is not None
    plain = waves and geometry.near is None and "widths" not in options
    assert (sent.exchanges == 0) == (plain or not shared)
    return solution, sent.reductions


def check(mine, theirs, relative=1e-9):
    for name in ("state", "chemical_potential", "energy"):
        assert_close(getattr(mine, name), getattr(theirs, name), relative)
    assert mine.status.tolist() == [Status.CONVERGED]


@pytest.mark.parametrize("kind", ["crystal", "slab", "dipoles"])
@pytest.mark.parametrize("total", [0.0, 1.5])
def test_equal_to_one_process(kind, total, generator):
    given = system(kind, generator)
    mine, messages = solve(given, True, total)
    theirs, _ = solve(given, False, total)
    check(mine, theirs)
    assert abs(int(mine.iterations) - int(theirs.iterations)) <= 1
    # three to start, one for each iteration, the last norms, and those beside the solve: charge and energy,
    # the middle of a slab at two geometries, and its thickness, to choose how it is summed
    assert messages <= int(mine.iterations) + 3 + 3 + 2 + (3 if kind == "slab" else 0)


def split(kind, generator):
    """As `system`, and options of the operator and of the solve: parts beside the waves, or none of these."""
    given = system("slab" if kind == "flat widths" else kind, generator)
    widths = 0.4 + 0.5 * torch.rand(len(given[0]), generator=generator).double()
    operator = {"method": "direct", **({"smooth": 2.0} if kind in ("narrow", "flat") else {})}
    if kind == "mesh":
        operator, given = {"method": "mesh"}, (*given[:2], torch.tensor([False] * 3), *given[3:])
    return (*given, operator), {"widths": widths} if "widths" in kind else {}


@pytest.mark.parametrize("kind", ["narrow", "flat", "widths", "flat widths", "cluster", "mesh"])
def test_parts_beside_waves_cost_no_message(kind, generator):
    """Neighbours of narrow Gaussians, widths of atoms, isolated systems over pairs and in boxes."""
    given, options = split(kind, generator)
    mine, messages = solve(given, True, 0.5, **options)
    theirs, _ = solve(given, False, 0.5, **options)
    check(mine, theirs)
    # one for each iteration, seven or eight of the solve, and those of plans and geometries
    most = {"narrow": 8, "flat": 13, "widths": 9, "flat widths": 16, "cluster": 7, "mesh": 8}[kind]
    assert messages <= int(mine.iterations) + most


@pytest.mark.parametrize("kind", ["narrow", "widths", "cluster"])
def test_derivatives_of_parts_beside_waves(kind, generator):
    found = []
    for shared in (True, False):
        given, options = split(kind, torch.Generator().manual_seed(3))
        positions, chi = given[0].requires_grad_(), given[3].requires_grad_()
        given = (positions, *given[1:3], chi, *given[4:])
        solution, _ = solve(given, shared, 0.5, tolerance=1e-12, **options)
        weights = torch.randn(solution.state.shape, generator=torch.Generator().manual_seed(5)).double()
        value = (weights * solution.state).sum() + solution.energy.sum()
        found.append(torch.autograd.grad(value, (positions, chi)))
    for mine, theirs in zip(*found, strict=True):
        assert_close(mine, theirs, 1e-8)


@pytest.mark.parametrize("kind", ["crystal", "dipoles"])
def test_at_constant_potential(kind, generator):
    given = system(kind, generator)
    mine, _ = solve(given, True, None, chemical_potential=5.0)
    theirs, _ = solve(given, False, None, chemical_potential=5.0)
    check(mine, theirs)


@pytest.mark.parametrize("scale", [0.01, 1e6, math.inf])
def test_a_first_guess_is_used_or_dropped(scale, generator):
    given = system("crystal", generator)
    cold, messages = solve(given, True)
    noise = torch.randn(len(given[0]), 1, generator=generator).double()
    guess = cold.state + (noise * scale if math.isfinite(scale) else 0.0)
    mine, fewer = solve(given, True, initial=guess)
    check(mine, cold)
    assert (fewer < messages) == (scale != 1e6)
    if scale == math.inf:
        assert int(mine.iterations) == 0


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_residuals_are_what_is_asked_for(dtype, tolerance, generator):
    given = system("crystal", generator, dtype)
    mine, _ = solve(given, True, tolerance=tolerance)
    theirs, _ = solve(given, False, tolerance=tolerance)
    least = 2e-6 if dtype == torch.float32 else 1e-14
    assert mine.status.tolist() == [Status.CONVERGED]
    assert float(mine.residual) <= max(tolerance, 2 * least)
    assert abs(int(mine.iterations) - int(theirs.iterations)) <= 2
    assert_close(mine.state, theirs.state, max(5 * tolerance, 1e-5 if dtype == torch.float32 else 1e-11))


def test_failures_are_those_of_one_process(generator):
    positions, cell, pbc, chi, hardness, l_max = system("crystal", generator)
    with pytest.raises(ConvergenceError, match="max_iterations") as few:
        solve((positions, cell, pbc, chi, hardness, l_max), True, max_iterations=2)
    assert few.value.status.tolist() == [Status.ITERATIONS]
    soft = hardness.clone()
    soft[3] = -60.0
    with pytest.raises(ConvergenceError, match="not a minimum"):
        solve((positions, cell, pbc, chi, soft, l_max), True)


def test_no_iterations_are_allowed(generator):
    given = system("crystal", generator)
    mine, _ = solve(given, True, max_iterations=0, on_failure="ignore", tolerance=1e-6)
    theirs, _ = solve(given, False, max_iterations=0, on_failure="ignore", tolerance=1e-6)
    assert_close(mine.state, theirs.state, 1e-12)
    assert_close(mine.residual, theirs.residual, 1e-9)
    assert mine.status.tolist() == theirs.status.tolist()


@pytest.mark.parametrize("kind", ["crystal", "slab", "dipoles"])
def test_derivatives_of_charges(kind, generator):
    """The adjoint solve goes the same way, with what is known of the constraint."""
    found = []
    for shared in (True, False):
        given = system(kind, torch.Generator().manual_seed(3))
        positions, chi = given[0].requires_grad_(), given[3].requires_grad_()
        solution, _ = solve((positions, *given[1:3], chi, *given[4:]), shared, tolerance=1e-12)
        weights = torch.randn(solution.state.shape, generator=torch.Generator().manual_seed(5)).double()
        found.append(torch.autograd.grad((weights * solution.state).sum(), (positions, chi)))
    for mine, theirs in zip(*found, strict=True):
        assert_close(mine, theirs, 1e-8)


def test_an_equal_system_of_one_atom():
    """Nothing is free to move: no iteration, no division by zero."""
    given = (torch.zeros(1, 3).double(), 5 * torch.eye(3).double(), torch.tensor([True] * 3))
    given = (*given, torch.ones(1, 1).double(), torch.ones(1, 1).double(), 0)
    mine, _ = solve(given, True, 0.5)
    theirs, _ = solve(given, False, 0.5)
    check(mine, theirs)
    assert int(mine.iterations) == 0


@pytest.mark.parametrize("kind", ["crystal", "narrow", "cluster"])
def test_functionals_take_three_messages_a_product(kind, generator):
    """Structure factors of a direction, and two sums of the recursion; results equal those of one process."""
    (positions, cell, pbc, chi, hardness, l_max, operator), _ = split(kind, generator)
    found = []
    for ranks in (Pretended(), None):
        segments = None if ranks is None else shared_segments(len(positions), ranks, positions.device)
        place, chi = positions.clone().requires_grad_(), chi.detach().requires_grad_()
        coulomb = scfmlip.Coulomb(l_max=l_max, sigma=1.2, self_interaction=True, **operator)
        geometry = coulomb.prepare(place, cell, pbc, segments)
        before = Traffic() if ranks is None else ranks.traffic.copy()

        def energy(state, chi, place, geometry=geometry, coulomb=coulomb):
            there = coulomb.prepare(place, cell, plan=geometry.plan)
            local = (chi * state + 0.5 * hardness * state**2 + 0.1 * state**4).sum(1)
            value, (own,) = energy_with(there, state, there.plan.segments.own_sum(local), inside=True)
            return value + own

        solution = scfmlip.scf.minimize_functional(
            energy, torch.zeros_like(chi), (chi, place), batch_idx=segments, total_charge=0.5, tolerance=1e-10
        )
        if ranks is not None:
            sent = ranks.traffic.since(before).reductions
            # pairs of a cluster have exchanges, not sums; neighbours of a geometry are agreed on
            most = (2 if kind == "cluster" else 3) * solution.hessian_products
            most += 9 * (int(solution.iterations) + 1) + (solution.evaluations if kind == "narrow" else 0)
            assert sent <= most
        value = solution.energy.sum() + (solution.state**3).sum()
        found.append((solution.state, solution.energy, *torch.autograd.grad(value, (chi, place))))
    for mine, theirs in zip(*found, strict=True):
        assert_close(mine, theirs, 1e-8)
