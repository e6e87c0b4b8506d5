"""Sums over atoms in a step of the solvers: each is a message where ranks share a system."""

from itertools import pairwise

import torch
from tolerances import assert_close

from scfmlip.scf.solvers.gmres import gmres
from scfmlip.scf.solvers.recursion import ConjugateDirections, GivenSum
from scfmlip.segments import Segments

F64 = torch.float64
N = 12
counts = []


class Counted(Segments):
    def sum(self, values):
        counts.append(values.shape)
        return super().sum(values)


def one_system():
    plain = Segments.of(torch.zeros(N, dtype=torch.int64), 1)
    return Counted(plain.ptr, plain.index)


def positive(generator):
    a = torch.randn(N, N, generator=generator, dtype=F64)
    return a @ a.T + torch.eye(N, dtype=F64)


def test_two_sums_a_step_of_conjugate_gradients(generator):
    """Curvature and mean, then norms and products; charges of one sum, and a preconditioner that is not 1."""
    a, b = positive(generator), torch.randn(N, generator=generator, dtype=F64) + 1e3
    charges = (torch.arange(N) % 3 == 0).double()
    diagonal = 1 / a.diagonal()
    along = diagonal * charges
    given = GivenSum(charges, charges.sum()[None], along, (charges * along).sum()[None])
    walk = ConjugateDirections(
        one_system(), lambda v: a @ v, lambda v: diagonal * v, torch.zeros_like(b), b, given=given
    )
    for _ in range(N):
        counts.clear()
        walk.look()
        walk.move(walk.curvature > 0)
        walk.turn(walk.curvature > 0)
        assert len(counts) == 2
    # the minimum with charges of sum 0, by its Lagrangian
    bordered = torch.zeros(N + 1, N + 1, dtype=F64)
    bordered[:N, :N], bordered[:N, N], bordered[N, :N] = a, charges, charges
    want = torch.linalg.solve(bordered, torch.cat((-b, torch.zeros(1, dtype=F64))))[:N]
    assert_close(walk.x, want, 1e-9)
    assert float(walk.norms[0]) < 1e-9 * float(b.norm())
    assert_close(walk.norms[1, 0], walk.slope.norm(), 1e-12)


def test_two_sums_a_step_of_gmres(generator):
    a, b = positive(generator), torch.randn(N, generator=generator, dtype=F64)
    steps = []

    def apply(v):
        steps.append(len(counts))
        return a @ v

    counts.clear()
    result = gmres(apply, b, one_system(), 1e-12, N)
    assert_close(result.x, torch.linalg.solve(a, b), 1e-9)
    assert {later - sooner for sooner, later in pairwise(steps)} == {2}
