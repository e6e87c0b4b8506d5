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


@pytest.fixture
def taken(monkeypatch):
    """Counts steps that were launched."""
    steps = []
    take = LaunchedSteps.take
    monkeypatch.setattr(LaunchedSteps, "take", lambda self: (steps.append(1), take(self))[1])
    return steps


def both(call, taken):
    """What the plain operations find, and what the launches find."""
    with scfmlip_kernels.backend("cpu"):
        want = call()
    assert not taken
    with scfmlip_kernels.backend("triton"):
        got = call()
    assert taken
    return got, want


def equal(got, want, names):
    for name in names:
        a, b = getattr(got, name), getattr(want, name)
        torch.testing.assert_close(
            a, b, rtol=1e-9, atol=1e-11, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )


def molecules(generator, dim):
    """Geometry, electronegativity and hardness of three molecules, one of them an atom."""
    place = 4 * torch.rand(9, 3, generator=generator, dtype=F64)
    operator = scfmlip.Coulomb(l_max=1 if dim > 1 else 0, sigma=1.0, method="direct")
    geometry = operator.prepare(place, None, False, SYSTEM)
    chi = torch.randn(9, dim, generator=generator, dtype=F64)
    return geometry, chi, 6 + torch.rand(9, dim, generator=generator, dtype=F64)


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
def test_charges(dim, target, memory, generator, taken):
    geometry, chi, hardness = molecules(generator, dim)
    target = {"total_charge": None, **target}

    def call():
        options = {**WALK, "tolerance": 1e-9, "memory": memory, **target}
        first = scfmlip.charge_equilibration(geometry, chi, hardness, **options)
        if memory is None:
            return first
        # with the directions of the first
        return scfmlip.charge_equilibration(
            geometry, chi + 0.1, hardness, **options | {"memory": first.memory}
        )

    got, want = both(call, taken)
    assert want.status.tolist() == [0, 0, 0]
    equal(got, want, ("energy", "status"))
    # what is handed on may solve a system but for rounding: then the next iteration hangs on that
    torch.testing.assert_close(got.state, want.state, rtol=1e-7, atol=1e-8)
    if memory is None:
        equal(got, want, ("state", "iterations"))


def test_ends(generator, taken):
    """Not a minimum, NaN, too few iterations, and a tolerance below rounding: each system alone."""
    geometry, chi, hardness = molecules(generator, 1)
    options = {**WALK, "on_failure": "ignore"}

    def ends(chi, hardness, **more):
        def call():
            return scfmlip.charge_equilibration(geometry, chi, hardness, **options, **more)

        got, want = both(call, taken)
        taken.clear()
        equal(got, want, ("status", "iterations"))
        return want.status.tolist()

    concave = torch.where(SYSTEM == 2, -9.0, hardness[:, 0])[:, None]
    assert ends(chi, concave) == [Status.CONVERGED, Status.CONVERGED, Status.INDEFINITE]
    assert ends(chi, hardness, max_iterations=1)[0] == Status.ITERATIONS
    assert ends(chi, hardness, tolerance=1e-30) == [Status.CONVERGED] * 3


@pytest.mark.parametrize("kind", ["free", "charge"])
def test_functionals(kind, generator, taken):
    parameters = parts(generator)
    options = {"total_charge": TOTALS if kind == "charge" else None, "tolerance": 1e-9, "batch_idx": INDEX}
    call = lambda: minimize_functional(quartic, START, parameters, **options)  # noqa: E731
    got, want = both(call, taken)
    equal(got, want, ("state", "energy", "iterations", "status", "hessian_products"))


def test_a_functional_without_a_minimum(generator, taken):
    def saddle(state):
        square = (state**2).sum(1)
        signs = torch.where(INDEX == 0, 1.0, -1.0)
        return torch.zeros(2, dtype=F64).index_add(0, INDEX, signs * square + 0.01 * square**2)

    start = torch.randn(8, 2, generator=generator, dtype=F64)
    options = {"total_charge": None, "tolerance": 1e-9, "batch_idx": INDEX, "on_failure": "ignore"}
    got, want = both(lambda: minimize_functional(saddle, start, **options), taken)
    equal(got, want, ("state", "energy", "iterations", "status"))


def test_a_linear_solve_meets_negative_curvature(generator, taken):
    """The preconditioned right side where that happens at once, the last iterate where it happens later."""
    batch = Segments.of(torch.tensor([0, 0, 0, 1, 1, 1, 2, 2]), 3)
    diagonal = torch.tensor([1.0, 2.0, 3.0, -1.0, -2.0, -1.5, 0.5, -0.1], dtype=F64)
    right = torch.randn(8, generator=generator, dtype=F64)
    right[7] *= 1e-2
    got, want = both(lambda: conjugate_gradient_solve(lambda v: diagonal * v, right, batch, 1e-10, 20), taken)
    assert want.status.tolist() == [Status.CONVERGED, Status.INDEFINITE, Status.INDEFINITE]
    torch.testing.assert_close(got.x[3:6], right[3:6])
    equal(got, want, ("x", "residual", "iterations", "status", "evaluations"))
