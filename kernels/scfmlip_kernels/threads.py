"""
CPU work in blocks: each block runs on one of our threads, instead of each operation on all of PyTorch's.

A block is tens of operations of tens of microseconds. If each operation were its own OpenMP region, threads
would synchronise after every one. On a busy machine a single descheduled thread then stalls the rest; we
measured a 20x slowdown. Here threads synchronise once per call.
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

# more workers contend for the interpreter's lock; beyond this number, each worker uses several PyTorch
# threads
_MOST_WORKERS = 8

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}


def _forget() -> None:
    """Drop the pool after a fork, which threads do not survive."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_forget)


def worker_threads() -> tuple[int, int]:
    """Number of workers, and of PyTorch threads per worker."""
    n = torch.get_num_threads()
    workers = min(n, _MOST_WORKERS)
    return workers, n // workers


def _pool() -> ThreadPoolExecutor:
    """The worker pool for PyTorch's current number of threads."""
    n = torch.get_num_threads()
    with _lock:
        pool = _pools.get(n)
        if pool is None:
            workers, inner = worker_threads()
            pool = _pools[n] = ThreadPoolExecutor(workers, thread_name_prefix="scfmlip")
            met = threading.Barrier(workers)

            def begin() -> None:
                torch.set_num_threads(inner)  # for this worker only
                met.wait()

            for future in [pool.submit(begin) for _ in range(workers)]:
                future.result()
            torch.set_num_threads(n)  # also the initial value in threads that PyTorch creates later
    return pool


def run_blocks(
    jobs: Sequence[Job],
    begin: Callable[[], Own],
    work: Callable[[Own, Job], Found],
    finish: Callable[[Found], None] | None = None,
) -> None:
    """
    Run ``work(own, job)`` for every job on several threads, without autograd.

    Args:
        jobs: The blocks.
        begin: Makes a thread's private buffers, passed to ``work`` as ``own``.
        work: Processes a block. It may only write what no other block writes.
        finish: Called with each result of ``work``, one at a time in the order of the jobs. Use it for sums:
            they then do not depend on the number of threads.

    Raises:
        Exception: the first exception that a block raised.
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
