"""Readouts from the backbone's features to charges, dipoles and electronegativities of atoms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from torch import Tensor

from .config import per_element


def count_scalars(irreps: o3.Irreps) -> int:
    """Number of even scalars of a layer."""
    return irreps.count(o3.Irrep(0, 1))


def _sum_layers(layers: torch.nn.ModuleList, features: Sequence[Tensor]) -> Tensor:
    return torch.stack([layer(x) for layer, x in zip(layers, features, strict=True)]).sum(0)


class MultipoleReadout(torch.nn.Module):
    """
    Charges and dipoles, linear in the features of every layer except the last, which has one gated layer.

    Rows are ``[q, d_x, d_y, d_z]``. A bias per element, initially zero, is added to the charges.

    Args:
        feature_irreps: Irreps of each layer.
        n_elements: Size of the one-hot encoding.
        n_channels: Number of multipoles per atom.
        l_max: 0 or 1.
        hidden: Width of the gated layer; with 0 the last readout is linear too.
        scale: Scale of the initial output, so that training starts from small charges.

    Raises:
        ValueError: for l_max = 1 when no layer has vectors.
    """

    def __init__(
        self,
        feature_irreps: Sequence[o3.Irreps],
        n_elements: int,
        n_channels: int = 1,
        l_max: int = 1,
        hidden: int = 16,
        scale: float = 0.1,
    ) -> None:
        super().__init__()
        if l_max > 0 and not any(irreps.count(o3.Irrep(1, -1)) for irreps in feature_irreps):
            raise ValueError(
                "dipoles (density.l_max = 1) need vectors among the features: add 1o to "
                "backbone.hidden_irreps and use at least two interactions, or set density.l_max = 0"
            )
        out = o3.Irreps(f"{n_channels}x0e" + (f"+{n_channels}x1o" if l_max > 0 else ""))
        layers: list[torch.nn.Module] = [o3.Linear(irreps, out) for irreps in feature_irreps[:-1]]
        last = feature_irreps[-1]
        if hidden == 0:
            layers.append(o3.Linear(last, out))
        else:
            vectors = l_max > 0 and last.count(o3.Irrep(1, -1)) > 0
            scalars = o3.Irreps(f"{hidden}x0e")
            gated = o3.Irreps(f"{hidden}x1o" if vectors else "")
            gates = o3.Irreps(f"{hidden}x0e" if vectors else "")
            gate = e3nn_nn.Gate(
                scalars, [torch.nn.functional.silu], gates, [torch.sigmoid] if vectors else [], gated
            )
            layers.append(
                torch.nn.Sequential(o3.Linear(last, gate.irreps_in), gate, o3.Linear(gate.irreps_out, out))
            )
        self.layers = torch.nn.ModuleList(layers)
        self.bias = torch.nn.Parameter(torch.zeros(n_elements, n_channels))
        self.scale = scale

    def forward(self, features: Sequence[Tensor], node_attrs: Tensor) -> Tensor:
        """``[n_atoms, n_channels, 1 | 4]``."""
        rows = _sum_layers(self.layers, features) * self.scale
        n = self.bias.shape[1]
        charges = (rows[:, :n] + node_attrs @ self.bias)[..., None]
        if rows.shape[1] == n:
            return charges
        return torch.cat((charges, rows[:, n:].unflatten(-1, (n, 3))), -1)


class ScalarReadout(torch.nn.Module):
    """
    Invariants of atoms: linear in each layer's scalars, plus a perceptron on the last layer's scalars.

    Args:
        feature_irreps: Irreps of each layer.
        n_elements: Size of the one-hot encoding; a bias per element, initially zero, is added.
        n_out: Number of invariants per atom.
        hidden: Width of the perceptron.
        scale: Scale of the initial output.
    """

    def __init__(
        self,
        feature_irreps: Sequence[o3.Irreps],
        n_elements: int,
        n_out: int = 1,
        hidden: int = 32,
        scale: float = 0.1,
    ) -> None:
        super().__init__()
        out = o3.Irreps(f"{n_out}x0e")
        self.layers = torch.nn.ModuleList(o3.Linear(irreps, out) for irreps in feature_irreps)
        self.n_scalars = count_scalars(feature_irreps[-1])
        self.last = o3.Linear(feature_irreps[-1], o3.Irreps(f"{self.n_scalars}x0e"))
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(self.n_scalars, hidden),
            torch.nn.SiLU(),
            torch.nn.Linear(hidden, n_out, bias=False),
        )
        self.bias = torch.nn.Parameter(torch.zeros(n_elements, n_out))
        self.scale = scale

    def forward(self, features: Sequence[Tensor], node_attrs: Tensor) -> Tensor:
        """``[n_atoms, n_out]``."""
        out = _sum_layers(self.layers, features)
        out = out + self.mlp(self.last(features[-1]))
        return out * self.scale + node_attrs @ self.bias


class FeatureMix(torch.nn.Module):
    """
    ``n`` scalars and ``n`` vectors per atom, linear in the features of all layers.

    The vectors are zero if no layer has any.
    """

    def __init__(self, feature_irreps: Sequence[o3.Irreps], n: int) -> None:
        super().__init__()
        self.n = n
        self.vectors = any(irreps.count(o3.Irrep(1, -1)) for irreps in feature_irreps)
        out = o3.Irreps(f"{n}x0e" + (f"+{n}x1o" if self.vectors else ""))
        self.layers = torch.nn.ModuleList(o3.Linear(irreps, out) for irreps in feature_irreps)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """``[n_atoms, n]`` and ``[n_atoms, n, 3]``."""
        rows = _sum_layers(self.layers, features)
        scalars = rows[:, : self.n]
        if not self.vectors:
            return scalars, scalars.new_zeros(*scalars.shape, 3)
        return scalars, rows[:, self.n :].unflatten(-1, (self.n, 3))


def hardness_parameter(
    charges: float | Mapping[str, float],
    dipoles: float | Mapping[str, float],
    logarithm: bool,
    elements: Sequence[int],
    l_max: int,
) -> torch.nn.Parameter:
    """
    A trainable, positive hardness for each element.

    Args:
        charges: Initial values for charges, V/e, one for all elements or a mapping.
        dipoles: Initial values for dipoles, V/(e angstrom^2), likewise.
        logarithm: Whether the parameter is the logarithm (good for stiff atoms) or the inverse softplus.
        elements: Atomic numbers.
        l_max: 0 for charges only.

    Returns:
        ``[n_elements, l_max + 1]``.
    """
    pairs = (("rule.hardness", charges), ("rule.dipole_hardness", dipoles))
    columns = [
        [
            math.log(j) if logarithm else j + math.log(-math.expm1(-j))
            for j in per_element(name, values, elements)
        ]
        for name, values in pairs[: l_max + 1]
    ]
    return torch.nn.Parameter(torch.tensor(columns).T.contiguous())
