"""Checks that the host looks at together, at the end of a step."""

import contextlib
import threading

import pytest
import torch
from simulated_gpu.device import OnGpu, simulated_gpu

from scfmlip.waiting import Pending, any_bad, current, joined, joins, read, together, when

SOME = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")


def fail(message):
    def act():
        raise ValueError(message)

    return act


def test_values_on_the_cpu_are_looked_at_at_once():
    with together() as pending:
        with pytest.raises(ValueError, match="one"):
            when(torch.tensor(True), fail("one"))
        when(torch.tensor(False), fail("two"))
        assert pending.flags() is None


@SOME
def test_values_on_a_gpu_are_looked_at_once_at_the_end():
    with simulated_gpu() as log:
        found = []
        with together():
            for value in (False, True, True):
                when(OnGpu(torch.tensor(value)), lambda: found.append(len(found)))
            assert not found
            assert not log.n_waits
        assert found == [0, 1]
        assert log.n_waits == 1
        when(OnGpu(torch.tensor(True)), lambda: found.append("at once"))
        assert found[-1] == "at once"


def step(fails, error=None, inner=False):
    """A step with one check, and an error of its own."""
    with simulated_gpu(), together():
        with together() if inner else contextlib.nullcontext():
            when(OnGpu(torch.tensor(fails)), fail("positions"))
        if error is not None:
            raise error


@SOME
def test_what_was_postponed_is_the_cause_of_an_error():
    with pytest.raises(ValueError, match="positions") as told:
        step(True, RuntimeError("a consequence"))
    assert isinstance(told.value.__context__, RuntimeError)
    with pytest.raises(RuntimeError, match="by itself"):
        step(False, RuntimeError("by itself"))
    assert current() is None


@SOME
def test_the_outermost_counts():
    with pytest.raises(RuntimeError, match="first"):
        step(False, RuntimeError("first"), inner=True)
    with pytest.raises(ValueError, match="positions") as told:
        step(True, RuntimeError("after the inner one has ended"), inner=True)
    assert told.value.__context__ is not None


@SOME
def test_a_collector_of_the_caller():
    with simulated_gpu():
        pending = Pending()
        with together(pending), together():
            when(OnGpu(torch.tensor(True)), fail("mine"))
        with pytest.raises(ValueError, match="mine"):
            pending.look()
        pending.look()  # once


@SOME
def test_backward_passes_in_threads_of_their_own_join():
    class Context:
        pass

    @joins
    def backward(ctx):
        when(OnGpu(torch.tensor(True)), lambda: seen.append(1))

    def run(ctx):
        thread = threading.Thread(target=backward, args=(ctx,))
        thread.start()
        thread.join()

    seen, ctx = [], Context()
    with simulated_gpu() as log:
        with together():
            ctx.pending = current()
            run(ctx)
            assert not seen
        assert seen == [1]
        log.clear()
        run(ctx)  # the step has ended: at once
        assert seen == [1, 1]
        with joined(None):
            assert current() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_any_bad(dtype, bad):
    values = torch.tensor([0.0, -0.0, 1e-40, torch.finfo(dtype).max, torch.finfo(dtype).min], dtype=dtype)
    assert not any_bad(values)
    for i in range(len(values)):
        other = values.clone()
        other[i] = bad
        assert any_bad(other)
    assert not any_bad(values[:0])
    assert not any_bad(values.clone().requires_grad_()).requires_grad


def test_read():
    assert read() == []
    assert read(torch.tensor(True), torch.tensor(False).requires_grad_(False)) == [True, False]
