"""Ten thousand random calls: every one ends in a right result or in an error that names its cause."""

import pytest

from fuzz import coulomb
from fuzz.outcomes import fuzz

CALLS = {"coulomb": (coulomb.valid_call, 25, 1000), "coulomb, spoilt": (coulomb.hostile_call, 150, 1500)}


@pytest.mark.parametrize("name", CALLS)
def test_some(name):
    call, number, _ = CALLS[name]
    assert sum(fuzz(call, 0, number).values()) == number


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_many(name):
    call, _, number = CALLS[name]
    counts = fuzz(call, 1_000_000, number)
    print(name, dict(counts))
    assert sum(counts.values()) == number
