"""Krylov spaces of ragged batches: solves, and the approximate inverses that later solves start from."""

import pytest
import torch
from tolerances import assert_close

from scfmlip.scf import Status
from scfmlip.scf.convergence import make_criterion
from scfmlip.scf.implicit import RootOptions, _solve_and_check
from scfmlip.scf.solvers.gmres import gmres
from scfmlip.scf.solvers.newton import bracket_potential, newton
from scfmlip.segments import Segments

F64 = torch.float64
SIZES = (12, 30)
INDEX = torch.repeat_interleave(torch.arange(2), torch.tensor(SIZES))
BLOCKS = (INDEX[:, None] == INDEX[None]).double()
BATCH = Segments.of(INDEX, 2)


def response(generator, modes=4):
    """Minus one and a few strong modes, not symmetric, nothing between systems: a residual's derivative."""
    n = len(INDEX)
    left = torch.randn(n, modes, generator=generator, dtype=F64)
    right = torch.randn(n, modes, generator=generator, dtype=F64)
    noise = 0.01 * torch.randn(n, n, generator=generator, dtype=F64)
    return (-torch.eye(n, dtype=F64) - 0.3 * left @ right.T + noise) * BLOCKS


def test_an_exhausted_space_holds_the_inverse(generator):
    matrix, right = response(generator), torch.randn(len(INDEX), generator=generator, dtype=F64)
    result = gmres(lambda v: matrix @ v, right, BATCH, 1e-12, 40)
    inverse = result.inverse
    assert_close(matrix @ result.x, right, 1e-10)
    assert_close(inverse(right), result.x, 1e-9)


def test_the_transpose_is_that_of_the_inverse(generator):
    matrix = response(generator)
    first, second, a, b = torch.randn(4, len(INDEX), generator=generator, dtype=F64)
    result = gmres(lambda v: matrix @ v, first, BATCH, 1e-2, 40)
    again = gmres(lambda v: matrix @ v, second, BATCH, 1e-2, 40, inverse=result.inverse)
    for inverse in (result.inverse, again.inverse):
        assert_close(BATCH.dot(a, inverse(b)), BATCH.dot(inverse.transposed(a), b), 1e-12)
    assert again.inverse.first is result.inverse


@pytest.mark.parametrize("transposed", [False, True])
def test_a_space_makes_the_next_solve_shorter(transposed, generator):
    matrix = response(generator, 10)
    first, second = torch.randn(2, len(INDEX), generator=generator, dtype=F64)
    inverse = gmres(lambda v: matrix @ v, first, BATCH, 1e-6, 40).inverse
    # what solves with nearly the same matrix follow: of the next Newton step, or of the adjoint
    near = matrix + 1e-4 * response(generator)
    near = near.T if transposed else near
    plain = gmres(lambda v: near @ v, second, BATCH, 1e-9, 40)
    helped = gmres(lambda v: near @ v, second, BATCH, 1e-9, 40, inverse=inverse, transposed=transposed)
    assert_close(near @ helped.x, second, 1e-8)
    assert_close(helped.x, plain.x, 1e-8)
    assert helped.evaluations < 0.7 * plain.evaluations


def test_systems_have_their_own_tolerance(generator):
    matrix, right = response(generator), torch.randn(len(INDEX), generator=generator, dtype=F64)
    wanted = torch.tensor([1e-2, 1e-9], dtype=F64)
    result = gmres(lambda v: matrix @ v, right, BATCH, wanted, 40)
    assert bool((BATCH.norm(matrix @ result.x - right) <= 1.01 * wanted * BATCH.norm(right)).all())
    assert result.iterations[0] < result.iterations[1]


def test_a_matrix_that_loses_a_direction_has_a_bounded_inverse(generator):
    matrix = response(generator)
    lost = torch.zeros(len(INDEX), dtype=F64)
    lost[0] = 1.0
    matrix = matrix @ (torch.eye(len(INDEX), dtype=F64) - torch.outer(lost, lost))
    right = torch.randn(len(INDEX), generator=generator, dtype=F64)
    inverse = gmres(lambda v: matrix @ v, right, BATCH, 1e-12, 40).inverse
    assert inverse(right).norm() < 1e6 * right.norm()


def test_a_system_that_is_not_finite_leaves_the_others_alone(generator):
    matrix, right = response(generator), torch.randn(len(INDEX), generator=generator, dtype=F64)
    broken = torch.where(INDEX == 0, torch.nan, 1.0)
    result = gmres(lambda v: broken * (matrix @ v), right, BATCH, 1e-10, 40)
    assert result.status.tolist() == [Status.NOT_FINITE, Status.CONVERGED]
    assert_close((matrix @ result.x)[INDEX == 1], right[INDEX == 1], 1e-9)


def test_nothing_to_solve(generator):
    matrix = response(generator)
    right = torch.where(INDEX == 0, 0.0, torch.randn(len(INDEX), generator=generator, dtype=F64))
    result = gmres(lambda v: matrix @ v, right, BATCH, 1e-10, 40)
    assert not result.x[INDEX == 0].any()
    assert_close(matrix @ result.x, right, 1e-9)
    nothing = gmres(lambda v: matrix @ v, torch.zeros_like(right), BATCH, 1e-10, 40)
    assert not nothing.x.any()
    assert nothing.evaluations == 0


def test_newton_reuses_what_it_has_learnt(generator):
    matrix, source = response(generator, 8), torch.randn(len(INDEX), generator=generator, dtype=F64)
    count = 0

    def function(x):
        nonlocal count
        count += 1
        return matrix @ x + 0.1 * torch.tanh(x) + source

    start = torch.zeros_like(source)
    criterion = make_criterion(BATCH, 1e-10, F64, None, source, lambda: source, None)
    result = newton(function, start, criterion, 30, 40, affine=False)
    assert bool((result.residual <= 1e-10).all())
    assert result.evaluations == count
    # one Krylov space of at most 42 unknowns, and little more
    alone = gmres(lambda v: matrix @ v, source, BATCH, 1e-10, 40).evaluations
    assert count < 2.5 * alone
    # two at most, one after the other: what rounding does to differences grows with every one
    assert result.inverse.first is None or result.inverse.first.first is None


def test_a_far_level_is_found_by_its_response():
    evaluations = 0

    def missing(level):
        nonlocal evaluations
        evaluations += 1
        return torch.stack((3.0 - 0.5 * level[0], -4.0 - torch.tanh(0.1 * level[1]) - 0.3 * level[1]))

    found, count = bracket_potential(missing, torch.zeros(2, dtype=F64))
    assert evaluations == count == 3
    assert abs(float(found[0]) - 6) < 1e-9
    assert abs(float(missing(found)[1])) < 2


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_an_adjoint_survives_a_wrong_inverse(dtype, generator):
    matrix, right = response(generator), torch.randn(len(INDEX), generator=generator, dtype=F64)
    # from another matrix, nearly singular: products with it are large and their rounding too
    other = response(generator) @ torch.diag(torch.logspace(0, -7, len(INDEX), dtype=F64))
    wrong = gmres(lambda v: other @ v, right, BATCH, 1e-12, 40).inverse
    options = RootOptions("test", 1e-5, 60, "raise", inverse=lambda: wrong)
    result = _solve_and_check(
        lambda v: (matrix.to(dtype) @ v.to(dtype)).double(), right.to(dtype), BATCH, options
    )
    assert result.status.tolist() == [Status.CONVERGED] * 2
    assert_close(matrix @ result.x, right, 1e-4)
