"""Random calls: every one ends in a right result, or in an error of ours that names its cause."""

import pytest

from fuzz import coulomb, solvers
from fuzz.outcomes import fuzz

# what is called, how often in every run, and in the long one
CALLS = {
    "coulomb": (coulomb.valid_call, 20, 1000),
    "coulomb, spoilt": (coulomb.hostile_call, 100, 1500),
    "charge equilibration": (solvers.equilibration, 15, 800),
    "charge equilibration, spoilt": (solvers.spoilt_equilibration, 40, 1000),
    "fixed points": (solvers.fixed_points, 40, 2000),
    "fixed points, spoilt": (solvers.spoilt_fixed_points, 60, 1000),
    "functionals": (solvers.functionals, 20, 800),
}


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
