"""Loss terms and errors against their formulas."""

import numpy as np
import pytest
import torch
from tolerances import assert_close

from scfmlip.training import LABELS, TERMS, Errors, loss
from scfmlip.training.losses import labelled_pairs

SIZES = torch.tensor([2, 3, 4])
N = int(SIZES.sum())


def problem(seed=0):
    """Outputs that need gradients, and a batch where system 1 lacks every label but its energy."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shapes = {
        "energy": (3,),
        "forces": (N, 3),
        "stress": (3, 3, 3),
        "charges": (N,),
        "density_coefficients": (N, 4),
        "total_charge": (3,),
        "dipole": (3, 3),
        "potential": (N,),
        "fermi_level": (3,),
    }
    batch = {name: rand(*shape) for name, shape in shapes.items()}
    batch |= {f"{name}_weight": torch.tensor([1.0, 0.0, 2.0]).double() for name in shapes}
    batch["energy_weight"] = torch.ones(3).double()
    batch["dipole_weight"] = torch.tensor([[0.0, 0, 1], [0, 0, 0], [1, 1, 1]]).double()
    batch["weight"] = torch.tensor([1.0, 1.0, 0.5]).double()
    batch["batch"] = torch.repeat_interleave(torch.arange(3), SIZES)
    batch["ptr"] = torch.cat([torch.zeros(1, dtype=torch.long), SIZES.cumsum(0)])
    out = {t.output: rand(*shapes[t.label]).requires_grad_() for t in TERMS.values()}
    return out, batch


@pytest.mark.parametrize("name", TERMS)
def test_each_term_is_its_weighted_mean(name):
    out, batch = problem()
    term = TERMS[name]
    error = out[term.output] - batch[term.label]
    error = error.reshape(len(error), -1)
    if term.per_atom:
        error = error / SIZES[:, None]
    weight = batch[f"{term.label}_weight"].reshape(3, -1) * batch["weight"][:, None]
    weight = weight[batch["batch"]] if term.per == "atom" else weight
    want = 7.0 * (weight * error**2).mean(0).mean()
    assert_close(loss(out, batch, {name: 7.0}), want)


def test_terms_add_up():
    out, batch = problem()
    weights = {name: float(i) for i, name in enumerate(TERMS)}
    want = sum(w * loss(out, batch, {n: 1.0}) for n, w in weights.items() if w)
    assert_close(loss(out, batch, weights), want)


def test_kinds():
    out, batch = problem()
    error = out["forces"] - batch["forces"]
    weight = (batch["forces_weight"] * batch["weight"])[batch["batch"]]
    want = (weight * error.norm(dim=1)).mean()
    assert_close(loss(out, batch, {"forces": 1.0}, "l1"), want)
    # far beyond delta Huber's loss is delta (|e| - delta / 2)
    want = (weight[:, None] * 1e-6 * (error.abs() - 5e-7)).mean()
    assert_close(loss(out, batch, {"forces": 1.0}, "huber", 1e-6), want, 1e-9)


@pytest.mark.parametrize("kind", ["mse", "huber", "l1"])
def test_missing_labels_leave_no_trace(kind):
    """NaN where there is no label: neither value nor gradient notices."""
    out, batch = problem()
    weights = {name: 1.0 for name in TERMS}
    batch["fermi_level"][1] = torch.nan
    batch["forces"][2:5] = torch.nan
    value = loss(out, batch, weights, kind)
    value.backward()
    assert torch.isfinite(value)
    for name, term in TERMS.items():
        grad = out[term.output].grad
        assert torch.isfinite(grad).all(), name
        missing = grad[2:5] if term.per == "atom" else grad[1]
        if name != "energy":
            assert float(missing.abs().max()) == 0, name


def test_an_exact_prediction_has_a_gradient():
    _, batch = problem()
    exact = {"forces": batch["forces"].clone().requires_grad_()}
    loss(exact, batch, {"forces": 1.0}, "l1").backward()
    assert float(exact["forces"].grad.abs().max()) == 0


def test_shares_of_a_batch_add_up():
    out, batch = problem()
    weights = {"energy": 1.0, "forces": 3.0, "dipole": 2.0}
    parts = 0.0
    for i in range(3):
        atoms = batch["batch"] == i
        pick = {k: v[atoms] if len(v) == N else v[i : i + 1] for k, v in batch.items() if k != "ptr"}
        pick["batch"], pick["ptr"] = pick["batch"] * 0, torch.tensor([0, int(SIZES[i])])
        share = {k: v[atoms] if len(v) == N else v[i : i + 1] for k, v in out.items()}
        parts = parts + loss(share, pick, weights, n_systems=3, n_atoms=N)
    assert_close(parts, loss(out, batch, weights))


def test_charges_alone_beside_multipoles():
    """A rule without dipoles is compared with the charges, whatever more the frames hold."""
    _, batch = problem()
    charges = {"density_coefficients": torch.zeros(N, 1).double().requires_grad_()}
    weight = (batch["density_coefficients_weight"] * batch["weight"])[batch["batch"]]
    want = (weight * batch["density_coefficients"][:, 0] ** 2).mean()
    assert_close(loss(charges, batch, {"multipoles": 1.0}), want)
    (_, reference) = labelled_pairs(charges, batch)["multipoles"]
    assert len(reference) == int((weight > 0).sum())


def test_penalty_above_one():
    _, batch = problem()
    values = torch.tensor([0.2, 1.0, 3.0]).double().requires_grad_()
    out = {"scf_amplification": values}
    got = loss(out, batch, {"scf_stability": 6.0})
    # softplus(10 (x - 1)) / 10; the last frame counts half
    want = 6.0 * (0.1 * np.log1p(np.exp(-8.0)) + 0.1 * np.log(2.0) + 0.5 * 2.0) / 3
    assert_close(got, torch.tensor(want).double(), 1e-8)
    got.backward()
    assert 0 < values.grad[0] < 1e-3
    assert_close(values.grad[1:], torch.ones(2).double(), 1e-8)
    with pytest.raises(ValueError, match="'scf_stability' has weight 1, but this model predicts no"):
        loss({}, batch, {"scf_stability": 1})


def test_mistakes():
    out, batch = problem()
    with pytest.raises(ValueError, match="predicts no fermi_level"):
        loss({**out, "fermi_level": None}, batch, {"fermi_level": 1.0})
    with pytest.raises(ValueError, match="every loss weight is 0"):
        loss(out, batch, {"energy": 0.0})


def test_errors_count_labelled_components():
    out, batch = problem()
    errors = Errors()
    errors.add(out, batch)
    errors.add(out, {**batch, "weight": torch.zeros(3).double()})  # frames that do not count
    result = errors.result()
    assert set(result) == {f"{n}_{k}" for n in LABELS for k in ("rmse", "mae")}
    keep = torch.tensor([True, True, False, False, False, True, True, True, True])
    forces = (out["forces"] - batch["forces"]).detach()[keep]
    assert result["forces_rmse"] == pytest.approx(float(forces.square().mean().sqrt()))
    assert result["forces_mae"] == pytest.approx(float(forces.abs().mean()))
    dipole = (out["dipole"] - batch["dipole"]).detach()[batch["dipole_weight"] > 0]
    assert result["dipole_rmse"] == pytest.approx(float(dipole.square().mean().sqrt()))
    energy = (out["interaction_energy"] - batch["energy"]).detach() / SIZES
    assert result["energy_mae"] == pytest.approx(float(energy.abs().mean()))


def test_pairs_for_plots():
    out, batch = problem()
    pairs = labelled_pairs(out, batch)
    predicted, reference = pairs["dipole"]
    assert len(predicted) == 4
    assert reference.tolist() == pytest.approx(batch["dipole"][batch["dipole_weight"] > 0].tolist())
    want = out["dipole"].detach()[batch["dipole_weight"] > 0]
    assert predicted.tolist() == pytest.approx(want.tolist())
