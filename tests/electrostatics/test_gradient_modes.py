"""What a geometry keeps does not depend on whether gradients were recorded when it was first asked."""

import pytest
import torch

from scfmlip import Coulomb

CASES = {"periodic": True, "slab": [True, True, False], "open": False}


def gradients(pbc, before):
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(6, 3, dtype=torch.float64, generator=generator) * 6
    charges = torch.randn(6, 1, dtype=torch.float64, generator=generator)
    charges -= charges.mean()
    positions = places.requires_grad_()
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    matrix = torch.eye(3, dtype=torch.float64) + strain
    cell = None if pbc is False else 6 * matrix
    geometry = Coulomb(l_max=0, sigma=1.0).prepare(positions @ matrix, cell, pbc)

    def results():
        wide = geometry.features(charges, (1.0, 2.0), 1)
        return (
            geometry.energy(charges).sum() + wide.square().sum() + geometry.potential(charges).square().sum()
        )

    if before is not None:
        with before():
            results()
    return torch.autograd.grad(results(), (positions, strain))


@pytest.mark.parametrize("before", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("boundary", CASES)
def test_asked_without_gradients_first(boundary, before):
    want = gradients(CASES[boundary], None)
    got = gradients(CASES[boundary], before)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
