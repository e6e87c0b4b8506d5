"""A solve that says it has converged has; nothing stretches the tolerance."""

from functools import partial

import pytest
import torch
from tolerances import assert_close

from scfmlip import Coulomb, charge_equilibration, fixed_point
from scfmlip.scf import ConvergenceError, Status, minimize_functional

from .problems import problem

F64 = torch.float64
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, F64])


def count_wrong(seeds, **options):
    """Of problems solved: right and wrong answers, and how many systems had one."""
    wrong, solved = {}, 0
    for seed in seeds:
        case = problem(seed)
        solution = fixed_point(case.update, case.state, on_failure="ignore", **case.options, **options)
        solved += int((solution.status == 0).sum())
        found = case.wrong(solution)
        if found:
            wrong[seed] = found
    return wrong, solved


def test_no_answer_is_wrong():
    wrong, solved = count_wrong(range(150), max_iterations=15)
    assert not wrong
    assert solved > 150


@pytest.mark.slow
def test_no_answer_of_a_thousand_is_wrong():
    wrong, solved = count_wrong(range(1000, 2000), max_iterations=40)
    assert not wrong
    assert solved > 1000


UNANSWERED = {
    "nothing answers": (lambda s, level: 0.2 * s + 1, 5.0),
    "saturated": (lambda s, level: torch.tanh(0.2 * s + level), 4.5),
    "a weak answer": (lambda s, level: 0.2 * s + 0.3 + 1e-3 * torch.tanh(level), 3.0),
    "no fixed point": (lambda s, level: s + 1, 1.0),
}


@DTYPES
@pytest.mark.parametrize("name", UNANSWERED)
def test_a_potential_that_runs_away_is_no_solution(name, dtype):
    """However large it gets, beside which the rest would be rounding."""
    update, charge = UNANSWERED[name]
    with pytest.raises(ConvergenceError, match=r"fixed point: system\(s\) 0 "):
        fixed_point(update, torch.zeros(3, 1, dtype=dtype), total_charge=charge)


@DTYPES
@pytest.mark.parametrize("solver", ["auto", "anderson", "newton"])
@pytest.mark.parametrize("start", [0.0, 1e3, 1e6])
def test_a_wild_guess_is_as_good_as_any(start, solver, dtype, generator):
    matrix = 0.15 * torch.randn(5, 5, generator=generator, dtype=F64).to(dtype)
    source, guess = torch.randn(2, 5, 1, generator=generator, dtype=F64).to(dtype)
    options = {"tolerance": 1e-5 if dtype == torch.float32 else 1e-9, "solver": solver}
    for update in (lambda s: matrix @ s + source, lambda s: torch.tanh(matrix @ s + source)):
        near = fixed_point(update, torch.zeros_like(guess), **options).state
        far = fixed_point(update, start * guess, **options).state
        assert_close(far, near, 1e-4 if dtype == torch.float32 else 1e-8)


@DTYPES
@pytest.mark.parametrize("tolerance", [0.0, 1e-6, 0.1, 0.5])
@pytest.mark.parametrize("solver", ["auto", "anderson", "newton"])
def test_no_guess_and_no_tolerance_makes_a_solution(solver, tolerance, dtype):
    for start in (0.0, 1.0, 1e6):
        with pytest.raises(ConvergenceError):
            fixed_point(
                lambda s: s + 1,
                torch.full((3, 1), start, dtype=dtype),
                tolerance=tolerance,
                solver=solver,
                max_iterations=20,
            )


@DTYPES
@pytest.mark.parametrize("start", [0.0, 1.0, 1e6])
def test_totals_are_kept_at_any_tolerance(start, dtype, generator):
    guess = start * torch.randn(6, 2, generator=generator, dtype=F64).to(dtype)
    index = torch.tensor([0, 0, 1, 1, 1, 1])

    def update(s, level):
        shift = torch.tensor([1.0, 0.0], dtype=dtype)
        return torch.tanh(0.5 * s) + 0.3 - 0.7 * level[index][:, None] * shift

    totals = torch.tensor([1.0, -2.0], dtype=dtype)
    for tolerance in (0.5, 1e-3):
        found = fixed_point(update, guess, batch_idx=index, total_charge=totals, tolerance=tolerance)
        sums = torch.zeros(2, dtype=dtype).index_add(0, index, found.state[:, 0])
        assert_close(sums, totals, 1e-6 if dtype == torch.float32 else 1e-13)


def test_the_tolerance_is_of_the_problem():
    """Relative to the update's own size: small states to no less, large ones to no more."""
    for scale in (0.01, 1.0, 1e4):
        source = scale * torch.tensor([[1.0], [-2.0], [0.5]], dtype=F64)
        update = partial(lambda b, c, s: b - 0.3 * c * torch.sin(s / c), source, scale)
        exact = fixed_point(update, source, tolerance=1e-14).state
        for start in (source, 1e5 * source):
            found = fixed_point(update, start, tolerance=1e-5).state
            assert float((found - exact).norm()) < 3e-5 * max(float(source.norm()), 3**0.5)


@DTYPES
@pytest.mark.parametrize("start", [0.0, 1e3, 1e6])
def test_minima_from_anywhere(start, dtype, generator):
    source, guess = torch.randn(2, 5, 1, generator=generator, dtype=F64).to(dtype)

    def energy(s):
        return (2 * s**2 + torch.log(1 + s**2) + source * s).sum()[None]

    for tolerance in (1e-4, 0.1):
        found = minimize_functional(energy, start * guess, total_charge=1.0, tolerance=tolerance)
        exact = minimize_functional(energy, torch.zeros_like(guess), total_charge=1.0, tolerance=1e-5)
        assert float((found.state - exact.state).norm()) < tolerance * max(1.0, float(source.norm()))
        assert_close(found.state.sum(), torch.ones((), dtype=dtype), 1e-5)


def atoms(dtype, generator, n=6):
    positions = (2.5 * torch.rand(n, 3, generator=generator, dtype=F64)).to(dtype)
    geometry = Coulomb(l_max=0, sigma=1.0).prepare(positions)
    return geometry, torch.randn(n, generator=generator, dtype=F64).to(dtype)


@DTYPES
@pytest.mark.parametrize("method", ["cg", "dense"])
@pytest.mark.parametrize("start", [1.0, 1e6, 1e9])
@pytest.mark.parametrize("source", ["electronegativity", "none", "the same"])
def test_charges_from_any_guess(source, start, method, dtype, generator):
    """Also where nothing but the total charge moves them."""
    geometry, chi = atoms(dtype, generator)
    chi = {"electronegativity": chi, "none": 0 * chi, "the same": 0 * chi + 5}[source]
    hardness = torch.full_like(chi, 4.0)
    want = charge_equilibration(geometry, chi, hardness, 1.0, method="dense").charges
    guess = start * torch.randn(len(chi), 1, generator=generator, dtype=F64)
    got = charge_equilibration(geometry, chi, hardness, 1.0, method=method, initial=guess)
    assert_close(got.charges, want, 2e-5 if dtype == torch.float32 else 1e-6)


def test_a_guess_worth_having_is_kept(generator):
    geometry, chi = atoms(F64, generator)
    hardness = torch.full_like(chi, 4.0)
    first = charge_equilibration(geometry, chi, hardness, 1.0, method="cg")
    again = charge_equilibration(geometry, chi, hardness, 1.0, method="cg", initial=first.state)
    assert int(first.iterations) > 0
    assert int(again.iterations) == 0


@pytest.mark.parametrize("start", [None, 1.0])
def test_a_saddle_without_a_slope_is_no_minimum(start, generator):
    geometry, chi = atoms(F64, generator, 4)
    guess = None if start is None else torch.ones(4, 1, dtype=F64)
    with pytest.raises(ConvergenceError, match="is not a minimum") as caught:
        charge_equilibration(geometry, 0 * chi, 0 * chi - 30, method="cg", initial=guess)
    assert caught.value.status.tolist() == [Status.INDEFINITE]
