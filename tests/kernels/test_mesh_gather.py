"""Gathering: both paths against the reference, with derivatives; the adjoint of spreading."""

import pytest
import torch
from tolerances import assert_close

from kernels.meshes import F64, mesh_problem
from kernels.problems import DTYPES, PATHS, derivatives, scattered
from kernels.test_mesh_spread import MESHES, place, spread
from scfmlip_kernels import mesh_gather
from scfmlip_kernels.lattice import monomial_count
from scfmlip_kernels.mesh import blocks, place_atoms
from scfmlip_kernels.mesh_gather.reference import mesh_gather_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")


def gather(problem, rank, values=None, coords=None):
    coords = problem.coords if coords is None else coords
    values = problem.values if values is None else values
    return mesh_gather(coords, values, problem.grid, place_atoms(coords, problem.grid), rank)


def reference(problem, rank, values=None, coords=None):
    coords = problem.coords.cpu() if coords is None else coords
    values = problem.values.cpu() if values is None else values
    grid = problem.grid
    return mesh_gather_reference(coords, values, grid.shapes, problem.system, grid.order, rank)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("meshes", MESHES)
@pytest.mark.parametrize("path", PATHS)
def test_values(path, meshes, rank, dtype, generator, device):
    problem = mesh_problem(*MESHES[meshes], 4, 0, generator, place(path, device))
    got = gather(problem, rank, problem.values.to(dtype))
    assert got.dtype == dtype
    assert_close(got.cpu(), reference(problem, rank))


@pytest.mark.parametrize("order", [2, 6, 8, pytest.param(12, marks=pytest.mark.slow)])
def test_orders(order, generator):
    shapes = [(order, order + 1, 2 * order), (13, 12, 31)]
    problem = mesh_problem([7, 9], shapes, order, 0, generator)
    rank = min(order - 2, 3)
    assert_close(gather(problem, rank), reference(problem, rank), 1e-11)


@pytest.mark.parametrize("n_atoms", [63, 64, 65, 200])
def test_crowded_blocks(n_atoms, generator, monkeypatch):
    monkeypatch.setattr(blocks, "_KEPT_BYTES", 0)
    monkeypatch.setattr(blocks, "_MOST", 16)
    problem = mesh_problem([n_atoms], [(6, 6, 7)], 6, 0, generator)
    problem.coords = 0.1 * problem.coords
    assert_close(gather(problem, 1), reference(problem, 1), 1e-11)


@pytest.mark.interpreter
@pytest.mark.parametrize("n_atoms", [3, 4, 5, 9])
def test_block_edges(n_atoms, generator, device):
    """Blocks of 4 atoms in float64."""
    problem = mesh_problem([n_atoms], [(6, 6, 7)], 6, 0, generator, device, channels=1)
    assert_close(gather(problem, 1).cpu(), reference(problem, 1))


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("path", PATHS)
def test_adjoint_of_spreading(path, rank, generator, device):
    """<values, spread m> = <gather values, m>."""
    problem = mesh_problem(*MESHES["ragged"], 4, rank, generator, place(path, device), channels=1)
    left = (problem.values * spread(problem)).sum()
    right = gather(problem, rank) * problem.moments
    assert float((left - right.sum()).abs() / right.abs().sum()) < 1e-14


@pytest.mark.parametrize("path", PATHS)
def test_derivatives_up_to_the_third(path, generator, device):
    problem = mesh_problem([3], [(6, 6, 7)], 6, 0, generator, place(path, device), channels=1)
    x, v = problem.coords.clone().requires_grad_(), problem.values.clone().requires_grad_()
    got = derivatives(gather(problem, 0, v, x) ** 2, (x, v), 3)
    x, v = problem.coords.cpu().requires_grad_(), problem.values.cpu().requires_grad_()
    want = derivatives(reference(problem, 0, v, x) ** 2, (x, v), 3)
    for a, b in zip(got, want, strict=True):
        assert_close(a.cpu(), b, 1e-10)


def test_a_derivative_is_the_next_rank(generator):
    problem = mesh_problem([4, 3], [(8, 9, 7)] * 2, 6, 0, generator, channels=1)
    x = problem.coords.requires_grad_()
    (gradient,) = torch.autograd.grad(gather(problem, 0).sum(), x)
    assert_close(gradient, gather(problem, 1)[:, 0, 1:])


def test_opcheck(generator):
    torch.use_deterministic_algorithms(False)
    problem = mesh_problem([3, 0, 2], [(4, 6, 5)] * 3, 4, 0, generator)
    grid, inputs = problem.grid, (problem.coords.requires_grad_(), problem.values.requires_grad_())
    tables = (*problem.places(), grid.table, grid.atom_system, grid.shapes, grid.block, grid.order)
    torch.library.opcheck(torch.ops.scfmlip.mesh_gather.default, (*inputs, *tables, 1))


@pytest.mark.parametrize("path", PATHS)
def test_not_contiguous(path, generator, device):
    problem = mesh_problem([4], [(6, 5, 8)], 4, 0, generator, place(path, device))
    coords, values = scattered(problem.coords), scattered(problem.values)
    assert_close(gather(problem, 1, values, coords).cpu(), reference(problem, 1))


def test_at_other_points(generator):
    """A mesh of the atoms at points that are no atoms, in other numbers per system."""
    problem = mesh_problem([2, 3], [(6, 7, 8), (9, 6, 6)], 6, 0, generator)
    problem.system = torch.arange(2).repeat_interleave(torch.tensor([17, 4]))
    problem.grid = problem.grid.at_points(problem.system)
    problem.coords = 9 * torch.randn(21, 3, generator=generator, dtype=F64)
    assert_close(gather(problem, 1), reference(problem, 1))


def test_no_atoms_and_no_channels(generator):
    problem = mesh_problem([0], [(4, 4, 4)], 4, 0, generator)
    assert gather(problem, 1).shape == (0, 2, 4)
    problem = mesh_problem([2], [(4, 4, 4)], 4, 0, generator)
    assert gather(problem, 1, problem.values[:0]).shape == (2, 0, monomial_count(1))


def test_refuses(generator):
    problem = mesh_problem([3], [(4, 5, 6)], 4, 0, generator)
    with pytest.raises(NotImplementedError, match="mesh_gather: splines of order 4 have 2 continuous"):
        gather(problem, 3)
    with pytest.raises(ValueError, match=r"mesh_gather: values must be \[n_channels, 120\]"):
        gather(problem, 1, problem.values[:, 1:])
    with pytest.raises(ValueError, match="mesh_gather: rank must be"):
        gather(problem, -1)
    x = problem.coords.requires_grad_()
    value = gather(problem, 2)
    with pytest.raises(NotImplementedError, match="use a higher order"):
        torch.autograd.grad(value.sum(), x)
