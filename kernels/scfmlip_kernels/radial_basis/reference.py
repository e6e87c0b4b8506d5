"""Plain PyTorch definition of the radial basis; the tests' source of truth."""

import torch
from torch import Tensor


def radial_basis_reference(
    x: Tensor,
    frequencies: Tensor,
    scale: float,
    reach: float,
    p: int,
    y: Tensor | None = None,
    separate: bool = False,
) -> Tensor:
    """One function after another; arguments as in `radial_basis`, with numbers for tensors of one."""
    y = x if y is None else y
    u = y[:, 0] / reach
    terms = ((p + 1) * (p + 2) / 2, p * (p + 2), p * (p + 1) / 2)
    cut = torch.where(u < 1, 1 - terms[0] * u**p + terms[1] * u ** (p + 1) - terms[2] * u ** (p + 2), 0.0)
    found = [scale * torch.sin(w * x[:, 0]) / x[:, 0] for w in frequencies.unbind()]
    return torch.stack([*found, cut] if separate else [f * cut for f in found], 1)
