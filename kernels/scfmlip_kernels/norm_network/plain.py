"""Values and derivatives of a network of normalised layers in PyTorch, on any device."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .description import NormNetwork

_aten: Any = torch.ops.aten


class _Layer(NamedTuple):
    """A hidden layer: its parameters, its input, and what the normalisation saw and left."""

    matrix: Tensor
    bias: Tensor
    gain: Tensor
    shift: Tensor
    x: Tensor
    z: Tensor
    y: Tensor
    mean: Tensor
    rstd: Tensor


def parameters_of(parameters: Tensor, network: NormNetwork) -> list[Tensor]:
    """Views of the parameters, in order."""
    parts = parameters.split([torch.Size(shape).numel() for shape in network.sizes])
    return [part.view(shape) for part, shape in zip(parts, network.sizes, strict=True)]


def _silu_backward(grad: Tensor, y: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return _aten.silu_backward(grad, y)
    gate = torch.sigmoid(y)  # PyTorch's own operator has no derivative
    return grad * gate * (1 + y * (1 - gate))


def _layers(
    x: Tensor, parts: list[Tensor], network: NormNetwork, offsets: Tensor | None, index: Tensor | None
) -> tuple[list[_Layer], Tensor]:
    layers = []
    for n in range(network.n_layers):
        matrix, bias, gain, shift = parts[4 * n : 4 * n + 4]
        matrix = matrix[:, : network.n_in] if n == 0 and network.n_skipped else matrix
        z = torch.nn.functional.linear(x, matrix, bias)
        if n == 0 and offsets is not None and index is not None:
            for column in index.unbind(1):
                z = z + offsets.index_select(0, column)
        y, mean, rstd = torch.native_layer_norm(z, (network.n_hidden,), gain, shift, network.eps)
        layers.append(_Layer(matrix, bias, gain, shift, x, z, y, mean, rstd))
        x = torch.nn.functional.silu(y)
    return layers, x


def values_plain(
    x: Tensor, parameters: Tensor, offsets: Tensor | None, index: Tensor | None, network: NormNetwork
) -> Tensor:
    """``[n_rows, n_out]``."""
    parts = parameters_of(parameters, network)
    _, hidden = _layers(x, parts, network, offsets, index)
    if network.end == "ones":
        return torch.nn.functional.pad(hidden, (0, 1), value=1.0)
    out = torch.nn.functional.linear(hidden, parts[-2], parts[-1])
    return out if network.end == "linear" else torch.tanh(out.square())


def gradients_plain(
    x: Tensor,
    parameters: Tensor,
    offsets: Tensor | None,
    index: Tensor | None,
    grad: Tensor,
    network: NormNetwork,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Derivatives in x, parameters and offsets, those that are wanted; differentiable."""
    parts = parameters_of(parameters, network)
    layers, hidden = _layers(x, parts, network, offsets, index)
    found: list[Tensor] = []
    of_parameters = wanted[1]
    if network.end == "ones":
        grad = grad[:, :-1]
    else:
        if network.end == "tanh_square":
            out = torch.nn.functional.linear(hidden, parts[-2], parts[-1])
            grad = 2 * grad * out * (1 - torch.tanh(out.square()).square())
        if of_parameters:
            found = [grad.sum(0), grad.mT @ hidden]
        grad = grad @ parts[-2]
    d_offsets = None
    for n in range(network.n_layers - 1, -1, -1):
        layer = layers[n]
        grad = _silu_backward(grad, layer.y)
        mask = [True, of_parameters, of_parameters]
        grad, d_gain, d_shift = _aten.native_layer_norm_backward(
            grad, layer.z, [network.n_hidden], layer.mean, layer.rstd, layer.gain, layer.shift, mask
        )
        if of_parameters:
            of_matrix = grad.mT @ layer.x
            if n == 0 and network.n_skipped:
                of_matrix = torch.nn.functional.pad(of_matrix, (0, network.n_skipped))
            found += [d_shift, d_gain, grad.sum(0), of_matrix]
        if n == 0 and wanted[2] and offsets is not None and index is not None:
            d_offsets = torch.zeros_like(offsets)
            for column in index.unbind(1):
                d_offsets = d_offsets.index_add(0, column, grad)
        if n or wanted[0]:
            grad = grad @ layer.matrix
    d_parameters = torch.cat([part.flatten() for part in reversed(found)]) if of_parameters else None
    return grad if wanted[0] else None, d_parameters, d_offsets


def tangent_plain(
    tensors: Sequence[Tensor | None], tangents: Sequence[Tensor | None], network: NormNetwork
) -> Tensor:
    """Derivative of the values along tangents of x, parameters and offsets."""
    x, parameters, offsets, index = tensors
    assert x is not None and parameters is not None
    x_t, parameters_t, offsets_t = tangents[:3]
    parts = parameters_of(parameters, network)
    along = parameters_of(torch.zeros_like(parameters) if parameters_t is None else parameters_t, network)
    layers, hidden = _layers(x, parts, network, offsets, index)
    t = torch.zeros_like(x) if x_t is None else x_t
    for n, layer in enumerate(layers):
        d_matrix, d_bias, d_gain, d_shift = along[4 * n : 4 * n + 4]
        d_matrix = d_matrix[:, : layer.matrix.shape[1]]
        t = t @ layer.matrix.mT + layer.x @ d_matrix.mT + d_bias
        if n == 0 and offsets_t is not None and index is not None:
            t = t + offsets_t[index].sum(1)
        normal = (layer.z - layer.mean) * layer.rstd
        t = layer.rstd * (t - t.mean(1, keepdim=True) - normal * (t * normal).mean(1, keepdim=True))
        t = t * layer.gain + normal * d_gain + d_shift
        gate = torch.sigmoid(layer.y)
        t = t * gate * (1 + layer.y * (1 - gate))
    if network.end == "ones":
        return torch.nn.functional.pad(t, (0, 1))
    out = torch.nn.functional.linear(hidden, parts[-2], parts[-1])
    t = t @ parts[-2].mT + hidden @ along[-2].mT + along[-1]
    return t if network.end == "linear" else 2 * t * out * (1 - torch.tanh(out.square()).square())
