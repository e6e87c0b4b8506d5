"""Plain PyTorch definition of the gate; the tests' source of truth."""

import torch
from torch import Tensor

from .description import Gate


def gated_reference(
    x: Tensor, gate: Gate, divisor: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Arguments as in `gated`, in formulas."""
    y = x if divisor is None else x / divisor
    y = y if residual is None else y + residual

    def act(name: str, v: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-v)) * (v if name == "silu" else 1)

    scalars = gate.scalar_factor * act(gate.scalar, y[:, : gate.n_scalars])
    gates = gate.gate_factor * act(gate.gate, y[:, gate.n_scalars : gate.n_scalars + gate.n_gates])
    rest = y[:, gate.n_scalars + gate.n_gates :]
    columns = [gates[:, g] * rest[:, k] for k, g in enumerate(gate.groups)]
    return torch.cat((scalars, *(c[:, None] for c in columns)), 1)
