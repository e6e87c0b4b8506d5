"""What runs on the host inside `torch.func`'s transforms: on values, not on the transforms' wrappers."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._C import _functorch  # type: ignore[attr-defined]
from torch.utils import _pytree

P = ParamSpec("P")
R = TypeVar("R")


def unwrapped(value: Any) -> Any:
    """A tensor without the levels of `torch.func`; one that `torch.vmap` batches is the whole batch."""
    if isinstance(value, Tensor):
        while _functorch.is_functorch_wrapped_tensor(value):
            value = _functorch.get_unwrapped(value)
    return value


def is_batched(value: Any) -> bool:
    """Whether a level of `torch.vmap` batches a tensor."""
    if not torch._C._are_functorch_transforms_active():
        return False
    while isinstance(value, Tensor) and _functorch.is_functorch_wrapped_tensor(value):
        if _functorch.is_batchedtensor(value):
            return True
        value = _functorch.get_unwrapped(value)
    return False


def on_values(function: Callable[P, R]) -> Callable[P, R]:
    """
    Decorator: tensors reach the function without the levels of `torch.func`, and what it makes has none.

    For what plans on the host: it reads values and is not differentiated. New tensors are on the CPU,
    whatever the default device is.

    Raises:
        ValueError: from the function, for an argument that `torch.vmap` batches.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch._C._are_functorch_transforms_active():
            with torch.device("cpu"):
                return function(*args, **kwargs)
        if any(is_batched(value) for value in _pytree.tree_leaves((args, kwargs))):
            raise ValueError(
                f"{function.__name__} reads values on the host, which torch.vmap cannot batch: map over "
                "other arguments, or pass the systems as one batch"
            )
        args, kwargs = _pytree.tree_map(unwrapped, (args, kwargs))  # type: ignore[assignment]
        with torch._C._DisableFuncTorch(), torch.device("cpu"):
            return function(*args, **kwargs)

    return call
