"""Fixed points: linear, nonlinear and constrained maps; their derivatives; failures."""

import pytest
import torch
from tolerances import assert_close

from scfmlip import Coulomb, fixed_point
from scfmlip.scf import ConvergenceError, Status, spin_charges

F64 = torch.float64
INDEX = torch.tensor([0] * 3 + [1] * 5)
BLOCKS = (INDEX[:, None] == INDEX[None]).double()


def parts(generator, strength=0.25):
    """A coupling matrix without elements between systems, and a source."""
    matrix = strength * torch.randn(8, 8, generator=generator, dtype=F64) * BLOCKS
    source = torch.randn(8, 2, generator=generator, dtype=F64)
    return matrix, source


def linear(state, matrix, source):
    return (matrix * BLOCKS) @ state + source


def saturating(state, matrix, source):
    return torch.tanh(linear(state, matrix, source))


def with_potential(state, potential, matrix, source):
    """Charges (column 0) fall as the potential rises."""
    return saturating(state, matrix, source) - 0.7 * potential[INDEX][:, None] * torch.tensor([1.0, 0.0])


START = torch.zeros(8, 2, dtype=F64)


def test_an_affine_map_is_one_linear_solve(generator):
    matrix, source = parts(generator)
    solution = fixed_point(linear, START, (matrix, source), batch_idx=INDEX, tolerance=1e-12)
    want = torch.linalg.solve(torch.eye(8, dtype=F64) - matrix, source)
    assert solution.affine
    assert_close(solution.state, want, 1e-10)
    assert solution.evaluations <= 6 + 10 + 3
    assert solution.status.tolist() == [0, 0]


@pytest.mark.parametrize("solver", ["anderson", "newton", "auto"])
def test_a_nonlinear_map(solver, generator):
    matrix, source = parts(generator, 0.5)
    solution = fixed_point(
        saturating, START, (matrix, source), batch_idx=INDEX, tolerance=1e-11, solver=solver
    )
    assert not solution.affine
    assert_close(saturating(solution.state, matrix, source), solution.state, 1e-9)


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("good", [False, True])
def test_an_approximation_changes_the_way_and_not_the_result(constrained, good, generator):
    matrix, source = parts(generator, 0.5)
    count = {"full": 0, "near": 0}

    def near(state, *arguments):
        count["near"] += 1
        *potential, matrix, source = arguments
        out = linear(state, matrix, source if good else 30 - 5 * source)
        return out - 0.7 * potential[0][INDEX][:, None] * torch.tensor([1.0, 0.0]) if potential else out

    def full(state, *arguments):
        count["full"] += 1
        *potential, matrix, source = arguments
        small = 0.02 * torch.sin(3 * linear(state, matrix, source))
        out = linear(state, matrix, source) + small
        return out - 0.7 * potential[0][INDEX][:, None] * torch.tensor([1.0, 0.0]) if potential else out

    options = {"batch_idx": INDEX, "tolerance": 1e-11}
    if constrained:
        options["total_charge"] = torch.tensor([0.5, -1.0], dtype=F64)
    want = fixed_point(full, START, (matrix, source), solver="newton", **options)
    leaf = source.clone().requires_grad_()
    count["full"] = 0
    got = fixed_point(full, START, (matrix, leaf), approximation=near, **options)
    assert count["near"] > 0
    assert got.evaluations == count["full"]
    if good:
        assert got.evaluations < want.evaluations
    assert_close(got.state, want.state, 1e-9)
    (slope,) = torch.autograd.grad(got.state.square().sum(), leaf)
    step = 1e-5 * torch.randn(8, 2, generator=generator, dtype=F64)
    ends = [
        fixed_point(full, START, (matrix, source + sign * step), solver="newton", **options).state
        for sign in (1, -1)
    ]
    difference = 0.5 * (ends[0].square().sum() - ends[1].square().sum())
    assert_close((slope * step).sum(), difference, 1e-6)


def test_a_batch_equals_a_loop(generator):
    matrix, source = parts(generator, 0.5)
    together = fixed_point(saturating, START, (matrix, source), batch_idx=INDEX, tolerance=1e-12)
    for i in range(2):
        mine = i == INDEX
        small = matrix[mine][:, mine]
        alone = fixed_point(
            lambda s, a, b: torch.tanh(a @ s + b), START[mine], (small, source[mine]), tolerance=1e-12
        )
        assert_close(together.state[mine], alone.state, 1e-9)


def test_total_charge(generator):
    matrix, source = parts(generator)
    totals = torch.tensor([1.0, -0.5], dtype=F64)
    solution = fixed_point(
        with_potential, START, (matrix, source), batch_idx=INDEX, total_charge=totals, tolerance=1e-12
    )
    sums = torch.zeros(2, dtype=F64).index_add(0, INDEX, solution.state[:, 0])
    assert_close(sums, totals, 1e-10)
    mu = solution.chemical_potential
    assert mu is not None
    assert_close(with_potential(solution.state, mu, matrix, source), solution.state, 1e-9)


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("map_", [linear, saturating], ids=["affine", "nonlinear"])
def test_derivatives(map_, constrained, generator):
    matrix, source = parts(generator)
    totals = torch.tensor([1.0, -0.5], dtype=F64)

    def with_mu(state, potential, matrix, source):
        shift = torch.tensor([1.0, 0.0], dtype=F64)
        return map_(state, matrix, source) - 0.7 * potential[INDEX][:, None] * shift

    def function(matrix, source, totals):
        options = {"batch_idx": INDEX, "tolerance": 1e-13}
        if not constrained:
            solution = fixed_point(map_, START, (matrix, source), **options)
            return (solution.state**3).sum() + 0 * totals.sum()
        solution = fixed_point(with_mu, START, (matrix, source), total_charge=totals, **options)
        return (solution.state**3).sum(), solution.chemical_potential

    inputs = [t.clone().requires_grad_() for t in (matrix, source, totals)]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_charges_in_their_own_potential(generator):
    """P = p0 - S K p, the default response of self-consistent MACE models, with forces through everything."""
    n = 6
    positions = (4 * torch.rand(n, 3, generator=generator, dtype=F64)).requires_grad_()
    cell = 6.0 * torch.eye(3, dtype=F64)
    first = torch.randn(n, 1, generator=generator, dtype=F64).requires_grad_()
    response = (0.02 * torch.rand(n, 1, generator=generator, dtype=F64)).requires_grad_()
    operator = Coulomb(l_max=0, sigma=1.0, kspace_cutoff=3.5)
    plan = operator.plan(cell, None, None, n)

    def update(state, positions, first, response):
        return first - response * operator.prepare(positions, cell, plan=plan).potential(state)

    def energy(positions, first, response):
        solution = fixed_point(update, first, (positions, first, response), tolerance=1e-13)
        assert solution.affine
        return operator.prepare(positions, cell, plan=plan).energy(solution.state).sum()

    assert torch.autograd.gradcheck(energy, (positions, first, response), fast_mode=True)
    assert torch.autograd.gradgradcheck(energy, (positions, first, response), fast_mode=True)


def test_fewer_evaluations_than_linear_mixing(generator):
    """At a share of 0.25 to the same residual: a fifth at most."""
    matrix, source = parts(generator, 0.5)
    solution = fixed_point(saturating, START, (matrix, source), batch_idx=INDEX, tolerance=1e-8)
    state, count = START, 0
    while float((saturating(state, matrix, source) - state).norm()) > 1e-8 * float(source.norm()):
        state = state + 0.25 * (saturating(state, matrix, source) - state)
        count += 1
    assert solution.evaluations * 3 <= count


def test_float32(generator):
    matrix, source = (t.float() for t in parts(generator))

    def single(state, matrix, source):
        return matrix @ state + source

    solution = fixed_point(single, START.float(), (matrix, source), batch_idx=INDEX, tolerance=1e-9)
    want = torch.linalg.solve(torch.eye(8) - matrix, source)
    assert solution.state.dtype == torch.float32
    assert_close(solution.state, want, 1e-5)


def test_failures_name_the_system():
    """The second system's map has no fixed point; the first one's answer stands."""

    def update(state):
        return torch.cat((0.5 * torch.tanh(state[:1]) + 1, (state[1:] ** 2) + 1))

    index = torch.tensor([0, 1])
    start = torch.zeros(2, 1, dtype=F64)
    for solver in ("anderson", "newton"):
        with pytest.raises(ConvergenceError, match=r"system\(s\) 1 "):
            fixed_point(update, start, batch_idx=index, solver=solver, max_iterations=40)
        rest = fixed_point(
            update, start, batch_idx=index, solver=solver, max_iterations=40, on_failure="ignore"
        )
        assert rest.status[0] == Status.CONVERGED
        assert rest.status[1] != Status.CONVERGED
        assert_close(0.5 * torch.tanh(rest.state[:1]) + 1, rest.state[:1], 1e-5)
    with pytest.raises(ConvergenceError, match="NaN or infinity"):
        fixed_point(lambda s: s * torch.nan, start, batch_idx=index)
    with pytest.raises(ValueError, match="no constraint"):
        fixed_point(update, start, batch_idx=index, solver="anderson", total_charge=0.0)


def test_a_given_potential(generator):
    """Constant Fermi level: the potential that a charge brought about gives that charge back."""
    matrix, source = parts(generator)
    totals = torch.tensor([1.0, -0.5], dtype=F64)
    options = {"batch_idx": INDEX, "tolerance": 1e-12}
    first = fixed_point(with_potential, START, (matrix, source), total_charge=totals, **options)
    again = fixed_point(
        with_potential, START, (matrix, source), chemical_potential=first.chemical_potential, **options
    )
    assert_close(again.state, first.state, 1e-9)
    level = first.chemical_potential.detach().requires_grad_()

    def charge(level, source):
        solution = fixed_point(
            with_potential,
            START,
            (matrix, source),
            chemical_potential=level,
            batch_idx=INDEX,
            tolerance=1e-13,
        )
        return solution.state[:, 0].sum()

    assert torch.autograd.gradcheck(charge, (level, source.requires_grad_()), fast_mode=True)
    assert torch.autograd.gradgradcheck(charge, (level, source), fast_mode=True)


def test_total_charge_and_spin(generator):
    """Two channels, each with its own total and potential, coupled through the map."""
    matrix, source = parts(generator)
    totals = spin_charges(torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([2, 3]))

    def update(state, potential, matrix, source):
        mixed = saturating(state[:, :, 0], matrix, source) + 0.1 * state[:, [1, 0], 0] ** 2
        return torch.stack((mixed - 0.7 * potential[INDEX], torch.tanh(mixed)), -1)

    start = torch.zeros(8, 2, 2, dtype=F64)
    options = {"batch_idx": INDEX, "charge_columns": (0, 2), "tolerance": 1e-13}

    def function(matrix, source, totals):
        solution = fixed_point(update, start, (matrix, source), total_charge=totals, **options)
        return (solution.state**3).sum(), solution.chemical_potential

    solution = fixed_point(update, start, (matrix, source), total_charge=totals, **options)
    sums = torch.zeros(2, 2, dtype=F64).index_add(0, INDEX, solution.state[:, :, 0])
    assert_close(sums, totals, 1e-10)
    assert solution.chemical_potential.shape == (2, 2)
    leaves = [t.requires_grad_() for t in (matrix, source, totals)]
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
    with pytest.raises(ValueError, match=r"shape \[2\], or \[2, 2\] for charge_columns"):
        fixed_point(update, start, (matrix, source), total_charge=torch.zeros(2, 3), **options)
    with pytest.raises(ValueError, match="charge_columns must be different numbers from 0 to 3"):
        fixed_point(update, start, (matrix, source), total_charge=0.0, batch_idx=INDEX, charge_columns=(4,))


@pytest.mark.parametrize("start", [-30.0, 0.0, 40.0])
def test_a_potential_without_response(start):
    """
    Charges that saturate: far from the answer dQ/dmu is 0 to all digits, or of the wrong sign.

    The step of the reference is then -1 V whatever is missing, or of any length; with 10 e and 5 e as its
    limits it gives up.
    """
    offsets = torch.linspace(-2, 2, 8, dtype=F64)

    def update(state, potential):
        drive = offsets + 0.3 * state[:, 0] - potential[INDEX]
        return (torch.tanh(drive) + 0.2 * torch.exp(-0.5 * (drive + 6) ** 2))[:, None]

    totals = torch.tensor([0.5, -1.0], dtype=F64)
    solution = fixed_point(
        update,
        torch.zeros(8, 1, dtype=F64),
        batch_idx=INDEX,
        total_charge=totals,
        chemical_potential=start,
        tolerance=1e-10,
    )
    assert solution.status.tolist() == [0, 0]
    assert float(solution.chemical_potential.abs().max()) < 5
    sums = torch.zeros(2, dtype=F64).index_add(0, INDEX, solution.state[:, 0])
    assert_close(sums, totals, 1e-9)


def test_a_charge_that_no_potential_gives():
    """Says so, for that system."""

    def update(state, potential):
        return torch.tanh(-potential[INDEX])[:, None] + 0 * state

    with pytest.raises(ConvergenceError, match=r"system\(s\) 1 "):
        fixed_point(
            update,
            torch.zeros(8, 1, dtype=F64),
            batch_idx=INDEX,
            total_charge=torch.tensor([1.0, 9.0], dtype=F64),
            max_iterations=20,
        )


@pytest.mark.parametrize("total_charge", [None, 0.3])
def test_graphs_are_freed(total_charge):
    """Nothing that the graph of a solution holds refers back to it, which Python could not collect."""
    import weakref

    class Map:
        def __call__(self, state, *rest):
            new = rest[-1] @ state + 1
            return new if total_charge is None else new + rest[0]

    update, matrix = Map(), torch.full((4, 4), 0.1).requires_grad_()
    held = weakref.ref(update)
    solution = fixed_point(update, torch.zeros(4, 1), (matrix,), total_charge=total_charge)
    (grad,) = torch.autograd.grad(solution.state.sum(), matrix, create_graph=True)
    grad.sum().backward()
    del solution, grad, update
    assert held() is None


def test_an_update_that_writes_into_its_state():
    """It would otherwise find itself unchanged, wherever it is."""
    source = torch.tensor([[1.0], [-2.0]], dtype=F64)
    solution = fixed_point(lambda s, b: s.mul_(0.5).add_(b), torch.zeros(2, 1, dtype=F64), (source,))
    assert_close(solution.state, 2 * source, 1e-6)


def test_arguments_of_another_kind():
    with pytest.raises(TypeError, match=r"parameters must be a sequence of tensors, got one tensor: pass \("):
        fixed_point(linear, START, START)
    with pytest.raises(TypeError, match=r"state must be a float32 or float64 tensor, got torch\.int64"):
        fixed_point(linear, START.long(), (START,))
    with pytest.raises(TypeError, match="state must be a float32 or float64 tensor, got list"):
        fixed_point(linear, START.tolist(), (START,))


def stretched(decades, dtype, n=40):
    """Solution of ``A s = b`` with eigenvalues of both signs over so many decades, and its gradient."""
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=F64))[0]
    values = torch.logspace(0, -decades, n, dtype=F64)
    values[::3] *= -1
    b, w = torch.randn(2, n, generator=generator, dtype=F64).to(dtype)
    b.requires_grad_()
    matrix = ((q * values) @ q.T).to(dtype)
    state = fixed_point(lambda s, b: s + b - matrix @ s, torch.zeros_like(b), (b,)).state
    return state, *torch.autograd.grad((state * w).sum(), b)


@pytest.mark.parametrize("decades", [1, 3, 5])
def test_float32_is_as_good_as_its_rounding(decades):
    """Errors grow with the condition number and no faster, in the state and in its derivatives."""
    for got, want in zip(stretched(decades, torch.float32), stretched(decades, F64), strict=True):
        assert (got.double() - want).norm() < 2e-7 * 10**decades * want.norm()


def test_float32_says_where_it_ends():
    with pytest.raises(ConvergenceError, match=r"rounding of its dtype.*float64"):
        stretched(6, torch.float32)
