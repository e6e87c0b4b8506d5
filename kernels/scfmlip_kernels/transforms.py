"""Host code inside `torch.func` transforms: it must see plain values, not the transforms' wrappers."""

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
    """A tensor without `torch.func`'s wrappers; for one that `torch.vmap` batches, the whole batch."""
    if isinstance(value, Tensor):
        while _functorch.is_functorch_wrapped_tensor(value):
            value = _functorch.get_unwrapped(value)
    return value


def is_batched(value: Any) -> bool:
    """Whether `torch.vmap` batches a tensor at any level."""
    if not torch._C._are_functorch_transforms_active():
        return False
    while isinstance(value, Tensor) and _functorch.is_functorch_wrapped_tensor(value):
        if _functorch.is_batchedtensor(value):
            return True
        value = _functorch.get_unwrapped(value)
    return False


def on_values(function: Callable[P, R]) -> Callable[P, R]:
    """
    Decorator: the function receives tensors without `torch.func`'s wrappers, and returns plain ones.

    For functions that plan on the host: they read values and are not differentiated. New tensors are created
    on the CPU, whatever the default device is.

    Raises:
        ValueError: when the function is called with an argument that `torch.vmap` batches.
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
