"""What solves refuse before they start, and what they say."""

import pytest
import torch

from scfmlip import Coulomb, charge_equilibration, fixed_point
from scfmlip.scf import minimize_functional

ONE = torch.ones(3, dtype=torch.float64)


def equilibrate(**options):
    positions = torch.arange(9, dtype=torch.float64).view(3, 3)
    geometry = Coulomb(l_max=0, sigma=1.0).prepare(positions)
    return charge_equilibration(geometry, ONE, ONE, **options)


def relax(**options):
    return fixed_point(lambda s, p: 0.5 * s + p, ONE, (ONE,), **options)


def minimise(**options):
    return minimize_functional(lambda s, p: ((s - p) ** 2).sum()[None], ONE, (ONE,), **options)


@pytest.mark.parametrize("solve", [equilibrate, relax, minimise])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tolerance": "tight"}, TypeError, "tolerance must be a number, got 'tight'"),
        ({"tolerance": float("nan")}, ValueError, "at least 0 and below 1, got nan"),
        ({"tolerance": 2.0}, ValueError, "at least 0 and below 1, got 2.0"),
        ({"max_iterations": 1.5}, TypeError, "max_iterations must be a whole number, got 1.5"),
        ({"max_iterations": -1}, ValueError, "max_iterations must not be negative, got -1"),
        ({"on_failure": "shrug"}, ValueError, "on_failure must be one of 'raise', 'warn', 'ignore'"),
        ({"total_charge": "none"}, TypeError, "total_charge must be a number.*got 'none'"),
    ],
)
def test_options(solve, options, error, message):
    with pytest.raises(error, match=message):
        solve(**options)


def test_potential_that_is_no_number():
    with pytest.raises(TypeError, match=r"chemical_potential must be a number.*got 'high'"):
        relax(chemical_potential="high")


@pytest.mark.parametrize("solve", [fixed_point, minimize_functional])
def test_states_and_parameters(solve):
    with pytest.raises(TypeError, match=r"float32 or float64 tensor, got torch\.int64"):
        solve(lambda s: s, torch.ones(3, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"pass \(tensor,\)"):
        solve(lambda s, p: s, ONE, ONE)
