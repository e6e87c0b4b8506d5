"""Lattice fields: both paths against the reference, with derivatives, at every edge of chunk and block."""

import pytest
import torch
from tolerances import assert_close

from kernels.problems import (
    DTYPES,
    PATHS,
    derivatives,
    lattice_problem,
    random_cells,
    scattered,
    submodule,
)
from scfmlip_kernels import lattice_field, recent, structure_factor
from scfmlip_kernels.lattice import grid_at_points, monomials
from scfmlip_kernels.lattice_field.reference import lattice_field_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64


def reference(problem, rank):
    tables = (problem.miller, problem.point_system, problem.atom_system.cpu())
    return lattice_field_reference(problem.frac.cpu(), problem.coefficients.cpu(), *tables, rank)


def assert_equal_by_degree(got, want, rank, tolerance=None):
    """Every degree against its own scale: a potential must not hide behind its derivatives."""
    assert got.shape == want.shape
    degrees = torch.tensor([sum(m) for m in monomials(rank)])
    for degree in range(rank + 1):
        assert_close(got.cpu()[..., degrees == degree], want[..., degrees == degree], tolerance)


def place(path, device):
    return "cpu" if path == "cpu" else device


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("path", PATHS)
def test_values(path, rank, dtype, generator, device):
    problem = lattice_problem([5, 0, 17, 1], 0, generator, place(path, device))
    got = lattice_field(problem.frac, problem.coefficients, problem.grid, rank, dtype)
    assert got.dtype == dtype
    assert_equal_by_degree(got, reference(problem, rank), rank)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("path", PATHS)
def test_adjoint_of_the_structure_factor(path, rank, dtype, generator, device):
    """<P, S m> = <V P, m> over the half sphere, whatever the numbers."""
    problem = lattice_problem([6, 0, 9], rank, generator, place(path, device))
    moments = problem.moments.to(dtype)
    sums = structure_factor(problem.frac, moments, problem.grid)
    left = (problem.coefficients * sums)[problem.grid.weight > 0]
    right = lattice_field(problem.frac, problem.coefficients, problem.grid, rank, dtype) * moments
    scale = right.double().abs().sum()
    error = float((left.sum() - right.double().sum()).abs() / scale)
    assert error < {torch.float32: 2e-7, F64: 1e-14}[dtype]


@pytest.mark.parametrize("path", PATHS)
def test_a_batch_is_its_systems(path, generator, device):
    where = place(path, device)
    sizes = [3, 0, 9]
    cells = random_cells(3, generator)
    batch = lattice_problem(sizes, 0, generator, where, cells=cells)
    together = lattice_field(batch.frac, batch.coefficients, batch.grid, 1, F64).cpu()
    for i, n in enumerate(sizes):
        alone = lattice_problem([n], 0, generator, where, cells=cells[i : i + 1])
        atoms, points = batch.atom_system == i, batch.grid.system == i
        value = lattice_field(batch.frac[atoms], batch.coefficients[points], alone.grid, 1, F64)
        assert_close(together[atoms.cpu()], value.cpu())


@pytest.mark.parametrize("path", PATHS)
def test_zero_atoms_and_zero_channels(path, generator, device):
    problem = lattice_problem([0, 0], 0, generator, place(path, device))
    assert lattice_field(problem.frac, problem.coefficients, problem.grid, 1, F64).shape == (0, 2, 4)
    problem = lattice_problem([3], 0, generator, place(path, device))
    none = problem.coefficients[:, :0]
    assert lattice_field(problem.frac, none, problem.grid, 1, F64).shape == (3, 0, 4)


@pytest.mark.parametrize("path", PATHS)
def test_a_cell_with_the_origin_only(path, generator, device):
    cells = 0.5 * torch.eye(3, dtype=F64)[None]
    problem = lattice_problem([3], 0, generator, place(path, device), cells=cells)
    assert problem.grid.n_points == 1
    got = lattice_field(problem.frac, problem.coefficients, problem.grid, 1, F64)
    assert_close(got[..., 0].cpu(), problem.coefficients[:, :, 0].cpu().expand(3, 2))
    assert not got[..., 1:].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_atoms", [63, 64, 65, 129])
def test_chunks_of_atoms(n_atoms, dtype, generator, monkeypatch):
    monkeypatch.setattr("scfmlip_kernels.lattice.waves._CHUNK_BYTES", 1)  # chunks of 64
    monkeypatch.setattr("scfmlip_kernels.lattice.waves._PHASE_BYTES", 0)  # or phases are stored
    recent.clear()
    problem = lattice_problem([2, n_atoms], 0, generator)
    got = lattice_field(problem.frac, problem.coefficients, problem.grid, 1, dtype)
    assert_equal_by_degree(got, reference(problem, 1), 1)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("path", PATHS)
def test_several_boxes(path, rank, generator, device, monkeypatch):
    monkeypatch.setattr("scfmlip_kernels.lattice.grid._WORK_WORTH_A_BOX", 1)
    problem = lattice_problem([7, 4], 0, generator, place(path, device), cutoff=4.5)
    assert path == "cpu" or len(problem.grid.boxes) >= 6
    got = lattice_field(problem.frac, problem.coefficients, problem.grid, rank, F64)
    assert_equal_by_degree(got, reference(problem, rank), rank)


@pytest.mark.interpreter
@pytest.mark.parametrize("n_atoms", [15, 16, 17, 33])
@pytest.mark.parametrize("n_l", [15, 16, 17])
def test_block_edges(n_l, n_atoms, generator, device):
    """Blocks of 16 atoms, 16 values of l and 16 rows: one less, one more, one and a bit."""
    cells = torch.diag(torch.tensor([3.0, 2.0, 2.0 * n_l + 0.5], dtype=F64))[None]
    problem = lattice_problem([n_atoms], 0, generator, device, channels=1, cutoff=3.15, cells=cells)
    assert int(problem.miller[:, 2].max()) == n_l
    got = lattice_field(problem.frac, problem.coefficients, problem.grid, 1, F64)
    assert_equal_by_degree(got, reference(problem, 1), 1)


@pytest.mark.interpreter
@pytest.mark.parametrize("n_k", [7, 8])
def test_row_block_edges(n_k, generator, device):
    """15 and 17 rows of one plane, then two planes."""
    for first in (1.5, 2.1):
        cells = torch.diag(torch.tensor([first, 2.0 * n_k + 0.5, 2.0], dtype=F64))[None]
        problem = lattice_problem([3], 0, generator, device, channels=1, cutoff=3.15, cells=cells)
        assert int(problem.miller[:, 1].max()) == n_k
        got = lattice_field(problem.frac, problem.coefficients, problem.grid, 2, F64)
        assert_equal_by_degree(got, reference(problem, 2), 2)


@pytest.mark.interpreter
@pytest.mark.parametrize("sizes", [[18, 0, 2], [1], [3, 3]])
def test_splits_of_the_rows(sizes, generator, device, monkeypatch):
    """More splits than a system has row tiles, too: theirs must come back as 0."""
    monkeypatch.setattr(submodule("lattice_field.kernel"), "splits_for", lambda *_: 3)
    problem = lattice_problem(sizes, 0, generator, device)
    got = lattice_field(problem.frac, problem.coefficients, problem.grid, 1, F64)
    assert_equal_by_degree(got, reference(problem, 1), 1)


@pytest.mark.parametrize("path", PATHS)
def test_at_other_points(path, generator, device):
    """A field of the atoms' grid at points that are no atoms, in other numbers per system."""
    problem = lattice_problem([2, 3], 0, generator, place(path, device))
    sizes = [17, 4]
    point_ptr = torch.tensor([0, 17, 21])
    problem.grid = grid_at_points(problem.grid, point_ptr)
    problem.frac = torch.randn(21, 3, generator=generator, dtype=F64).to(problem.frac)
    problem.atom_system = torch.arange(2).repeat_interleave(torch.tensor(sizes))
    got = lattice_field(problem.frac, problem.coefficients, problem.grid, 1, F64)
    assert_equal_by_degree(got, reference(problem, 1), 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
def test_derivatives_up_to_the_third(path, dtype, generator, device):
    problem = lattice_problem([4, 0, 2], 0, generator, place(path, device), channels=1, cutoff=1.8)
    u, p = problem.frac.clone().requires_grad_(), problem.coefficients.clone().requires_grad_()
    weight = problem.grid.weight[:, None, None]
    got = derivatives(lattice_field(u, weight * p, problem.grid, 1, dtype).to(F64) ** 2, (u, p), 3)
    u = problem.frac.cpu().requires_grad_()
    p = problem.coefficients.cpu().requires_grad_()
    tables = (problem.miller, problem.point_system, problem.atom_system.cpu())
    value = lattice_field_reference(u, weight.cpu() * p, *tables, 1)
    want = derivatives(value**2, (u, p), 3)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == F64
        assert_close(a.cpu().to(dtype), b)


def test_a_derivative_is_the_next_rank(generator):
    """Rank 1 holds (1 / 2 pi) dV/du, as documented."""
    problem = lattice_problem([4, 3], 0, generator, channels=1)
    u = problem.frac.requires_grad_()
    value = lattice_field(u, problem.coefficients, problem.grid, 0, F64)
    (gradient,) = torch.autograd.grad(value.sum(), u)
    field = lattice_field(u, problem.coefficients, problem.grid, 1, F64)
    assert_close(gradient, 2 * torch.pi * field[:, 0, 1:])


def test_gradcheck(generator):
    problem = lattice_problem([1, 1], 0, generator, channels=1, cutoff=1.2)
    inputs = (problem.frac.requires_grad_(), problem.coefficients.requires_grad_())

    def value(u, p):
        return lattice_field(u, problem.grid.weight[:, None, None] * p, problem.grid, 1, F64)

    assert torch.autograd.gradcheck(value, inputs)
    assert torch.autograd.gradgradcheck(value, inputs)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_gradient_in_one_argument_only(wanted, generator):
    problem = lattice_problem([3], 0, generator)
    grads = []
    for wants in (wanted, (True, True)):
        u, p = problem.frac.clone(), problem.coefficients.clone()
        u.requires_grad_(wants[0])
        p.requires_grad_(wants[1])
        field = lattice_field(u, p, problem.grid, 1, F64)
        torch.sin(field).sum().backward()
        grads.append((u.grad, p.grad))
    for one, both, wants in zip(*grads, wanted, strict=True):
        assert (one is None) != wants
        if wants:
            assert_close(one, both)


@pytest.mark.parametrize("rank", [0, 2])
def test_opcheck(rank, generator):
    torch.use_deterministic_algorithms(False)
    problem = lattice_problem([3, 0, 2], 0, generator, cutoff=1.5)
    inputs = (problem.frac.requires_grad_(), problem.coefficients.requires_grad_())
    for dtype in DTYPES:
        arguments = (*inputs, *problem.grid.tables, problem.grid.n_points, rank, dtype)
        torch.library.opcheck(torch.ops.scfmlip.lattice_field.default, arguments)


@pytest.mark.parametrize("path", PATHS)
def test_not_contiguous(path, generator, device):
    problem = lattice_problem([5, 3], 0, generator, place(path, device))
    frac, coefficients = scattered(problem.frac), scattered(problem.coefficients)
    assert not coefficients.is_contiguous()
    frac.requires_grad_()
    coefficients.requires_grad_()
    value = lattice_field(frac, coefficients, problem.grid, 1, F64)
    assert_equal_by_degree(value, reference(problem, 1), 1)
    # an expanded gradient has strides of 0
    got = torch.autograd.grad(value.sum(), (frac, coefficients))
    u, p = problem.frac.clone().requires_grad_(), problem.coefficients.clone().requires_grad_()
    plain = lattice_field(u, p, problem.grid, 1, F64)
    want = torch.autograd.grad((plain * torch.ones_like(plain)).sum(), (u, p))
    assert_close(got[0], want[0])
    assert_close(got[1].cpu()[problem.inside], want[1].cpu()[problem.inside])


def test_refuses(generator):
    problem = lattice_problem([3], 0, generator)
    frac, p, grid = problem.frac, problem.coefficients, problem.grid
    with pytest.raises(ValueError, match="lattice_field: frac must be float64"):
        lattice_field(frac.float(), p, grid, 0, F64)
    with pytest.raises(ValueError, match="coefficients must be float64"):
        lattice_field(frac, p.float(), grid, 0, F64)
    with pytest.raises(ValueError, match=rf"\[{grid.n_points}, n_channels, 2\]"):
        lattice_field(frac, p[1:], grid, 0, F64)
    with pytest.raises(ValueError, match="must have 3 dimensions"):
        lattice_field(frac, p[:, 0], grid, 0, F64)
    with pytest.raises(TypeError, match="dtype must be float32 or float64"):
        lattice_field(frac, p, grid, 0, torch.float16)
    with pytest.raises(ValueError, match="one device"):
        lattice_field(frac, p.to("meta"), grid, 0, F64)


@pytest.mark.parametrize("wrong", ["parts", "atoms"])
def test_refuses_sizes_that_do_not_fit(wrong, generator):
    """Shapes that do not fit together raise; unspecified rows must not come back as numbers."""
    problem = lattice_problem([4], 0, generator)
    frac, p = problem.frac, problem.coefficients
    if wrong == "parts":
        p = torch.cat((p, p), -1)
    else:
        frac = torch.cat((frac, frac))
    with pytest.raises(ValueError, match="lattice_field"):
        lattice_field(frac, p, problem.grid, 1, F64)
