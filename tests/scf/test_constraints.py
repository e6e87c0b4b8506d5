"""Totals, spins, and the closure that moves missing charge: where the reference's blows up ours does not."""

import pytest
import torch
from tolerances import assert_close

from scfmlip.scf import redistribute_charge, spin_charges

F64 = torch.float64
PTR = torch.tensor([0, 4, 7])
INDEX = torch.tensor([0] * 4 + [1] * 3)


def reference(charges, totals, response):
    """Fukui functions normalised by the sum of the responses."""
    sums = charges.new_zeros(2).index_add(0, INDEX, charges)
    norm = charges.new_zeros(2).index_add(0, INDEX, response)
    return charges + response / norm[INDEX] * (totals - sums)[INDEX]


@pytest.mark.parametrize("sign", [0, -1])
def test_responses_of_one_sign(sign, generator):
    """The plain normalisation, where it is safe."""
    charges = torch.randn(7, generator=generator, dtype=F64)
    response = -0.5 - torch.rand(7, generator=generator, dtype=F64)
    totals = torch.tensor([1.0, -2.0], dtype=F64)
    got = redistribute_charge(charges, totals, response, PTR, INDEX, sign=sign, floor=1e-6)
    assert_close(got, reference(charges, totals, response), 1e-10)


@pytest.mark.parametrize("sign", [0, -1, 1])
@pytest.mark.parametrize(
    "response",
    [
        [-0.5, 0.5001, -0.2, 0.2, 1.0, -1.0, 1e-9],  # cancel: the reference moves thousands of e
        [0.0] * 7,  # none
        [1e-20, -1e-20, 3e-8, 0.0, -1e-9, 2e-9, 0.0],  # next to none, of both signs
        [-1.0, -1.0, -1.0, 0.5, -1e3, 1e3, 2e3],  # a few of the wrong sign
    ],
)
def test_bounded_whatever_the_responses(response, sign):
    charges = torch.tensor([0.3, -0.1, 0.2, 0.0, 1.0, -1.0, 0.4], dtype=F64)
    totals = torch.tensor([1.0, -1.0], dtype=F64)
    response = torch.tensor(response, dtype=F64)
    got = redistribute_charge(charges, totals, response, PTR, INDEX, sign=sign)
    sums = charges.new_zeros(2).index_add(0, INDEX, got)
    assert_close(sums, totals, 1e-12)
    missing = totals - charges.new_zeros(2).index_add(0, INDEX, charges)
    moved = (got - charges) / missing[INDEX]
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    if not response.any():
        assert_close(moved, 1 / torch.tensor([4.0, 3.0], dtype=F64)[INDEX], 1e-12)


def test_the_wrong_sign_gets_nothing():
    charges, response = (
        torch.zeros(7, dtype=F64),
        torch.tensor([-1.0, -1.0, 2.0, -1.0, -1.0, 0.1, -3.0]).double(),
    )
    got = redistribute_charge(charges, torch.ones(2, dtype=F64), response, PTR, INDEX, sign=-1)
    assert float(got[2]) < 1e-6
    assert float(got[5]) < 1e-5
    assert float(got[0]) == pytest.approx(1 / 3, abs=1e-5)


def test_derivatives_and_channels(generator):
    """Two spin channels at once, differentiable through cancellation and zero."""
    charges = torch.randn(7, 2, generator=generator, dtype=F64, requires_grad=True)
    response = torch.randn(7, 2, generator=generator, dtype=F64)
    response[2] = 0
    response.requires_grad_()
    totals = spin_charges(torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([2, 1])).requires_grad_()
    assert_close(totals, torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=F64))

    def function(charges, totals, response):
        return redistribute_charge(charges, totals, response, PTR, INDEX, sign=-1, floor=0.3)

    assert torch.autograd.gradcheck(function, (charges, totals, response))
    assert torch.autograd.gradgradcheck(function, (charges, totals, response))
    both = function(charges, totals, response)
    for c in range(2):
        alone = function(charges[:, c], totals[:, c], response[:, c])
        assert_close(both[:, c], alone, 1e-12)
    single = redistribute_charge(
        charges.float(), totals.float(), response.float(), PTR, INDEX, sign=-1, floor=0.3
    )
    assert single.dtype == torch.float32
    assert_close(single, both, 1e-6)


def test_bad_input():
    q, totals = torch.zeros(7), torch.zeros(2)
    with pytest.raises(ValueError, match=r"share a shape"):
        redistribute_charge(q, totals, torch.zeros(6), PTR, INDEX)
    with pytest.raises(ValueError, match=r"total_charge must have shape \[2\]"):
        redistribute_charge(q, torch.zeros(3), q, PTR, INDEX)
    with pytest.raises(ValueError, match="floor positive"):
        redistribute_charge(q, totals, q, PTR, INDEX, floor=0.0)
    with pytest.raises(ValueError, match="multiplicity of system 1 is 0"):
        spin_charges(torch.zeros(2), torch.tensor([1, 0]))
