"""Looks at an iteration: every step on the CPU, few on a GPU, and never too late by much."""

import pytest
import torch
from simulated_gpu.device import OnGpu, simulated_gpu

from scfmlip.scf.solvers.looks import Looks

SOME = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")


def run(rate, place, first=1, power=1.0):
    """Steps that are taken until an iteration of that rate is seen to have ended, and those it needs."""
    looks, needed, residual = Looks(first), None, torch.tensor([1.0, 1e-9], dtype=torch.float64)
    for step in range(1000):
        active = residual > 1e-8
        if needed is None and not bool(active.any()):
            needed = step
        if looks.ended(step, place(active), place(residual), 1e-8):
            return step, needed
        residual = residual * rate ** (1 + (power - 1) * step)
    raise AssertionError("it never ends")


def test_every_step_on_the_cpu():
    for rate in (0.5, 0.9, 1e-12):
        steps, needed = run(rate, lambda x: x)
        assert steps == needed


@SOME
@pytest.mark.parametrize("power", [1.0, 1.5])
@pytest.mark.parametrize("rate", [0.97, 0.9, 0.5, 0.1, 1e-3, 1e-12])
def test_few_on_a_gpu(rate, power):
    with simulated_gpu() as log:
        steps, needed = run(rate, OnGpu, power=power)
        assert needed <= steps <= max(needed + 1, 1.25 * needed)
        assert log.n_waits <= max(needed, 2) if needed < 20 else log.n_waits <= 0.5 * needed


@SOME
def test_nothing_to_do_is_seen_at_once_if_asked():
    looks = Looks(0)
    with simulated_gpu():
        assert looks.ended(0, OnGpu(torch.tensor([False])), OnGpu(torch.tensor([torch.nan])), 1.0)


@SOME
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_none(bad):
    """They do not end an iteration that is active, nor postpone the next look."""
    looks = Looks()
    with simulated_gpu():
        active, values = OnGpu(torch.tensor([True])), OnGpu(torch.tensor([bad]))
        for step in range(4):
            assert not looks.ended(step, active, values, 1.0)
        assert looks.ended(4, ~active, values, 1.0)
