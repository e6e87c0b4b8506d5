"""
Turns at what belongs to the whole process: PyTorch's default dtype, and its modules while e3nn traces some.

mace-torch's and e3nn's constructors make weights in the default dtype, and e3nn compiles its modules with
torch.fx, which puts a wrapper around every module's call while it does. Neither may meet an evaluation in
another thread; evaluations may meet each other.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from .swapped import Swapped

# how often each thread evaluates, builds, or waits to build, by its number
_state = threading.Condition()
_evaluating: Counter[int] = Counter()
_building: Counter[int] = Counter()
_waiting: Counter[int] = Counter()


def _others(*counts: Counter[int]) -> bool:
    me = threading.get_ident()
    return any(n for count in counts for thread, n in count.items() if thread != me)


@contextmanager
def evaluating() -> Iterator[None]:
    """Around the evaluation of a model: no other thread builds one meanwhile."""
    me = threading.get_ident()
    with _state:
        # who builds goes first, or would wait for ever
        _state.wait_for(lambda: _evaluating[me] > 0 or not _others(_building, _waiting))
        _evaluating[me] += 1
    try:
        yield
    finally:
        with _state:
            _evaluating[me] -= 1
            _state.notify_all()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """
    The default dtype, for one thread at a time and until the end, whatever happens.

    For constructors, and for what of mace-torch's own code evaluates in it; ours needs none.
    """
    me = threading.get_ident()
    with _state:
        _waiting[me] += 1
        _state.wait_for(lambda: not _others(_building, _evaluating))
        _waiting[me] -= 1
        _building[me] += 1
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        with _state:
            _building[me] -= 1
            _state.notify_all()


def running(model: torch.nn.Module) -> AbstractContextManager[None]:
    """
    Around the evaluation of any model, for threads with models of their own.

    The slabs and boxes of graph-longrange and the masks of mace-torch's heads are in the default dtype:
    models of mace-torch's own classes that have such get their own.
    """
    names = {base.__name__ for base in type(model).__mro__}
    several = "MACE" in names and len(getattr(model, "heads", None) or ()) > 1
    if ("PolarMACE" in names or several) and not isinstance(model, Swapped):
        return default_dtype(next(model.parameters()).dtype)
    return evaluating()
