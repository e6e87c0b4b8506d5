"""Plain PyTorch definition of the grouped products; the tests' source of truth."""

import torch
from torch import Tensor


def _members(groups: tuple[int, ...], n_groups: int, like: Tensor) -> Tensor:
    """``[n_columns, n_groups]`` 1 where a column belongs to a group."""
    columns = torch.tensor(groups, dtype=torch.int64)
    return torch.nn.functional.one_hot(columns, n_groups).to(like)


def grouped_dot_reference(x: Tensor, y: Tensor, groups: tuple[int, ...], n_groups: int) -> Tensor:
    """Arguments as in `grouped_dot`."""
    return (x * y) @ _members(groups, n_groups, x)


def grouped_scale_reference(scales: Tensor, x: Tensor, groups: tuple[int, ...]) -> Tensor:
    """Arguments as in `grouped_scale`."""
    return (scales @ _members(groups, scales.shape[1], x).T) * x
