"""The gate and its derivatives in PyTorch, on any device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..constants import constant
from .description import Gate


def _sums(gate: Gate, x: Tensor, divisor: Tensor | None, residual: Tensor | None) -> list[Tensor]:
    """Scalars, gates and gated columns before the functions."""
    y = x if divisor is None else x / divisor
    y = y if residual is None else y + residual
    return list(y.split((gate.n_scalars, gate.n_gates, len(gate.groups)), 1))


def _value(name: str, factor: float, v: Tensor) -> Tensor:
    return factor * (torch.nn.functional.silu(v) if name == "silu" else torch.sigmoid(v))


def _slope(name: str, factor: float, v: Tensor) -> Tensor:
    s = torch.sigmoid(v)
    return factor * s * (1 + v * (1 - s) if name == "silu" else 1 - s)


def gated_plain(x: Tensor, divisor: Tensor | None, residual: Tensor | None, gate: Gate) -> Tensor:
    """``[n_rows, n_out]``."""
    scalars, gates, rest = _sums(gate, x, divisor, residual)
    scalars = _value(gate.scalar, gate.scalar_factor, scalars)
    if not gate.groups:
        return scalars
    columns = constant(gate.groups, torch.int64, x.device)
    opened = _value(gate.gate, gate.gate_factor, gates).index_select(1, columns)
    return torch.cat((scalars, opened * rest), 1)


def gradients_plain(
    x: Tensor,
    divisor: Tensor | None,
    residual: Tensor | None,
    grad: Tensor,
    gate: Gate,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Derivatives in x, the divisor and the residual, those that are wanted; differentiable."""
    scalars, gates, rest = _sums(gate, x, divisor, residual)
    g_scalars, g_rest = grad.split((gate.n_scalars, len(gate.groups)), 1)
    parts = [g_scalars * _slope(gate.scalar, gate.scalar_factor, scalars)]
    if gate.groups:
        columns = constant(gate.groups, torch.int64, x.device)
        along = x.new_zeros(gates.shape).index_add(1, columns, g_rest * rest)
        opened = _value(gate.gate, gate.gate_factor, gates).index_select(1, columns)
        parts += [along * _slope(gate.gate, gate.gate_factor, gates), opened * g_rest]
    else:
        parts += [torch.zeros_like(gates)] if gate.n_gates else []
    d_y = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
    d_x = d_y if divisor is None else d_y / divisor
    d_divisor = None
    if wanted[1] and divisor is not None:
        d_divisor = -(d_x * x).sum(1, keepdim=True) / divisor
    return d_x, d_divisor, d_y


def tangent_plain(tensors: Sequence[Tensor | None], tangents: Sequence[Tensor | None], gate: Gate) -> Tensor:
    """Derivative of the values along tangents of x, divisor and residual."""
    x, divisor, residual = tensors
    assert x is not None
    x_t, divisor_t, residual_t = tangents[:3]
    scalars, gates, rest = _sums(gate, x, divisor, residual)
    along = torch.zeros_like(x) if x_t is None else x_t
    along = along if divisor is None else along / divisor
    if divisor_t is not None and divisor is not None:
        along = along - x * divisor_t / divisor.square()
    along = along if residual_t is None else along + residual_t
    t_scalars, t_gates, t_rest = along.split((gate.n_scalars, gate.n_gates, len(gate.groups)), 1)
    out = t_scalars * _slope(gate.scalar, gate.scalar_factor, scalars)
    if not gate.groups:
        return out
    columns = constant(gate.groups, torch.int64, x.device)
    opened = _value(gate.gate, gate.gate_factor, gates).index_select(1, columns)
    more = (_slope(gate.gate, gate.gate_factor, gates) * t_gates).index_select(1, columns)
    return torch.cat((out, opened * t_rest + more * rest), 1)
