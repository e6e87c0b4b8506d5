"""Miller grids: every wave vector once, boxes that say where it is, and the kernels' work tables."""

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kernels.problems import pointers, random_cells, submodule
from scfmlip_kernels import backend, build_lattice_grid, lattice_field, structure_factor
from scfmlip_kernels.lattice import (
    grid_at_points,
    monomial_count,
    monomials,
    shifted_monomials,
)
from scfmlip_kernels.lattice.monomials import rank_of_count
from scfmlip_kernels.lattice.tiles import lattice_launch

F64 = torch.float64


def sphere(cell, cutoff):
    """Miller indices of all wave vectors up to the cutoff, by brute force, and those too close to call."""
    bounds = [math.floor(cutoff * float(v.norm()) / (2 * math.pi) + 1e-6) for v in cell]
    axes = [np.arange(-n, n + 1) for n in bounds]
    n = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    k = (n @ (2 * math.pi * np.linalg.inv(cell.numpy()).T)) ** 2
    length = np.sqrt(k.sum(1))
    sure = {tuple(row) for row in n[length <= cutoff * (1 - 1e-9)].tolist()}
    edge = {tuple(row) for row in n[abs(length / cutoff - 1) < 1e-9].tolist()}
    return sure, edge


def assert_half_sphere(grid, cell, cutoff, system=0):
    """Each wave vector or its mirror image, once, with the documented weight."""
    mine = (grid.system == system) & (grid.weight > 0)
    points = [tuple(row) for row in grid.miller[mine].tolist()]
    weights = grid.weight[mine].tolist()
    assert all(w == (0.5 if p == (0, 0, 0) else 1.0) for p, w in zip(points, weights, strict=True))
    both = points + [tuple(-i for i in p) for p in points if p != (0, 0, 0)]
    assert len(both) == len(set(both))
    sure, edge = sphere(cell, cutoff)
    assert sure <= set(both)
    assert set(both) <= sure | edge
    assert all(h >= 0 for h, _, _ in points)


lengths = st.floats(1.5, 14.0)
angles = st.floats(-0.95, 0.95)


@st.composite
def right_handed_cells(draw):
    """Lower triangular cells of any shape, skewed too, in a random orientation."""
    a, b, c = draw(lengths), draw(lengths), draw(lengths)
    cell = np.array([[a, 0, 0], [draw(angles) * b, b, 0], [draw(angles) * c, draw(angles) * c, c]])
    cell += np.array([[0, 0, 0], [draw(st.integers(-2, 2)) * a, 0, 0], [0, 0, 0]])
    q, r = np.linalg.qr(np.random.default_rng(draw(st.integers(0, 99))).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    q = q * np.linalg.det(q)
    return torch.from_numpy(cell @ q)


@settings(max_examples=150, deadline=None)
@given(cell=right_handed_cells(), cutoff=st.floats(0.3, 4.0), n_atoms=st.integers(0, 10**7))
def test_every_wave_vector_once(cell, cutoff, n_atoms):
    """Cells and cutoffs of any shape; many atoms make many boxes."""
    volume = float(torch.linalg.det(cell))
    assume(volume * cutoff**3 / (6 * math.pi**2) < 4000)
    grid = build_lattice_grid(cell[None], cutoff, torch.tensor([0, n_atoms]))
    assert_half_sphere(grid, cell, cutoff)


@pytest.mark.parametrize("edge", [2 * math.pi, 8.0, 7.3, 10.0, 6.1])
def test_a_shell_is_whole_or_absent(edge):
    """Wave vectors of length equal to the cutoff to the last bit: a cube treats its axes alike."""
    for n in (3, 4, 5):
        cell = edge * torch.eye(3, dtype=F64)
        grid = build_lattice_grid(cell[None], 2 * math.pi / edge * n, torch.tensor([0, 1]))
        kept = [tuple(p) for p in grid.miller[grid.weight > 0].tolist()]
        assert sum(p in kept for p in [(n, 0, 0), (0, n, 0), (0, 0, n)]) in (0, 3), (edge, n)


@pytest.fixture
def tables(monkeypatch):
    """Grids as kernels need them."""
    monkeypatch.setattr("scfmlip_kernels.lattice.grid.needs_kernel_tables", lambda device: True)


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("work", [1, 1_000, 50_000_000])
def test_boxes_describe_their_points(work, generator, monkeypatch, device):
    monkeypatch.setattr("scfmlip_kernels.lattice.grid._WORK_WORTH_A_BOX", work)
    cells = random_cells(3, generator, edge=9.0)
    sizes = [50, 0, 200]
    grid = build_lattice_grid(cells, 3.0, pointers(sizes), torch.device(device))
    assert grid.n_systems == 3
    assert grid.n_points == len(grid.miller) == len(grid.system) == len(grid.weight)
    assert grid.atom_ptr.tolist() == [0, 50, 50, 250]
    assert grid.point_ptr.tolist() == [int((grid.system < i).sum()) for i in range(4)]
    following = 0
    last_system = 0
    for system, h_first, h_count, n_k, n_l, first in grid.boxes.tolist():
        assert first == following
        assert system >= last_system
        last_system = system
        shape = (h_count, 2 * n_k + 1, 2 * n_l + 1)
        following = first + math.prod(shape)
        points = grid.miller[first:following].view(*shape, 3)
        assert points[0, 0, 0].tolist() == [h_first, -n_k, -n_l]
        assert points[-1, -1, -1].tolist() == [h_first + h_count - 1, n_k, n_l]
        assert (grid.system[first:following] == system).all()
    assert following == grid.n_points
    for i in range(3):
        assert_half_sphere(grid, cells[i], 3.0, i)


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("work", [1, 50_000_000])
def test_tiles_cover_the_half_sphere_once(work, generator, monkeypatch, device):
    """Every point of some weight in one tile, none in two."""
    monkeypatch.setattr("scfmlip_kernels.lattice.grid._WORK_WORTH_A_BOX", work)
    sizes = [20, 0, 33]
    grid = build_lattice_grid(
        random_cells(3, generator, edge=9.0), 3.0, pointers(sizes), torch.device(device)
    )
    launch = lattice_launch(torch.device(device), torch.float32)
    visits = torch.zeros(grid.n_points, dtype=torch.int64)
    rows = grid.row_tiles.tolist()
    for row_tile, l_first, first_atom, last_atom in grid.point_tiles.tolist():
        row, _, _, n_l, n_rows, first, l_stop, system = rows[row_tile]
        assert (first_atom, last_atom) == (pointers(sizes)[system], pointers(sizes)[system + 1])
        assert l_first < l_stop
        for r in range(row, min(row + launch.rows, n_rows)):
            center = first + r * (2 * n_l + 1) + n_l
            for l in range(l_first, min(l_first + launch.l, n_l + 1)):
                visits[center + l] += 1
                if l > 0:
                    visits[center - l] += 1
    assert visits.max() == 1
    assert (visits[grid.weight.cpu() > 0] == 1).all()
    # the field kernel walks row tiles up to l_stop
    covered = torch.zeros(grid.n_points, dtype=torch.bool)
    for place, (row, _, _, n_l, n_rows, first, l_stop, system) in enumerate(rows):
        assert grid.row_ptr[system] <= place < grid.row_ptr[system + 1]
        for r in range(row, min(row + launch.rows, n_rows)):
            center = first + r * (2 * n_l + 1) + n_l
            reach = min(l_stop - 1, n_l)
            covered[center - reach : center + reach + 1] = True
    assert covered[grid.weight.cpu() > 0].all()


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("sizes", [[20, 0, 33], [16], [0], []])
def test_atom_tiles_cover_the_atoms_once(sizes, generator, device):
    grid = build_lattice_grid(random_cells(len(sizes), generator), 2.0, pointers(sizes), torch.device(device))
    points = 2 * pointers(sizes)
    for table, ptr in ((grid, pointers(sizes)), (grid_at_points(grid, points), points)):
        visits = torch.zeros(int(ptr[-1]), dtype=torch.int64)
        block = lattice_launch(torch.device(device), torch.float32).field_atoms
        for first, last, first_row, last_row in table.atom_tiles.tolist():
            visits[first : min(first + block, last)] += 1
            system = int((ptr[1:] <= first).sum())
            assert last == ptr[system + 1]
            assert (first_row, last_row) == tuple(table.row_ptr[system : system + 2].tolist())
        assert (visits == 1).all()


def test_grid_at_points_keeps_the_wave_vectors(generator):
    grid = build_lattice_grid(random_cells(2, generator), 2.0, pointers([3, 4]))
    moved = grid_at_points(grid, torch.tensor([0, 10, 11]))
    assert moved.atom_ptr.tolist() == [0, 10, 11]
    assert moved.miller is grid.miller
    assert moved.weight is grid.weight


def test_cells_are_read_in_their_own_precision(generator):
    """float32 cells and cells that want a gradient give the grid of the same numbers."""
    cells = random_cells(2, generator).float()
    want = build_lattice_grid(cells.double(), 2.5, pointers([3, 4]))
    got = build_lattice_grid(cells.requires_grad_(), 2.5, pointers([3, 4]).int())
    assert torch.equal(got.boxes, want.boxes)
    assert torch.equal(got.weight, want.weight)
    assert got.weight.dtype == F64
    assert not got.weight.requires_grad


def test_a_long_cell_is_planned_in_time():
    """A nanowire of 1,000 angstrom has 440 planes: laying out 11,000 points must not take their cube."""
    cell = torch.diag(torch.tensor([1000.0, 5.0, 5.0], dtype=F64))
    start = time.process_time()
    build_lattice_grid(cell[None], 2.77, torch.tensor([0, 10_000]))
    assert time.process_time() - start < 0.3


def test_monomials():
    assert monomials(1) == ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    for rank in range(6):
        table = monomials(rank)
        assert len(set(table)) == len(table) == monomial_count(rank)
        degrees = [sum(m) for m in table]
        assert degrees == sorted(degrees)
        assert max(degrees) == rank
        assert monomials(rank + 1)[: len(table)] == table
        assert rank_of_count(len(table)) == rank
        for axis, places in enumerate(shifted_monomials(rank)):
            for m, place in zip(table, places, strict=True):
                up = list(m)
                up[axis] += 1
                assert monomials(rank + 1)[place] == tuple(up)
    index = submodule("lattice.device").monomial_index
    plain = getattr(index, "fn", index)
    assert [plain(*m) for m in monomials(4)] == list(range(monomial_count(4)))


@pytest.mark.parametrize("count", [0, 2, 5, 11, 21])
def test_no_such_rank(count):
    with pytest.raises(ValueError, match=f"monomials of one rank .* got {count}"):
        rank_of_count(count)


def test_inside_transforms_and_other_default_devices():
    """Tables are plain tensors on the host wherever they are made."""
    cells = 4 * torch.eye(3, dtype=F64)[None]
    want = build_lattice_grid(cells, 2.0, pointers([2]))
    found = []

    def energy(c):
        found.append(build_lattice_grid(c, 2.0, pointers([2])))
        return c.sum()

    torch.func.grad(energy)(cells)
    with torch.device("meta"):
        found.append(build_lattice_grid(cells, 2.0, torch.tensor([0, 2], device="cpu")))
    for grid in found:
        assert all(torch.equal(a, b) for a, b in zip(grid, want, strict=True))
    with pytest.raises(ValueError, match=r"build_lattice_grid reads values on the host, which torch\.vmap"):
        torch.vmap(energy)(cells[None])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": torch.eye(3)}, r"cells must be \[n_systems, 3, 3\], got \[3, 3\]"),
        ({"cells": torch.eye(3).repeat(2, 1, 1)}, r"atom_ptr must be \[3\], got \[2\]"),
        ({"cells": torch.full((1, 3, 3), torch.nan)}, r"cells\[0\] holds NaN or infinity"),
        ({"cells": torch.ones(1, 3, 3)}, r"cells\[0\] has no volume"),
        ({"cells": 1e6 * torch.eye(3)[None]}, r"cells\[0\] has up to .* wave vectors .* lower the cutoff"),
        ({"cells": torch.eye(3, dtype=torch.int64)[None]}, "cells must hold real numbers"),
        ({"cutoff": 0.0}, r"cutoff must be above 0 and finite, got 0\.0"),
        ({"cutoff": float("nan")}, "cutoff must be above 0"),
        ({"atom_ptr": torch.tensor([1, 2])}, "atom_ptr must go from 0 to 2"),
        ({"atom_ptr": torch.tensor([0.0, 2.0])}, "atom_ptr must hold integers"),
    ],
)
def test_refuses(change, message):
    given = {"cells": 4 * torch.eye(3, dtype=F64)[None], "cutoff": 2.0, "atom_ptr": pointers([2]), **change}
    with pytest.raises((TypeError, ValueError), match=f"build_lattice_grid: {message}"):
        build_lattice_grid(**given)


def test_a_grid_without_tables_is_refused():
    """One that was made for the CPU path: kernels find no work in it, and the sum would be 0."""
    with backend("cpu"):
        grid = build_lattice_grid(4 * torch.eye(3, dtype=F64)[None], 2.0, pointers([2]))
    frac, moments = torch.rand(2, 3, dtype=F64), torch.ones(2, 1, 1)
    with backend("triton"):
        for call in (
            lambda: structure_factor(frac, moments, grid),
            lambda: lattice_field(frac, torch.ones(grid.n_points, 1, 2, dtype=F64), grid, 0, torch.float32),
        ):
            with pytest.raises(RuntimeError, match="no tables for Triton kernels"):
                call()
