"""How a fixed point's update answers disturbances, and training it to answer less."""

import pytest
import torch

from .cases import batch, crystal, make_model, slab, water

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
