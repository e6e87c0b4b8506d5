"""Options of models: what cannot be is refused with its name, its value and what it may be."""

import dataclasses
import math

import pytest

pytest.importorskip("mace", reason="needs mace-torch")

import scfmlip.models
from models.cases import BACKBONE, CHARGES
from scfmlip.models.build import make_config
from scfmlip.models.config import BackboneConfig, DensityConfig, check_numbers
from scfmlip.models.rules import rule_class, rule_names

CONSTRAINTS = {"equilibrated": "charge", "functional": "charge", "recursion": "charge_spin"}


def build(backbone=None, density=None, rule="short_range", **more):
    return make_config(
        {
            "elements": ["H", "O", "Al"],
            "backbone": {**BACKBONE, **(backbone or {})},
            "density": density or {},
            "rule": rule,
            **more,
        }
    )


def refused(message, **config):
    with pytest.raises((ValueError, TypeError), match=message):
        build(**config)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("r_max", [0.0, -1.0, 1e3, NAN, INF, "far"]),
        ("num_interactions", [0, -1, 1000, 2.0, True]),
        ("max_ell", [-1, 12]),
        ("correlation", [0, -1, 7]),
        ("num_bessel", [0, -1, 10**9]),
        ("num_polynomial_cutoff", [0, -5]),  # the envelope would be 0 everywhere
        ("radial_MLP", [[0], [-1], [10**9], [8, 0], 8, "8"]),
        ("avg_num_neighbors", [0.0, -1.0, NAN, INF]),
        ("scale", [0.0, NAN, INF, [1.0, 2.0], []]),
        ("shift", [NAN, INF, [0.0, 0.0]]),
        ("heads", [[], ["a", "a"], [""], "Default"]),
        # no scalars first, several multiplicities, a block twice, unnatural parity, l beyond the harmonics
        ("hidden_irreps", ["", "8", "x", "4x1o", "4x1o+4x0e", "4x0e+2x1o", "4x0e+4x0e", "4x0o", "4x0e+4x1e"]),
        ("hidden_irreps", ["4x0e+4x3o", "0x0e", "-4x0e", "1000000x0e"]),
        ("MLP_irreps", ["", "4x1o", "4x0e+4x1o", "0x0e", "4x0o"]),
        ("options", [{"r_max": 3.0}, {"num_elements": 5}, {"gate": None}, {"heads": ["a"]}, 3]),
    ],
)
def test_backbone(option, values):
    for value in values:
        refused(rf"backbone\.{option}", backbone={option: value})


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("l_max", [-1, 3, True]),
        ("sigma", [0.0, -1.0, NAN, INF]),
        ("tolerance", [0.0, -1.0, 1.0, NAN]),
        ("kspace_cutoff_factor", [0.0, -1.0, NAN, INF, 1e9]),
        ("boundary", ["round", 3]),
    ],
)
def test_density(option, values):
    for value in values:
        refused(rf"density\.{option}", density={option: value})


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [
        ("fixed", "charges", [{"H": NAN, "O": 1.0, "Al": 1.0}, {"H": "x", "O": 1.0, "Al": 1.0}, 3]),
        ("local", "hidden", [-1, 10**9]),
        ("local_split", "channels", [0, -1, 10**9]),
        ("local_split", "hidden", [0, -1]),
        ("latent", "channels", [0, -1]),
        ("latent", "hidden", [-1]),
        ("latent", "sigma", [0.0, -1.0, NAN]),
        ("latent", "dl", [0.0, NAN]),
        ("equilibrated", "hidden", [-1]),
        ("equilibrated", "sigma", [{"H": -1.0}, {"H": NAN}, "wide"]),
        ("equilibrated", "hardness", [0.0, NAN, INF, {"H": 0.0}]),
        ("equilibrated", "dipole_hardness", [-1.0, {"H": NAN}]),
        ("equilibrated", "tolerance", [0.0, NAN]),
        ("equilibrated", "max_iterations", [0, -1]),
        ("functional", "channels", [0, -1]),
        ("functional", "hidden", [0, -1]),
        ("functional", "kinks", [[NAN], [INF], 1.0]),
        ("functional", "hardness", [0.0, NAN]),
        ("fixed_point", "channels", [0, -1, 10**9]),
        ("fixed_point", "hidden", [0, -1]),
        ("fixed_point", "field_feature_widths", [[], [0.0], [-1.0], [NAN]]),
        ("fixed_point", "field_feature_norms", [[0.0] * 4, [-1.0] * 4, [NAN] * 4, [1.0]]),
        ("fixed_point", "field_feature_max_l", [-1, 2]),
        ("fixed_point", "response_scale", [0.0, NAN, {"H": -1.0}]),
        ("recursion", "num_recursion_steps", [0, -1, 10**6]),
        ("recursion", "field_feature_widths", [[0.0, 1.0], [-1.0, 1.0]]),
        ("recursion", "field_feature_norms", [[1.0], [0.0] * 4]),
        ("recursion", "field_norm_factor", [NAN, INF]),
    ],
)
def test_rules(name, option, values):
    charges = {"charges": CHARGES} if name == "local_split" else {}
    for value in values:
        refused(rf"\.{option} ", rule={"name": name, **charges, option: value})


def test_feedback_and_screening():
    for value in (
        {"n_categories": 0},
        {"num_interactions": 0},
        {"range": [1.0, -1.0]},
        {"range": [NAN, 1.0]},
    ):
        refused(rf"feedback\.{next(iter(value))}", rule={"name": "equilibrated", "feedback": value})
    coulomb = {"name": "equilibrated", "energy": "coulomb"}
    for value in ([-1.0, 2.0], [NAN, 2.0], [2.0, 1.0], [1.0]):
        refused(r"rule\.screening", rule={**coulomb, "screening": value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, r"model\.seed must be a number of at least 0"),
        ({"seed": 2**32}, r"model\.seed"),
        ({"atomic_energies": [0.0, NAN, 0.0]}, "atomic_energies"),
        ({"atomic_energies": {"H": NAN, "O": 0.0, "Al": 0.0}}, "atomic_energies must be finite"),
        ({"atomic_energies": 1.0}, "atomic_energies must be a list"),
        ({"elements": "HO"}, "elements must be a list"),
        ({"elements": 8}, "elements must be a list"),
        ({"rule": {"name": ["local"]}}, "rule needs a name"),
        ({"rule": None}, "lacks 'rule'"),
    ],
)
def test_the_model(change, message):
    refused(message, **change)


def test_every_number_has_bounds():
    """A new option that is a number is refused when it is NaN."""
    classes = {"backbone": BackboneConfig, "density": DensityConfig}
    classes |= {name: rule_class(name).Config for name in rule_names()}
    for where, cls in classes.items():
        for field in dataclasses.fields(cls):
            if field.type not in ("float", "float | None"):
                continue
            kind = {where: {field.name: NAN}}
            if where not in ("backbone", "density"):
                kind = {"rule": {"name": where, field.name: NAN}}
            refused(rf"\.{field.name}", **kind)


def test_what_may_be_is_built():
    assert build({"heads": ["a", "b"], "scale": [1.0, 2.0]}).backbone.scale == (1.0, 2.0)
    assert build(density={"kspace_cutoff_factor": 1.5}).density.kspace_cutoff_factor == 1.5
    backbone = {**BACKBONE, "radial_MLP": [], "num_interactions": 1, "hidden_irreps": "2x0e"}
    with pytest.warns(UserWarning, match="its radial network, FullyConnectedNet, does not end in a matrix"):
        model = scfmlip.models.build(
            {"elements": ["H"], "rule": "local", "density": {"l_max": 0}, "backbone": backbone}
        )
    assert model.config.seed == 0


def test_bounds_in_words():
    @dataclasses.dataclass
    class Options:
        x: object

    for value, bounds, text in (
        (-1, {"least": 0, "below": 1}, r"a\.x must be a number of at least 0 and below 1, got -1"),
        (1, {"least": 0, "below": 1}, "got 1"),
        (0, {"above": 0, "most": 5}, "a positive number of at most 5, got 0"),
        (6, {"above": 0, "most": 5}, "got 6"),
        ([[1], [NAN]], {}, r"a number, got \[\[1\], \[nan\]\]"),
        (10**400, {}, "must be a number"),
        (True, {}, "must be a number, got True"),
    ):
        with pytest.raises(ValueError, match=text):
            check_numbers("a", Options(value), "x", **bounds)
    check_numbers("a", Options({"H": [0.5, "1e-3"]}), "x", above=0, below=1)


def test_scalars_alone_need_the_reduced_basis():
    """In the other mace-torch has no tensor for them, and fails with an index."""
    with pytest.raises(ValueError, match=r"backbone\.max_ell is 0, .*use_reduced_cg"):
        build({"max_ell": 0, "hidden_irreps": "4x0e"})
    assert build({"max_ell": 0, "hidden_irreps": "4x0e", "options": {"use_reduced_cg": True}})
