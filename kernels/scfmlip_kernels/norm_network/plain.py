"""
Values and derivatives of a network of normalised layers in PyTorch, on any device.

``z`` is what a layer gives before its normalisation, ``n`` the normalised rows, ``y = n gain + shift``. The
derivative of n in z, ``P = (1 - mean - n mean(n .)) / deviation``, is symmetric; so is all that is left of it
in second derivatives. Everything here is differentiable, but for what writes to memory that is given.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .description import NormNetwork

_aten: Any = torch.ops.aten


class _Layer(NamedTuple):
    """A hidden layer: its parameters, and what the normalisation saw and left."""

    matrix: Tensor
    gain: Tensor
    shift: Tensor
    z: Tensor
    y: Tensor
    mean: Tensor
    rstd: Tensor


def parameters_of(parameters: Tensor, network: NormNetwork) -> list[Tensor]:
    """Views of the parameters, in order."""
    parts = parameters.split([torch.Size(shape).numel() for shape in network.sizes])
    return [part.view(shape) for part, shape in zip(parts, network.sizes, strict=True)]


def saved_size(n_rows: int, network: NormNetwork) -> int:
    """How many numbers `values_plain` keeps."""
    return n_rows * (network.n_layers * network.n_hidden + network.n_kept_out)


def saved_parts(saved: Tensor, n_rows: int, network: NormNetwork) -> tuple[Tensor, Tensor]:
    """``[n_layers, n_rows, n_hidden]`` before the normalisations, ``[n_rows, n_kept_out]`` before the end."""
    n = network.n_layers * n_rows * network.n_hidden
    hidden = saved[:n].view(network.n_layers, n_rows, network.n_hidden)
    return hidden, saved[n:].view(n_rows, network.n_kept_out)


def _differentiable() -> bool:
    """Whether derivatives of what is computed now may be asked for: some of PyTorch's operators have none."""
    return torch.is_grad_enabled() or forward_ad._current_level >= 0


def _silu_backward(grad: Tensor, y: Tensor) -> Tensor:
    if not _differentiable():
        return _aten.silu_backward(grad, y)
    gate = torch.sigmoid(y)
    return grad * gate * (1 + y * (1 - gate))


def _end_slopes(value: Tensor) -> tuple[Tensor, Tensor]:
    """First and second derivative of ``tanh(value^2)``."""
    end = torch.tanh(value.square())
    rest = 1 - end.square()
    return 2 * value * rest, rest * (2 - 8 * value.square() * end)


def _layers(z: Tensor, parts: list[Tensor], network: NormNetwork) -> list[_Layer]:
    found = []
    for n, mine in enumerate(z.unbind(0)):
        matrix, _, gain, shift = parts[4 * n : 4 * n + 4]
        matrix = matrix[:, : network.n_in] if n == 0 else matrix
        normal = torch.native_layer_norm(mine, (network.n_hidden,), gain, shift, network.eps)
        found.append(_Layer(matrix, gain, shift, mine, *normal))
    return found


def _normal(layer: _Layer, network: NormNetwork) -> tuple[Tensor, Tensor]:
    """Normalised rows and their inverse deviation. PyTorch's operator takes its statistics for constants."""
    if not _differentiable():
        return (layer.z - layer.mean) * layer.rstd, layer.rstd
    rstd = torch.rsqrt(layer.z.var(1, correction=0, keepdim=True) + network.eps)
    return (layer.z - layer.z.mean(1, keepdim=True)) * rstd, rstd


def _normalise_back(grad: Tensor, layer: _Layer, gain: Tensor | None, parameters: bool = False) -> tuple:
    """Derivatives in z, and in gain and shift, of the normalisation times a gain."""
    size, mask = [grad.shape[1]], [True, parameters, parameters]
    shift = None if gain is None else layer.shift
    return _aten.native_layer_norm_backward(grad, layer.z, size, layer.mean, layer.rstd, gain, shift, mask)


def values_plain(
    x: Tensor, parameters: Tensor, offsets: Tensor | None, index: Tensor | None, network: NormNetwork
) -> tuple[Tensor, Tensor]:
    """``[n_rows, n_out]``, and what the derivatives need."""
    parts = parameters_of(parameters, network)
    saved = x.new_empty(saved_size(len(x), network))
    hidden, last = saved_parts(saved, len(x), network)
    for n, z in enumerate(hidden.unbind(0)):
        matrix, bias, gain, shift = parts[4 * n : 4 * n + 4]
        torch.addmm(bias, x, matrix[:, : x.shape[1]].mT, out=z)
        if n == 0 and offsets is not None and index is not None:
            for column in index.unbind(1):
                z += offsets.index_select(0, column)
        x = torch.nn.functional.silu(
            torch.nn.functional.layer_norm(z, (network.n_hidden,), gain, shift, network.eps)
        )
    if network.end == "ones":
        return torch.nn.functional.pad(x, (0, 1), value=1.0), saved
    if network.end == "linear":
        return torch.nn.functional.linear(x, parts[-2], parts[-1]), saved
    return torch.tanh(torch.addmm(parts[-1], x, parts[-2].mT, out=last).square()), saved


def _first_back(grad: Tensor, parts: list[Tensor], last: Tensor, network: NormNetwork) -> Tensor:
    """Gradient in the features of the last hidden layer; ``last`` is empty but for ``"tanh_square"``."""
    if network.end == "ones":
        return grad[:, :-1]
    return (grad * _end_slopes(last)[0] if network.end == "tanh_square" else grad) @ parts[-2]


def backward_plain(
    grad: Tensor, parameters: Tensor, saved: Tensor, keep: bool, network: NormNetwork
) -> tuple[Tensor, Tensor]:
    """Derivatives in x, and ``[n_layers, n_rows, n_hidden]`` those in the layers' features if kept."""
    parts = parameters_of(parameters, network)
    hidden, last = saved_parts(saved, len(grad), network)
    kept = grad.new_empty(hidden.shape if keep else 0)
    grad = _first_back(grad, parts, last, network)
    for n, layer in reversed(list(enumerate(_layers(hidden, parts, network)))):
        if keep:
            kept[n] = grad
        grad = _normalise_back(_silu_backward(grad, layer.y), layer, layer.gain)[0] @ layer.matrix
    return grad, kept


def gradients_plain(
    grad: Tensor,
    more: Tensor | None,
    tensors: Sequence[Any],
    saved: Tensor,
    network: NormNetwork,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """
    Derivatives in x, parameters and offsets, those that are wanted; differentiable.

    ``grad`` is that of the values, ``more`` that of what they kept; ``tensors`` are the arguments of
    `values_plain`.
    """
    x, parameters, offsets, index = tensors
    parts = parameters_of(parameters, network)
    hidden, last = saved_parts(saved, len(x), network)
    of_hidden, of_last = (None, None) if more is None else saved_parts(more, len(x), network)
    layers, found = _layers(hidden, parts, network), []
    features = [x, *(torch.nn.functional.silu(layer.y) for layer in layers)] if wanted[1] else []
    if network.end == "ones":
        grad = grad[:, :-1]
    else:
        if network.end == "tanh_square":
            grad = grad * _end_slopes(last)[0]
            grad = grad if of_last is None else grad + of_last
        if wanted[1]:
            found = [grad.sum(0), grad.mT @ features[-1]]
        grad = grad @ parts[-2]
    d_offsets = None
    for n, layer in reversed(list(enumerate(layers))):
        grad = _silu_backward(grad, layer.y)
        grad, d_gain, d_shift = _normalise_back(grad, layer, layer.gain, wanted[1])
        grad = grad if of_hidden is None else grad + of_hidden[n]
        if wanted[1]:
            of_matrix = grad.mT @ features[n]
            if n == 0 and network.n_skipped:
                of_matrix = torch.nn.functional.pad(of_matrix, (0, network.n_skipped))
            found += [d_shift, d_gain, grad.sum(0), of_matrix]
        if n == 0 and wanted[2] and offsets is not None:
            d_offsets = offsets_gradient(grad, index, len(offsets))
        if n or wanted[0]:
            grad = grad @ layer.matrix
    d_parameters = torch.cat([part.flatten() for part in reversed(found)]) if wanted[1] else None
    return grad if wanted[0] else None, d_parameters, d_offsets


def offsets_gradient(grad: Tensor, index: Tensor, n_offsets: int) -> Tensor:
    """Sums of the gradient before the first normalisation over the rows that add each offset."""
    found = grad.new_zeros((n_offsets, grad.shape[1]))
    for column in index.unbind(1):
        found = found.index_add(0, column, grad)
    return found


def second_plain(
    v: Tensor, grad: Tensor, parameters: Tensor, saved: Tensor, kept: Tensor | None, network: NormNetwork
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Derivatives of `backward_plain` in the gradient, parameters and what was saved; differentiable.

    ``v`` is the gradient of its result; ``kept`` may be None.
    """
    parts = parameters_of(parameters, network)
    hidden, last = saved_parts(saved, len(grad), network)
    layers = _layers(hidden, parts, network)
    features = _features_back(grad, parts, layers, last, network) if kept is None else kept.unbind(0)
    found, of_saved, bias = [], [], torch.zeros_like(parts[1])
    for n, (layer, g) in enumerate(zip(layers, features, strict=True)):
        normal, rstd = _normal(layer, network)
        gate = torch.sigmoid(layer.y)
        rest = 1 - gate
        s = g * gate * (1 + layer.y * rest)
        q = s * layer.gain
        u = _normalise_back(q, layer, None)[0]
        t = v @ layer.matrix.mT
        of_matrix = u.mT @ v
        of_matrix = torch.nn.functional.pad(of_matrix, (0, 0 if n else network.n_skipped))
        k = _normalise_back(t, layer, None)[0]
        v = k * layer.gain
        of_y = v * g * gate * rest * (2 + layer.y * (rest - gate))
        v = v * gate * (1 + layer.y * rest)
        found += [of_matrix, bias, (k * s + of_y * normal).sum(0), of_y.sum(0)]
        along = t * (q * normal).mean(1, keepdim=True) + q * (t * normal).mean(1, keepdim=True)
        of_normal = _normalise_back(of_y * layer.gain - rstd * along, layer, None)[0]
        of_saved.append(of_normal - (t * u).mean(1, keepdim=True) * rstd * normal)
    if network.end == "ones":
        d_grad = torch.nn.functional.pad(v, (0, 1))
    else:
        d_grad = v @ parts[-2].mT
        if network.end == "tanh_square":
            slope, bend = _end_slopes(last)
            of_saved.append(grad * bend * d_grad)
            grad, d_grad = grad * slope, d_grad * slope
        found += [grad.mT @ v, torch.zeros_like(parts[-1])]
    d_parameters = torch.cat([part.flatten() for part in found])
    return d_grad, d_parameters, torch.cat([part.flatten() for part in of_saved])


def _features_back(
    grad: Tensor, parts: list[Tensor], layers: list[_Layer], last: Tensor, network: NormNetwork
) -> list[Tensor]:
    """Gradients in the features of every layer."""
    found = [_first_back(grad, parts, last, network)]
    for layer in reversed(layers[1:]):
        u = _normalise_back(_silu_backward(found[-1], layer.y), layer, layer.gain)[0]
        found.append(u @ layer.matrix)
    return found[::-1]


def tangent_plain(
    tensors: Sequence[Any], saved: Tensor, tangents: Sequence[Tensor | None], network: NormNetwork
) -> tuple[Tensor, Tensor]:
    """Derivatives of the values, and of what they keep, along tangents of x, parameters and offsets."""
    x, parameters, _, index = tensors
    x_t, parameters_t, offsets_t = tangents[:3]
    parts = parameters_of(parameters, network)
    along = parameters_of(torch.zeros_like(parameters) if parameters_t is None else parameters_t, network)
    hidden, last = saved_parts(saved, len(x), network)
    t, kept = torch.zeros_like(x) if x_t is None else x_t, []
    for n, layer in enumerate(_layers(hidden, parts, network)):
        d_matrix, d_bias, d_gain, d_shift = along[4 * n : 4 * n + 4]
        t = t @ layer.matrix.mT + x @ d_matrix[:, : layer.matrix.shape[1]].mT + d_bias
        if n == 0 and offsets_t is not None and index is not None:
            t = t + offsets_t[index].sum(1)
        kept.append(t)
        normal = _normal(layer, network)[0]
        t = _normalise_back(t, layer, None)[0] * layer.gain + normal * d_gain + d_shift
        t = _silu_backward(t, layer.y)
        x = torch.nn.functional.silu(layer.y)
    if network.end == "ones":
        t = torch.nn.functional.pad(t, (0, 1))
    else:
        t = t @ parts[-2].mT + x @ along[-2].mT + along[-1]
        if network.end == "tanh_square":
            kept.append(t)
            t = t * _end_slopes(last)[0]
    return t, torch.cat([part.flatten() for part in kept])


def backward_tangent_plain(
    tensors: Sequence[Tensor], tangents: Sequence[Tensor | None], network: NormNetwork
) -> Tensor:
    """Derivative of `backward_plain` along tangents of the gradient, parameters and what was saved."""
    grad, parameters, saved = tensors
    grad_t, parameters_t, saved_t = (
        torch.zeros_like(a) if t is None else t for a, t in zip(tensors, tangents, strict=True)
    )
    parts, along = parameters_of(parameters, network), parameters_of(parameters_t, network)
    hidden, last = saved_parts(saved, len(grad), network)
    hidden_t, last_t = saved_parts(saved_t, len(grad), network)
    if network.end == "ones":
        g, g_t = grad[:, :-1], grad_t[:, :-1]
    else:
        if network.end == "tanh_square":
            slope, bend = _end_slopes(last)
            grad, grad_t = grad * slope, grad_t * slope + grad * bend * last_t
        g, g_t = grad @ parts[-2], grad_t @ parts[-2] + grad @ along[-2]
    for n, layer in reversed(list(enumerate(_layers(hidden, parts, network)))):
        d_matrix, _, d_gain, d_shift = along[4 * n : 4 * n + 4]
        normal, rstd = _normal(layer, network)
        normal_t = _normalise_back(hidden_t[n], layer, None)[0]
        gate = torch.sigmoid(layer.y)
        slope = gate * (1 + layer.y * (1 - gate))
        bend = gate * (1 - gate) * (2 + layer.y * (1 - 2 * gate))
        s, y_t = g * slope, normal_t * layer.gain + normal * d_gain + d_shift
        q, q_t = s * layer.gain, (g_t * slope + g * bend * y_t) * layer.gain + s * d_gain
        u, u_t = (_normalise_back(part, layer, None)[0] for part in (q, q_t))
        u_t = u_t - rstd * (normal * hidden_t[n]).mean(1, keepdim=True) * u
        mean, mean_t = ((q * part).mean(1, keepdim=True) for part in (normal, normal_t))
        u_t = u_t - rstd * (normal_t * mean + normal * mean_t)
        g, g_t = u @ layer.matrix, u_t @ layer.matrix + u @ d_matrix[:, : layer.matrix.shape[1]]
    return g_t
