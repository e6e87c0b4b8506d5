"""
MACE's tensor products on our operators, inside the model's own interaction and product blocks.

An interaction block runs its own forward pass; what it calls is ours. Its `conv_tp` gathers, multiplies and
sums in one operator and never stores a message per edge. Its `conv_tp_weights` stops before its last layer,
which the convolution applies block by block, so that the weights of an edge, most of the bytes of a step, are
never stored either. This holds because everything between the two, the cutoff, multiplies whole rows.
"""

# mace-torch's and e3nn's modules have no types: torch.nn.Module says Tensor | Module for every attribute
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mace  # noqa: F401  (before e3nn, which it teaches to load its constants)
import torch
from e3nn import o3
from e3nn.nn import FullyConnectedNet
from mace.modules import blocks
from mace.modules.radial import RadialMLP
from mace.modules.symmetric_contraction import SymmetricContraction
from mace.modules.wrapper_ops import CUET_AVAILABLE
from torch import Tensor

from scfmlip_kernels import (
    ChannelwiseProduct,
    SymmetricPolynomial,
    channelwise_conv,
    indexed_linear,
    sort_edges,
    symmetric_contraction,
)

from ...nn.descriptors import channelwise_product
from .swapped import Swapped

try:
    from mace.modules.lora import LoRADenseLinear, LoRAFCLayer

    LORA_LAYERS: tuple[type, ...] = (LoRADenseLinear, LoRAFCLayer)
except ImportError:  # an older mace-torch
    LORA_LAYERS = ()

INTERACTIONS = (
    "RealAgnosticInteractionBlock",
    "RealAgnosticResidualInteractionBlock",
    "RealAgnosticDensityInteractionBlock",
    "RealAgnosticDensityResidualInteractionBlock",
    "RealAgnosticAttResidualInteractionBlock",
    "RealAgnosticResidualNonLinearInteractionBlock",
)


def _base(layer: Any) -> Any:
    """The layer itself, or the one that mace-torch's LoRA adds to."""
    return layer.base if isinstance(layer, LORA_LAYERS) else layer


def _unit_vectors(like: Tensor, n: int) -> Tensor:
    return torch.eye(n, dtype=like.dtype, device=like.device)


def last_radial_layer(convolution: Any) -> Tensor | None:
    """``[n_hidden, n_weights]`` of a swapped convolution's radial network; None where weights are given."""
    (radial,) = convolution._scfmlip_radial
    return None if radial is None else radial.last_layer()


class FastConvolution(Swapped, o3.TensorProduct):
    """
    `conv_tp` with gather and sum inside.

    Its third argument holds hidden radial features, see above; weights where no radial network is left.
    """

    _scfmlip_original = o3.TensorProduct

    def forward(self, x: Tensor, y: Tensor, weight: Tensor, edge_index: Tensor) -> Tensor:
        """Node features, edge attributes, hidden radial features, edges -> ``[n_nodes, .]``."""
        edges = sort_edges(edge_index[0], edge_index[1], x.shape[0])
        return channelwise_conv(x, y, weight, edges, self._scfmlip_product, last_radial_layer(self))


class FastFullyConnectedNet(Swapped, FullyConnectedNet):
    """Radial network up to its last layer, which belongs to the convolution."""

    _scfmlip_original = FullyConnectedNet

    def forward(self, x: Tensor) -> Tensor:
        """``[n_edges, n_in]`` -> ``[n_edges, n_hidden]``."""
        for layer in list(self)[:-1]:
            x = layer(x)
        return x

    def last_layer(self) -> Tensor:
        """``[n_hidden, n_weights]``."""
        last = list(self)[-1]
        base = _base(last)
        if base is not last:
            return last(_unit_vectors(base.weight, base.weight.shape[0]))
        return last.weight * (last.var_out / (last.h_in * last.var_in)) ** 0.5


class FastRadialMLP(Swapped, RadialMLP):
    """Radial network up to its last layer; a hidden feature that is always 1 carries the bias."""

    _scfmlip_original = RadialMLP

    def forward(self, inputs: Tensor) -> Tensor:
        """``[n_edges, n_in]`` -> ``[n_edges, n_hidden + 1]``."""
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


def _has_linear_end(radial: torch.nn.Module) -> bool:
    """Whether the last layer is a matrix product (plus bias) and nothing else."""
    if type(radial) is FullyConnectedNet:
        return len(radial) > 1 and _base(list(radial)[-1]).act is None
    if type(radial) is RadialMLP:
        return len(radial.net) > 1 and type(_base(radial.net[-1])) is torch.nn.Linear
    return False


def one_hot_index(attributes: Tensor) -> Tensor | None:
    """
    Species of each row of one-hot attributes ``[n_atoms, n_species]``; None if a row is something else.

    Looks at the values on a CPU in eager mode only: elsewhere it would synchronise or break the graph, and
    MACE's attributes are one-hot. Attributes that want a gradient get None too: an index has none.
    """
    if attributes.requires_grad:
        return None
    top, index = attributes.detach().max(-1)
    if attributes.device.type == "cpu" and not torch.compiler.is_compiling():
        total = attributes.detach().abs().sum(-1)
        if not bool(((top == 1) & (total == 1)).all()):
            return None
    return index


def symmetric_polynomial(module: SymmetricContraction) -> SymmetricPolynomial:
    """The polynomial of all its contractions; weights in the order of `FastSymmetricContraction`."""
    blocks_, first = [], 0
    for contraction in module.contractions:
        dim = 1
        for degree in _degrees(contraction):
            u = contraction.U_tensors(degree).detach().to("cpu", torch.float64)
            u = u if u.ndim == degree + 2 else u[None]
            blocks_.append((first, u))
            dim = u.shape[0]
        first += dim
    return SymmetricPolynomial.from_dense(blocks_)


def _degrees(contraction: torch.nn.Module) -> list[int]:
    return list(range(contraction.correlation, 0, -1))


class FastSymmetricContraction(Swapped, SymmetricContraction):
    """The contraction of all degrees and outputs as one polynomial, species gathered inside."""

    _scfmlip_original = SymmetricContraction

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``x [n_atoms, n_channels, n_inputs]``, one-hot ``y [n_atoms, n_species]`` -> ``[n_atoms, .]``."""
        index = one_hot_index(y)
        if index is None:
            return SymmetricContraction.forward(self, x, y)
        weights = torch.cat([w for c in self.contractions for w in (c.weights_max, *c.weights)], 1)
        out = symmetric_contraction(x, weights, index, self._scfmlip_polynomial)
        return torch.cat([part.flatten(1) for part in out.split(self._scfmlip_dims, -1)], -1)


class SkipPath(NamedTuple):
    """
    One path of a product of features with species.

    Attributes:
        x: First column of the features.
        channels: Their number.
        dim: Components of each.
        weights: First of the weights.
        shape: Of the weights: channels, species, channels of the output.
        scale: Of the path.
        out: Block of the output.
    """

    x: int
    channels: int
    dim: int
    weights: int
    shape: tuple[int, ...]
    scale: float
    out: int


class FastSkipProduct(Swapped, o3.FullyConnectedTensorProduct):
    """The product of features with one-hot species: one linear map per species and degree."""

    _scfmlip_original = o3.FullyConnectedTensorProduct

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """``x [n_atoms, .]``, one-hot ``y [n_atoms, n_species]`` -> ``[n_atoms, .]``."""
        index = one_hot_index(y) if weight is None else None
        if index is None:
            return o3.FullyConnectedTensorProduct.forward(self, x, y, weight)
        paths, sizes = self._scfmlip_skip
        parts: list[Tensor | None] = [None] * len(sizes)
        for path in paths:
            weight = self.weight[path.weights : path.weights + math.prod(path.shape)]
            weight = path.scale * weight.view(path.shape).transpose(0, 1)
            columns = x[:, path.x : path.x + path.channels * path.dim]
            rows = columns.unflatten(1, (path.channels, path.dim)).transpose(1, 2)
            out = indexed_linear(rows, weight, index).transpose(1, 2).flatten(1)
            before = parts[path.out]
            parts[path.out] = out if before is None else before + out
        filled = [
            x.new_zeros(x.shape[0], size) if part is None else part
            for part, size in zip(parts, sizes, strict=True)
        ]
        return torch.cat(filled, 1)


def _skip_paths(product: torch.nn.Module) -> tuple[tuple[SkipPath, ...], tuple[int, ...]]:
    """Its paths and the columns of each block of its output; torch.compile cannot guard e3nn's irreps."""
    starts = [s.start for s in product.irreps_in1.slices()]
    paths, offset = [], 0
    for ins in product.instructions:
        mul, ir = product.irreps_in1[ins.i_in1]
        shape = tuple(ins.path_shape)
        scale = ins.path_weight / math.sqrt(ir.dim)
        paths.append(SkipPath(starts[ins.i_in1], mul, ir.dim, offset, shape, scale, ins.i_out))
        offset += math.prod(shape)
    return tuple(paths), tuple(mul * ir.dim for mul, ir in product.irreps_out)


def _is_species_product(product: torch.nn.Module) -> bool:
    """Whether a fully connected product is with scalars only, weights its own."""
    return bool(
        type(product) is o3.FullyConnectedTensorProduct
        and product.internal_weights
        and len(product.irreps_in2) == 1
        and product.irreps_in2[0].ir == o3.Irrep("0e")
        and all(ins.connection_mode == "uvw" and ins.has_weight for ins in product.instructions)
    )


def _fast_interaction(original: type) -> type:
    """A subclass that hands ``edge_index`` to its ``conv_tp``: the block's own switch for fused products."""
    name = f"Fast{original.__name__}"
    docstring = f"`{original.__name__}` whose ``conv_tp`` gathers and sums itself."
    return type(
        name,
        (Swapped, original),
        {
            "__module__": __name__,
            "__qualname__": name,
            "__doc__": docstring,
            "_scfmlip_original": original,
            "conv_fusion": True,
        },
    )


FAST_INTERACTIONS = {
    getattr(blocks, name): _fast_interaction(getattr(blocks, name))
    for name in INTERACTIONS
    if hasattr(blocks, name)
}
globals().update(
    {fast.__qualname__: fast for fast in FAST_INTERACTIONS.values()}
)  # pickle finds them by name


def find_swaps(model: torch.nn.Module) -> dict[int, tuple[type, dict]]:
    """
    What to replace in a model.

    Returns:
        By ``id`` of a module: its new class and the attributes to add.
    """
    swaps: dict[int, tuple[type, dict]] = {}
    for module in model.modules():
        if type(module) in FAST_INTERACTIONS:
            swaps.update(_interaction_swaps(module))
        elif type(module) is SymmetricContraction:
            extra = {
                "_scfmlip_polynomial": symmetric_polynomial(module),
                "_scfmlip_dims": tuple(ir.dim for _, ir in module.irreps_out),
            }
            swaps[id(module)] = (FastSymmetricContraction, extra)
        elif _is_species_product(module):
            swaps[id(module)] = (FastSkipProduct, {"_scfmlip_skip": _skip_paths(module)})
    if CUET_AVAILABLE:
        from .cueq import find_cueq_swaps

        swaps.update(find_cueq_swaps(model))
    return swaps


def _interaction_swaps(module: torch.nn.Module) -> dict[int, tuple[type, dict]]:
    """The block, its convolution and its radial network; nothing where the convolution is not known."""
    radial, convolution = module.conv_tp_weights, _fast_convolution(module.conv_tp)
    given = type(radial) is torch.nn.Identity
    if convolution is None or not (given or _has_linear_end(radial)):
        return {}
    fast, product = convolution
    kept = {"_scfmlip_product": product, "_scfmlip_radial": (None if given else radial,)}
    swaps: dict[int, tuple[type, dict]] = {id(module.conv_tp): (fast, kept)}
    if not given:
        ends = {FullyConnectedNet: FastFullyConnectedNet, RadialMLP: FastRadialMLP}
        swaps[id(radial)] = (ends[type(radial)], {})
    # a block built with fused convolutions hands over its edges already
    if not hasattr(module, "conv_fusion"):
        swaps[id(module)] = (FAST_INTERACTIONS[type(module)], {})
    return swaps


def _fast_convolution(conv_tp: torch.nn.Module) -> tuple[type, ChannelwiseProduct] | None:
    """Its new class and the convolution it is."""
    if type(conv_tp) is o3.TensorProduct:
        product = channelwise_product(conv_tp)
        return None if product is None else (FastConvolution, product)
    if not CUET_AVAILABLE:
        return None
    from .cueq import fast_convolution

    return fast_convolution(conv_tp)
