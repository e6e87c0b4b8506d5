"""
Tensor products of a MACE model built with cuequivariance, on our operators.

Their segments are ``[components, channels]`` whatever the layout of the model; the modules transpose before
and after, and ours do the same. Weights, their order and their normalisation are those of the modules'
polynomials.
"""

# cuequivariance_torch is optional, and its modules are untyped: for torch.nn.Module every attribute is
# Tensor | Module
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportOptionalSubscript=false, reportGeneralTypeIssues=false, reportIndexIssue=false
# pyright: reportMissingImports=false
# their forward has other argument names; MACE passes arguments by position
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import copyreg
import math
from typing import Any

import cuequivariance_torch as cuet
import numpy as np
import torch
from mace.modules.wrapper_ops import with_cueq_conv_fusion
from torch import Tensor

from scfmlip_kernels import ChannelwiseProduct, channelwise_conv, sort_edges, symmetric_contraction

from ..nn.cueq.evaluate import Call, evaluate
from ..nn.cueq.recognise import ContractionPlan, ConvolutionPlan, LinearPath, LinearPlan, recognise
from .contraction import one_hot_index
from .radial import last_radial_layer
from .swapped import Swapped, Swaps


def _convolve(module: Any, x: Tensor, y: Tensor, weight: Tensor, edge_index: Tensor) -> Tensor:
    edges = sort_edges(edge_index[0], edge_index[1], x.shape[0])
    return channelwise_conv(x, y, weight, edges, module._scfmlip_product, last_radial_layer(module))


class FastChannelWiseTensorProduct(Swapped, cuet.ChannelWiseTensorProduct):
    """`conv_tp` with gather and sum inside; its weights are hidden radial features."""

    _scfmlip_original = cuet.ChannelWiseTensorProduct

    def forward(self, x: Tensor, y: Tensor, weight: Tensor, edge_index: Tensor) -> Tensor:
        """Node features, edge attributes, hidden radial features, edges -> ``[n_nodes, .]``."""
        x, y = self.transpose_in1(x), self.transpose_in2(y)
        return self.transpose_out(_convolve(self, x, y, weight, edge_index))


class FastFusedConvolution(Swapped, cuet.SegmentedPolynomial):
    """The same for models with ``conv_fusion``, whose `conv_tp` is a polynomial with an attached method."""

    _scfmlip_original = cuet.SegmentedPolynomial
    _scfmlip_hides = ("forward", "original_forward")
    _scfmlip_reattach = staticmethod(with_cueq_conv_fusion)

    def forward(self, x: Tensor, y: Tensor, weight: Tensor, edge_index: Tensor) -> Tensor:
        """Node features, edge attributes, hidden radial features, edges -> ``[n_nodes, .]``."""
        return _convolve(self, x, y, weight, edge_index)

    def __reduce__(self) -> tuple:
        """Pickle like any module: the parent's method would lose the class."""
        return copyreg.__newobj__, (type(self),), self.__dict__


class FastCueqSymmetricContraction(Swapped, cuet.SymmetricContraction):
    """The contraction of all degrees and outputs as one polynomial, species gathered inside."""

    _scfmlip_original = cuet.SymmetricContraction

    def forward(self, x: Tensor, indices: Tensor) -> Tensor:
        """``x [n_atoms, .]``, species ``[n_atoms]`` -> ``[n_atoms, .]``."""
        weight = self.weight
        if self.projection is not None:
            weight = torch.einsum("zau,ab->zbu", weight, self.projection)
        plan = self._scfmlip_plan
        shape = (plan.polynomial.n_inputs, plan.n_channels)
        x = self.transpose_in(x).unflatten(1, shape).mT
        out = symmetric_contraction(x, weight, indices.long(), plan.polynomial)
        return self.transpose_out(out.mT.flatten(1))


class FastCueqSkipProduct(Swapped, cuet.FullyConnectedTensorProduct):
    """The product of features with one-hot species: one linear map per species and degree."""

    _scfmlip_original = cuet.FullyConnectedTensorProduct

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """``x [n_atoms, .]``, one-hot ``y [n_atoms, n_species]`` -> ``[n_atoms, .]``."""
        index = one_hot_index(y, self) if weight is None else None
        if index is None:
            return cuet.FullyConnectedTensorProduct.forward(self, x, y, weight)
        shapes, plan = self._scfmlip_skip
        parts = self.weight[0].split([math.prod(shape) for shape in shapes])
        by_species = [
            part.view(shape).transpose(0, 1).flatten(1) for part, shape in zip(parts, shapes, strict=True)
        ]
        call = Call([torch.cat(by_species, 1), self.transpose_in1(x)], [index, None], None, len(x), len(x))
        return self.transpose_out(evaluate(plan, call))


def fast_convolution(conv_tp: torch.nn.Module) -> tuple[type, ChannelwiseProduct] | None:
    """New class and description of the convolution for a `conv_tp` of cuequivariance_torch; else None."""
    fused = type(conv_tp) is cuet.SegmentedPolynomial
    if not fused and not (type(conv_tp) is cuet.ChannelWiseTensorProduct and conv_tp.weight is None):
        return None
    plan = _plan(conv_tp if fused else conv_tp.f)
    if not isinstance(plan, ConvolutionPlan) or (plan.weights, plan.x, plan.y) != (0, 1, 2):
        return None
    return FastFusedConvolution if fused else FastChannelWiseTensorProduct, plan.product


def _plan(module: torch.nn.Module) -> Any:
    polynomial = getattr(module, "_polynomial_orig", None)
    return None if polynomial is None else recognise(polynomial)


def _skip_plan(module: torch.nn.Module) -> tuple[list[tuple[int, int, int]], LinearPlan] | None:
    """Shapes of the weights ``(u, species, w)`` and the linear maps of a product with scalars; else None."""
    polynomial = getattr(module.f, "_polynomial_orig", None)
    if polynomial is None or module.weight is None or len(module.irreps_in2) != 1:
        return None
    _, product = polynomial.operations[0]
    if str(product.subscripts) != "uvw,iu,jv,kw+ijk" or module.irreps_in2[0].ir.dim != 1:
        return None
    slices = [operand.segment_slices() for operand in product.operands]
    shapes = [tuple(segment) for segment in product.operands[0].segments]
    starts = np.cumsum([0, *(u * w for u, _, w in shapes)]).tolist()
    paths = []
    for path in product.paths:
        table = np.asarray(path.coefficients)[:, 0]
        i = table.shape[0]
        if table.shape != (i, i) or not np.allclose(table, table[0, 0] * np.eye(i), rtol=0, atol=1e-14):
            return None
        n, a, _, k = path.indices
        u, _, w = shapes[n]
        first = slices[1][a].start, slices[3][k].start
        paths.append(LinearPath(starts[n], *first, (i, u), w, float(table[0, 0])))
    return shapes, LinearPlan(tuple(paths), 0, 1, product.operands[3].size, False, False, False)


def find_cueq_swaps(model: torch.nn.Module) -> tuple[Swaps, dict[int, str]]:
    """Symmetric contractions and skip connections, as `tensor_products.find_swaps` gives them."""
    swaps: Swaps = {}
    left: dict[int, str] = {}
    for module in model.modules():
        if isinstance(module, Swapped):
            continue
        if isinstance(module, cuet.SymmetricContraction):
            plan = _plan(module.f) if type(module) is cuet.SymmetricContraction else None
            if isinstance(plan, ContractionPlan) and plan.weights == 0:
                swaps[id(module)] = (FastCueqSymmetricContraction, {"_scfmlip_plan": plan})
            else:
                left[id(module)] = "its polynomial is not a known symmetric contraction"
        elif isinstance(module, cuet.FullyConnectedTensorProduct):
            skip = _skip_plan(module) if type(module) is cuet.FullyConnectedTensorProduct else None
            if skip is None:
                left[id(module)] = "not a product of features with species that owns its weights"
            else:
                swaps[id(module)] = (FastCueqSkipProduct, {"_scfmlip_skip": skip})
    return swaps, left
