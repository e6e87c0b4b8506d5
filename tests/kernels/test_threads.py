"""Blocks of CPU work on threads of our own."""

import os
import threading
import time

import pytest
import torch

from kernels.convolutions import Problem, plain_product
from kernels.problems import submodule
from scfmlip_kernels.threads import run_blocks, worker_threads


@pytest.fixture(params=[1, 2, 3])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_every_job_once_and_sums_in_order(n_threads):
    done, finished, made = [], [], []

    def work(own, job):
        time.sleep(0.002 * (job % 3))
        done.append(job)
        return job

    run_blocks(range(20), lambda: made.append(1), work, finished.append)
    assert sorted(done) == list(range(20))
    assert finished == list(range(20))
    assert len(made) == min(n_threads, 8)
    run_blocks([], lambda: None, work)
    assert torch.get_num_threads() == n_threads


@pytest.mark.parametrize("place", ["work", "finish"])
def test_the_error_of_a_block_reaches_the_caller(n_threads, place):
    def fail(job):
        if job == 3:
            raise ValueError("block 3")
        return job

    with pytest.raises(ValueError, match="block 3"):
        run_blocks(
            range(10),
            lambda: None,
            lambda own, job: fail(job) if place == "work" else job,
            fail if place == "finish" else lambda job: None,
        )
    seen = []
    run_blocks(range(4), lambda: None, lambda own, job: job, seen.append)
    assert seen == [0, 1, 2, 3]


def test_modes_of_the_caller_hold(n_threads):
    with torch.inference_mode():
        out = torch.zeros(4)

        def work(own, job):
            out[job] = job

        run_blocks(range(4), lambda: None, work)
    assert out.tolist() == [0, 1, 2, 3]
    weight = torch.ones(3, requires_grad=True)
    rows = torch.empty(4, 3)
    run_blocks(range(4), lambda: None, lambda own, job: torch.mul(weight, job, out=rows[job]))
    assert not rows.requires_grad


def test_callers_in_several_threads(n_threads):
    sums = [[] for _ in range(4)]

    def call(mine):
        run_blocks(range(30), lambda: None, lambda own, job: job, mine.append)

    threads = [threading.Thread(target=call, args=(mine,)) for mine in sums]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(mine == list(range(30)) for mine in sums)


def test_a_forked_process_has_workers_of_its_own(n_threads):
    run_blocks(range(4), lambda: None, lambda own, job: None)
    child = os.fork()
    if child == 0:
        seen = []
        run_blocks(range(4), lambda: None, lambda own, job: job, seen.append)
        os._exit(0 if seen == [0, 1, 2, 3] else 1)
    for _ in range(600):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        pytest.fail("the child waits for threads that it does not have")
    assert os.waitstatus_to_exitcode(status) == 0


def test_threads_made_later_have_all_of_pytorchs(n_threads):
    run_blocks(range(4), lambda: None, lambda own, job: None)
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [n_threads]
    workers, inner = worker_threads()
    assert workers * inner <= n_threads


@pytest.mark.parametrize("hidden", [0, 3])
def test_the_convolution_has_the_same_bits(n_threads, hidden, generator, monkeypatch):
    """Values and derivatives, in many blocks, on however many threads."""
    monkeypatch.setattr(submodule("channelwise_conv.cpu"), "_EDGES", 8)
    problem = Problem(plain_product((5, 3)), 12, 200, generator, hidden)

    def run():
        leaves = problem.leaves()
        value = problem.value(*leaves)
        first = torch.autograd.grad(value, leaves, problem.grad, create_graph=True)
        return [value, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)]

    here = run()
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(here, run(), strict=True))
