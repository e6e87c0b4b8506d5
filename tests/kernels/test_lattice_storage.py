"""The CPU path of the lattice sums: whatever it keeps and however it cuts the work, the same numbers."""

import pytest
import torch
from tolerances import assert_close

from kernels.problems import DTYPES, lattice_problem, submodule
from scfmlip_kernels import lattice_field, recent, structure_factor
from scfmlip_kernels.lattice_field.reference import lattice_field_reference
from scfmlip_kernels.structure_factor.reference import structure_factor_reference

F64 = torch.float64
# what is stored: every phase, columns, functions of the axes, nothing
STORED = {
    "phases": {},
    "columns": {"_PHASE_BYTES": 0},
    "axes": {"_PHASE_BYTES": 0, "_SYSTEM_BYTES": 0},
    "nothing": {"_MAX_BYTES": 0},
}


@pytest.fixture(params=STORED)
def stored(request, monkeypatch):
    """Tables kept so far are forgotten: they are recognised by their content."""
    recent.clear()
    for name, value in STORED[request.param].items():
        monkeypatch.setattr(f"scfmlip_kernels.lattice.waves.{name}", value)
    return request.param


@pytest.fixture(params=["sphere", "boxes"])
def layout(request, monkeypatch):
    """Grids hold the sphere's points only where no kernel will run, else boxes around it."""
    boxes = request.param == "boxes"
    monkeypatch.setattr("scfmlip_kernels.lattice.grid.needs_kernel_tables", lambda device: boxes)
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_values(rank, dtype, stored, layout, generator):
    problem = lattice_problem([0, 5, 17, 0, 1], rank, generator, cutoff=3.5)
    assert (problem.grid.weight > 0).all() == (layout == "sphere")
    assert len(problem.grid.boxes) == (0 if layout == "sphere" else 5)
    tables = (problem.miller, problem.point_system, problem.atom_system)
    moments = problem.moments.to(dtype)
    sums = structure_factor(problem.frac, moments, problem.grid)
    want = structure_factor_reference(problem.frac, moments, *tables)
    assert_close(sums[problem.inside].to(dtype), want[problem.inside])
    assert not sums[~problem.inside].any()
    field = lattice_field(problem.frac, problem.coefficients, problem.grid, rank, dtype)
    assert_close(field, lattice_field_reference(problem.frac, problem.coefficients, *tables, rank))
    kept = submodule("lattice.waves")._recent.entries()
    found = {
        w is not None and (w.phases is not None, w.columns is not None) for *_, k in kept for w in k if w
    }
    names = {"phases": (True, False), "columns": (False, True), "axes": (False, False)}
    assert found == ({names[stored]} if stored in names else set())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("work", [0, 10**12])
def test_runs_of_planes(work, dtype, generator, monkeypatch):
    """One product for each plane, and one for all of them."""
    monkeypatch.setattr("scfmlip_kernels.lattice.sphere._WORK_OF_A_CALL", work)
    monkeypatch.setattr("scfmlip_kernels.lattice.sphere._ROWS_OF_A_CALL", 0)
    recent.clear()
    monkeypatch.setattr("scfmlip_kernels.lattice.waves._PHASE_BYTES", 0)
    problem = lattice_problem([70], 1, generator, cutoff=4.5)
    (sphere,) = submodule("lattice.sphere").half_spheres(problem.grid.points)
    runs = sphere.runs(70, 6)
    assert len(runs) == (1 if work else len(set(sphere.reach)))
    assert [first for first, _, _ in runs] == [0, *(last for _, last, _ in runs)][: len(runs)]
    assert runs[-1][1] == sphere.n_planes
    tables = (problem.miller, problem.point_system, problem.atom_system)
    moments = problem.moments.to(dtype)
    want = structure_factor_reference(problem.frac, moments, *tables)
    got = structure_factor(problem.frac, moments, problem.grid)
    assert_close(got[problem.inside].to(dtype), want[problem.inside])
    field = lattice_field(problem.frac, problem.coefficients, problem.grid, 2, dtype)
    assert_close(field, lattice_field_reference(problem.frac, problem.coefficients, *tables, 2))


def test_no_work_outside_the_sphere(generator):
    """Points of a cubic cell's columns, mirror images included: the sphere's, but for the plane h = 0."""
    problem = lattice_problem([1], 1, generator, cells=12.0 * torch.eye(3, dtype=F64)[None], cutoff=4.0)
    (sphere,) = submodule("lattice.sphere").half_spheres(problem.grid.points)
    stored = 2 * sum(sphere.reach) - sphere.n_planes
    inside = int((problem.grid.weight > 0).sum())
    assert stored - inside == sphere.reach[0] - 1


def test_positions_that_moved_in_place(stored, generator):
    """Tables belong to the numbers, not to the tensor."""
    problem = lattice_problem([20], 1, generator)
    structure_factor(problem.frac, problem.moments, problem.grid)
    problem.frac += 0.25
    tables = (problem.miller, problem.point_system, problem.atom_system)
    want = structure_factor_reference(problem.frac, problem.moments, *tables)
    got = structure_factor(problem.frac, problem.moments, problem.grid)
    assert_close(got[problem.inside], want[problem.inside])
