"""Structure factors: both paths against the reference, with derivatives, at every edge of chunk and block."""

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
from scfmlip_kernels import recent, structure_factor
from scfmlip_kernels.structure_factor.reference import structure_factor_reference

pytestmark = pytest.mark.usefixtures("empty_is_nan")

F64 = torch.float64


def reference(problem, moments=None):
    moments = problem.moments if moments is None else moments
    return structure_factor_reference(
        problem.frac.cpu(), moments.cpu(), problem.miller, problem.point_system, problem.atom_system.cpu()
    )


def assert_equal_inside(problem, got, moments=None, tolerance=None):
    """Points of weight 0 hold anything; float32 sums come back as float64 and keep float32's tolerance."""
    moments = problem.moments if moments is None else moments
    assert got.dtype == F64
    got = got.cpu()[problem.inside]
    want = reference(problem, moments)[problem.inside]
    assert_close(got.to(moments.dtype), want, tolerance)


def place(path, device):
    return "cpu" if path == "cpu" else device


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("path", PATHS)
def test_values(path, rank, dtype, generator, device):
    problem = lattice_problem([5, 0, 17, 1], rank, generator, place(path, device))
    moments = problem.moments.to(dtype)
    assert_equal_inside(problem, structure_factor(problem.frac, moments, problem.grid), moments)


@pytest.mark.parametrize("path", PATHS)
def test_a_batch_is_its_systems(path, generator, device):
    where = place(path, device)
    sizes = [3, 0, 9]
    cells = random_cells(3, generator)
    batch = lattice_problem(sizes, 1, generator, where, cells=cells)
    together = structure_factor(batch.frac, batch.moments, batch.grid).cpu()
    for i, n in enumerate(sizes):
        alone = lattice_problem([n], 1, generator, where, cells=cells[i : i + 1])
        atoms = batch.atom_system == i
        value = structure_factor(batch.frac[atoms], batch.moments[atoms], alone.grid).cpu()
        inside = alone.inside
        assert_close(together[batch.point_system == i][inside], value[inside])


@pytest.mark.parametrize("path", PATHS)
def test_zero_atoms(path, generator, device):
    problem = lattice_problem([0, 0], 1, generator, place(path, device))
    got = structure_factor(problem.frac, problem.moments, problem.grid)
    assert got.shape == (problem.grid.n_points, 2, 2)
    assert not got.cpu()[problem.inside].any()


@pytest.mark.parametrize("path", PATHS)
def test_zero_systems(path, generator, device):
    problem = lattice_problem([], 1, generator, place(path, device))
    assert structure_factor(problem.frac, problem.moments, problem.grid).shape == (0, 2, 2)


@pytest.mark.parametrize("path", PATHS)
def test_zero_channels(path, generator, device):
    problem = lattice_problem([3], 1, generator, place(path, device))
    got = structure_factor(problem.frac, problem.moments[:, :0], problem.grid)
    assert got.shape == (problem.grid.n_points, 0, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_atom_far_outside_the_cell(dtype, generator):
    """Whole lattice vectors are no phase at all, in float32 too."""
    problem = lattice_problem([1], 1, generator, far=0.3)
    moments = problem.moments.to(dtype)
    far = problem.frac + torch.tensor([2.0**20, -(2.0**21), 3.0])
    assert_close(
        structure_factor(far, moments, problem.grid).to(dtype),
        structure_factor(problem.frac, moments, problem.grid),
        {torch.float32: 2e-7, F64: 1e-8}[dtype],  # far keeps 2^-31 of a turn
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_atoms", [63, 64, 65, 129])
def test_chunks_of_atoms(n_atoms, dtype, generator, monkeypatch):
    monkeypatch.setattr("scfmlip_kernels.lattice.waves._CHUNK_BYTES", 1)  # chunks of 64
    monkeypatch.setattr("scfmlip_kernels.lattice.waves._PHASE_BYTES", 0)  # or phases are stored
    recent.clear()
    problem = lattice_problem([n_atoms, 2], 1, generator)
    moments = problem.moments.to(dtype)
    assert_equal_inside(problem, structure_factor(problem.frac, moments, problem.grid), moments)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("path", PATHS)
def test_several_boxes(path, rank, generator, device, monkeypatch):
    monkeypatch.setattr("scfmlip_kernels.lattice.grid._WORK_WORTH_A_BOX", 1)
    problem = lattice_problem([7, 4], rank, generator, place(path, device), cutoff=4.5)
    assert path == "cpu" or len(problem.grid.boxes) >= 6
    assert_equal_inside(problem, structure_factor(problem.frac, problem.moments, problem.grid))


@pytest.mark.interpreter
@pytest.mark.parametrize("n_atoms", [15, 16, 17, 33])
@pytest.mark.parametrize("n_l", [15, 16, 17])
def test_block_edges(n_l, n_atoms, generator, device):
    """Blocks of 16 atoms, 16 values of l and 16 rows: one less, one more, one and a bit."""
    cells = torch.diag(torch.tensor([3.0, 2.0, 2.0 * n_l + 0.5], dtype=F64))[None]
    problem = lattice_problem([n_atoms], 1, generator, device, channels=1, cutoff=3.15, cells=cells)
    assert int(problem.miller[:, 2].max()) == n_l
    assert_equal_inside(problem, structure_factor(problem.frac, problem.moments, problem.grid))


@pytest.mark.interpreter
@pytest.mark.parametrize("n_k", [7, 8])
def test_row_block_edges(n_k, generator, device):
    """15 and 17 rows of one plane, then two planes."""
    for first in (1.5, 2.1):
        cells = torch.diag(torch.tensor([first, 2.0 * n_k + 0.5, 2.0], dtype=F64))[None]
        problem = lattice_problem([3], 1, generator, device, channels=1, cutoff=3.15, cells=cells)
        assert int(problem.miller[:, 1].max()) == n_k
        assert_equal_inside(problem, structure_factor(problem.frac, problem.moments, problem.grid))


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_atoms", [511, 513])
def test_flushes_to_float64(n_atoms, dtype, generator, device):
    """float32 sums move to float64 every 32 blocks of 16 atoms."""
    problem = lattice_problem([n_atoms], 0, generator, device, channels=1, cutoff=1.6)
    moments = problem.moments.to(dtype)
    assert_equal_inside(problem, structure_factor(problem.frac, moments, problem.grid), moments)


@pytest.mark.interpreter
@pytest.mark.parametrize("sizes", [[40, 0, 2], [1], [3, 3]])
def test_splits_of_the_atoms(sizes, generator, device, monkeypatch):
    monkeypatch.setattr(submodule("structure_factor.kernel"), "splits_for", lambda *_: 3)
    problem = lattice_problem(sizes, 1, generator, device)
    assert_equal_inside(problem, structure_factor(problem.frac, problem.moments, problem.grid))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", PATHS)
def test_derivatives_up_to_the_third(path, dtype, generator, device):
    """Derivatives are fields and structure factors of a higher rank: against autograd of the reference."""
    problem = lattice_problem([4, 0, 2], 1, generator, place(path, device), channels=1, cutoff=1.8)
    moments = problem.moments.to(dtype)
    u, m = problem.frac.clone().requires_grad_(), moments.clone().requires_grad_()
    value = structure_factor(u, m, problem.grid)
    got = derivatives((problem.coefficients * value**2).sum(), (u, m), 3)
    assert got[0].dtype == F64
    assert got[1].dtype == dtype
    # the same numbers in float64, or float32's rounding of the inputs would be measured
    u, m = problem.frac.cpu().requires_grad_(), moments.cpu().to(F64).requires_grad_()
    tables = (problem.miller, problem.point_system, problem.atom_system.cpu())
    value = structure_factor_reference(u, m, *tables)
    want = derivatives((problem.coefficients.cpu() * value**2).sum(), (u, m), 3)
    for a, b in zip(got, want, strict=True):
        assert_close(a.cpu().to(dtype), b)


def test_gradcheck(generator):
    problem = lattice_problem([1, 1], 1, generator, channels=1, cutoff=1.2)
    weight = problem.grid.weight[:, None, None]
    inputs = (problem.frac.requires_grad_(), problem.moments.requires_grad_())

    def value(u, m):
        return weight * structure_factor(u, m, problem.grid)

    assert torch.autograd.gradcheck(value, inputs)
    assert torch.autograd.gradgradcheck(value, inputs)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_gradient_in_one_argument_only(wanted, generator):
    problem = lattice_problem([3], 1, generator)
    inputs = (problem.frac, problem.moments)
    for tensor, wants in zip(inputs, wanted, strict=True):
        tensor.requires_grad_(wants)
    value = (problem.coefficients * structure_factor(*inputs, problem.grid)).sum()
    value.backward()
    both = [t.detach().clone().requires_grad_() for t in inputs]
    (problem.coefficients * structure_factor(*both, problem.grid)).sum().backward()
    for tensor, full, wants in zip(inputs, both, wanted, strict=True):
        assert (tensor.grad is None) != wants
        if wants:
            assert_close(tensor.grad, full.grad)


@pytest.mark.parametrize("rank", [0, 2])
def test_opcheck(rank, generator):
    torch.use_deterministic_algorithms(False)
    problem = lattice_problem([3, 0, 2], rank, generator, cutoff=1.5)
    for dtype in DTYPES:
        moments = problem.moments.to(dtype).requires_grad_()
        arguments = (problem.frac.requires_grad_(), moments, *problem.grid.tables, problem.grid.n_points)
        torch.library.opcheck(torch.ops.scfmlip.structure_factor.default, arguments)


@pytest.mark.parametrize("path", PATHS)
def test_not_contiguous(path, generator, device):
    problem = lattice_problem([5, 3], 1, generator, place(path, device))
    frac, moments = scattered(problem.frac), scattered(problem.moments)
    assert not frac.is_contiguous()
    assert not moments.is_contiguous()
    frac.requires_grad_()
    moments.requires_grad_()
    value = structure_factor(frac, moments, problem.grid)
    assert_equal_inside(problem, value)
    # an expanded gradient has strides of 0
    got = torch.autograd.grad(value[problem.inside].sum(), (frac, moments))
    u, m = problem.frac.clone().requires_grad_(), problem.moments.clone().requires_grad_()
    plain = structure_factor(u, m, problem.grid)
    mask = problem.inside.to(plain)[:, None, None]
    for a, b in zip(got, torch.autograd.grad((plain * mask).sum(), (u, m)), strict=True):
        assert_close(a, b)


def test_refuses(generator):
    problem = lattice_problem([3], 1, generator)
    frac, moments, grid = problem.frac, problem.moments, problem.grid
    with pytest.raises(ValueError, match="structure_factor: frac must be float64"):
        structure_factor(frac.float(), moments, grid)
    with pytest.raises(ValueError, match=r"frac must be float64 \[n_atoms, 3\].*\[3, 2\]"):
        structure_factor(frac[:, :2], moments, grid)
    with pytest.raises(TypeError, match=r"moments must be float32 or float64, got torch\.float16"):
        structure_factor(frac, moments.half(), grid)
    with pytest.raises(ValueError, match="must have 3 dimensions"):
        structure_factor(frac, moments[:, 0], grid)
    with pytest.raises(ValueError, match=r"monomials of one rank \(1, 4, 10, 20, ...\), got 5"):
        structure_factor(frac, moments.new_zeros(3, 1, 5), grid)
    with pytest.raises(ValueError, match="one device"):
        structure_factor(frac, moments.to("meta"), grid)


@pytest.mark.parametrize("wrong", ["moments", "grid"])
def test_refuses_sizes_that_do_not_fit(wrong, generator):
    """Shapes that do not fit together raise; atoms must not be left out in silence."""
    problem = lattice_problem([4], 1, generator)
    frac, moments = problem.frac, problem.moments
    if wrong == "moments":
        moments = moments[:3]
    else:
        frac, moments = torch.cat((frac, frac)), torch.cat((moments, moments))
    with pytest.raises(ValueError, match=r"atoms|rows of moments for 4 of frac"):
        structure_factor(frac, moments, problem.grid)
