"""e3nn's linear maps, and mace-torch's gates and reshaping of irreps, in few launches on a GPU."""

# mace-torch's and e3nn's modules are untyped: for torch.nn.Module every attribute is Tensor | Module
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalCall=false

from __future__ import annotations

import math
from typing import Any

import mace  # noqa: F401  (import it before e3nn, which fails to load its constants otherwise)
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from e3nn.nn import Activation
from mace.modules.gate import GatedEquivariantBlock
from mace.modules.irreps_tools import reshape_irreps
from torch import Tensor

from scfmlip_kernels import Block, BlockMap, BlockPath, Gate, block_linear, gated, take_columns

from .joined import joined_result
from .swapped import Swapped, Swaps


def irreps_blocks(irreps: Any) -> tuple[Block, ...] | None:
    """Blocks of a row in e3nn's layout; None if one is empty."""
    if not len(irreps) or any(mul == 0 for mul, _ in irreps):
        return None
    parts = zip(irreps, irreps.slices(), strict=True)
    return tuple(Block(part.start, mul, ir.dim) for (mul, ir), part in parts)


def linear_map(linear: Any) -> BlockMap | None:
    """An ``o3.Linear`` as a map between blocks; None if it is not one."""
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
    return BlockMap(x, out, tuple(paths), first, 1, _biases(linear, out))


def _biases(linear: Any, out: tuple[Block, ...]) -> tuple[int, ...]:
    """For each block of the output the first of its biases, or -1."""
    if not linear.bias.numel():
        return ()
    places, first = [-1] * len(out), 0
    for ins in linear.instructions:
        if ins.i_in < 0:
            places[ins.i_out] = first
            first += out[ins.i_out].channels
    return tuple(places)


class FastLinear(Swapped, o3.Linear):
    """e3nn's linear map, all irreps in one launch on a GPU."""

    _scfmlip_original = o3.Linear

    def forward(self, features: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """``[n, irreps_in.dim]`` -> ``[n, irreps_out.dim]``."""
        if not features.is_cuda or weight is not None or features.ndim != 2:
            return super().forward(features, weight, bias)
        known = None if torch.compiler.is_compiling() else joined_result(self, features)
        if known is not None:
            return known
        mine: Any = self.bias if bias is None else bias
        return block_linear(features, self.weight, self._scfmlip_map, None, mine if mine.numel() else None)


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
        return gated(features, self._scfmlip_gate)


class FastPlainGate(Swapped, e3nn_nn.Gate):
    """e3nn's gate, in one launch on a GPU."""

    _scfmlip_original = e3nn_nn.Gate

    def forward(self, features: Tensor) -> Tensor:
        """``[n, irreps_in.dim]`` -> ``[n, irreps_out.dim]``."""
        if not features.is_cuda or features.ndim != 2:
            return super().forward(features)
        return gated(features, self._scfmlip_gate)


class FastActivation(Swapped, Activation):
    """e3nn's silu of scalars, in one launch on a GPU."""

    _scfmlip_original = Activation

    def forward(self, features: Tensor, dim: int = -1) -> Tensor:
        """Shape of ``features``."""
        if isinstance(features, torch.fx.Proxy):  # mace-torch traces a model that it compiles
            return super().forward(features, dim)
        if not features.is_cuda or features.ndim != 2 or dim not in (-1, 1):
            return super().forward(features, dim)
        return gated(features, self._scfmlip_gate)


def _function_name(function: Any) -> str | None:
    """A function by the name that `Gate` knows."""
    if function is torch.nn.functional.silu:
        return "silu"
    return "sigmoid" if function in (torch.sigmoid, torch.nn.functional.sigmoid) else None


def _activation_gate(module: Any) -> Gate | None:
    """An activation of one block of scalars as a gate without gates."""
    if len(module.acts) != 1 or module.acts[0] is None:
        return None
    (act,) = module.acts
    name = _function_name(act.f)
    if name is None:
        return None
    return Gate(module.irreps_in.dim, scalar=name, scalar_factor=1.0 if act._is_id else float(act.cst))


def _gate(module: Any) -> Gate | None:
    """A gate's description; None if it has another form."""
    groups = _gate_groups(module)
    names = _function_name(module._act_scalar), _function_name(module._act_gate)
    if groups is None or names[0] is None or names[1] is None:
        return None
    factors = float(module._scalar_cst), float(module._gate_cst)
    return Gate(module._s_len, groups, module._g_len, names[0], names[1], *factors)


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


def _plain_gate(module: Any) -> Gate | None:
    """e3nn's gate as a description; None if it has another form."""
    columns = torch.arange(module.irreps_in.dim)
    parts = [part.long() for part in module.sc(columns.float())]
    if not torch.equal(torch.cat(parts), columns):
        return None  # scalars, gates and gated features do not follow one another
    scalars = _activation_gate(module.act_scalars)
    n_scalars, n_gates = module.irreps_scalars.dim, module.irreps_gates.dim
    if scalars is None:
        return None
    if n_gates == 0:
        return scalars
    acts = module.act_gates.acts
    functions = {
        (_function_name(act.f), 1.0 if act._is_id else float(act.cst)) for act in acts if act is not None
    }
    if None in acts or len(functions) != 1:
        return None
    ((name, factor),) = functions
    if name is None:
        return None
    groups = torch.arange(n_gates).repeat_interleave(
        torch.tensor([ir.dim for mul, ir in module.irreps_gated for _ in range(mul)])
    )
    return Gate(
        n_scalars, tuple(groups.tolist()), n_gates, scalars.scalar, name, scalars.scalar_factor, factor
    )


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
                swaps[id(module)] = (FastLinear, {"_scfmlip_map": found})
        elif type(module) is GatedEquivariantBlock:
            gate = _gate(module)
            if gate is not None:
                swaps[id(module)] = (FastGate, {"_scfmlip_gate": gate})
        elif type(module) is e3nn_nn.Gate:
            gate = _plain_gate(module)
            if gate is not None:
                swaps[id(module)] = (FastPlainGate, {"_scfmlip_gate": gate})
        elif type(module) is Activation:
            gate = _activation_gate(module)
            if gate is not None:
                swaps[id(module)] = (FastActivation, {"_scfmlip_gate": gate})
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
