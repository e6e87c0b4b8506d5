"""Plain PyTorch definition of a network of normalised layers; the tests' source of truth."""

import torch
from torch import Tensor

from .description import NormNetwork


def norm_network_reference(
    x: Tensor,
    parameters: Tensor,
    network: NormNetwork,
    offsets: Tensor | None = None,
    index: Tensor | None = None,
) -> Tensor:
    """Arguments as in `norm_network`, in formulas."""
    parts = list(parameters.split([torch.Size(shape).numel() for shape in network.sizes]))
    parts = [part.view(shape) for part, shape in zip(parts, network.sizes, strict=True)]
    h = x
    for layer in range(network.n_layers):
        matrix, bias, gain, shift = parts[4 * layer : 4 * layer + 4]
        h = h @ matrix[:, : h.shape[1]].T + bias
        if layer == 0 and offsets is not None and index is not None:
            h = h + offsets[index].sum(1)
        h = h - h.mean(1, keepdim=True)
        h = h / (h.square().mean(1, keepdim=True) + network.eps).sqrt() * gain + shift
        h = h / (1 + torch.exp(-h))
    if network.end == "ones":
        return torch.cat((h, torch.ones_like(h[:, :1])), 1)
    out = h @ parts[-2].T + parts[-1]
    return out if network.end == "linear" else torch.tanh(out.square())
