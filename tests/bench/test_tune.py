"""The sweep of launch parameters: what it tries, what it refuses, and what it chooses."""

import itertools

import pytest
import torch
from kernels.problems import submodule

from bench import matrices, tune
from bench.tune import DTYPES, SHARED, Candidate, Tuner, best, candidates

NEW = ("indexed_linear", "norm_network", "high_pairs")


@pytest.fixture
def tuner():
    """A sweep on this machine, whose table is forgotten afterwards."""
    table = submodule("tuned")._table
    table.cache_clear()
    yield Tuner(torch.device("cpu"), True)
    table.cache_clear()


def of(family, dtype="float32", **changes):
    """The default of a family, with changes."""
    first = next(c for c in candidates(False) if (c.family, c.dtype) == (family, dtype))
    return Candidate(family, dtype, tuple(sorted({**dict(first.parameters), **changes}.items())))


def test_what_is_tried():
    """The default of each family and dtype first; a lower precision for float32 alone; known parameters."""
    found = list(candidates(False))
    for family, dtype in itertools.product(SHARED, DTYPES):
        mine = [c for c in found if (c.family, c.dtype) == (family, dtype)]
        default = submodule("tuned")._table("")[mine[0].table][dtype]
        assert dict(mine[0].parameters) == default
        assert all(set(dict(c.parameters)) == set(default) for c in mine)
        assert len(set(mine)) > 3
        if "precision" in default:
            assert {c.precision for c in mine} == ({"ieee", "tf32x3"} if dtype == "float32" else {"ieee"})
    tried = {c.parameters for c in found if c.family == "high_pairs"}
    values = [(dict(p)["high_sources"], dict(p)["high_warps"]) for p in tried]
    assert {(2, 4), (4, 8), (8, 16), (4, 4)} <= set(values)
    # a thread owns a pair or two of 64 targets
    assert (2, 16) not in values
    assert (8, 4) not in values


@pytest.mark.interpreter
@pytest.mark.parametrize("family", NEW)
def test_kernels_run_with_what_is_tried(family, tuner):
    """Every call under its parameters, in both dtypes, as precise as float64 says; times are taken."""
    mine = [c for c in candidates(True) if c.family == family]
    names = []
    for candidate in mine:
        calls = tuner.calls(candidate)
        assert tuner.table[candidate.table][candidate.dtype] == dict(candidate.parameters)
        assert all(torch.isfinite(t).all() for call in calls.values() for t in call())
        names.append(list(calls))
    assert all(n == names[0] for n in names)
    assert len(names[0]) == {"indexed_linear": 5, "norm_network": 2, "high_pairs": 3}[family]
    assert all(0 < error < 1e-4 for name, error in tuner.errors.items() if name.endswith("float32"))
    assert tuner.score(mine[-1], 0.001) > 0


def test_the_truth_is_plain_float64(tuner):
    """Linear maps of the sweep against matrix products: the judge is right."""
    made = matrices.calls("indexed_linear", True, torch.float64, torch.device("cpu"))
    (value,) = made["species, 3, 7"]()
    d_x, d_weights = made["species, 3, slopes, 7"]()
    assert value.shape == d_x.shape == (7, 3, 16)
    assert d_weights.shape == (matrices.SPECIES, 16, 16)
    low = matrices.calls("indexed_linear", True, torch.float32, torch.device("cpu"))
    error = matrices.difference(low["species, 3, 7"](), (value,))
    assert 0 < error < 1e-6
    assert matrices.difference((value * torch.nan,), (value,)) == float("inf")


def test_imprecise_products_are_refused(tuner):
    """More than 1e-6 of the largest value: not whatever the time; float32's own products may."""
    tuner.judge("a map", 8e-7, "ieee")
    tuner.judge("a map", 9e-7, "tf32x3")
    tuner.judge("a map", 1.5e-6, "ieee")
    with pytest.raises(RuntimeError, match=r"a map: error 1\.1e-06, allowed 1\.0e-06"):
        tuner.judge("a map", 1.1e-6, "tf32x3")
    tuner.judge("another", 1e-7, "ieee")
    for error in (3e-7, float("nan")):
        with pytest.raises(RuntimeError, match=r"another: error .*, allowed 2\.0e-07"):
            tuner.judge("another", error, "tf32x3")


@pytest.mark.interpreter
def test_a_candidate_that_errs_has_no_time(tuner, monkeypatch):
    """The check comes before the clock."""
    tuner.calls(of("norm_network"))
    monkeypatch.setattr(tune.matrices, "difference", lambda *_: 2e-6)
    monkeypatch.setattr(tune, "interleaved", None)
    with pytest.raises(RuntimeError, match=r"norm_network network, 9 float32: error 2\.0e-06"):
        tuner.score(of("norm_network", precision="tf32x3"), 0.01)


def test_choice():
    """The fastest of what was accepted; pairs of high rank go into the table of pairs with the same block."""
    scores = {of("norm_network"): 2.0, of("norm_network", precision="tf32x3"): 1.0}
    scores |= {of("norm_network", "float64"): 3.0, of("norm_network", "float64", rows=32): 4.0}
    for dtype in DTYPES:
        scores |= {of("pairs", dtype): 2.0, of("high_pairs", dtype): 2.0}
        scores[of("high_pairs", dtype, high_sources=2, high_warps=4)] = 1.0
    chosen = best(scores)
    assert set(chosen) == {"norm_network", "pairs"}
    assert chosen["norm_network"]["float32"]["precision"] == "tf32x3"
    assert chosen["norm_network"]["float64"]["rows"] == 16
    for dtype in DTYPES:
        assert chosen["pairs"][dtype] == {
            **dict(of("pairs", dtype).parameters),
            "high_sources": 2,
            "high_warps": 4,
        }
    # another block is faster for the others: what was measured with this one is not taken
    scores |= {of("pairs", dtype, block=128): 1.0 for dtype in DTYPES}
    found = best(scores)["pairs"]["float32"]
    assert (found["block"], found["high_sources"], found["high_warps"]) == (128, 4, 8)
    # the time was up before the others
    scores = {c: score for c, score in scores.items() if c.family != "pairs"}
    assert best(scores)["pairs"]["float32"]["high_sources"] == 2
