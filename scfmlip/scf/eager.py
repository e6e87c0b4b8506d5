"""Decorators for functions that must run eagerly, outside ``torch.compile`` and inference mode."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def plain(value: Any) -> Any:
    """Copy inference tensors, which autograd refuses, in a value, tuple, list or dict."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if type(value) in (tuple, list):
        return type(value)(plain(v) for v in value)
    return {k: plain(v) for k, v in value.items()} if type(value) is dict else value


def leaves_inference_mode(function: Callable[P, R]) -> Callable[P, R]:
    """
    Decorator: leave ``torch.inference_mode`` for a function that differentiates inside.

    Its results are ordinary tensors, and its arguments may be inference tensors.
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
    Decorator: run a function outside ``torch.compile`` and inference mode, as solvers need.

    The number of iterations depends on the data. The caller's graph breaks at the call and continues after
    it, including derivatives.
    """
    return cast(Callable[P, R], torch.compiler.disable(leaves_inference_mode(function)))
