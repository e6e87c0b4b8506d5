"""Small tensors of fixed numbers, made once for each device: making one is a copy that the host waits for."""

from functools import lru_cache

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor  # type: ignore[import]
from torch._guards import detect_fake_mode

Numbers = int | float | tuple["Numbers", ...]


def constant(values: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    """
    A tensor of fixed numbers; do not write into it.

    Args:
        values: Numbers, in tuples of equal lengths.
        dtype: Of the tensor.
        device: Where it is wanted.

    Example:
        >>> constant((1, 2), torch.int64, torch.device("cpu")).tolist()
        [1, 2]
    """
    if torch.compiler.is_compiling() or detect_fake_mode() is not None:
        return torch.tensor(values, dtype=dtype, device=device)  # a graph keeps its own
    made = _made(values, dtype, device)
    if is_functorch_wrapped_tensor(made):  # first asked for inside torch.func
        _made.cache_clear()
    return made


@lru_cache(maxsize=1024)
def _made(values: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
