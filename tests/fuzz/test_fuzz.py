"""Random calls: every one ends in a right result, or in an error of ours that names its cause."""

from functools import partial

import pytest

pytest.importorskip("mace", reason="needs mace-torch")

from fuzz import calculator, coulomb, evaluation, solvers, spoilt_atoms, training
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
    "calculator, symmetries": (calculator.symmetry, 6, 900),
    "calculator, slopes": (calculator.slopes, 4, 400),
    "calculator, batches": (calculator.company, 4, 300),
    "calculator, spoilt atoms": (spoilt_atoms.spoilt_atoms, 15, 900),
    "calculator, spoilt arguments": (spoilt_atoms.spoilt_arguments, 8, 200),
    "evaluate": (evaluation.good_files, 2, 300),
    "evaluate, spoilt files": (evaluation.bad_files, 10, 500),
    "evaluate, spoilt options": (evaluation.bad_options, 10, 400),
    "training frames": (training.batches, 20, 1000),
    "training frames, spoilt": (training.spoilt_frames, 15, 800),
    "training options, spoilt": (training.spoilt_options, 15, 800),
}
# the same with few models, which take seconds to build
QUICK = {
    name: partial(call, names=calculator.QUICK)
    for name, (call, *_) in CALLS.items()
    if name.startswith("calculator") and call is not spoilt_atoms.spoilt_arguments
}
QUICK["evaluate"] = partial(evaluation.good_files, names=("short_range",))


@pytest.mark.parametrize("name", CALLS)
def test_some(name):
    call, number, _ = CALLS[name]
    call = QUICK.get(name, call)
    assert sum(fuzz(call, 0, number).values()) == number


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_many(name):
    call, _, number = CALLS[name]
    counts = fuzz(call, 1_000_000, number)
    print(name, dict(counts))
    assert sum(counts.values()) == number
