"""What solves refuse before they start, and what they say."""

import pytest
import torch

from scfmlip import Coulomb, charge_equilibration, fixed_point
from scfmlip.scf import ConvergenceError, minimize_functional

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


NAN = torch.full((3,), float("nan"), dtype=torch.float64)


@pytest.mark.parametrize("solve", [relax, minimise])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_idx": [0, 0, 1]}, TypeError, "batch_idx must be an int64 tensor, got list"),
        ({"batch_idx": ONE}, TypeError, r"batch_idx must be an int64 tensor, got torch\.float64"),
        ({"batch_idx": torch.tensor([0, -1, 0])}, ValueError, "batch_idx must number systems from 0, got -1"),
        ({"batch_idx": torch.tensor([0, 1, 7])}, ValueError, "counts up to 7 in 3 rows: .* pass n_systems"),
        ({"batch_idx": torch.tensor([0, 1, 2]), "n_systems": 2}, ValueError, "up to 2, but n_systems is 2"),
        ({"n_systems": 1.5}, TypeError, "n_systems must be a whole number, got 1.5"),
        ({"n_systems": 2**40}, ValueError, r"n_systems must be below 2\^31"),
        (
            {"n_systems": 2, "total_charge": 1.0},
            ValueError,
            "system 1 has no rows and cannot hold total_charge",
        ),
        ({"total_charge": float("nan")}, ValueError, "total_charge holds NaN or infinity"),
        ({"total_charge": ONE}, ValueError, r"total_charge must be a number or have shape \[1\]"),
        ({"charge_columns": 0}, TypeError, "charge_columns must be a sequence of whole numbers, got 0"),
        ({"charge_columns": (0.5,)}, TypeError, "charge_columns must be whole numbers, got 0.5"),
    ],
)
def test_batches_and_totals(solve, options, error, message):
    with pytest.raises(error, match=message):
        solve(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mixing": float("nan")}, ValueError, "mixing must be a positive number, got nan"),
        ({"mixing": None}, ValueError, "mixing must be a positive number, got None"),
        ({"history": 0}, ValueError, "history must be at least 1, got 0"),
        (
            {"approximation": 3},
            TypeError,
            r"approximation must be a function of \(state, \*parameters\), got i",
        ),
        (
            {"approximation": lambda s: s},
            TypeError,
            r"approximation must take \(state, \*parameters\), 2 in al",
        ),
        ({"total_charge": 1.0}, TypeError, r"update must take \(state, potential, \*parameters\), 3 in all"),
        ({"chemical_potential": ONE}, ValueError, r"chemical_potential must be a number or have shape \[1\]"),
        ({"chemical_potential": float("inf")}, ValueError, "chemical_potential holds NaN or infinity"),
    ],
)
def test_fixed_points(options, error, message):
    with pytest.raises(error, match=message):
        relax(**options)


@pytest.mark.parametrize("solve", [fixed_point, minimize_functional])
def test_states(solve):
    with pytest.raises(ValueError, match=r"state must have shape \[n_rows, \.\.\.\], got one number"):
        solve(lambda s: s, torch.tensor(1.0))
    with pytest.raises(ValueError, match="state holds NaN or infinity, first in row 1: start from numbers"):
        solve(lambda s: s, torch.tensor([[0.0], [float("inf")]]))
    with pytest.raises(TypeError, match=r"parameters\[1\] must be a tensor, got float: convert it, or"):
        solve(lambda s, p, q: s, ONE, (ONE, 2.0))
    with pytest.raises(TypeError, match="parameters must be a sequence of tensors, got int"):
        solve(lambda s: s, ONE, 3)
    with pytest.raises(TypeError, match="must be a function of"):
        solve(None, ONE)


@pytest.mark.parametrize("solver", ["auto", "anderson", "newton"])
@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, TypeError, "must return a tensor, got NoneType"),
        (1.0, TypeError, "must return a tensor, got float"),
        (ONE.float(), TypeError, r"must return torch\.float64 on cpu as the state is, got torch\.float32"),
        (ONE.long(), TypeError, r"must return torch\.float64 on cpu as the state is, got torch\.int64"),
        (ONE[:2], ValueError, r"must return shape \[3\], got \[2\]"),
        (NAN, ConvergenceError, "NaN or infinity: .* what the update returns"),
    ],
)
def test_what_an_update_returns(returned, error, message, approximate, solver):
    functions = (lambda s: 0.5 * s, lambda s: returned)
    update, approximation = functions if approximate else (functions[1], None)
    if approximate and returned is NAN:
        return  # the start is then what it would be without
    with pytest.raises(error, match=message):
        fixed_point(update, ONE, solver=solver, approximation=approximation)


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, TypeError, "functional must return a tensor of energies, got NoneType"),
        (ONE[:1].long(), TypeError, r"functional must return a tensor of energies, got torch\.int64"),
        (ONE, ValueError, r"functional must return energies \[1\], one per system, got \[3\]"),
        (ONE[:1], ValueError, "functional must be differentiable in the state"),
    ],
)
def test_what_a_functional_returns(returned, error, message):
    with pytest.raises(error, match=message):
        minimize_functional(lambda s: returned, ONE)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fragments": [0, 0, 1]}, TypeError, "fragments must be an int64 tensor, got list"),
        ({"fragments": torch.tensor([0, -1, 0])}, ValueError, "fragments must be numbered from 0"),
        ({"fragments": torch.tensor([0, 1, 2**40])}, ValueError, "fragments must be numbered from 0"),
        ({"width_index": "first"}, TypeError, r"width_index must be an int64 tensor \[3\], got str"),
        ({"widths": 1.0}, TypeError, r"widths must be a tensor \[3\], got float"),
        ({"widths": ONE, "pairs": ONE}, TypeError, "pairs must be NeighbourPairs, got Tensor"),
        ({"initial": 0.0}, TypeError, "initial must be a float32 or float64 tensor, got float"),
        ({"initial": ONE}, ValueError, r"initial must have shape \[3, 1\], got \[3\]"),
        ({"initial": NAN[:, None]}, ValueError, "initial holds NaN or infinity"),
        ({"preconditioner": "ilu"}, ValueError, "preconditioner must be 'auto', 'fsai', 'jacobi' or 'none'"),
        ({"chemical_potential": 1.0}, ValueError, "pass either total_charge or chemical_potential"),
    ],
)
def test_charges(options, error, message):
    with pytest.raises(error, match=message):
        equilibrate(**options)


def test_a_geometry_of_another_kind():
    with pytest.raises(TypeError, match=r"geometry must come from Coulomb\.prepare, got Tensor"):
        charge_equilibration(ONE, ONE, ONE)
