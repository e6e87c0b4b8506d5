"""mace-torch's networks of linear maps, layer norms and silu, as one operator on a GPU."""

# mace-torch's modules are untyped: for torch.nn.Module every attribute is Tensor | Module
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from scfmlip_kernels import NormNetwork, norm_network

from .packed import packed_vector

# by network; None where it is of another kind
_KNOWN: WeakKeyDictionary[nn.Module, NormNetwork | None] = WeakKeyDictionary()


def _read(mlp: Any) -> NormNetwork | None:
    layers = list(mlp.net)
    hidden, last = layers[:-1], layers[-1]
    if type(last) is not nn.Linear or last.bias is None or not hidden or len(hidden) % 3:
        return None
    eps = set()
    for linear, norm, act in zip(*(hidden[k::3] for k in range(3)), strict=True):
        kinds = (type(linear), type(norm), type(act))
        if kinds != (nn.Linear, nn.LayerNorm, nn.SiLU) or linear.bias is None:
            return None
        if norm.weight is None or norm.bias is None or norm.normalized_shape != (last.in_features,):
            return None
        if linear.out_features != last.in_features:
            return None
        eps.add(norm.eps)
    if len(eps) != 1:
        return None
    sizes = (hidden[0].in_features, last.in_features, len(hidden) // 3, last.out_features)
    return NormNetwork(*sizes, "linear", eps.pop())


def network_of(mlp: Any) -> NormNetwork | None:
    """The description of a ``RadialMLP`` with hidden layers of one width; None if it has another form."""
    if mlp not in _KNOWN:
        _KNOWN[mlp] = _read(mlp)
    return _KNOWN[mlp]


def network_tensors(mlp: Any, end: str = "linear") -> list[Tensor]:
    """The parameters of a network in the order of `NormNetwork`."""
    *hidden, last = list(mlp.net)
    tensors: list[Tensor] = []
    for linear, norm in zip(hidden[::3], hidden[1::3], strict=True):
        tensors += [linear.weight, linear.bias, norm.weight, norm.bias]
    return tensors if end == "ones" else [*tensors, last.weight, last.bias]


def run_network(
    mlp: Any,
    x: Tensor,
    end: str = "linear",
    offsets: Tensor | None = None,
    index: Tensor | None = None,
) -> Tensor:
    """
    A ``RadialMLP`` for which `network_of` is not None.

    Args:
        mlp: The network.
        x: ``[n, n_in]``; if there are ``offsets``, the first columns alone.
        end: See `NormNetwork`.
        offsets: See `norm_network`: what other columns contribute.
        index: Likewise.
    """
    known = network_of(mlp)
    assert known is not None
    n_skipped = known.n_in - x.shape[1] if offsets is not None else 0
    n_out = known.n_hidden + 1 if end == "ones" else known.n_out
    network = known._replace(n_in=x.shape[1], n_out=n_out, end=end, n_skipped=n_skipped)
    parameters = packed_vector(id(mlp), network_tensors(mlp, end))
    return norm_network(x, parameters, network, offsets, index)


def network_or_own(mlp: Any, x: Tensor) -> Tensor:
    """A network's outputs, by one operator where it can."""
    return run_network(mlp, x) if x.is_cuda and x.ndim == 2 and network_of(mlp) is not None else mlp(x)
