"""``scfmlip plot``: the numbers behind the pictures."""

import math

import numpy as np
import pytest

pytest.importorskip("ase", reason="needs ASE")
pytest.importorskip("matplotlib", reason="needs matplotlib")

from ase import Atoms
from ase.io import read, write

from scfmlip.cli import main
from scfmlip.cli.plot import planar_averages, read_rows, values_at
from scfmlip.data import path
from scfmlip.units import COULOMB_CONSTANT, FIELD_CONSTANT


def test_planar_average_of_a_capacitor():
    """Two opposite sheets: the potential steps by sigma d / eps0 between them and is flat outside."""
    n, edge, gap = 6, 1.0, 8.0
    grid = np.array([(i, j) for i in range(n) for j in range(n)]) * edge
    positions = [(x, y, z) for z in (6.0, 6.0 + gap) for x, y in grid]
    atoms = Atoms("H" * len(positions), positions=positions, cell=[n, n, 30.0], pbc=[True, True, False])
    charge = 0.01
    rows = np.repeat([charge, -charge], n * n)[:, None]
    quantities = ("potential", "field", "density")
    z, (potential, field, density) = planar_averages(atoms, rows, 0.8, quantities, 2, 120)
    step = np.interp(6.0 + gap + 4.0, z, potential) - np.interp(2.0, z, potential)
    assert step == pytest.approx(-FIELD_CONSTANT * charge / edge**2 * gap, rel=1e-6)
    assert np.interp(10.0, z, field) == pytest.approx(FIELD_CONSTANT * charge / edge**2, rel=1e-6)
    assert abs(np.interp(20.0, z, field)) < 1e-7  # the sum over wave vectors is cut at 1e-6 eV
    assert density.sum() * 30.0 / 120 == pytest.approx(0.0, abs=1e-9)


def test_values_of_one_charge():
    atoms = Atoms("H", positions=[[1.0, 2.0, 3.0]])
    point = np.array([[1.0, 2.0, 6.0]])
    values = values_at(atoms, np.array([[2.0]]), 0.5, point)
    want = COULOMB_CONSTANT * 2.0 * math.erf(3.0 / (math.sqrt(2) * 0.5)) / 3.0
    assert float(values.potential) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("kind", ["planar", "line", "slice"])
@pytest.mark.parametrize("quantity", ["potential", "density", "field"])
@pytest.mark.parametrize("file", ["al_water.xyz", "sio2_vacancy.xyz"])
def test_draws_every_kind(file, quantity, kind, tmp_path):
    out, data = tmp_path / "p.png", tmp_path / "p.csv"
    options = ["--quantity", quantity, "--kind", kind, "--points", "10", "--data", str(data)]
    status = main(["plot", str(path(file)), "-o", str(out), "--sigma", "1.5", *options])
    assert status == 0
    assert out.read_bytes()[:4] == b"\x89PNG"
    table = np.loadtxt(data, delimiter=",", skiprows=1)
    assert np.isfinite(table).all()
    assert np.ptp(table[:, -1]) > 0


def test_says_which_arrays_there_are(tmp_path, capsys):
    write(tmp_path / "a.xyz", Atoms("H"), format="extxyz")
    assert main(["plot", str(tmp_path / "a.xyz"), "-o", str(tmp_path / "p.png")]) == 2
    assert "pass --charges with one of ['numbers', 'positions']" in capsys.readouterr().err
    assert main(["plot", "none.xyz", "-o", "p.png"]) == 2
    assert "there is no file" in capsys.readouterr().err
    atoms = read(path("al_water.xyz"), 0)
    assert read_rows(atoms, "REF_mulliken", None).shape == (len(atoms), 1)
    with pytest.raises(ValueError, match="no array 'dip'"):
        read_rows(atoms, "REF_mulliken", "dip")


def sheet(charge=0.05, n=6):
    """A charged sheet at z = 10 angstrom, and its area."""
    positions = [(i, j, 10.0) for i in range(n) for j in range(n)]
    atoms = Atoms("H" * n * n, positions=positions, cell=[n, n, 30.0], pbc=[True, True, False])
    atoms.arrays["charges"] = np.full(n * n, charge / (n * n))
    return atoms, float(n * n)


def drawn(atoms, folder, quantity, *options):
    """Positions and values of the command's curve."""
    write(folder / "in.xyz", atoms, format="extxyz")
    command = ["plot", str(folder / "in.xyz"), "-o", str(folder / "p.png"), "--data", str(folder / "p.csv")]
    assert main([*command, "--quantity", quantity, "--sigma", "0.8", "--points", "120", *options]) == 0
    return np.loadtxt(folder / "p.csv", delimiter=",", skiprows=1).T


def test_the_counter_charge_is_drawn(tmp_path):
    """Between a charged sheet and its counter-charge the field is sigma / eps0, outside it is none."""
    charge = 0.05
    atoms, area = sheet(charge)
    z, alone = drawn(atoms, tmp_path, "field")
    assert np.interp(14.0, z, alone) == pytest.approx(FIELD_CONSTANT * charge / area / 2, rel=1e-6)
    atoms.info["counter_charge"] = (18.0, 20.0)
    z, field = drawn(atoms, tmp_path, "field")
    assert np.interp(14.0, z, field) == pytest.approx(FIELD_CONSTANT * charge / area, rel=1e-6)
    assert np.interp([2.0, 4.0, 24.0], z, field) == pytest.approx([0.0] * 3, abs=1e-7)
    z, potential = drawn(atoms, tmp_path, "potential")
    step = np.interp(24.0, z, potential) - np.interp(2.0, z, potential)
    # to the middle of the counter-charge
    assert step == pytest.approx(-FIELD_CONSTANT * charge / area * 9.0, rel=1e-4)
    z, density = drawn(atoms, tmp_path, "density")
    assert density.sum() == pytest.approx(0.0, abs=1e-3 * np.abs(density).sum())


@pytest.mark.parametrize(("axis", "quantity"), [("x", "field"), ("y", "potential"), ("z", "density")])
def test_lines_and_slices_go_through_their_point(axis, quantity, tmp_path):
    """Every number of the table is the quantity where the table says; a field is its part along the axis."""
    atoms = Atoms("HOH", positions=[[0.0, 0.1, 0.2], [1.0, 0.3, -0.4], [-0.3, 1.1, 0.7]])
    atoms.arrays["charges"] = np.array([0.4, -0.9, 0.5])
    atoms.arrays["moments"] = np.array([[0.1, 0.0, 0.0], [0.0, 0.2, 0.0], [0.0, 0.0, 0.3]])
    rows = np.column_stack([atoms.arrays["charges"], atoms.arrays["moments"]])
    through, i = [0.5, -0.2, 0.3], "xyz".index(axis)
    options = ["--axis", axis, "--dipoles", "moments", "--through", *map(str, through)]
    for kind in ("line", "slice"):
        table = drawn(atoms, tmp_path, quantity, "--kind", kind, *options)
        points = np.tile(through, (table.shape[1], 1))
        moving = [i] if kind == "line" else [j for j in range(3) if j != i]
        points[:, moving] = table[:-1].T
        assert all(np.ptp(points[:, j]) > 5 for j in moving)
        values = getattr(values_at(atoms, rows, 0.8, points), quantity).numpy()
        values = values[:, i] if quantity == "field" else values
        np.testing.assert_allclose(table[-1], values, rtol=1e-9, atol=1e-10)


def test_an_external_field_is_drawn(tmp_path):
    """Of mace's sign: the energy gains field . dipole, a charge feels minus the field."""
    atoms, _ = sheet()
    atoms.arrays["charges"] *= 0.0
    atoms.info["external_field"] = np.array([0.0, 0.0, 0.02])
    z, field = drawn(atoms, tmp_path, "field")
    assert field == pytest.approx(np.full_like(z, -0.02), abs=1e-9)
    z, potential = drawn(atoms, tmp_path, "potential")
    assert np.polyfit(z, potential, 1)[0] == pytest.approx(0.02, rel=1e-9)


def test_only_charges_are_drawn(tmp_path, capsys):
    """The first column of any array was taken for them."""
    atoms, _ = sheet()
    with pytest.raises(ValueError, match=r"'positions' \[36, 3\] must hold one number of each of 36 atoms"):
        read_rows(atoms, "positions", None)
    atoms.arrays["names"] = np.array(["a"] * len(atoms))
    with pytest.raises(ValueError, match="'names'"):
        read_rows(atoms, "names", None)
    write(tmp_path / "in.xyz", atoms, format="extxyz")
    before = (tmp_path / "in.xyz").read_bytes()
    for options in (["--data", str(tmp_path / "in.xyz")], ["--data", str(tmp_path / "p.png")]):
        assert main(["plot", str(tmp_path / "in.xyz"), "-o", str(tmp_path / "p.png"), *options]) == 2
        assert "must be different files" in capsys.readouterr().err
    assert (tmp_path / "in.xyz").read_bytes() == before


def test_pictures_appear_whole(tmp_path, monkeypatch):
    atoms, _ = sheet()
    (tmp_path / "p.png").write_bytes(b"yesterday's")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    write(tmp_path / "in.xyz", atoms, format="extxyz")
    assert main(["plot", str(tmp_path / "in.xyz"), "-o", str(tmp_path / "p.png"), "--points", "5"]) == 1
    assert (tmp_path / "p.png").read_bytes() == b"yesterday's"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.xyz", "p.png"]


def test_a_field_has_the_names_of_every_door(tmp_path):
    """As calculators and trainings read it: with REF_ in front, or one number along z."""
    atoms = read(path("al_water.xyz"), 0)
    atoms.info = {}
    rows = atoms.arrays["REF_hirshfeld"][:, None].astype(float)
    points = np.array([[1.0, 1.0, 15.0], [1.0, 1.0, 16.0]])
    found = []
    for info in (
        {"external_field": [0.0, 0.0, 0.1]},
        {"REF_external_field": 0.1},
        {"external_field": 0.1},
        {},
    ):
        atoms.info = info
        found.append(values_at(atoms, rows, 1.0, points).field.numpy())
    assert np.allclose(found[0], found[1], atol=1e-12)
    assert np.allclose(found[0], found[2], atol=1e-12)
    # mace's sign: energy + field . dipole, so that a charge feels the opposite
    assert np.allclose(found[0] - found[3], [0.0, 0.0, -0.1], atol=1e-10)
