"""e3nn's linear maps, and mace-torch's gates and reshaping of irreps, in few launches on a GPU."""

# mace-torch's and e3nn's modules are untyped: for torch.nn.Module every attribute is Tensor | Module
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalCall=false

from __future__ import annotations

import math
from typing import Any

import mace  # noqa: F401  (import it before e3nn, which fails to load its constants otherwise)
import torch
from e3nn import o3
from mace.modules.gate import GatedEquivariantBlock
from mace.modules.irreps_tools import reshape_irreps
from torch import Tensor

from scfmlip_kernels import Block, BlockMap, BlockPath, block_linear, grouped_scale, take_columns
from scfmlip_kernels.constants import constant

from .swapped import Swapped, Swaps


def irreps_blocks(irreps: Any) -> tuple[Block, ...] | None:
    """Blocks of a row in e3nn's layout; None if one is empty."""
    if not len(irreps) or any(mul == 0 for mul, _ in irreps):
        return None
    parts = zip(irreps, irreps.slices(), strict=True)
    return tuple(Block(part.start, mul, ir.dim) for (mul, ir), part in parts)


def linear_map(linear: Any) -> BlockMap | None:
    """An ``o3.Linear`` as a map between blocks, without its biases; None if it is not one."""
    x, out = irreps_blocks(linear.irreps_in), irreps_blocks(linear.irreps_out)
    if x is None or out is None or linear.weight_numel != linear.weight.numel():
        return None
    paths, first = [], 0
    for ins in linear.instructions:
        if ins.i_in < 0:
            continue
        mul_in, mul_out = ins.path_shape
        paths.append(BlockPath(ins.i_in, ins.i_out, first, (0, mul_out, 1), ins.path_weight))
        first += mul_in * mul_out
    return BlockMap(x, out, tuple(paths), first)


def bias_places(linear: Any) -> tuple[int, ...]:
    """For each column of the output its place among the biases, or their number where it has none."""
    slices, count = linear.irreps_out.slices(), linear.bias.numel()
    places, first = [count] * linear.irreps_out.dim, 0
    for ins in linear.instructions:
        if ins.i_in < 0:
            columns = slices[ins.i_out]
            size = columns.stop - columns.start
            places[columns] = range(first, first + size)
            first += size
    return tuple(places)


class FastLinear(Swapped, o3.Linear):
    """e3nn's linear map, all irreps in one launch on a GPU."""

    _scfmlip_original = o3.Linear

    def forward(self, features: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """``[n, irreps_in.dim]`` -> ``[n, irreps_out.dim]``."""
        if not features.is_cuda or weight is not None or features.ndim != 2:
            return super().forward(features, weight, bias)
        out = block_linear(features, self.weight, self._scfmlip_map)
        mine: Any = self.bias if bias is None else bias
        if not mine.numel():
            return out
        if mine.numel() == out.shape[1]:
            return out + mine
        places = constant(self._scfmlip_biases, torch.int64, mine.device)
        return out + torch.nn.functional.pad(mine, (0, 1)).index_select(0, places)


class FastReshape(Swapped, reshape_irreps):
    """mace-torch's reshaping of irreps, one gather of columns on a GPU."""

    _scfmlip_original = reshape_irreps

    def forward(self, tensor: Tensor) -> Tensor:
        """``[n, irreps.dim]`` -> ``[n, mul, components]``."""
        if not tensor.is_cuda:
            return super().forward(tensor)
        muls: Any = self.muls
        return take_columns(tensor, self._scfmlip_columns).unflatten(1, (muls[0], sum(self.dims)))


class FastGate(Swapped, GatedEquivariantBlock):
    """mace-torch's gate, the gated features in one launch on a GPU."""

    _scfmlip_original = GatedEquivariantBlock

    def forward(self, features: Tensor) -> Tensor:
        """``[n, irreps_in.dim]`` -> ``[n, irreps_out.dim]``."""
        if not features.is_cuda or features.ndim != 2:
            return super().forward(features)
        sizes = (self._s_len, self._g_len, features.shape[1] - self._s_len - self._g_len)
        if self._act_scalar is self._act_gate and self._scalar_cst == self._gate_cst:
            head, gated = features.split((sizes[0] + sizes[1], sizes[2]), 1)
            scalars, gates = (self._act_gate(head) * self._gate_cst).split(sizes[:2], 1)
        else:
            scalars, gates, gated = features.split(sizes, 1)
            scalars = self._act_scalar(scalars) * self._scalar_cst
            gates = self._act_gate(gates) * self._gate_cst
        return torch.cat((scalars, grouped_scale(gates, gated, self._scfmlip_groups)), 1)


def _gate_groups(module: Any) -> tuple[int, ...] | None:
    """The gate of each gated column; None unless scalars, gates and gated features follow one another."""
    if module._layout_is_ir_mul or not module._gated_info or None in (module._act_scalar, module._act_gate):
        return None
    if module._s_start != 0 or module._g_start != module._s_len:
        return None
    groups, column = [], module._s_len + module._g_len
    for start, length, dim, mul, first in module._gated_info:
        if start != column or length != mul * dim:
            return None
        groups += [first + u for u in range(mul) for _ in range(dim)]
        column += length
    return tuple(groups)


def _reshaped_columns(module: Any) -> tuple[int, ...] | None:
    """The column that each column of the flattened result is; None for cuEquivariance's layout."""
    config = getattr(module, "cueq_config", None)
    if len(set(module.muls)) != 1 or (config is not None and config.layout_str != "mul_ir"):
        return None
    mul, firsts, first = module.muls[0], [], 0
    for dim in module.dims:
        firsts.append((first, dim))
        first += mul * dim
    return tuple(f + u * dim + d for u in range(mul) for f, dim in firsts for d in range(dim))


def find_linear_swaps(model: torch.nn.Module) -> Swaps:
    """Linear maps and reshapes to replace; those of other kinds stay, and are fast enough."""
    swaps: Swaps = {}
    for module in model.modules():
        if type(module) is o3.Linear and module.shared_weights and module.internal_weights:
            found = linear_map(module)
            if found is not None:
                extra = {"_scfmlip_map": found, "_scfmlip_biases": bias_places(module)}
                swaps[id(module)] = (FastLinear, extra)
        elif type(module) is GatedEquivariantBlock:
            groups = _gate_groups(module)
            if groups is not None:
                swaps[id(module)] = (FastGate, {"_scfmlip_groups": groups})
        elif type(module) is reshape_irreps:
            columns = _reshaped_columns(module)
            if columns is not None:
                swaps[id(module)] = (FastReshape, {"_scfmlip_columns": columns})
    return swaps


def skip_map(product: Any) -> BlockMap | None:
    """The product of features with one-hot species as a map between blocks; None if a block is empty."""
    x, out = irreps_blocks(product.irreps_in1), irreps_blocks(product.irreps_out)
    if x is None or out is None:
        return None
    n_species, paths, first = product.irreps_in2.dim, [], 0
    for ins in product.instructions:
        mul_out = ins.path_shape[2]
        scale = ins.path_weight / math.sqrt(product.irreps_in1[ins.i_in1].ir.dim)
        strides = (mul_out, n_species * mul_out, 1)
        paths.append(BlockPath(ins.i_in1, ins.i_out, first, strides, scale))
        first += math.prod(ins.path_shape)
    return BlockMap(x, out, tuple(paths), first, n_species)
