"""
CPU work in blocks: each on one thread of ours, instead of each operation on all of PyTorch's.

A block is tens of operations of tens of microseconds. Were every one of them a parallel region of OpenMP,
threads would meet, spinning, after each: beside other programs on the same cores the one that was put to
sleep keeps all others, and 20 times the time was seen. Here threads meet once a call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Job = TypeVar("Job")
Own = TypeVar("Own")
Found = TypeVar("Found")

# more than these share the interpreter's lock badly: from there on a worker has several of PyTorch's threads
_MOST_WORKERS = 8

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}


def _forget() -> None:
    """Threads do not survive a fork."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forget)


def worker_threads() -> tuple[int, int]:
    """How many workers there are, and PyTorch's threads in each."""
    n = torch.get_num_threads()
    workers = min(n, _MOST_WORKERS)
    return workers, n // workers


def _pool() -> ThreadPoolExecutor:
    """Workers for the number of threads that PyTorch has now."""
    n = torch.get_num_threads()
    with _lock:
        pool = _pools.get(n)
        if pool is None:
            workers, inner = worker_threads()
            pool = _pools[n] = ThreadPoolExecutor(workers, thread_name_prefix="scfmlip")
            met = threading.Barrier(workers)

            def begin() -> None:
                torch.set_num_threads(inner)  # of this worker alone
                met.wait()

            for future in [pool.submit(begin) for _ in range(workers)]:
                future.result()
            torch.set_num_threads(n)  # also what threads begin with that PyTorch makes later
    return pool


def run_blocks(
    jobs: Sequence[Job],
    begin: Callable[[], Own],
    work: Callable[[Own, Job], Found],
    finish: Callable[[Found], None] | None = None,
) -> None:
    """
    ``work(own, job)`` for every job, on several threads; without autograd.

    Args:
        jobs: Blocks.
        begin: Makes what a thread keeps for itself, its buffers.
        work: The work of a block. Only writes what no other block does.
        finish: Called with what ``work`` returned in the order of the jobs, one at a time: for sums, which
            have the same bits however many threads there are.

    Raises:
        Exception: the first that a block raised.
    """
    workers = min(worker_threads()[0], len(jobs))
    if workers <= 1:
        with torch.no_grad():
            own = begin()
            for job in jobs:
                found = work(own, job)
                if finish is not None:
                    finish(found)
        return
    turn = threading.Condition()
    taken = finished = 0
    stopped = False
    inference = torch.is_inference_mode_enabled()

    def loop() -> None:
        nonlocal taken, finished, stopped
        try:
            with torch.inference_mode(inference), torch.no_grad():
                own = begin()
                while True:
                    with turn:
                        mine = taken
                        taken += 1
                        if stopped or mine >= len(jobs):
                            return
                    found = work(own, jobs[mine])
                    if finish is None:
                        continue
                    with turn:
                        turn.wait_for(lambda: stopped or finished == mine)  # noqa: B023 (called here and now)
                    if stopped:
                        return
                    finish(found)
                    with turn:
                        finished += 1
                        turn.notify_all()
        except BaseException:
            with turn:
                stopped = True
                turn.notify_all()
            raise

    futures = [_pool().submit(loop) for _ in range(workers)]
    errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None:
            raise error
