"""
MACE's tensor products on our operators, inside the model's own interaction and product blocks.

An interaction block runs its own forward pass and calls our modules. Its `conv_tp` gathers, multiplies and
sums in one operator and never stores a message per edge. Its `conv_tp_weights` stops before its last layer,
which the convolution applies block by block. So the edge weights, most of the memory traffic of a step, are
never stored either. This works because everything between the two, the cutoff, multiplies whole rows.
"""

# mace-torch's and e3nn's modules are untyped: for torch.nn.Module every attribute is Tensor | Module
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mace  # noqa: F401  (import it before e3nn, which fails to load its constants otherwise)
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
    block_linear,
    indexed_linear,
    sort_species,
)

from ..nn.descriptors import channelwise_product
from .contraction import FastSymmetricContraction, one_hot_index, symmetric_polynomial
from .edges import find_edge_swaps
from .interactions import FAST_INTERACTIONS, FastConvolution
from .linear import find_linear_swaps, skip_map
from .radial import FastFullyConnectedNet, FastRadialMLP, has_linear_end
from .swapped import Swapped, Swaps


class SkipPath(NamedTuple):
    """
    One path of the product of features with species.

    Attributes:
        x: First column of the features.
        channels: Number of channels.
        dim: Components per channel.
        weights: Index of the first weight.
        shape: Shape of the weights: channels, species, channels of the output.
        scale: Normalisation of the path.
        out: Index of the output block.
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
        index = one_hot_index(y, self) if weight is None else None
        if index is None:
            return o3.FullyConnectedTensorProduct.forward(self, x, y, weight)
        linear: Any = self._scfmlip_map
        if x.is_cuda and linear is not None and x.shape[1] == linear.x_dim:
            return block_linear(x, self.weight, linear, sort_species(index, linear.n_species))
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
    """A product's paths, and the columns of each output block; torch.compile cannot guard e3nn's irreps."""
    starts = [s.start for s in product.irreps_in1.slices()]
    paths, offset = [], 0
    for ins in product.instructions:
        mul, ir = product.irreps_in1[ins.i_in1]
        shape = tuple(ins.path_shape)
        scale = ins.path_weight / math.sqrt(ir.dim)
        paths.append(SkipPath(starts[ins.i_in1], mul, ir.dim, offset, shape, scale, ins.i_out))
        offset += math.prod(shape)
    return tuple(paths), tuple(mul * ir.dim for mul, ir in product.irreps_out)


def _skip_reason(product: Any) -> str | None:
    """Why a fully connected product is not one of features with species that owns its weights; or None."""
    if type(product) is not o3.FullyConnectedTensorProduct:
        return "not e3nn's own class"
    if not product.internal_weights:
        return "it does not own its weights"
    if len(product.irreps_in2) != 1 or product.irreps_in2[0].ir != o3.Irrep("0e"):
        return f"its second factor {product.irreps_in2} is not scalar"
    if not all(ins.connection_mode == "uvw" and ins.has_weight for ins in product.instructions):
        return "its paths are not fully connected"
    return None


def _of_heads(x: Tensor, heads: Tensor | None, n_heads: int) -> Tensor:
    """Keep the features of each atom's head and set the others to zero, in the features' dtype."""
    if n_heads == 1 or heads is None:
        return x
    mine = torch.nn.functional.one_hot(heads, n_heads).to(x.dtype)
    return (x.unflatten(1, (n_heads, -1)) * mine[:, :, None]).flatten(1)


class HeadReadout(Swapped, blocks.NonLinearReadoutBlock):
    """The readout of several heads; mace-torch's own creates its mask in the default dtype."""

    _scfmlip_original = blocks.NonLinearReadoutBlock

    def forward(self, x: Tensor, heads: Tensor | None = None) -> Tensor:
        """Features ``[n_atoms, .]`` and heads ``[n_atoms]`` -> ``[n_atoms, n_heads]``."""
        hidden = self.non_linearity(self.linear_1(x))
        return self.linear_2(_of_heads(hidden, heads, self.num_heads))


class HeadBiasReadout(Swapped, blocks.NonLinearBiasReadoutBlock):
    """The same with one more layer."""

    _scfmlip_original = blocks.NonLinearBiasReadoutBlock

    def forward(self, x: Tensor, heads: Tensor | None = None) -> Tensor:
        """Features ``[n_atoms, .]`` and heads ``[n_atoms]`` -> ``[n_atoms, n_heads]``."""
        hidden = _of_heads(self.non_linearity(self.linear_1(x)), heads, self.num_heads)
        hidden = _of_heads(self.non_linearity(self.linear_mid(hidden)), heads, self.num_heads)
        return self.linear_2(hidden)


HEAD_READOUTS = {readout._scfmlip_original: readout for readout in (HeadReadout, HeadBiasReadout)}


# files of earlier versions name these classes here
globals().update({fast.__qualname__: fast for fast in FAST_INTERACTIONS.values()})


def find_swaps(model: torch.nn.Module) -> tuple[Swaps, dict[int, str]]:
    """
    Find modules to replace in a model, and similar modules that stay.

    Returns:
        Two dictionaries by ``id`` of a module: new class and attributes; and the reason why it stays.
    """
    swaps: Swaps = {**find_linear_swaps(model), **find_edge_swaps(model)}
    left: dict[int, str] = {}
    for module in model.modules():
        if isinstance(module, Swapped):
            continue
        if isinstance(module, blocks.InteractionBlock):
            found = _interaction_swaps(module)
            if isinstance(found, str):
                left[id(module)] = found
            else:
                swaps.update(found)
        elif isinstance(module, SymmetricContraction):
            if type(module) is SymmetricContraction:
                extra = {
                    "_scfmlip_polynomial": symmetric_polynomial(module),
                    "_scfmlip_dims": tuple(ir.dim for _, ir in module.irreps_out),
                }
                swaps[id(module)] = (FastSymmetricContraction, extra)
            else:
                left[id(module)] = "not mace-torch's own class"
        elif isinstance(module, o3.FullyConnectedTensorProduct):
            reason = _skip_reason(module)
            if reason is None:
                extra = {"_scfmlip_skip": _skip_paths(module), "_scfmlip_map": skip_map(module)}
                swaps[id(module)] = (FastSkipProduct, extra)
            else:
                left[id(module)] = reason
        elif type(module) in HEAD_READOUTS and getattr(module, "num_heads", 1) > 1:
            swaps[id(module)] = (HEAD_READOUTS[type(module)], {})
    if CUET_AVAILABLE:
        from .cueq_blocks import find_cueq_swaps

        for mine, theirs in zip((swaps, left), find_cueq_swaps(model), strict=True):
            mine.update(theirs)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, blocks.EquivariantProductBasisBlock):
            swaps.update(_product_swaps(module))
            product: Any = module.symmetric_contractions
            if id(product) not in swaps and id(product) not in left and not _is_ours(product):
                left[id(product)] = "a contraction of another library"
    return swaps, left


def _product_swaps(module: Any) -> Swaps:
    """The swap of an agnostic product, which makes its one species in every call."""
    from .residual import FastProductBasis

    config = getattr(module, "cueq_config", None)
    if type(module) is not blocks.EquivariantProductBasisBlock or not getattr(
        module, "use_agnostic_product", False
    ):
        return {}
    return {} if config is not None and config.enabled else {id(module): (FastProductBasis, {})}


def _is_ours(module: torch.nn.Module) -> bool:
    """Whether a module is swapped, or is a graph that mace-torch traced around a swapped one."""
    return any(isinstance(m, Swapped) for m in module.modules())


def _interaction_swaps(module: Any) -> Swaps | str:
    """Swaps for the block, its convolution and its radial network; the reason if one is not supported."""
    if isinstance(module.conv_tp, Swapped):
        return {}
    if type(module) not in FAST_INTERACTIONS:
        return "not a known interaction block of mace-torch"
    radial, convolution = module.conv_tp_weights, _fast_convolution(module.conv_tp)
    given = type(radial) is torch.nn.Identity
    if convolution is None:
        kind = f"{type(module.conv_tp).__module__.split('.')[0]}'s {type(module.conv_tp).__name__}"
        return f"its conv_tp, {kind}, is not a known channel-wise convolution"
    if not (given or has_linear_end(radial)):
        return f"its radial network, {type(radial).__name__}, does not end in a matrix product"
    fast, product = convolution
    kept = {"_scfmlip_product": product, "_scfmlip_radial": (None if given else radial,)}
    swaps: Swaps = {id(module.conv_tp): (fast, kept)}
    if not given:
        ends = {FullyConnectedNet: FastFullyConnectedNet, RadialMLP: FastRadialMLP}
        swaps[id(radial)] = (ends[type(radial)], {})
    # a block built with fused convolutions already passes its edges
    if not hasattr(module, "conv_fusion"):
        swaps[id(module)] = (_interaction_class(type(module)), {})
    return swaps


def _interaction_class(original: type) -> type:
    """The class that runs a block in fewest launches."""
    from .residual import FastResidualInteraction

    fast = FAST_INTERACTIONS[original]
    return FastResidualInteraction if issubclass(FastResidualInteraction, fast) else fast


def _fast_convolution(conv_tp: torch.nn.Module) -> tuple[type, ChannelwiseProduct] | None:
    """New class and description of a convolution; None if it is not supported."""
    if type(conv_tp) is o3.TensorProduct:
        product = channelwise_product(conv_tp)
        return None if product is None else (FastConvolution, product)
    if not CUET_AVAILABLE:
        return None
    from .cueq_blocks import fast_convolution

    return fast_convolution(conv_tp)
