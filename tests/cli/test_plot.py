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
