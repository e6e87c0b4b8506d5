"""Minima of energy functionals: quadratic ones against the linear solver; derivatives; failures."""

import pytest
import torch
from tolerances import assert_close

from scfmlip import Coulomb, charge_equilibration
from scfmlip.scf import ConvergenceError, Status, minimize_functional, spin_charges

F64 = torch.float64
INDEX = torch.tensor([0] * 3 + [1] * 5)
SAME = (INDEX[:, None] == INDEX[None]).double()
TOTALS = torch.tensor([1.0, -0.5], dtype=F64)


def sums(values):
    return values.new_zeros(2).index_add(0, INDEX, values)


def parts(generator):
    """A positive coupling within each system, and a source."""
    root = torch.randn(8, 8, generator=generator, dtype=F64)
    return 0.3 * root, torch.randn(8, 2, generator=generator, dtype=F64)


def quartic(state, root, source):
    """Convex: a quadratic form, a quartic and a logarithm of cosh."""
    matrix = (root @ root.T) * SAME + torch.eye(8, dtype=state.dtype)
    local = source * state + 0.3 * state**4 + torch.log(torch.cosh(state * state[:, [1, 0]]))
    return sums((local + 0.5 * state * (matrix @ state)).sum(1))


START = torch.zeros(8, 2, dtype=F64)


@pytest.mark.parametrize("periodic", [False, True])
def test_a_quadratic_functional_is_charge_equilibration(periodic, generator):
    positions = 6 * torch.rand(8, 3, generator=generator, dtype=F64)
    cells = 6 * torch.eye(3, dtype=F64).expand(2, 3, 3) if periodic else None
    pbc = [[periodic] * 3] * 2
    chi = torch.randn(8, generator=generator, dtype=F64)
    hardness = 2 + torch.rand(8, generator=generator, dtype=F64)
    operator = Coulomb(l_max=0, sigma=1.0)
    plan = operator.plan(cells, pbc, INDEX, 8)

    def energy(state, positions, chi, hardness):
        geometry = operator.prepare(positions, cells, plan=plan)
        local = chi * state[:, 0] + 0.5 * hardness * state[:, 0] ** 2
        return sums(local) + geometry.energy(state, self_interaction=True)

    leaves = [t.requires_grad_() for t in (positions, chi, hardness)]
    options = {"batch_idx": INDEX, "total_charge": TOTALS, "tolerance": 1e-11}
    solution = minimize_functional(energy, torch.zeros(8, 1, dtype=F64), leaves, **options)
    want = charge_equilibration(operator.prepare(positions, cells, plan=plan), chi, hardness, TOTALS)
    assert_close(solution.state, want.state, 1e-9)
    assert_close(solution.energy, want.energy, 1e-10)
    assert_close(solution.chemical_potential, want.chemical_potential, 1e-9)
    assert solution.hessian_products <= 20
    for a, b in (
        (solution.energy.sum(), want.energy.sum()),
        ((solution.state**3).sum(), (want.state**3).sum()),
    ):
        first, second = (torch.autograd.grad(x, leaves, retain_graph=True) for x in (a, b))
        for got, wanted in zip(first, second, strict=True):
            assert_close(got, wanted, 1e-7)


def test_a_batch_equals_a_loop(generator):
    root, source = parts(generator)
    options = {"total_charge": TOTALS, "tolerance": 1e-11}
    together = minimize_functional(quartic, START, (root, source), batch_idx=INDEX, **options)
    assert_close(sums(together.state[:, 0]), TOTALS, 1e-12)
    for i in range(2):
        mine = i == INDEX
        small = {"total_charge": float(TOTALS[i]), "tolerance": 1e-11}

        def own(state, mine=mine):
            whole = torch.zeros(8, 2, dtype=F64).index_copy(0, torch.nonzero(mine).flatten(), state)
            return quartic(whole, root, source).sum()[None]

        alone = minimize_functional(own, START[mine], **small)
        assert_close(together.state[mine], alone.state, 1e-8)


@pytest.mark.parametrize("kind", ["free", "charge", "spin"])
def test_derivatives(kind, generator):
    """State, energy and potential, first and second, in parameters and totals."""
    root, source = parts(generator)
    totals = {"free": TOTALS, "charge": TOTALS, "spin": spin_charges(TOTALS, torch.tensor([2, 1]))}[kind]

    def function(root, source, totals):
        given = {} if kind == "free" else {"total_charge": totals}
        if kind == "spin":
            given["charge_columns"] = (0, 1)
        solution = minimize_functional(
            quartic, START, (root, source), batch_idx=INDEX, tolerance=1e-13, on_failure="ignore", **given
        )
        out = [(solution.state**3).sum(), solution.energy]
        return tuple(out if kind == "free" else [*out, solution.chemical_potential])

    inputs = [t.clone().requires_grad_(kind != "free" or t is not totals) for t in (root, source, totals)]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True, atol=1e-4)


def test_solve_counts(generator, monkeypatch):
    """Forces none, a loss of forces one, a loss of the state one."""
    from scfmlip.scf import functional

    solves = []
    original = functional.conjugate_gradient_solve

    def counted(*arguments):
        solves.append(1)
        return original(*arguments)

    monkeypatch.setattr(functional, "conjugate_gradient_solve", counted)
    leaves = [t.requires_grad_() for t in parts(generator)]
    solution = minimize_functional(quartic, START, leaves, batch_idx=INDEX, total_charge=TOTALS)
    slopes = torch.autograd.grad(solution.energy.sum(), leaves, create_graph=True)
    assert not solves
    torch.autograd.grad(sum((s**2).sum() for s in slopes), leaves, retain_graph=True)
    assert len(solves) == 1
    torch.autograd.grad((solution.state**2).sum(), leaves)
    assert len(solves) == 2


def test_a_warm_start_costs_little(generator):
    root, source = parts(generator)
    options = {"batch_idx": INDEX, "total_charge": TOTALS, "tolerance": 1e-8}
    first = minimize_functional(quartic, START, (root, source), **options)
    again = minimize_functional(quartic, first.state, (root, 1.001 * source), **options)
    assert again.hessian_products < 0.7 * first.hessian_products
    assert int(again.iterations.max()) < int(first.iterations.max())
    still = minimize_functional(quartic, first.state, (root, source), **options)
    assert still.iterations.tolist() == [0, 0]


def test_an_overlong_step_is_cut():
    """Where Newton's own step overshoots: from far out on a function that flattens."""

    def energy(state):
        return sums(torch.sqrt(1 + (state[:, 0] - 0.3) ** 2))

    start = torch.full((8, 1), 5.0, dtype=F64)
    solution = minimize_functional(energy, start, batch_idx=INDEX, tolerance=1e-10)
    assert_close(solution.state, torch.full((8, 1), 0.3, dtype=F64), 1e-8)


def test_failures_name_the_system():
    """The second system has no minimum, or a saddle: says so; the first one's answer stands."""
    sign = torch.where(INDEX == 0, 1.0, -1.0).double()[:, None]

    def saddle(state):
        return sums((sign * state**2).sum(1))

    def lowest(state):
        return sums((sign * state**2 + 0.1 * state**4 + 0.3 * state).sum(1))

    options = {"batch_idx": INDEX, "total_charge": TOTALS, "max_iterations": 30}
    with pytest.raises(ConvergenceError, match=r"system\(s\) 1 .*not a minimum"):
        minimize_functional(saddle, START, **options)
    rest = minimize_functional(saddle, START, on_failure="ignore", **options)
    assert rest.status.tolist() == [Status.CONVERGED, Status.INDEFINITE]
    assert_close(rest.state[:3, 0], torch.full((3,), 1 / 3, dtype=F64), 1e-9)
    # a concave start is no harm where there is a minimum
    start = 0.1 * torch.randn(8, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    fine = minimize_functional(lowest, start, **options)
    assert fine.status.tolist() == [0, 0]
    with pytest.raises(ConvergenceError, match="NaN or infinity"):
        minimize_functional(lambda s: saddle(s) * torch.nan, START, **options)
    with pytest.raises(ConvergenceError, match="allow more iterations"):
        minimize_functional(lowest, start, **{**options, "max_iterations": 1, "tolerance": 1e-12})
    with pytest.raises(ValueError, match=r"functional must return energies \[2\]"):
        minimize_functional(lambda s: saddle(s).sum(), START, **options)
    with pytest.raises(ValueError, match=r"total_charge must be a number or have shape \[2\]"):
        minimize_functional(saddle, START, batch_idx=INDEX, total_charge=torch.zeros(3))


def test_float32(generator):
    root, source = parts(generator)
    options = {"batch_idx": INDEX, "total_charge": TOTALS}
    exact = minimize_functional(quartic, START, (root, source), tolerance=1e-10, **options)

    def single(state, root, source):
        return quartic(state.double(), root.double(), source.double()).float()

    got = minimize_functional(
        single, START.float(), (root.float(), source.float()), tolerance=1e-9, **options
    )
    assert got.state.dtype == torch.float32
    assert_close(got.state, exact.state, 1e-4)


def test_forces_need_no_adjoint_behind_operators(generator, monkeypatch):
    """Operators make zeros of gradients that are not there: none of these may start an adjoint solve."""
    from scfmlip.scf import functional

    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(functional, "conjugate_gradient_solve", refuse)
    places = (6 * torch.rand(8, 3, generator=generator).double()).requires_grad_()
    chi = torch.randn(8, 1, generator=generator).double().requires_grad_()
    coulomb, cell = Coulomb(l_max=0, sigma=1.0, self_interaction=True), 6 * torch.eye(3).double()

    def energy(state, places, chi):
        return (chi * state + 2 * state**2).sum()[None] + coulomb.prepare(places, cell).energy(state)

    solution = minimize_functional(energy, torch.zeros(8, 1, dtype=F64), (places, chi), total_charge=0.3)
    torch.autograd.grad(solution.energy.sum(), (places, chi))
