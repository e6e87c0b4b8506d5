"""Transforms between meshes and waves: definitions, adjoints, derivatives; the window of the splines."""

import math

import pytest
import torch
from tolerances import assert_close

from kernels.meshes import F64, mesh_problem
from kernels.test_mesh_spread import spread
from scfmlip_kernels import mesh_values, mesh_waves
from scfmlip_kernels.mesh import smooth_size, window

SHAPES = [[(4, 5, 6)], [(3, 4, 5), (2, 2, 2), (5, 3, 4)]]


def grids(shapes, generator):
    problem = mesh_problem([0] * len(shapes), shapes, 2, 0, generator)
    waves = torch.randn(2, problem.grid.n_waves, 2, generator=generator, dtype=F64)
    return problem.grid, problem.values, waves


@pytest.mark.parametrize("shapes", SHAPES)
def test_definitions(shapes, generator):
    """Sums over all points and all waves of the half, one system after another."""
    grid, values, waves = grids(shapes, generator)
    got, back, point = mesh_waves(values, grid.shapes), mesh_values(waves, grid.shapes), 0
    for i, shape in enumerate(shapes):
        points = torch.cartesian_prod(*(torch.arange(n, dtype=F64) / n for n in shape))
        mine = slice(int(grid.point_ptr[i]), int(grid.point_ptr[i + 1]))
        phase = 2 * math.pi * grid.miller[mine].double() @ points.T
        cos, sin = phase.cos(), phase.sin()
        v = values[:, point : point + len(points)]
        assert_close(got[:, mine], torch.stack((v @ cos.T, -v @ sin.T), -1))
        w = waves[:, mine]
        assert_close(back[:, point : point + len(points)], w[..., 0] @ cos - w[..., 1] @ sin)
        point += len(points)


@pytest.mark.parametrize("shapes", SHAPES)
def test_adjoint(shapes, generator):
    grid, values, waves = grids(shapes, generator)
    left = (mesh_waves(values, grid.shapes) * waves).sum()
    assert_close(left, (values * mesh_values(waves, grid.shapes)).sum())


def test_derivatives(generator):
    grid, values, waves = grids(SHAPES[1], generator)
    for op, given in ((mesh_waves, values), (mesh_values, waves)):
        given.requires_grad_()
        assert torch.autograd.gradcheck(lambda v, op=op: op(v, grid.shapes), given)
        assert torch.autograd.gradgradcheck(lambda v, op=op: op(v, grid.shapes), given)
        torch.library.opcheck(getattr(torch.ops.scfmlip, op.__name__).default, (given, grid.shapes))


def test_vmap(generator):
    grid, values, waves = grids(SHAPES[1], generator)
    for op, given in ((mesh_waves, values), (mesh_values, waves)):
        batch = torch.stack((given, 2 * given), 1)
        got = torch.vmap(lambda v, op=op: op(v, grid.shapes), in_dims=1)(batch)
        assert_close(got, torch.stack((op(given, grid.shapes), op(2 * given, grid.shapes))))


def test_halves(generator):
    """Weights count every pair of a wave and its mirror image once; waves without a direction not at all."""
    grid, *_ = grids([(4, 5, 6)], generator)
    whole = 4 * 5 * 6 - 5 * 6 - 4 * 5 + 5  # without those of two points along the first or third axis
    assert float(grid.weight.sum()) == whole / 2
    assert not grid.window[grid.weight == 0].any()


@pytest.mark.parametrize("order", [4, 8, 12])
def test_a_window_makes_structure_factors(order, generator):
    """Of long waves, to what splines of this order hold of their aliases."""
    problem = mesh_problem([5], [(32, 32, 32)], order, 0, generator, channels=1)
    grid = problem.grid
    found = mesh_waves(spread(problem), grid.shapes)[0] * grid.window[:, None]
    phase = 2 * math.pi * grid.miller.double() @ (problem.coords / 32).T
    m = problem.moments[:, 0, 0]
    want = torch.stack((phase.cos() @ m, -(phase.sin() @ m)), -1)
    largest = grid.miller.abs().amax(1)
    for n in (1, 4, 8):
        x = n / 32
        error = (found - want)[largest == n].abs().max()
        assert error < 10 * float(m.abs().sum()) * (x / (1 - x)) ** order + 1e-13


def test_window_and_sizes():
    """Splines' samples add up to what the series of sinc does."""
    turns = torch.fft.fftfreq(9, dtype=F64)
    images = torch.sinc(turns[:, None] + torch.arange(-200, 201)) ** 12
    assert_close(window(9, 6), torch.sinc(turns) ** 6 / images.sum(1))
    assert window(8, 6)[4] == 0
    assert [smooth_size(n) for n in (1, 11, 13, 97, 121)] == [1, 12, 14, 98, 125]
