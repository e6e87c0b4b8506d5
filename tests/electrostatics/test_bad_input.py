"""What is refused, with which words; and the smallest input that is not."""

import math

import pytest
import torch

from electrostatics.systems import CRYSTAL, ISOLATED, SLAB
from scfmlip import Coulomb

F64 = torch.float64
NAN, INF = math.nan, math.inf


@pytest.fixture
def positions(generator):
    return 6 * torch.rand(4, 3, generator=generator, dtype=F64)


@pytest.fixture
def rows(generator):
    values = torch.randn(4, 4, generator=generator, dtype=F64)
    values[:, 0] -= values[:, 0].mean()
    return values


CELL = 7 * torch.eye(3, dtype=F64)


OPTIONS = [
    ({"l_max": 3}, "l_max must be 0, 1 or 2, got 3"),
    ({"l_max": -1}, "l_max must be 0, 1 or 2"),
    ({"sigma": -1.0}, r"sigma is -1.0: widths must be positive numbers in angstrom"),
    ({"sigma": 0.0}, "widths must be positive"),
    ({"sigma": NAN}, "widths must be positive"),
    ({"sigma": (1.0, INF)}, "widths must be positive"),
    ({"sigma": ()}, "widths must be positive"),
    ({"feature_widths": (1.0, -1.0)}, "widths must be positive"),
    ({"feature_widths": ()}, "widths must be positive"),
    ({"boundary": "wire"}, r"boundary must be one of \['auto', .*'open'.*got 'wire'"),
    ({"method": "pme"}, "method must be 'auto', 'direct' or 'mesh', got 'pme'"),
    ({"compat": "nvalchemi"}, "compat must be .*graph_longrange.*got 'nvalchemi'"),
    ({"background": "jellium"}, "background must be 'uniform' or 'none', got 'jellium'"),
    ({"order": "zxy"}, "order must be 'cartesian' or 'e3nn', got 'zxy'"),
    ({"tolerance": 0.0}, "tolerance must be between 0 and 1 eV, got 0.0"),
    ({"tolerance": NAN}, "tolerance must be between 0 and 1 eV, got nan"),
    ({"tolerance": 2.0}, "tolerance must be between 0 and 1 eV"),
    ({"kspace_cutoff": -2.0}, "kspace_cutoff must be a positive number in 1/angstrom, got -2.0"),
    ({"kspace_cutoff": NAN}, "kspace_cutoff must be a positive number"),
    ({"kspace_cutoff": 1.0}, r"kspace_cutoff=1 1/angstrom is too small .* 1.5 angstrom.*at least \d\.\d+"),
    ({"kspace_cutoff": 2.5, "sigma": 0.5}, "too small for a Gaussian width of 0.5 angstrom"),
    ({"kspace_cutoff": 1.9, "feature_widths": (0.2,)}, "too small"),
]


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        Coulomb(**options)


def test_a_refused_cutoff_names_one_that_works():
    with pytest.raises(ValueError, match="too small") as error:
        Coulomb(sigma=0.8, kspace_cutoff=2.0)
    advice = float(str(error.value).split("Use at least ")[1].split()[0])
    Coulomb(sigma=0.8, kspace_cutoff=advice)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (torch.zeros(4, 2, dtype=F64), ValueError, r"positions must have shape \[n_atoms, 3\], got \[4, 2\]"),
        (torch.zeros(3, dtype=F64), ValueError, r"shape \[n_atoms, 3\], got \[3\]"),
        (torch.zeros(4, 3, dtype=torch.int64), TypeError, r"must be float32 or float64, got torch\.int64"),
        (torch.zeros(4, 3).half(), TypeError, r"must be float32 or float64, got torch\.float16"),
        (torch.zeros(4, 3).bfloat16(), TypeError, "must be float32 or float64"),
        ([[0.0, 0.0, 0.0]], TypeError, "positions must be a torch.Tensor .* got list"),
        (torch.full((4, 3), NAN, dtype=F64), ValueError, r"positions holds NaN or infinity in 4 row\(s\)"),
        (torch.tensor([[0.0, 0, 0], [INF, 0, 0]]), ValueError, r"in 1 row\(s\), the first is row 1: \[inf"),
    ],
)
@pytest.mark.parametrize("cell", [None, CELL])
def test_positions(wrong, error, message, cell):
    if cell is not None and isinstance(wrong, torch.Tensor) and wrong.dtype == torch.float32:
        cell = cell.float()
    with pytest.raises(error, match=message):
        Coulomb().prepare(wrong, cell)


# a crystal needs the third vector, a slab does not
FLAT = CELL * torch.tensor([[1.0], [1.0], [0.0]])
CELLS = [
    (0 * CELL, ValueError, "cell of system 0 has no volume .* or set pbc to False"),
    (FLAT, ValueError, "has no volume"),
    (torch.ones(3, 3, dtype=F64), ValueError, "has no volume"),
    (torch.stack((CELL[0], CELL[0] + 1e-13 * CELL[1], CELL[2])), ValueError, "has no volume"),
    (NAN * CELL, ValueError, "cell of system 0 holds NaN or infinity"),
    (CELL.float(), TypeError, r"cell is torch\.float32 but positions are torch\.float64: convert one"),
    (CELL.long(), TypeError, r"cell is torch\.int64 but"),
    (CELL[:2], ValueError, r"cell must have shape \[3, 3\] or \[n_systems, 3, 3\], got \[2, 3\]"),
    (CELL[0], ValueError, r"cell must have shape .* got \[3\]"),
    (CELL[:, :2], ValueError, "cell must have shape"),
    (CELL.expand(2, 3, 3), ValueError, "batch_idx is needed to assign the atoms"),
    ([[7.0, 0, 0], [0, 7.0, 0], [0, 0, 7.0]], TypeError, "cell must be a torch.Tensor"),
]


@pytest.mark.parametrize(("cell", "error", "message"), CELLS)
@pytest.mark.parametrize("pbc", [CRYSTAL, SLAB])
def test_cells(cell, error, message, pbc, positions):
    if cell is FLAT and pbc == SLAB:
        assert torch.isfinite(Coulomb().prepare(positions, cell, pbc).energy(torch.ones(4, 4, dtype=F64)))
        return
    with pytest.raises(error, match=message):
        Coulomb().prepare(positions, cell, pbc)


def test_a_cell_too_large_for_a_direct_sum(positions, rows):
    """Nothing is allocated before the number of wave vectors is known."""
    with pytest.raises(ValueError, match=r"system 0 has about .* wave vectors up to .* boundary='open'"):
        Coulomb().prepare(positions, 1000 * CELL)
    Coulomb().prepare(positions, 1000 * CELL, ISOLATED).energy(rows)


def test_cells_that_nobody_needs(positions, rows):
    """An isolated system's cell may be anything: engines fill it with zeros."""
    want = Coulomb().prepare(positions).energy(rows)
    for cell in (0 * CELL, FLAT, -CELL, NAN * CELL):
        assert torch.equal(Coulomb().prepare(positions, cell, ISOLATED).energy(rows), want)


def test_the_offending_system_is_named(positions, rows):
    cells = torch.stack((CELL, FLAT))
    index = torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="the cell of system 1 has no volume"):
        Coulomb().prepare(positions, cells, CRYSTAL, index)
    # the same cell is fine where it does not count
    Coulomb().prepare(positions, cells, [CRYSTAL, ISOLATED], index).energy(rows)


@pytest.mark.parametrize(
    ("pbc", "message"),
    [
        ([True, False], r"pbc must have shape \[3\] or \[n_systems, 3\], got \[2\]"),
        ([[True, False]], "pbc must have shape"),
        ([CRYSTAL, CRYSTAL], "batch_idx is needed"),
        ([True, False, False], r"periodic along one direction only .*wires are not implemented"),
        ([False, False, True], "wires are not implemented"),
    ],
)
def test_pbc(pbc, message, positions):
    with pytest.raises(ValueError, match=message):
        Coulomb().prepare(positions, CELL, pbc)


def test_what_are_no_numbers(positions):
    for pbc in ("TTT", [True, "x", False]):
        with pytest.raises(TypeError, match="pbc must be booleans"):
            Coulomb().prepare(positions, CELL, pbc)
    with pytest.raises(TypeError, match=r"external_field must be numbers of shape \[1, 3\].*got 'z'"):
        Coulomb().prepare(positions, external_field="z")


@pytest.mark.parametrize("pbc", [CRYSTAL, SLAB, True])
def test_periodicity_without_a_cell(pbc, positions):
    with pytest.raises(ValueError, match=r"system 0 has pbc=.* but no cell was given: pass cell"):
        Coulomb().prepare(positions, None, pbc)


@pytest.mark.parametrize("boundary", ["periodic", "slab", "molecule_in_box"])
def test_a_boundary_without_its_cell(boundary, positions):
    pbc = SLAB if boundary == "slab" else None
    with pytest.raises(ValueError, match=f"boundary '{boundary}' but no cell was given"):
        Coulomb(boundary=boundary).prepare(positions, None, pbc)


def test_boundaries_that_contradict_pbc(positions):
    with pytest.raises(ValueError, match="boundary='slab' needs two periodic directions"):
        Coulomb(boundary="slab").prepare(positions, CELL, [True, False, False])
    with pytest.raises(ValueError, match="'mixed_periodic' is graph_longrange's"):
        Coulomb(boundary="mixed_periodic").prepare(positions, CELL)
    stretched = CELL * torch.tensor([[1.0], [1.0], [1.1]])
    with pytest.raises(ValueError, match=r"'molecule_in_box' needs a cubic cell, system 0 .*boundary='open'"):
        Coulomb(boundary="molecule_in_box").prepare(positions, stretched, False)


INDEX = [
    (torch.tensor([0, 1, 0, 1]), ValueError, "batch_idx must not decrease.*Sort the batch"),
    (torch.tensor([0, 0, 1]), ValueError, r"batch_idx must have shape \[4\], one system per atom, got \[3\]"),
    (torch.tensor([[0, 0, 1, 1]]), ValueError, r"batch_idx must have shape \[4\]"),
    (torch.tensor([0, 0, 1, 2]), ValueError, r"batch_idx must lie between 0 and 1 \(there are 2 cells\)"),
    (torch.tensor([-1, 0, 1, 1]), ValueError, "got -1 to 1"),
    (torch.tensor([0.0, 0.7, 1.0, 1.0]), TypeError, "batch_idx"),
]


@pytest.mark.parametrize(("index", "error", "message"), INDEX)
def test_batch_idx(index, error, message, positions):
    with pytest.raises(error, match=message):
        Coulomb().prepare(positions, CELL.expand(2, 3, 3), CRYSTAL, index)


def test_different_numbers_of_systems(positions):
    index = torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match="cell and pbc describe different numbers of systems: 2 and 3"):
        Coulomb().prepare(positions, CELL.expand(2, 3, 3), [CRYSTAL] * 3, index)


@pytest.mark.parametrize("cell", [None, CELL])
@pytest.mark.parametrize("method", ["energy", "potential", "features"])
def test_multipoles(method, cell, positions, rows):
    function = getattr(Coulomb().prepare(positions, cell), method)
    with pytest.raises(
        ValueError, match=r"multipoles must have shape \[4, 4\] or \[4, n_channels, 4\].*\[4, 3\]"
    ):
        function(rows[:, :3])
    with pytest.raises(ValueError, match=r"got \[3, 4\]"):
        function(rows[:3])
    with pytest.raises(ValueError, match=r"got \[4\]"):
        function(rows[:, 0])
    with pytest.raises(ValueError, match=r"got \[4, 1, 1, 4\]"):
        function(rows[:, None, None])
    with pytest.raises(TypeError, match=r"multipoles is torch\.float32 but positions are torch\.float64"):
        function(rows.float())
    with pytest.raises(TypeError, match=r"multipoles must be a torch.Tensor .*, got list"):
        function(rows.tolist())
    rows[2, 1] = NAN
    with pytest.raises(
        ValueError, match=r"multipoles holds NaN or infinity in 1 row\(s\), the first is row 2"
    ):
        function(rows)
    rows[2, 1] = -INF
    with pytest.raises(ValueError, match="nothing was computed"):
        function(rows[:, None])


def test_points_need_one_density(positions, rows):
    geometry = Coulomb().prepare(positions)
    with pytest.raises((TypeError, ValueError), match="multipoles"):
        geometry.at(positions, rows.tolist())


@pytest.mark.parametrize("method", ["energy", "potential", "features"])
def test_a_charge_without_background(method, positions, rows):
    rows[0, 0] += 0.1
    geometry = Coulomb(background="none").prepare(positions, CELL)
    with pytest.raises(
        ValueError, match=r"system 0 is periodic and carries a charge of 0.1 e.*background='uniform'"
    ):
        getattr(geometry, method)(rows)
    rows[0, 0] -= 0.1
    getattr(geometry, method)(rows)


def test_a_neutral_float32_crystal_needs_no_background(generator):
    """Charges of a few e that add up to nothing but their own rounding."""
    n = 4000
    charges = 2.0 * torch.randn(n, 1, generator=generator)
    charges -= charges.mean()
    positions = 30 * torch.rand(n, 3, generator=generator)
    operator = Coulomb(l_max=0, background="none", tolerance=1e-2)
    operator.prepare(positions, 30 * torch.eye(3)).energy(charges)


TILTED = torch.tensor([[7.0, 0, 0], [0, 7.0, 0], [2.0, 0, 20.0]], dtype=F64)


@pytest.mark.parametrize(
    ("cell", "pbc", "field"),
    [
        (CELL, CRYSTAL, [0.0, 0.0, 0.1]),
        (CELL, SLAB, [0.1, 0.0, 0.0]),
        (CELL, SLAB, [0.0, 1e-6, 0.1]),
        (CELL, [False, True, True], [0.0, 0.0, 0.1]),
        (TILTED, SLAB, [0.01, 0.0, 0.1]),  # along the third lattice vector, not along the normal
    ],
)
def test_a_field_along_a_periodic_direction(cell, pbc, field, positions):
    with pytest.raises(ValueError, match="of system 0 has a component along a periodic direction"):
        Coulomb().prepare(positions, cell, pbc, external_field=field)


def test_fields_that_are_fine(positions, rows):
    operator = Coulomb()
    operator.prepare(positions, CELL, SLAB, external_field=[0.0, 0.0, 0.1]).energy(rows)
    operator.prepare(positions, TILTED, SLAB, external_field=[0.0, 0.0, 0.1]).energy(rows)
    operator.prepare(positions, CELL, CRYSTAL, external_field=[0.0, 0.0, 0.0]).energy(rows)
    operator.prepare(positions, external_field=[0.3, 0.2, 0.1]).energy(rows)


def test_a_field_along_the_normal_in_float32(generator):
    """A rotated slab's normal, rounded to float32, is the best a user can say."""
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=F64))
    q = q * torch.linalg.det(q)
    cell = torch.diag(torch.tensor([6.0, 7.0, 20.0], dtype=F64)) @ q
    field = 0.1 * q[2]
    positions = torch.rand(2, 3, generator=generator)
    Coulomb().prepare(positions, cell.float(), SLAB, external_field=field.float())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"external_field": [0.0, 0.0, NAN]}, "external_field holds NaN or infinity"),
        ({"external_field": torch.zeros(2, 3)}, r"external_field must have shape \[1, 3\]"),
        ({"external_field": [0.0, 0.1]}, "external_field must have shape"),
        ({"external_potential": INF}, "external_potential holds NaN or infinity"),
        ({"external_potential": [0.1, 0.2]}, r"external_potential must have shape \[1\]"),
        ({"counter_charge": (3.0, 1.0)}, "lower < upper"),
        ({"counter_charge": (1.0, 1.0)}, "lower < upper"),
        ({"counter_charge": (1.0, NAN)}, "counter_charge holds NaN or infinity"),
        ({"counter_charge": (1.0, 2.0, 3.0)}, r"counter_charge must have shape \[1, 2\]"),
    ],
)
def test_fields(fields, message, positions):
    with pytest.raises(ValueError, match=message):
        Coulomb().prepare(positions, CELL, SLAB, **fields)


def test_a_field_of_another_dtype_is_converted(positions):
    """Fields may come as lists, arrays or integers; positions and multipoles may not."""
    rows = torch.ones(len(positions), 1, dtype=positions.dtype)
    fields = ([0, 0, 1], torch.tensor([0, 0, 1]), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float32))
    energies = [Coulomb(l_max=0).prepare(positions, external_field=f).energy(rows) for f in fields]
    assert torch.equal(energies[0], energies[1])
    assert torch.equal(energies[0], energies[2])


@pytest.mark.parametrize(("cell", "pbc"), [(CELL, CRYSTAL), (None, None)])
def test_a_counter_charge_is_for_slabs(cell, pbc, positions):
    with pytest.raises(ValueError, match=r"counter_charge is for slabs: systems \[0\] are none"):
        Coulomb().prepare(positions, cell, pbc, counter_charge=(1.0, 2.0))


def test_features(positions, rows):
    geometry = Coulomb().prepare(positions, CELL)
    with pytest.raises(
        ValueError, match=r"features of width 0.3 angstrom need more wave vectors.*feature_widths"
    ):
        geometry.features(rows, widths=(0.3, 1.5))
    with pytest.raises(ValueError, match="l_max must be 0, 1 or 2, got 3"):
        geometry.features(rows, l_max=3)
    with pytest.raises(ValueError, match="widths must be positive"):
        geometry.features(rows, widths=(-1.0,))
    # as advised, and where no wave vector is needed
    Coulomb(feature_widths=(0.3, 1.5)).prepare(positions, CELL).features(rows)
    Coulomb().prepare(positions).features(rows, widths=(0.3, 1.5))


@pytest.mark.parametrize("cell", [None, CELL])
@pytest.mark.parametrize("n_atoms", [3, 5])
def test_a_plan_of_other_sizes(n_atoms, cell, positions, rows):
    """A plan for 3 or 5 atoms must not answer for 4."""
    operator = Coulomb()
    plan = operator.plan(cell, None, None, n_atoms)
    with pytest.raises(ValueError, match="plan"):
        operator.prepare(positions, cell, plan=plan).energy(rows)


def test_a_plan_without_its_cell(positions):
    operator = Coulomb()
    with pytest.raises(ValueError, match="cell"):
        operator.prepare(positions, plan=operator.plan(CELL, None, None, 4))


def test_not_validating_keeps_the_shapes(positions, rows):
    """``validate=False`` skips values, which synchronise; shapes stay checked."""
    operator = Coulomb(validate=False)
    geometry = operator.prepare(positions * NAN)
    assert geometry.energy(rows).isnan().all()
    with pytest.raises(ValueError, match="multipoles must have shape"):
        geometry.energy(rows[:, :3])
    with pytest.raises(TypeError, match="convert one of them"):
        geometry.energy(rows.float())


@pytest.mark.parametrize(("cell", "pbc"), [(None, None), (CELL, CRYSTAL), (CELL, SLAB)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_no_atoms(cell, pbc, dtype):
    """An empty system has no energy; everything keeps its shape and its graph."""
    cell = None if cell is None else cell.to(dtype)
    r = torch.zeros(0, 3, dtype=dtype, requires_grad=True)
    geometry = Coulomb().prepare(r, cell, pbc)
    rows = torch.zeros(0, 4, dtype=dtype)
    energy = geometry.energy(rows)
    assert energy.tolist() == [0.0]
    assert energy.dtype == dtype
    assert geometry.energy(torch.zeros(0, 3, 4, dtype=dtype)).shape == (1, 3)
    assert geometry.potential(rows).shape == (0, 4)
    assert geometry.features(rows, widths=(1.5, 3.0)).shape == (0, 8)
    values = geometry.at(torch.zeros(2, 3, dtype=dtype), rows)
    assert values.potential.tolist() == [0.0, 0.0]
    assert torch.autograd.grad(energy.sum(), r)[0].shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_one_atom(dtype):
    """No self-interaction, nobody else: nothing at all. In a crystal its images remain."""
    r = torch.tensor([[1.0, 2.0, 3.0]], dtype=dtype, requires_grad=True)
    rows = torch.tensor([[0.5, 0.1, -0.2, 0.3]], dtype=dtype)
    geometry = Coulomb().prepare(r)
    energy = geometry.energy(rows)
    assert energy.tolist() == [0.0]
    assert not geometry.potential(rows).any()
    assert not geometry.features(rows).any()
    assert not torch.autograd.grad(energy.sum(), r)[0].any()
    crystal = Coulomb().prepare(r, CELL.to(dtype))
    energy = crystal.energy(rows)
    assert float(energy.detach()) < 0  # a charge in its background
    force = torch.autograd.grad(energy.sum(), r)[0]
    assert float(force.abs().max()) < {torch.float32: 1e-6, F64: 1e-14}[dtype]
