"""
Locks for process-wide state: PyTorch's default dtype, and its modules while e3nn traces them.

mace-torch's and e3nn's constructors create weights in the default dtype. e3nn compiles its modules with
torch.fx, which temporarily wraps every module's call. Neither may run while another thread evaluates a model;
several evaluations may run at the same time.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from .swapped import Swapped

# number of evaluations, builds and waiting builds per thread
_state = threading.Condition()
_evaluating: Counter[int] = Counter()
_building: Counter[int] = Counter()
_waiting: Counter[int] = Counter()


def _others(*counts: Counter[int]) -> bool:
    me = threading.get_ident()
    return any(n for count in counts for thread, n in count.items() if thread != me)


@contextmanager
def evaluating() -> Iterator[None]:
    """Context of a model's evaluation: no other thread builds a model meanwhile."""
    me = threading.get_ident()
    with _state:
        # threads that build go first; otherwise they might wait forever
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
    Context with another default dtype, for one thread at a time; the old one is restored in any case.

    Constructors need it, and parts of mace-torch's own code that evaluate in the default dtype.
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
    Context of any model's evaluation, for threads with their own models.

    graph-longrange's slabs and boxes and the masks of mace-torch's heads use the default dtype. Models of
    mace-torch's own classes that contain these run with their dtype as the default.
    """
    names = {base.__name__ for base in type(model).__mro__}
    several = "MACE" in names and len(getattr(model, "heads", None) or ()) > 1
    if ("PolarMACE" in names or several) and not isinstance(model, Swapped):
        return default_dtype(next(model.parameters()).dtype)
    return evaluating()
