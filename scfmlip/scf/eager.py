"""Functions that a compiled caller, or one in inference mode, runs as they are."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def plain(value: Any) -> Any:
    """``value`` with copies of inference tensors, which autograd refuses, also in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if type(value) in (tuple, list):
        return type(value)(plain(v) for v in value)
    return {k: plain(v) for k, v in value.items()} if type(value) is dict else value


def leaves_inference_mode(function: Callable[P, R]) -> Callable[P, R]:
    """
    Leave ``torch.inference_mode`` for a function that differentiates inside, as forces and solves do.

    Its results are ordinary tensors, and inference tensors among its arguments do no harm.
    """
    anyhow = cast(Callable[..., R], function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if not torch.is_inference_mode_enabled():
            return anyhow(*plain(args), **plain(kwargs))
        with torch.inference_mode(False), torch.no_grad():
            return anyhow(*plain(args), **plain(kwargs))

    return call


def runs_eagerly(function: Callable[P, R]) -> Callable[P, R]:
    """
    Keep ``torch.compile`` and inference mode out: how often a solver iterates is the data's business.

    The caller's graph ends before the call and goes on after it, derivatives included.
    """
    return cast(Callable[P, R], torch.compiler.disable(leaves_inference_mode(function)))
