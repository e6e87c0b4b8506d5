"""Conjugate gradients in few launches: iterations, ends and results of the plain operations."""

import pytest
import torch

import scfmlip
import scfmlip_kernels
from scf.test_functional import INDEX, START, TOTALS, parts, quartic
from scfmlip.scf import SolverMemory, Status, minimize_functional
from scfmlip.scf.solvers.newton_cg import conjugate_gradient_solve
from scfmlip.scf.solvers.steps import LaunchedSteps
from scfmlip.segments import Segments

F64 = torch.float64
SIZES = torch.tensor([5, 1, 3])
SYSTEM = torch.arange(3).repeat_interleave(SIZES)
# a better one solves such small systems at once
WALK = {"method": "cg", "preconditioner": "jacobi"}
pytestmark = [pytest.mark.interpreter, pytest.mark.filterwarnings("ignore:.*did not converge")]


SOME = pytest.mark.skipif(torch.cuda.is_available(), reason="its tensors are on the CPU")


@pytest.fixture
def taken(monkeypatch):
    """Counts steps that were launched."""
    steps = []
    take = LaunchedSteps.take
    monkeypatch.setattr(LaunchedSteps, "take", lambda self: (steps.append(1), take(self))[1])
    return steps


def both(call, taken, where="cpu"):
    """What the plain operations find on a CPU, and what the launches find."""
    with scfmlip_kernels.backend("cpu"):
        want = call("cpu")
    assert not taken
    with scfmlip_kernels.backend("auto" if where == "cuda" else "triton"):
        got = call(where)
    assert taken
    return got, want


def equal(got, want, names):
    for name in names:
        a, b = (getattr(found, name) for found in (got, want))
        a = a.cpu() if torch.is_tensor(a) else a
        torch.testing.assert_close(
            a, b, rtol=1e-9, atol=1e-11, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


def molecules(generator, dim):
    """Places, electronegativity and hardness of three molecules, one of them an atom."""
    place = 4 * torch.rand(9, 3, generator=generator, dtype=F64)
    chi = torch.randn(9, dim, generator=generator, dtype=F64)
    return place, chi, 6 + torch.rand(9, dim, generator=generator, dtype=F64)


def solve(where, place, chi, hardness, **options):
    """Their charges."""
    place, chi, hardness = (t.to(where) for t in (place, chi, hardness))
    operator = scfmlip.Coulomb(l_max=1 if chi.shape[1] > 1 else 0, sigma=1.0, method="direct")
    geometry = operator.prepare(place, None, False, SYSTEM.to(where))
    options = {name: t.to(where) if torch.is_tensor(t) else t for name, t in options.items()}
    return scfmlip.charge_equilibration(geometry, chi, hardness, **WALK, **options)


CHARGE, POTENTIAL = {"total_charge": torch.tensor([1.0, 0.5, 0.0])}, {"chemical_potential": 0.2}


@pytest.mark.parametrize(
    ("dim", "target", "memory"),
    [
        (1, CHARGE, None),
        (4, CHARGE, None),
        (1, POTENTIAL, None),
        (1, CHARGE, SolverMemory()),
        (4, POTENTIAL, SolverMemory()),
    ],
    ids=["charge", "dipoles, charge", "potential", "charge, handing on", "dipoles, potential, handing on"],
)
def test_charges(dim, target, memory, generator, taken, device):
    place, chi, hardness = molecules(generator, dim)
    target = {"total_charge": None, "tolerance": 1e-9, **target}

    def call(where):
        first = solve(where, place, chi, hardness, memory=memory, **target)
        if memory is None:
            return first
        # with the directions of the first
        return solve(where, place, chi + 0.1, hardness, memory=first.memory, **target)

    got, want = both(call, taken, device)
    assert want.status.tolist() == [0, 0, 0]
    equal(got, want, ("energy", "status"))
    # what is handed on may solve a system but for rounding: then the next iteration hangs on that
    torch.testing.assert_close(got.state.cpu(), want.state, rtol=1e-7, atol=1e-8)
    if memory is None:
        equal(got, want, ("state", "iterations"))


def test_ends(generator, taken, device):
    """Not a minimum, too few iterations, and a tolerance below rounding: each system alone."""
    place, chi, hardness = molecules(generator, 1)

    def ends(hardness, **more):
        options = {"on_failure": "ignore", **more}
        got, want = both(lambda where: solve(where, place, chi, hardness, **options), taken, device)
        taken.clear()
        equal(got, want, ("status", "iterations"))
        return want.status.tolist()

    concave = torch.where(SYSTEM == 2, -9.0, hardness[:, 0])[:, None]
    assert ends(concave) == [Status.CONVERGED, Status.CONVERGED, Status.INDEFINITE]
    assert ends(hardness, max_iterations=1)[0] == Status.ITERATIONS
    assert ends(hardness, tolerance=1e-30) == [Status.CONVERGED] * 3


@SOME
@pytest.mark.parametrize("kind", ["free", "charge"])
def test_functionals(kind, generator, taken):
    parameters = parts(generator)
    options = {"total_charge": TOTALS if kind == "charge" else None, "tolerance": 1e-9, "batch_idx": INDEX}
    got, want = both(lambda _: minimize_functional(quartic, START, parameters, **options), taken)
    equal(got, want, ("state", "energy", "iterations", "status", "hessian_products"))


@SOME
def test_a_functional_without_a_minimum(generator, taken):
    def saddle(state):
        square = (state**2).sum(1)
        signs = torch.where(INDEX == 0, 1.0, -1.0)
        return torch.zeros(2, dtype=F64).index_add(0, INDEX, signs * square + 0.01 * square**2)

    start = torch.randn(8, 2, generator=generator, dtype=F64)
    options = {"total_charge": None, "tolerance": 1e-9, "batch_idx": INDEX, "on_failure": "ignore"}
    got, want = both(lambda _: minimize_functional(saddle, start, **options), taken)
    equal(got, want, ("state", "energy", "iterations", "status"))


def test_a_linear_solve_meets_negative_curvature(generator, taken, device):
    """The preconditioned right side where that happens at once, the last iterate where it happens later."""
    index = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    diagonal = torch.tensor([1.0, 2.0, 3.0, -1.0, -2.0, -1.5, 0.5, -0.1], dtype=F64)
    right = torch.randn(8, generator=generator, dtype=F64)
    right[7] *= 1e-2

    def call(where):
        batch, a = Segments.of(index.to(where), 3), diagonal.to(where)
        return conjugate_gradient_solve(lambda v: a * v, right.to(where), batch, 1e-10, 20)

    got, want = both(call, taken, device)
    assert want.status.tolist() == [Status.CONVERGED, Status.INDEFINITE, Status.INDEFINITE]
    torch.testing.assert_close(got.x[3:6].cpu(), right[3:6])
    equal(got, want, ("x", "residual", "iterations", "status", "evaluations"))


@SOME
def test_second_derivatives(generator, taken):
    """Solves of backward passes, too: no step is asked for derivatives of its own."""
    root, source = parts(generator)
    options = {"total_charge": TOTALS, "tolerance": 1e-11, "batch_idx": INDEX}

    def slopes(_):
        leaves = [t.clone().requires_grad_() for t in (root, source)]
        found = minimize_functional(quartic, START, leaves, **options)
        loss = found.energy.sum() + (found.state**3).sum()
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        return [*first, *torch.autograd.grad(sum((x**2).sum() for x in first), leaves)]

    got, want = both(slopes, taken)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
