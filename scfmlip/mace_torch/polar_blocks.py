"""
MACE-POLAR's field-update and electron-energy blocks without outer products of channels.

mace-torch 0.3.16 computes their invariants ``sum_v W_uv sum_d x_ud y_vd`` as an outer product over channels,
atoms x 512 x 512, six times per step. Summed in the other order, ``sum_d x_ud (W y)_ud``, they are a matrix
product and an elementwise product. If y is a linear map of a few numbers per atom (potential features,
charges) or of the node features, the two matrices are multiplied in the cheaper order.
"""

# mace-torch's modules are untyped: for torch.nn.Module every attribute is Tensor | Module
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mace  # noqa: F401  (import it before e3nn, which fails to load its constants otherwise)
import torch
from e3nn import o3
from mace.modules.field_blocks import (
    AgnosticChargeBiasedLinearPotentialEmbedding,
    AgnosticEmbeddedOneBodyVariableUpdate,
    MultiLayerFeatureMixer,
    OneBodyMLPFieldReadout,
    SparseUvuTensorProduct,
)
from torch import Tensor

from .irreps import add, apply_linear, chain, from_blocks, linear_biases, linear_paths, to_blocks
from .joined import joinable
from .networks import network_of, network_or_own, network_tensors
from .polar_flat import dot_tensors, flat_dot, flat_scale
from .residual import FastResidualInteraction
from .swapped import Swapped, Swaps, warn_fallback


def _paths(product: Any) -> list[tuple[int, int, int, float, Tensor]]:
    """``(block of x, block of y, block out, factor, W [mul_x, mul_y])`` of a sparse uvu product."""
    out = []
    for ins, meta in zip(product.instructions, product._path_meta, strict=True):
        start, stop, path_weight, _, mul1, mul2, d = meta[6:13]
        weight = product.weight[start:stop].view(mul1, mul2)
        out.append((ins.i_in1, ins.i_in2, ins.i_out, path_weight / d**0.5, weight))
    return out


def _invariants(product: Any, x: list[Tensor], sources: list[tuple[Any, list[Tensor]]]) -> Tensor:
    """The product of x with a sum of linear maps, ``[n, mul]``; each source is a linear map and its input."""
    n = len(x[0])
    out = x[0].new_zeros((n, product.irreps_out.dim))
    for i1, i2, _, factor, weight in _paths(product):
        terms = [
            chain(blocks[i], matrix, weight.T)
            for linear, blocks in sources
            for i, o, matrix in linear_paths(linear)
            if o == i2
        ]
        for linear, _ in sources:
            bias = linear_biases(linear).get(i2)
            if bias is not None:
                terms.append((weight @ bias).expand(n, 1, -1))
        if terms:
            mixed = add(terms, x[0], ())
            out = torch.add(out, (x[i1] * mixed).sum(1), alpha=factor)
    return out * product.output_mask


def _scaled(product: Any, x: list[Tensor], scalars: Tensor) -> list[Tensor]:
    """The ``l x 0 -> l`` product on blocks: each channel times a mixture of the scalars ``[n, mul]``."""
    n = len(scalars)
    terms: list[list[Tensor]] = [[] for _ in product.irreps_out]
    for i1, _, o, factor, weight in _paths(product):
        terms[o].append(x[i1] * (factor * (scalars @ weight.T))[:, None])
    return [add(t, scalars, (n, ir.dim, mul)) for t, (mul, ir) in zip(terms, product.irreps_out, strict=True)]


def _product(product: Any, node_feats: Tensor, sources: list[tuple[Any, Tensor]]) -> Tensor:
    """The invariants of features and a sum of linear maps, each given with its input, ``[n, mul]``."""
    found = flat_dot(product, node_feats, sources) if node_feats.is_cuda else None
    if found is not None:
        return found
    x = to_blocks(node_feats, product.irreps_in1)
    blocks = [x if v is node_feats else to_blocks(v, linear.irreps_in) for linear, v in sources]
    return _invariants(product, x, [(linear, b) for (linear, _), b in zip(sources, blocks, strict=True)])


def _modulated(product: Any, node_feats: Tensor, scalars: Tensor) -> Tensor:
    """The ``l x 0 -> l`` product of features with scalars ``[n, mul]``."""
    found = flat_scale(product, node_feats, scalars) if node_feats.is_cuda else None
    if found is not None:
        return found
    return from_blocks(_scaled(product, to_blocks(node_feats, product.irreps_in1), scalars))


def _linear_reason(block: Any, linears: dict[str, Any]) -> str | None:
    """Why a block is not in e3nn's layout or has linears other than e3nn's (such as LoRA's); or None."""
    if block.cueq_config is not None and block.cueq_config.enabled:
        return "it is in cuEquivariance's layout, where only its products are accelerated"
    for name, linear in linears.items():
        if not isinstance(linear, o3.Linear):
            return f"its {name} is a {type(linear).__name__}, not e3nn's Linear"
    return None


def _update_reason(block: Any) -> str | None:
    embedding = block.potential_embedding
    if type(embedding) is not AgnosticChargeBiasedLinearPotentialEmbedding:
        return f"its potential_embedding is a {type(embedding).__name__}"
    linears = ("potential_linear", "node_feats_linear", "charge_embedding")
    found = {name: getattr(embedding, name) for name in linears}
    return _linear_reason(block, {**found, "readout.linear_1": block.readout.linear_1})


def _readout_reason(block: Any) -> str | None:
    return _linear_reason(block, {name: getattr(block, name) for name in ("linear_up_q", "linear_up_v")})


def _mixer_reason(block: Any) -> str | None:
    for linear in block.linears:
        if not isinstance(linear, o3.Linear):
            return f"its linears are {type(linear).__module__.split('.')[0]}'s {type(linear).__name__}"
    return None


class FastSparseUvuTensorProduct(Swapped, SparseUvuTensorProduct):
    """`SparseUvuTensorProduct` with memory n x mul x (2 l + 1)."""

    _scfmlip_original = SparseUvuTensorProduct

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Same as the original: ``[n, irreps.dim]`` twice to ``[n, irreps_out.dim]``."""
        x = to_blocks(x1, self.irreps_in1, self.layout)
        y = to_blocks(x2, self.irreps_in2, self.layout)
        out = [x1.new_zeros((len(x1), ir.dim, mul)) for mul, ir in self.irreps_out]
        for i1, i2, o, factor, weight in _paths(self):
            value = x[i1] * (y[i2] @ (factor * weight.T))
            out[o] = out[o] + (value.sum(1, keepdim=True) if out[o].shape[1] == 1 else value)
        return from_blocks(out, self.layout) * self.output_mask


class FastFieldUpdate(Swapped, AgnosticEmbeddedOneBodyVariableUpdate):
    """`AgnosticEmbeddedOneBodyVariableUpdate`: same arguments, result and parameters."""

    _scfmlip_original = AgnosticEmbeddedOneBodyVariableUpdate

    def forward(
        self,
        node_attrs: Tensor,
        node_feats: Tensor,
        edge_attrs: Tensor,
        edge_feats: Tensor,
        edge_index: Tensor,
        potential_features: Tensor,
        local_charges: Tensor,
    ) -> Tensor:
        """``[n, charges + 2]``: changes of the spin charges, and two Fukui weights."""
        embedding, reason = self.potential_embedding, _update_reason(self)
        if reason is not None:
            warn_fallback(self, reason)
            return super().forward(
                node_attrs,
                node_feats,
                edge_attrs,
                edge_feats,
                edge_index,
                potential_features,
                local_charges,
            )
        sources = [
            (embedding.potential_linear, potential_features),
            (embedding.node_feats_linear, node_feats),
            (embedding.charge_embedding, local_charges),
        ]
        invariants = _product(self.dot_products, node_feats, sources)
        scalars = torch.cat([invariants, self.source_embedding(node_attrs)], -1)
        return self.readout(_modulated(self.tp_out, node_feats, network_or_own(self.nonlinearity, scalars)))


class FastFieldReadout(Swapped, OneBodyMLPFieldReadout):
    """`OneBodyMLPFieldReadout`: same arguments, result and parameters."""

    _scfmlip_original = OneBodyMLPFieldReadout

    def forward(
        self,
        node_attrs: Tensor,
        node_feats: Tensor,
        edge_attrs: Tensor,
        edge_feats: Tensor,
        edge_index: Tensor,
        field_feats: Tensor,
        charges_0: Tensor,
        charges_induced: Tensor,
    ) -> Tensor:
        """``[n]`` electron energy of each atom."""
        reason = _readout_reason(self)
        if reason is not None:
            warn_fallback(self, reason)
            return super().forward(
                node_attrs,
                node_feats,
                edge_attrs,
                edge_feats,
                edge_index,
                field_feats,
                charges_0,
                charges_induced,
            )
        charges = [(self.linear_up_q, charges_induced + charges_0)]
        invariants = [
            _product(self.dot_products_q, node_feats, charges),
            _product(self.dot_products_v, node_feats, [(self.linear_up_v, field_feats)]),
        ]
        return network_or_own(self.mlp, torch.cat(invariants, -1)).squeeze(-1)


class FastFeatureMixer(Swapped, MultiLayerFeatureMixer):
    """`MultiLayerFeatureMixer`: one matrix product per irrep and layer."""

    _scfmlip_original = MultiLayerFeatureMixer

    def forward(self, all_node_feats: Tensor | Sequence[Tensor]) -> Tensor:
        """``[n_layers, n, irreps.dim]``, or the layers one by one, to ``[n, irreps.dim]``."""
        reason = _mixer_reason(self)
        if reason is not None:
            warn_fallback(self, reason)
            whole = (
                all_node_feats if isinstance(all_node_feats, Tensor) else torch.stack(list(all_node_feats))
            )
            return super().forward(whole)
        if all_node_feats[0].is_cuda:
            return add(
                [f(x) for f, x in zip(self.linears, all_node_feats, strict=True)], all_node_feats[0], ()
            )
        total: list[Tensor] = []
        for linear, feats in zip(self.linears, all_node_feats, strict=True):
            values = apply_linear(linear, to_blocks(feats, linear.irreps_in))
            total = values if not total else [a + b for a, b in zip(total, values, strict=True)]
        return from_blocks(total)


def maps_of_layer(model: Any, layer: int) -> list[Any]:
    """Linear maps that read the features of a layer of a PolarMACE, those that can run together."""
    readout = model.readouts[min(layer, len(model.readouts) - 1)]
    found = [getattr(readout, "linear", getattr(readout, "linear_1", None))]
    found.append(getattr(model.lr_source_maps[layer], "linear", None))
    if isinstance(model.layer_feature_mixer, FastFeatureMixer):
        found.append(model.layer_feature_mixer.linears[layer])
    if layer + 1 < len(model.interactions):
        block = model.interactions[layer + 1]
        if isinstance(block, FastResidualInteraction):
            found += [block.skip_tp, block.linear_up]
    elif getattr(model, "_fukui_to_mul_ir", None) is None:
        found.append(model.fukui_source_map.linear_1)
    return joinable(found)


def parameters_to_pack(model: Any) -> dict[Any, list[Tensor]]:
    """Parameters that networks, maps and products of a PolarMACE take as one vector, see `packed`."""
    groups: dict[Any, list[Tensor]] = {}
    for layer in range(len(model.interactions)):
        maps = maps_of_layer(model, layer)
        if len(maps) > 1:
            groups["maps", layer] = [linear.weight for linear in maps]

    def network(mlp: Any, end: str = "linear") -> None:
        if type(mlp).__name__ == "RadialMLP" and network_of(mlp) is not None:
            groups[id(mlp)] = network_tensors(mlp, end)

    for block in model.interactions:
        if isinstance(block, FastResidualInteraction):
            network(block.conv_tp_weights, "ones")
            network(block.density_fn)
    for update in model.field_dependent_charges_maps:
        if isinstance(update, FastFieldUpdate) and _update_reason(update) is None:
            embedding = update.potential_embedding
            linears = (embedding.potential_linear, embedding.node_feats_linear, embedding.charge_embedding)
            groups[id(update.dot_products)] = dot_tensors(linears)
            network(update.nonlinearity)
    energy = model.local_electron_energy
    if isinstance(energy, FastFieldReadout) and _readout_reason(energy) is None:
        groups[id(energy.dot_products_q)] = dot_tensors((energy.linear_up_q,))
        groups[id(energy.dot_products_v)] = dot_tensors((energy.linear_up_v,))
        network(energy.mlp)
    return groups


# original class: our class, and a function that says why a block keeps its own code
_BLOCKS: dict[type, tuple[type, Callable[[Any], str | None]]] = {
    SparseUvuTensorProduct: (FastSparseUvuTensorProduct, lambda block: None),
    AgnosticEmbeddedOneBodyVariableUpdate: (FastFieldUpdate, _update_reason),
    OneBodyMLPFieldReadout: (FastFieldReadout, _readout_reason),
    MultiLayerFeatureMixer: (FastFeatureMixer, _mixer_reason),
}


def find_block_swaps(model: Any) -> tuple[Swaps, dict[int, str]]:
    """Field blocks of a PolarMACE to replace, and blocks that stay, as in `find_swaps`."""
    swaps: Swaps = {}
    left: dict[int, str] = {}
    for module in model.modules():
        if type(module) in _BLOCKS:
            fast, why = _BLOCKS[type(module)]
            reason = why(module)
            swaps[id(module)] = (fast, {} if reason is None else {"_scfmlip_told": reason})
            if reason is not None:
                left[id(module)] = reason
    for block in (
        *model.field_dependent_charges_maps,
        model.local_electron_energy,
        model.layer_feature_mixer,
    ):
        if id(block) not in swaps and not isinstance(block, Swapped):
            left[id(block)] = "not a known field block of mace-torch"
    return swaps, left
