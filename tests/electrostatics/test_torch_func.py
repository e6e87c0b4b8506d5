"""`torch.func` over the operator: gradients, Hessians, forward mode, batches of positions and multipoles."""

import pytest
import torch
from tolerances import assert_close

from electrostatics.systems import boundary_case

NAMES = ["crystal", "charged slab", "slab with a counter-charge", "molecule", "molecule in a box"]


def energy_of(case):
    operator = case.coulomb()
    plan = operator.plan(case.cell, case.pbc, None, len(case.positions), positions=case.positions)
    return lambda r, p: operator.prepare(r, case.cell, plan=plan, **case.fields).energy(p).sum()


@pytest.mark.parametrize("name", NAMES)
def test_transforms_equal_autograd(name, generator):
    case = boundary_case(name, generator, n_atoms=3)
    energy = energy_of(case)
    r, p = case.positions.clone().requires_grad_(), case.rows.clone().requires_grad_()
    forces, potential = torch.autograd.grad(energy(r, p), (r, p), create_graph=True)
    direction = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    mixed, second = torch.autograd.grad((potential * direction).sum(), (r, p))
    r, p = case.positions, case.rows
    got = torch.func.grad(energy, (0, 1))(r, p)
    assert_close(got[0], forces)
    assert_close(got[1], potential)
    _, along = torch.func.jvp(lambda p: torch.func.grad(energy, (0, 1))(r, p), (p,), (direction,))
    assert_close(along[0], mixed, 1e-11)
    assert_close(along[1], second, 1e-11)
    hessian = torch.func.hessian(energy, 1)(r, p)
    assert_close(torch.einsum("iajb,jb->ia", hessian, direction), second, 1e-11)
    stretched = torch.stack((r, 1.001 * r))
    batch = torch.func.vmap(torch.func.grad(energy), (0, None))(stretched, p)
    assert_close(batch, torch.stack([torch.func.grad(energy)(x, p) for x in stretched]), 1e-11)


def test_vmap_over_slabs_needs_their_plan(generator):
    case = boundary_case("charged slab", generator, n_atoms=3)
    operator = case.coulomb()
    positions = torch.stack((case.positions, case.positions))
    with pytest.raises(ValueError, match=r"make the plan outside, plan\(..., positions=positions\)"):
        torch.func.vmap(lambda r: operator.prepare(r, case.cell, case.pbc).energy(case.rows))(positions)
