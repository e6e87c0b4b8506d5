"""
Radial networks without their last layer, which the convolution applies.

Edge weights are most of the memory traffic of a step. The convolution applies the last layer block by block,
so they are never stored. Layers with mace-torch's LoRA are supported.
"""

# mace-torch's and e3nn's modules are untyped: for torch.nn.Module every attribute is Tensor | Module
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

from typing import Any

import mace  # noqa: F401  (import it before e3nn, which fails to load its constants otherwise)
import torch
from e3nn.nn import FullyConnectedNet
from mace.modules.radial import RadialMLP
from torch import Tensor

from .networks import network_of, run_network
from .swapped import Swapped

try:
    from mace.modules.lora import LoRADenseLinear, LoRAFCLayer

    LORA_LAYERS: tuple[type, ...] = (LoRADenseLinear, LoRAFCLayer)
except ImportError:  # an older mace-torch
    LORA_LAYERS = ()


def _base(layer: Any) -> Any:
    """The layer itself, or the base layer of mace-torch's LoRA."""
    return layer.base if isinstance(layer, LORA_LAYERS) else layer


def _unit_vectors(like: Tensor, n: int) -> Tensor:
    return torch.eye(n, dtype=like.dtype, device=like.device)


def last_radial_layer(convolution: Any) -> Tensor | None:
    """Last layer ``[n_hidden, n_weights]`` of a swapped convolution's radial network; None if it has none."""
    (radial,) = convolution._scfmlip_radial
    return None if radial is None else radial.last_layer()


class FastFullyConnectedNet(Swapped, FullyConnectedNet):
    """Radial network up to its last layer, which the convolution applies."""

    _scfmlip_original = FullyConnectedNet

    def forward(self, x: Tensor) -> Tensor:
        """``[n_edges, n_in]`` -> ``[n_edges, n_hidden]``."""
        factor = 1.0
        for layer in list(self)[:-1]:
            if _is_plain(layer):
                x, factor = _silu_layer(layer, x, factor)
            else:
                x, factor = layer(x if factor == 1.0 else factor * x), 1.0
        return x

    def last_layer(self) -> Tensor:
        """``[n_hidden, n_weights]``, with what the hidden features still have to be multiplied by."""
        *hidden, last = list(self)
        base = _base(last)
        factor = _factor(hidden[-1]) if _is_plain(hidden[-1]) else 1.0
        if base is not last:
            return last(factor * _unit_vectors(base.weight, base.weight.shape[0]))
        return last.weight * (factor * (last.var_out / (last.h_in * last.var_in)) ** 0.5)


def _is_plain(layer: Any) -> bool:
    """Whether a hidden layer is e3nn's own with a normalised silu."""
    act = getattr(layer, "act", None)
    return not isinstance(layer, LORA_LAYERS) and getattr(act, "f", None) is torch.nn.functional.silu


def _factor(layer: Any) -> float:
    """What a layer's activation is multiplied by."""
    constant = 1.0 if layer.act._is_id else float(layer.act.cst)
    return constant * layer.var_out**0.5


def _silu_layer(layer: Any, x: Tensor, factor: float) -> tuple[Tensor, float]:
    """A layer of ``factor * x``, and the factor of its result, which is left to the next product."""
    scale = factor / (layer.h_in * layer.var_in) ** 0.5
    return torch.nn.functional.silu(torch.mm(x, layer.weight * scale)), _factor(layer)


class FastRadialMLP(Swapped, RadialMLP):
    """Radial network up to its last layer; a constant hidden feature of 1 carries the bias."""

    _scfmlip_original = RadialMLP

    def forward(self, inputs: Tensor) -> Tensor:
        """``[n_edges, n_in]`` -> ``[n_edges, n_hidden + 1]``."""
        if inputs.is_cuda and inputs.ndim == 2 and network_of(self) is not None:
            return run_network(self, inputs, "ones")
        hidden = inputs
        for layer in list(self.net)[:-1]:
            hidden = layer(hidden)
        return torch.cat((hidden, hidden.new_ones(hidden.shape[0], 1)), 1)

    def last_layer(self) -> Tensor:
        """``[n_hidden + 1, n_weights]``."""
        last = self.net[-1]
        base = _base(last)
        if base is not last:
            rows = last(_unit_vectors(base.weight, base.weight.shape[1]))
            return torch.cat((rows - base.bias, base.bias[None]))
        return torch.cat((last.weight.T, last.bias[None]))


def has_linear_end(radial: torch.nn.Module) -> bool:
    """Whether the last layer is only a matrix product (plus bias)."""
    if type(radial) is FullyConnectedNet:
        return len(radial) > 1 and _base(list(radial)[-1]).act is None
    if type(radial) is RadialMLP:
        return len(radial.net) > 1 and type(_base(radial.net[-1])) is torch.nn.Linear
    return False
