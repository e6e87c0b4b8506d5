"""How a fixed point's update answers disturbances, and training it to answer less."""

from unittest import mock

import pytest
import torch

from scfmlip.models import build, rules
from scfmlip.scf import fixed_point

from .cases import BACKBONE, ELEMENTS, batch, crystal, make_model, slab, water

CASES = ["affine", "affine_level", "affine_free", "mlp", "passive", "affine_0"]


def outputs(model, given, seed=0, **options):
    torch.manual_seed(seed)
    return model(given, compute_force=False, compute_stability=True, **options)


@pytest.mark.parametrize("case", CASES)
def test_amplification_is_of_the_update(case):
    """Against differences of one step from disturbed densities, at the level found."""
    model = make_model(case)
    given = batch(model, [crystal()])
    out = outputs(model, given)
    density, n = out["density_coefficients"], out["density_coefficients"].numel()
    given = {**given, "fermi_level": out.get("fermi_level", given.get("fermi_level"))}

    def step(change):
        rows = density + change.view_as(density)
        return model({**given, "density_coefficients": rows}, compute_force=False, scf="direct")[
            "density_coefficients"
        ].flatten()

    eye = 1e-4 * torch.eye(n, dtype=torch.float64)
    jacobian = torch.stack([(step(e) - step(-e)) / 2e-4 for e in eye], 1)
    torch.manual_seed(0)
    # the rows inside are [q, d_x, d_y, d_z]
    u = torch.randn_like(density)
    u = u[:, [0, 2, 3, 1]] if u.shape[1] > 1 else u
    expected = (jacobian.T @ u.flatten()).square().sum() / u.square().sum()
    torch.testing.assert_close(out["scf_amplification"][0], expected, rtol=1e-5, atol=1e-12)


def test_batches():
    model = make_model("affine")
    frames = [water(), slab(), crystal()]
    out = outputs(model, batch(model, frames))
    assert out["scf_amplification"].shape == (3,)
    assert (out["scf_amplification"] > 0).all()


def test_only_of_fixed_points():
    model = make_model("local")
    assert "scf_amplification" not in outputs(model, batch(model, [water()]))


def test_gradient():
    """Of the response's weights and through the converged state's own dependence on them."""
    model = make_model("mlp")
    given = batch(model, [water(), crystal()])
    parameter = model.rule.response.charge

    def value():
        return outputs(model, given, training=True)["scf_amplification"].sum()

    (gradient,) = torch.autograd.grad(value(), parameter)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    kept = parameter.detach().clone()
    try:
        sides = []
        for step in (1e-5, -1e-5):
            parameter.data.copy_(kept + step * direction)
            sides.append(value().item())
    finally:
        parameter.data.copy_(kept)
    assert (gradient * direction).sum().item() == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-5)


def spectrum(model, given):
    """Eigenvalues of 1 - J among states of one total charge, the level following."""
    seen = {}

    def keep(update, first, parameters, **options):
        seen.update(update=update, first=first.detach(), parameters=[t.detach() for t in parameters])
        return fixed_point(update, first, parameters, **options)

    with mock.patch.object(rules.fixed_point.rule, "fixed_point", keep):
        model(given, compute_force=False)
    update, first, parameters = seen["update"], seen["first"], seen["parameters"]
    eye, level = torch.eye(first.numel(), dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    with torch.no_grad():
        base = update(first, level, *parameters)
        changes = [update(first + e.view_as(first), level, *parameters) - base for e in eye]
        uniform = (update(first, level + 1, *parameters) - base).flatten()
    charge = torch.zeros_like(first)
    charge[:, 0] = 1
    charge = charge.flatten()
    neutral = torch.linalg.svd(charge[None])[2][1:].T
    back = eye - torch.outer(uniform, charge) / (charge @ uniform)
    return torch.linalg.eigvals(
        neutral.T @ back @ (eye - torch.stack([c.flatten() for c in changes], 1)) @ neutral
    )


@pytest.mark.parametrize("scale", [0.01, 0.1, 1.0])
def test_soft_atoms_have_a_stable_state(scale):
    """However soft: a response to the others' potential alone has none above the inverse of an atom's own."""
    rule = {"name": "fixed_point", "response_scale": scale}
    config = {"elements": ELEMENTS, "backbone": BACKBONE, "density": {"sigma": 1.2}, "rule": rule}
    model = build({**config, "constraint": "charge", "dtype": "float64"})
    for frame in (water(), crystal(), slab(), slab().repeat((2, 2, 1))):
        frame.info["charge"] = 0.0
        assert spectrum(model, batch(model, [frame])).real.min() > 0.5 / (1 + 25 * scale)
