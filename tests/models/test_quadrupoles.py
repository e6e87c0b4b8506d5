"""Rules whose density has quadrupoles."""

import pytest
import torch
from scipy.spatial.transform import Rotation

import scfmlip.models
from scfmlip.electrostatics import quadrupole_tensors

from .cases import BACKBONE, ELEMENTS, RULES, SYSTEMS, batch, water
from .test_rules import energy, moved, slope

CASES = ("local", "latent", "affine", "many_body", "passive")


def make(case):
    rule, constraint = RULES[case]
    rule = {"name": rule} if isinstance(rule, str) else dict(rule)
    if rule["name"] == "fixed_point":
        rule["tolerance"] = 1e-11
    return scfmlip.models.build(
        {
            "elements": ELEMENTS,
            "atomic_energies": {"H": -1.0, "O": -2.0, "Al": -3.0},
            "backbone": {**BACKBONE, "hidden_irreps": "4x0e+4x1o+4x2e", "num_interactions": 2},
            "density": {"l_max": 2, "sigma": 1.2, "tolerance": 1e-10},
            "rule": rule,
            "constraint": constraint,
            "dtype": "float64",
            "seed": 3,
        }
    )


@pytest.mark.parametrize(
    ("case", "where"),
    [*((c, "periodic") for c in CASES), ("local", "slab"), ("passive", "open"), ("affine", "counter_charge")],
)
def test_forces_and_stress_are_derivatives(case, where):
    model = make(case)
    given = batch(model, [SYSTEMS[where]()])
    out = model(given, compute_stress=True)
    assert out["density_coefficients"].shape == (len(given["positions"]), 9)
    assert float(out["density_coefficients"][:, 4:].detach().abs().max()) > 1e-6
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(given["positions"].shape, generator=generator, dtype=torch.float64)
    along = slope(lambda s: energy(model, moved(given, shift=s * direction)).sum())
    torch.testing.assert_close(-(out["forces"] * direction).sum(), along, rtol=1e-7, atol=1e-8)
    if where == "periodic":
        strain = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        strain = strain + strain.T
        along = slope(lambda s: energy(model, moved(given, strain=s * strain)).sum())
        got = (out["stress"][0] * strain).sum() * SYSTEMS[where]().get_volume()
        torch.testing.assert_close(got, along, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", ["local", "affine", "passive"])
def test_they_turn_with_the_molecule(case):
    """Features of e3nn's order become components of ours."""
    model, atoms = make(case), water()
    matrix = Rotation.from_euler("xyz", [0.3, -1.1, 2.0]).as_matrix()
    turned = atoms.copy()
    turned.positions = atoms.positions @ matrix.T
    one, other = (model(batch(model, [a])) for a in (atoms, turned))
    torch.testing.assert_close(other["energy"], one["energy"], rtol=0, atol=1e-9)
    turn = torch.tensor(matrix)
    here, there = (quadrupole_tensors(out["density_coefficients"][:, 4:].detach()) for out in (one, other))
    torch.testing.assert_close(
        there, turn @ here @ turn.T, rtol=0, atol=1e-9 * float(here.abs().max()) + 1e-12
    )


def test_saved_and_loaded(tmp_path):
    model = make("local")
    scfmlip.models.save(model, tmp_path / "model.safetensors")
    loaded = scfmlip.models.load(tmp_path / "model.safetensors")
    given = batch(model, [water()])
    torch.testing.assert_close(loaded(given)["energy"], model(given)["energy"], rtol=0, atol=0)


def test_rules_and_features_that_have_none():
    base = {"elements": ELEMENTS, "atomic_energies": {"H": 0.0, "O": 0.0, "Al": 0.0}, "density": {"l_max": 2}}
    for rule in ("equilibrated", "functional", "recursion"):
        full = {
            **base,
            "rule": {"name": rule},
            "constraint": "charge_spin" if rule == "recursion" else "charge",
        }
        config = scfmlip.models.make_config({**full, "backbone": BACKBONE})
        with pytest.raises(ValueError, match="multipoles up to l = 1: set density"):
            scfmlip.models.Model(config)
    config = scfmlip.models.make_config({**base, "rule": {"name": "local"}, "backbone": BACKBONE})
    with pytest.raises(ValueError, match=r"quadrupoles \(density.l_max = 2\) need 2e among the features"):
        scfmlip.models.Model(config)
