"""Functions that a compiled caller runs as they are."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")


def runs_eagerly(function: Callable[P, R]) -> Callable[P, R]:
    """
    Keep ``torch.compile`` out: how often a solver iterates is the data's business.

    The caller's graph ends before the call and goes on after it, derivatives included.
    """
    return cast(Callable[P, R], torch.compiler.disable(function))
