"""Every charge rule: exact derivatives, symmetries, constraints, batches, training."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from scipy.spatial.transform import Rotation

import scfmlip.models
from scfmlip.electrostatics.kspace import KSpace

from .cases import ALL, CHARGES_ONLY, RULES, SYSTEMS, batch, crystal, make_model, slab, water

STEP = 1e-3
NEED_COUNTER_CHARGE = ("qeq_level", "convex_level")


def energy(model, given):
    return model(given, compute_force=False)["energy"]


def moved(given, strain=None, shift=None):
    """The batch after a strain of everything, or a shift of the atoms."""
    out = dict(given)
    positions = given["positions"].detach()
    if shift is not None:
        out["positions"] = positions + shift
    if strain is not None:
        deformation = torch.eye(3, dtype=positions.dtype) + strain
        out["positions"] = positions @ deformation
        out["cell"], out["shifts"] = given["cell"] @ deformation, given["shifts"] @ deformation
    return out


def slope(function, step=STEP):
    """Fourth-order central difference at zero."""
    return (8 * (function(step) - function(-step)) - (function(2 * step) - function(-2 * step))) / (12 * step)


@pytest.mark.parametrize("where", SYSTEMS)
@pytest.mark.parametrize("case", ALL)
def test_forces_and_stress_are_derivatives(case, where):
    if case in NEED_COUNTER_CHARGE and where == "slab":
        pytest.skip("refused: see test_a_slab_at_a_level_needs_a_counter_charge")
    model = make_model(case)
    given = batch(model, [SYSTEMS[where]()])
    out = model(given, compute_stress=True)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(given["positions"].shape, generator=generator, dtype=torch.float64)
    along = slope(lambda s: energy(model, moved(given, shift=s * direction)).sum())
    torch.testing.assert_close(-(out["forces"] * direction).sum(), along, rtol=1e-7, atol=1e-8)
    if where != "open":
        strain = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        strain = strain + strain.T
        along = slope(lambda s: energy(model, moved(given, strain=s * strain)).sum())
        got = (out["stress"][0] * strain).sum() * SYSTEMS[where]().get_volume()
        torch.testing.assert_close(got, along, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", ["short_range", "latent", "qeq", "qeq_narrow", "affine", "mlp", "convex"])
def test_grad_modes_change_nothing(case):
    """Energies, forces and stress under `torch.no_grad` and `torch.inference_mode`, batch included."""
    model = make_model(case)
    frame, near = slab(), {"rtol": 1e-9, "atol": 1e-12}
    want = model(batch(model, [frame]), compute_stress=True)
    inside = batch(model, [frame])
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = model(inside, compute_stress=True)
            inside = batch(model, [frame])
        for name in ("energy", "forces", "stress"):
            torch.testing.assert_close(got[name], want[name], **near)
    # what was made in inference mode serves outside, and has left nothing behind
    out = model(inside, training=True)
    torch.testing.assert_close(out["forces"], want["forces"], **near)
    torch.autograd.grad(out["forces"].square().sum(), list(model.parameters()), allow_unused=True)


def test_densities_in_inference_mode():
    model = make_model("convex")
    want = model.evaluate_density(batch(model, [water()]))[0]["density_coefficients"]
    with torch.inference_mode():
        got = model.evaluate_density(batch(model, [water()]))[0]["density_coefficients"]
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_weights_made_in_inference_mode():
    model = make_model("short_range")
    with torch.inference_mode():
        lost = scfmlip.models.build(model.config)
    with pytest.raises(
        ValueError, match=r"weights were created under torch\.inference_mode.*load the model outs"
    ):
        lost(batch(model, [water()]))


@pytest.mark.parametrize("case", NEED_COUNTER_CHARGE)
def test_a_slab_at_a_level_needs_a_counter_charge(case):
    model = make_model(case)
    with pytest.raises(ValueError, match=r"\[1\] of the batch are slabs.*counter_charge"):
        model(batch(model, [water(), slab()]))


@pytest.mark.parametrize("case", ALL)
def test_batches_equal_single_systems(case):
    model = make_model(case)
    constraint = model.config.constraint
    charge = 1.0 if constraint == "charge" else 0.0
    middle = water() if case in NEED_COUNTER_CHARGE else slab()
    frames = [water(charge), middle, crystal(charge)]
    together = model(batch(model, frames), compute_stress=True)
    ends = np.cumsum([0, *map(len, frames)])
    for i, frame in enumerate(frames):
        alone = model(batch(model, [frame]), compute_stress=True)
        rows = slice(ends[i], ends[i + 1])
        for name in ("forces", "charges"):
            if name in alone:
                torch.testing.assert_close(together[name][rows], alone[name], rtol=1e-8, atol=1e-9)
        for name in ("energy", "stress", "dipole", "fermi_level"):
            if name in alone:
                torch.testing.assert_close(together[name][i], alone[name][0], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("case", ALL)
def test_rotations_and_permutations(case):
    model = make_model(case)
    frame = water() if case in NEED_COUNTER_CHARGE else slab()
    out = model(batch(model, [frame]), compute_stress=True)
    matrix = Rotation.random(random_state=4).as_matrix()
    order = np.random.default_rng(5).permutation(len(frame))
    turned = frame[order]
    turned.set_cell(frame.cell.array @ matrix.T)
    turned.positions = frame.positions[order] @ matrix.T
    turned.info.update(frame.info)
    other = model(batch(model, [turned]), compute_stress=True)
    r = torch.tensor(matrix)
    near = {"rtol": 1e-7, "atol": 1e-8}
    torch.testing.assert_close(other["energy"], out["energy"], **near)
    torch.testing.assert_close(other["forces"], out["forces"][order] @ r.T, **near)
    torch.testing.assert_close(other["stress"], r @ out["stress"] @ r.T, **near)
    if "charges" in out:
        torch.testing.assert_close(other["charges"], out["charges"][order], **near)
        torch.testing.assert_close(other["dipole"], out["dipole"] @ r.T, **near)
        rows, turned_rows = (o["density_coefficients"] for o in (out, other))
        if rows.shape[1] == 4:
            cartesian = [3, 1, 2]
            torch.testing.assert_close(turned_rows[:, cartesian], rows[order][:, cartesian] @ r.T, **near)


@pytest.mark.parametrize("where", ["slab", "periodic"])
@pytest.mark.parametrize("case", ["short_range", "split", "qeq", "qeq_narrow", "latent", "affine", "convex"])
def test_left_handed_lattice_vectors(case, where):
    model, frame = make_model(case), SYSTEMS[where]()
    other = frame.copy()
    other.set_cell(frame.cell.array[[1, 0, 2]])
    a, b = (model(batch(model, [f]), compute_stress=True) for f in (frame, other))
    for name in ("energy", "forces", "stress"):
        torch.testing.assert_close(b[name], a[name], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("case", ALL)
def test_far_fragments_forget_each_other(case):
    """Two neutral molecules: what is left of their interaction falls at least as that of dipoles, 1 / r^3."""
    model = make_model(case)
    single = model(batch(model, [water()]))
    if "charges" in single and float(single["total_charge"].abs().max()) > 1e-6:
        pytest.skip("this rule charges the molecule")

    def interaction(distance):
        frame = water() + water()
        frame.positions[:3, 0] -= distance / 2
        frame.positions[3:, 0] += distance / 2
        frame.info["charge"] = 0.0
        return energy(model, batch(model, [frame])).item() - 2 * single["energy"].item()

    near, far = interaction(20.0), interaction(60.0)
    assert abs(far) <= abs(near) / 25 + 1e-9
    assert abs(far) < 1e-4


@pytest.mark.parametrize("charge", [0.0, 1.0, -2.0])
@pytest.mark.parametrize("case", [c for c in ALL if {**RULES, **CHARGES_ONLY}[c][1] == "charge"])
def test_charge_is_conserved(case, charge):
    model = make_model(case)
    out = model(batch(model, [water(charge), crystal(charge)]))
    torch.testing.assert_close(out["total_charge"], torch.full((2,), charge, dtype=torch.float64))


@pytest.mark.parametrize("case", ["qeq_level", "affine_level", "convex_level"])
def test_the_level_of_a_charge_gives_that_charge(case):
    """At the Fermi level found at constant charge, the charge comes out again."""
    at_charge = make_model(case, constraint="charge")
    at_level = make_model(case)
    frame = water(0.4)
    found = at_charge(batch(at_charge, [frame]))
    again = at_level(batch(at_level, [frame], float(found["fermi_level"])))
    torch.testing.assert_close(again["total_charge"], found["total_charge"], rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(again["charges"], found["charges"], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("case", ["qeq", "passive", "convex", "quadratic"])
def test_the_level_is_the_energy_of_charge(case):
    """Rules whose energy is minimal: dE/dQ = minus the electrons' level."""
    model = make_model(case)
    level = model(batch(model, [slab(0.2)]))["fermi_level"]
    along = slope(lambda s: energy(model, batch(model, [slab(0.2 + s)])))
    torch.testing.assert_close(-level, along, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("case", ALL)
def test_fields_act_on_dipoles(case):
    """dE/dF = dipole in mace's sign where the state is local or minimal."""
    if case == "short_range":
        pytest.skip("no charges")
    model = make_model(case)
    given = batch(model, [water()])
    zero = model(given)

    def at(strength):
        field = torch.zeros(1, 3, dtype=torch.float64)
        field[0, 1] = strength
        return model({**given, "external_field": field}, compute_force=False)

    # Hellmann and Feynman, or a density that does not follow the field
    if not model.rule.variational and not case.startswith(("fixed", "local", "split", "latent")):
        pytest.skip("the energy is not stationary in the state")
    along = slope(lambda s: at(s)["energy"])
    torch.testing.assert_close(along, zero["dipole"][:, 1], rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("case", ["local", "split", "qeq", "affine", "passive", "qeq_level", "convex"])
def test_response_by_differences(case):
    model = make_model(case)
    given = batch(model, [water(), crystal()])
    out = model(given, compute_response=True)

    def at(strength):
        field = torch.zeros(2, 3, dtype=torch.float64)
        field[0, 1] = -strength  # mace's sign
        return model({**given, "external_field": field}, compute_force=False)["dipole"][0]

    near = {"rtol": 1e-6, "atol": 1e-8}
    torch.testing.assert_close(out["polarizability"][0, 1], slope(at), **near)
    assert float(out["polarizability"][1].abs().max()) < 1e-20, "no field along periodic directions"
    shift = torch.zeros_like(given["positions"])
    shift[1, 2] = 1.0
    along = slope(lambda s: model(moved(given, shift=s * shift), compute_force=False)["dipole"][0])
    torch.testing.assert_close(out["born_charges"][1, 2], along, **near)


@pytest.mark.parametrize("case", ["local", "qeq", "affine"])
def test_born_charges_do_not_depend_on_the_cut(case):
    """Atoms moved by a lattice vector have the same Born charges; those of all atoms add up to the charge."""
    model = make_model(case)
    frame = crystal()
    first = model(batch(model, [frame]), compute_response=True)["born_charges"]
    frame.positions[0] += frame.cell.array.T @ [1, -2, 1]
    second = model(batch(model, [frame]), compute_response=True)["born_charges"]
    torch.testing.assert_close(second, first, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", ALL)
def test_force_losses_train_every_parameter(case):
    """Gradients of a loss of energies, forces, stress and dipoles against differences."""
    model = make_model(case)
    given = batch(model, [crystal() if case in NEED_COUNTER_CHARGE else slab()])

    def loss():
        out = model(given, training=True, compute_stress=True)
        value = out["energy"].sum() + (out["forces"] ** 2).sum() + 100 * (out["stress"] ** 2).sum()
        if "dipole" in out:
            value = value + (out["dipole"] ** 2).sum() + (out["charges"] ** 2).sum()
        return value

    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss(), parameters, materialize_grads=True)
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    saved = [p.detach().clone() for p in parameters]

    def at(step):
        with torch.no_grad():
            for p, start, d in zip(parameters, saved, directions, strict=True):
                p.copy_(start + step * d)
        return loss().item()

    along = slope(at, 1e-4)
    at(0.0)
    total = sum((g * d).sum().item() for g, d in zip(grads, directions, strict=True))
    assert total == pytest.approx(along, rel=3e-6, abs=1e-7)


@pytest.mark.parametrize("case", ALL)
def test_float32(case):
    """Energies and forces of one float32 model against the same weights in float64."""
    narrow = make_model(case, "float32")
    wide = make_model(case)
    wide.load_state_dict(narrow.state_dict())
    frames = [water(), water() if case in NEED_COUNTER_CHARGE else slab(), crystal()]
    a, b = narrow(batch(narrow, frames)), wide(batch(wide, frames))
    scale = float(b["interaction_energy"].abs().max())
    torch.testing.assert_close(a["energy"].double(), b["energy"], rtol=1e-5, atol=1e-5 * scale)
    force = float(b["forces"].abs().max())
    torch.testing.assert_close(a["forces"].double(), b["forces"], rtol=0, atol=1e-4 * max(force, 1.0))


@pytest.mark.parametrize("case", ALL)
def test_one_atom(case):
    """No neighbours at all: finite numbers, no force, the charge it was given."""
    model = make_model(case)
    atom = Atoms("O", positions=[[0.3, -0.2, 0.1]])
    atom.info["charge"] = -1.0
    out = model(batch(model, [atom]))
    torch.testing.assert_close(out["forces"], torch.zeros(1, 3, dtype=torch.float64), rtol=0, atol=1e-10)
    assert math.isfinite(out["energy"].item())
    if model.config.constraint == "charge":
        assert out["charges"].item() == pytest.approx(-1.0, abs=1e-9)


@pytest.mark.parametrize("case", ["local", "qeq", "affine"])
def test_heads(case):
    """Each system's energy is that of its own head."""
    config = scfmlip.models.config_to_dict(make_model(case).config)
    config["backbone"] = {**config["backbone"], "heads": ["a", "b"], "scale": [1.0, 2.0], "shift": [0.0, 0.5]}
    model = scfmlip.models.build(config)
    frames = [water(), water()]
    for atoms, head in zip(frames, "ab", strict=True):
        atoms.info["head"] = head
    both = batch(model, frames)
    assert both["head"].tolist() == [0, 1]
    together = model(both)["energy"]
    for i in (0, 1):
        torch.testing.assert_close(model(batch(model, frames[i : i + 1]))["energy"][0], together[i])
    assert abs(float(together[1] - together[0])) > 0.1


@pytest.mark.parametrize("rule", ["short_range", {"name": "latent", "compat": "les"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_heads_in_any_default_dtype(rule, dtype):
    """mace-torch's readout of several heads makes its mask in the default dtype; others may change that."""
    config = scfmlip.models.config_to_dict(make_model("short_range").config)
    config["backbone"] = {**config["backbone"], "heads": ["a", "b"]}
    config["density"] = {**config["density"], "l_max": 0}
    model = scfmlip.models.build({**config, "rule": rule, "dtype": str(dtype).removeprefix("torch.")})
    frames = [water(), water()]
    for atoms, head in zip(frames, "ab", strict=True):
        atoms.info["head"] = head
    given = batch(model, frames)
    found = []
    for default in (torch.float32, torch.float64):
        torch.set_default_dtype(default)
        found.append(model(dict(given))["energy"])
    assert found[0].dtype == dtype
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert found[0][0] != found[0][1]


def test_every_rule_is_tested():
    from scfmlip.models import rule_names
    from scfmlip.models.rules import name_of

    # "recursion" has the reference's own quirks: test_convert.py compares it with the reference
    assert {name_of(make_model(case).config.rule) for case in RULES} == set(rule_names()) - {"recursion"}


@pytest.mark.parametrize(
    ("case", "most"), [("local", 1), ("qeq", 4), ("affine", 3), ("mlp", 3), ("many_body", 3), ("convex", 4)]
)
def test_tables_of_waves_once_for_all_steps(case, most, monkeypatch):
    """Without a graph for solve and adjoint, with one for energy and for derivatives: whatever the steps."""
    made, init = [], KSpace.__init__

    def counted(self, *args, **kwargs):
        made.append(1)
        init(self, *args, **kwargs)

    monkeypatch.setattr(KSpace, "__init__", counted)
    model = make_model(case)
    model(batch(model, [SYSTEMS["periodic"]()]), compute_stress=True)
    assert len(made) <= most
