"""Spreading: both paths against the reference, with derivatives, on meshes of every size and shape."""

import pytest
import torch
from tolerances import assert_close

from kernels.meshes import F64, mesh_problem
from kernels.problems import DTYPES, PATHS, derivatives, scattered
from scfmlip_kernels import mesh_spread
from scfmlip_kernels.mesh import blocks, place_atoms, spline_weights
from scfmlip_kernels.mesh_spread.reference import mesh_spread_reference, spline

pytestmark = pytest.mark.usefixtures("empty_is_nan")

MESHES = {"one": ([5], [(6, 5, 17)]), "ragged": ([3, 0, 4], [(4, 5, 6), (8, 4, 4), (4, 4, 18)])}


def place(path, device):
    return "cpu" if path == "cpu" else device


def spread(problem, moments=None, coords=None):
    coords = problem.coords if coords is None else coords
    moments = problem.moments if moments is None else moments
    return mesh_spread(coords, moments, problem.grid, place_atoms(coords, problem.grid))


def reference(problem, moments=None, coords=None):
    coords = problem.coords.cpu() if coords is None else coords
    moments = problem.moments.cpu() if moments is None else moments
    return mesh_spread_reference(coords, moments, problem.grid.shapes, problem.system, problem.grid.order)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("meshes", MESHES)
@pytest.mark.parametrize("path", PATHS)
def test_values(path, meshes, rank, dtype, generator, device):
    problem = mesh_problem(*MESHES[meshes], 4, rank, generator, place(path, device), channels=1)
    got = spread(problem, problem.moments.to(dtype))
    assert got.dtype == dtype
    assert_close(got.cpu(), reference(problem))


@pytest.mark.parametrize("order", [2, 6, 8, pytest.param(12, marks=pytest.mark.slow)])
def test_orders(order, generator):
    """Meshes down to as many points as a spline has."""
    shapes = [(order, order + 1, 2 * order), (13, 12, 31)]
    problem = mesh_problem([7, 9], shapes, order, min(order - 2, 3), generator)
    assert_close(spread(problem), reference(problem), 1e-11)


@pytest.mark.parametrize("n_atoms", [63, 64, 65, 200])
def test_crowded_blocks(n_atoms, generator, monkeypatch):
    """More atoms in a block than one product takes, and vectors that are made anew each time."""
    monkeypatch.setattr(blocks, "_KEPT_BYTES", 0)
    monkeypatch.setattr(blocks, "_MOST", 16)
    problem = mesh_problem([n_atoms], [(6, 6, 7)], 6, 1, generator)
    problem.coords = 0.1 * problem.coords
    assert_close(spread(problem), reference(problem), 1e-11)


@pytest.mark.interpreter
def test_blocks_of_a_kernel(generator, device):
    """Several blocks along every axis, the last ones cut short."""
    problem = mesh_problem([9], [(9, 6, 18)], 6, 0, generator, device, channels=1)
    assert_close(spread(problem).cpu(), reference(problem))


def test_charge_is_conserved(generator):
    """Splines add up to 1, and their derivatives to 0."""
    problem = mesh_problem([8], [(9, 10, 12)], 6, 1, generator)
    assert_close(spread(problem).sum(1), problem.moments[..., 0].sum(0))


def test_splines(generator):
    """Against the recursion anywhere; each derivative against autograd's of the one below."""
    t = torch.rand(5, generator=generator, dtype=F64, requires_grad=True)
    weights = spline_weights(t, 8, 3)
    for j in range(8):
        for r in range(4):
            assert_close(weights[:, r, j], spline(t + 3 - j, 8, r), 1e-11)
    for r in range(3):
        (slope,) = torch.autograd.grad(weights[:, r, 2].sum(), t, retain_graph=True)
        assert_close(slope, weights[:, r + 1, 2], 1e-11)


@pytest.mark.parametrize("path", PATHS)
def test_derivatives_up_to_the_third(path, generator, device):
    problem = mesh_problem([3], [(6, 6, 7)], 6, 0, generator, place(path, device), channels=1)
    x, m = problem.coords.clone().requires_grad_(), problem.moments.clone().requires_grad_()
    got = derivatives(spread(problem, m, x) ** 2, (x, m), 3)
    x, m = problem.coords.cpu().requires_grad_(), problem.moments.cpu().requires_grad_()
    want = derivatives(reference(problem, m, x) ** 2, (x, m), 3)
    for a, b in zip(got, want, strict=True):
        assert_close(a.cpu(), b, 1e-10)


def test_gradcheck(generator):
    problem = mesh_problem([1, 2], [(8, 8, 9), (9, 8, 8)], 8, 1, generator, channels=1)
    inputs = (problem.coords.requires_grad_(), problem.moments.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, m: spread(problem, m, x), inputs)
    assert torch.autograd.gradgradcheck(lambda x, m: spread(problem, m, x), inputs, atol=1e-4)


def test_opcheck(generator):
    torch.use_deterministic_algorithms(False)
    problem = mesh_problem([3, 0, 2], [(4, 6, 5)] * 3, 4, 0, generator)
    grid, inputs = problem.grid, (problem.coords.requires_grad_(), problem.moments.requires_grad_())
    tables = (*problem.places(), grid.table, grid.atom_system, grid.shapes, grid.block, grid.order)
    torch.library.opcheck(torch.ops.scfmlip.mesh_spread.default, (*inputs, *tables))


@pytest.mark.parametrize("path", PATHS)
def test_not_contiguous(path, generator, device):
    problem = mesh_problem([4], [(6, 5, 8)], 4, 1, generator, place(path, device), channels=1)
    coords, moments = scattered(problem.coords), scattered(problem.moments)
    assert_close(spread(problem, moments, coords).cpu(), reference(problem))


def test_no_atoms_and_no_channels(generator):
    problem = mesh_problem([0], [(4, 4, 4)], 4, 0, generator)
    assert not spread(problem).any()
    problem = mesh_problem([2], [(4, 4, 4)], 4, 0, generator)
    assert spread(problem, problem.moments[:, :0]).shape == (0, 64)


def test_refuses(generator):
    problem = mesh_problem([3], [(4, 5, 6)], 4, 1, generator)
    with pytest.raises(NotImplementedError, match="mesh_spread: splines of order 4 have 2 continuous"):
        spread(problem, torch.zeros(3, 1, 20, dtype=F64))
    with pytest.raises(ValueError, match="mesh_spread: coords must be float64"):
        spread(problem, coords=problem.coords.float())
    with pytest.raises(ValueError, match="mesh_spread: 2 rows of moments for 3"):
        spread(problem, problem.moments[:2])
    with pytest.raises(TypeError, match="moments must be float32 or float64"):
        spread(problem, problem.moments.half())
    with pytest.raises(ValueError, match="make places with place_atoms"):
        mesh_spread(problem.coords[:2], problem.moments[:2], problem.grid, problem.places())
    with pytest.raises(TypeError, match="places from place_atoms"):
        mesh_spread(problem.coords, problem.moments, problem.grid, None)
    with pytest.raises(ValueError, match="order must be even, 2 to 20, got 5"):
        mesh_problem([1], [(8, 8, 8)], 5, 0, generator)
    with pytest.raises(ValueError, match=r"at least 6 \(the order of the splines\), got \(8, 5, 8\)"):
        mesh_problem([1], [(8, 5, 8)], 6, 0, generator)
