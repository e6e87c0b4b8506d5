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


def _bend(name: str, factor: float, v: Tensor) -> Tensor:
    """Second derivative."""
    s = torch.sigmoid(v)
    return factor * s * (1 - s) * (2 + v * (1 - 2 * s) if name == "silu" else 1 - 2 * s)


def gated_plain(x: Tensor, divisor: Tensor | None, residual: Tensor | None, gate: Gate) -> Tensor:
    """``[n_rows, n_out]``."""
    scalars, gates, rest = _sums(gate, x, divisor, residual)
    scalars = _value(gate.scalar, gate.scalar_factor, scalars)
    if not gate.groups:
        return scalars
    columns = constant(gate.groups, torch.int64, x.device)
    opened = _value(gate.gate, gate.gate_factor, gates).index_select(1, columns)
    return torch.cat((scalars, opened * rest), 1)


def _gradient(sums: list[Tensor], grad: Tensor, gate: Gate) -> Tensor:
    """Derivatives in the sums before the functions."""
    scalars, gates, rest = sums
    g_scalars, g_rest = grad.split((gate.n_scalars, len(gate.groups)), 1)
    parts = [g_scalars * _slope(gate.scalar, gate.scalar_factor, scalars)]
    if gate.groups:
        columns = constant(gate.groups, torch.int64, grad.device)
        along = grad.new_zeros(gates.shape).index_add(1, columns, g_rest * rest)
        opened = _value(gate.gate, gate.gate_factor, gates).index_select(1, columns)
        parts += [along * _slope(gate.gate, gate.gate_factor, gates), opened * g_rest]
    else:
        parts += [torch.zeros_like(gates)] if gate.n_gates else []
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def _tangent(sums: list[Tensor], along: Tensor, gate: Gate) -> Tensor:
    """Derivative of the values along those of the sums before the functions."""
    scalars, gates, rest = sums
    t_scalars, t_gates, t_rest = along.split((gate.n_scalars, gate.n_gates, len(gate.groups)), 1)
    out = t_scalars * _slope(gate.scalar, gate.scalar_factor, scalars)
    if not gate.groups:
        return out
    columns = constant(gate.groups, torch.int64, along.device)
    opened = _value(gate.gate, gate.gate_factor, gates).index_select(1, columns)
    more = (_slope(gate.gate, gate.gate_factor, gates) * t_gates).index_select(1, columns)
    return torch.cat((out, opened * t_rest + more * rest), 1)


def _gradient_bend(sums: list[Tensor], grad: Tensor, along: Tensor, gate: Gate) -> Tensor:
    """Derivative of `_gradient` along those of the sums; second derivatives are symmetric."""
    scalars, gates, rest = sums
    g_scalars, g_rest = grad.split((gate.n_scalars, len(gate.groups)), 1)
    t_scalars, t_gates, t_rest = along.split((gate.n_scalars, gate.n_gates, len(gate.groups)), 1)
    parts = [g_scalars * t_scalars * _bend(gate.scalar, gate.scalar_factor, scalars)]
    if gate.groups:
        columns = constant(gate.groups, torch.int64, grad.device)
        slopes = _slope(gate.gate, gate.gate_factor, gates)
        bends = _bend(gate.gate, gate.gate_factor, gates) * t_gates
        of_gates = g_rest * torch.stack((rest, t_rest))
        by_gate = grad.new_zeros((2, *gates.shape)).index_add(2, columns, of_gates)
        parts += [by_gate[0] * bends + by_gate[1] * slopes]
        parts += [(slopes * t_gates).index_select(1, columns) * g_rest]
    else:
        parts += [torch.zeros_like(gates)] if gate.n_gates else []
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def gradients_plain(
    x: Tensor, divisor: Tensor | None, residual: Tensor | None, grad: Tensor, gate: Gate
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives in x, the divisor and the residual, which is both x's and its own without a divisor."""
    d_y = _gradient(_sums(gate, x, divisor, residual), grad, gate)
    if divisor is None:
        return x.new_empty(0), x.new_empty(0), d_y
    d_x = d_y / divisor
    return d_x, -(d_x * x).sum(1, keepdim=True) / divisor, d_y


def second_plain(
    along: Sequence[Tensor | None], tensors: Sequence[Tensor | None], d_y: Tensor | None, gate: Gate
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    Derivatives of `gradients_plain` in x, the divisor, the residual and the gradient.

    ``along`` are the gradients of its results, ``tensors`` its arguments; ``d_y`` its last result or None.
    """
    (v_x, v_divisor, v_y), (x, divisor, residual, grad) = along, tensors
    assert x is not None and grad is not None
    sums = _sums(gate, x, divisor, residual)
    w = torch.zeros_like(x) if v_y is None else v_y
    if divisor is not None:
        w = w if v_x is None else w + v_x / divisor
        w = w if v_divisor is None else w - x * (v_divisor / divisor.square())
    d_grad, d_residual = _tangent(sums, w, gate), _gradient_bend(sums, grad, w, gate)
    if divisor is None:
        return x.new_empty(0), x.new_empty(0), d_residual, d_grad
    d_y = _gradient(sums, grad, gate) if d_y is None else d_y
    d_x = d_residual / divisor
    d_divisor = d_x * x if v_x is None else d_x * x + v_x * d_y / divisor
    d_divisor = -d_divisor.sum(1, keepdim=True) / divisor
    if v_divisor is not None:
        share = v_divisor / divisor.square()
        d_x = d_x - share * d_y
        d_divisor = d_divisor + 2 * share / divisor * (d_y * x).sum(1, keepdim=True)
    return d_x, d_divisor, d_residual, d_grad


def _sums_tangent(tensors: Sequence[Tensor | None], tangents: Sequence[Tensor | None]) -> Tensor:
    """Tangent of ``x / divisor + residual``."""
    (x, divisor, _), (x_t, divisor_t, residual_t) = tensors, tangents
    assert x is not None
    along = torch.zeros_like(x) if x_t is None else x_t
    along = along if divisor is None else along / divisor
    if divisor_t is not None and divisor is not None:
        along = along - x * divisor_t / divisor.square()
    return along if residual_t is None else along + residual_t


def tangent_plain(tensors: Sequence[Tensor | None], tangents: Sequence[Tensor | None], gate: Gate) -> Tensor:
    """Derivative of the values along tangents of x, divisor and residual."""
    x, divisor, residual = tensors
    assert x is not None
    return _tangent(_sums(gate, x, divisor, residual), _sums_tangent(tensors, tangents), gate)


def gradients_tangent_plain(
    tensors: Sequence[Tensor | None], tangents: Sequence[Tensor | None], gate: Gate
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Derivatives of `gradients_plain` along tangents of its arguments."""
    (x, divisor, residual, grad), (x_t, divisor_t, _, grad_t) = tensors, tangents
    assert x is not None and grad is not None
    sums = _sums(gate, x, divisor, residual)
    t = _gradient_bend(sums, grad, _sums_tangent(tensors[:3], tangents[:3]), gate)
    t = t if grad_t is None else t + _gradient(sums, grad_t, gate)
    if divisor is None:
        return None, None, t
    d_y = _gradient(sums, grad, gate)
    share = torch.zeros_like(divisor) if divisor_t is None else divisor_t / divisor
    of_x = (t - d_y * share) / divisor
    along = t * x if x_t is None else t * x + d_y * x_t
    of_divisor = (2 * share * d_y * x - along).sum(1, keepdim=True) / divisor.square()
    return of_x, of_divisor, t
