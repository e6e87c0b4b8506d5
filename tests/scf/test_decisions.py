"""Solves that repeat the decisions of an earlier one: the same solutions, or word that more was needed."""

import pytest
import torch

import scfmlip
from scf.problems import F64, MAPS
from scfmlip.decisions import Decisions, OtherPath, at_least, deciding, each_needed, needed
from scfmlip.scf import minimize_functional
from scfmlip.scf.solvers.looks import Looks
from scfmlip.waiting import Pending

pytestmark = pytest.mark.filterwarnings("ignore:.*did not converge")


def recorded(call):
    """What a call returns, and what it decided."""
    taken = Decisions()
    with deciding(taken, Pending()):
        return call(), taken


def repeated(call, taken):
    """What a call returns with those decisions, and the conditions that void it."""
    pending = Pending()
    with deciding(taken.rewound(), pending):
        return call(), pending


def halvings(x):
    """A loop of a solver."""
    looks = Looks()
    for step in range(50):
        active = x > 1
        if looks.ended(step, active, x, 1.0):
            return step, x
        x = torch.where(active, x / 2, x)
    return 50, x


def test_iterations_have_room_and_say_where_it_ends():
    x = torch.tensor([64.0, 3.0])
    (steps, plain), taken = recorded(lambda: halvings(x))
    assert steps == 6
    assert taken.taken == [6]
    (steps, again), pending = repeated(lambda: halvings(x), taken)
    assert steps == 7  # one to spare, which changes nothing
    torch.testing.assert_close(again, plain, rtol=0, atol=0)
    pending.look()
    (_, _), pending = repeated(lambda: halvings(2 * x), taken)
    pending.look()
    (_, _), pending = repeated(lambda: halvings(4 * x), taken)
    with pytest.raises(OtherPath, match="decided otherwise"):
        pending.look()


def test_what_was_not_needed_is_told_when_it_is():
    def call(x):
        return needed((x > 0).any()), each_needed((x > 1).any(), (x > 2).any())

    for value, answers in ((0.0, (False, [False, False])), (1.5, (True, [True, False]))):
        got, taken = recorded(lambda value=value: call(torch.tensor([value])))
        assert got == answers
        for other in (-1.0, 0.5, 1.2, 3.0):
            got, pending = repeated(lambda other=other: call(torch.tensor([other])), taken)
            assert got == answers  # less would have done, or more is needed
            enough = all(
                had or not wants for had, wants in zip(answers[1], (other > 1, other > 2), strict=True)
            )
            enough = enough and (answers[0] or other <= 0)
            if enough:
                pending.look()
            else:
                with pytest.raises(OtherPath):
                    pending.look()


def test_sizes_have_room():
    def call(n):
        return at_least(torch.tensor([1, n]).max(), 20)

    got, taken = recorded(lambda: call(8))
    assert got == 8
    for n, fits in ((2, True), (8, True), (10, True), (11, False)):
        got, pending = repeated(lambda n=n: call(n), taken)
        assert got == 10
        if fits:
            pending.look()
        else:
            with pytest.raises(OtherPath):
                pending.look()
    got, pending = repeated(lambda: call(20), Decisions([19]))
    assert got == 20
    pending.look()


def test_more_decisions_than_recorded():
    with pytest.raises(OtherPath, match="more decisions"):
        repeated(lambda: needed(torch.tensor(True)), Decisions())


def test_widening():
    a, b = Decisions([3, [True, False], 5]), Decisions([4, [False, False], 2])
    assert a.widened(b).taken == [4, [True, False], 5]
    assert a.widened(Decisions([4, None, 2])).taken == a.taken  # another course
    assert a.widened(Decisions([4])).taken == a.taken
    assert a.rewound().taken == a.taken


FIXED_POINTS = [
    (kind, solver, total)
    for kind in ("contracts", "expands", "saturates", "bends", "constant", "large")
    for solver, total in (
        ("auto", None),
        ("auto", 0.3),
        ("newton", None),
        ("newton", 0.3),
        ("anderson", None),
    )
    if solver != "anderson" or (kind != "expands" and total is None)  # mixing does not solve those
]


@pytest.mark.parametrize(("kind", "solver", "total"), FIXED_POINTS)
def test_fixed_points(kind, solver, total, generator):
    a = torch.randn(8, 8, generator=generator, dtype=F64) / 3
    b = torch.randn(8, 1, generator=generator, dtype=F64)
    index = torch.tensor([0] * 5 + [1] * 3)
    a = a * (index[:, None] == index)  # systems do not interact
    plain_map = MAPS[kind]

    def solve(shift):
        leaf = (b + shift).requires_grad_()
        options = {"batch_idx": index, "solver": solver, "tolerance": 1e-10, "max_iterations": 300}
        if total is None:
            solution = scfmlip.fixed_point(
                lambda s, b: plain_map(s, a, b), torch.zeros_like(b), (leaf,), **options
            )
        else:
            solution = scfmlip.fixed_point(
                lambda s, mu, b: plain_map(s, a, b) - 0.7 * mu[index][:, None],
                torch.zeros_like(b),
                (leaf,),
                total_charge=total,
                **options,
            )
        (slope,) = torch.autograd.grad((solution.state**2).sum(), leaf)
        return solution.state.detach(), slope, solution.status

    same_course(solve, b)


def same_course(solve, like):
    """Solves near the recorded one are right, or say that they are not."""
    (state, slope, status), taken = recorded(lambda: solve(0.0 * like))
    assert not status.any()
    got, pending = repeated(lambda: solve(0.0 * like), taken)
    pending.look()
    for x, y in zip(got[:2], (state, slope), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-8)
    for size in (1e-3, 0.1):
        shift = size * torch.cos(torch.arange(like.numel(), dtype=F64)).view_as(like)
        want = solve(shift)
        got, pending = repeated(lambda shift=shift: solve(shift), taken)
        try:
            pending.look()
        except OtherPath:
            assert size == 0.1
            continue
        for x, y in zip(got[:2], want[:2], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", ["cg", "dense"])
@pytest.mark.parametrize("l_max", [0, 1])
def test_charge_equilibration(method, l_max, generator):
    cell = 8.0 * torch.eye(3, dtype=F64)
    positions = 8.0 * torch.rand(12, 3, generator=generator, dtype=F64)
    dim = 4 if l_max else 1
    chi = torch.randn(12, dim, generator=generator, dtype=F64)
    hardness = 8.0 + torch.rand(12, dim, generator=generator, dtype=F64)
    operator = scfmlip.Coulomb(l_max=l_max, sigma=1.0)

    def solve(shift):
        leaf = (positions + shift).requires_grad_()
        geometry = operator.prepare(leaf, cell)
        solution = scfmlip.charge_equilibration(geometry, chi, hardness, 0.5, method=method, tolerance=1e-10)
        (slope,) = torch.autograd.grad((solution.state**2).sum() + solution.energy.sum(), leaf)
        return solution.state.detach(), slope, solution.status

    same_course(solve, positions)


def test_functionals(generator):
    b = torch.randn(8, 1, generator=generator, dtype=F64)
    index = torch.tensor([0] * 5 + [1] * 3)

    def energy(s, b):
        parts = (0.5 * s**2 + b * s + 0.1 * s**4)[:, 0]
        return torch.zeros(2, dtype=F64).index_add(0, index, parts)

    def solve(shift):
        leaf = (b + shift).requires_grad_()
        solution = minimize_functional(
            energy, torch.zeros_like(b), (leaf,), batch_idx=index, total_charge=0.2, tolerance=1e-10
        )
        (slope,) = torch.autograd.grad((solution.state**2).sum() + solution.energy.sum(), leaf)
        return solution.state.detach(), slope, solution.status

    same_course(solve, b)


def test_a_solve_that_needs_more_says_so(generator):
    """From an easy system to one with a far wider spectrum."""
    n = 30
    positions = 12.0 * torch.rand(n, 3, generator=generator, dtype=F64)
    chi = torch.randn(n, generator=generator, dtype=F64)
    geometry = scfmlip.Coulomb(l_max=0, sigma=0.8).prepare(positions, 12.0 * torch.eye(3, dtype=F64))

    def solve(hardness):
        options = {"method": "cg", "preconditioner": "none", "on_failure": "ignore"}
        return scfmlip.charge_equilibration(geometry, chi, hardness, 0.0, **options)

    hard = torch.logspace(0, 3, n, dtype=F64)
    easy, taken = recorded(lambda: solve(torch.full((n,), 50.0, dtype=F64)))
    assert int(easy.iterations) + 3 < int(solve(hard).iterations)
    got, pending = repeated(lambda: solve(hard), taken)
    assert int(got.status) != 0
    with pytest.raises(OtherPath):
        pending.look()
