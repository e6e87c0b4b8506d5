"""Readouts from the backbone's features to charges, dipoles and electronegativities of atoms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from e3nn import nn as e3nn_nn
from e3nn import o3
from torch import Tensor

from scfmlip_kernels.constants import constant

from .config import per_element


def count_scalars(irreps: o3.Irreps) -> int:
    """Number of even scalars of a layer."""
    return irreps.count(o3.Irrep(0, 1))


_HALF = 0.5 * math.sqrt(3)
# row by row: xz, xy, yy, yz, zz-xx
_TURNED = (
    (0.0, 0.0, 0.0, 1.0, 0.0),
    (1.0, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, -0.5, 0.0, -_HALF),
    (0.0, 1.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, _HALF, 0.0, -0.5),
)


def quadrupoles_from_e3nn(like: Tensor) -> Tensor:
    """
    ``[5, 5]`` from features of l = 2 to the components of `GaussianMultipoles`, for rows from the left.

    e3nn's are ``[xz, xy, yy, yz, zz-xx]`` for vectors given as (x, y, z), as mace-torch's edges are.
    """
    return constant(_TURNED, like.dtype, like.device)


def _sum_layers(layers: torch.nn.ModuleList, features: Sequence[Tensor]) -> Tensor:
    return torch.stack([layer(x) for layer, x in zip(layers, features, strict=True)]).sum(0)


class MultipoleReadout(torch.nn.Module):
    """
    Multipoles, linear in the features of every layer except the last, which has one gated layer.

    Rows are ``[q, d_x, d_y, d_z]``, then quadrupoles in the components of `GaussianMultipoles`. A bias per
    element, initially zero, is added to the charges.

    Args:
        feature_irreps: Irreps of each layer.
        n_elements: Size of the one-hot encoding.
        n_channels: Number of multipoles per atom.
        l_max: 0, 1 or 2.
        hidden: Width of the gated layer; with 0 the last readout is linear too.
        scale: Scale of the initial output, so that training starts from small charges.

    Raises:
        ValueError: for an l_max when no layer has features of that order.
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
        higher = [o3.Irrep(1, -1), o3.Irrep(2, 1)][:l_max]
        for irrep, what in zip(higher, ("dipoles", "quadrupoles"), strict=False):
            if not any(irreps.count(irrep) for irreps in feature_irreps):
                raise ValueError(
                    f"{what} (density.l_max = {irrep.l}) need {irrep} among the features: add {irrep} to "
                    "backbone.hidden_irreps and use at least two interactions, or set density.l_max = "
                    f"{irrep.l - 1}"
                )
        out = o3.Irreps([(n_channels, irrep) for irrep in (o3.Irrep(0, 1), *higher)])
        layers: list[torch.nn.Module] = [o3.Linear(irreps, out) for irreps in feature_irreps[:-1]]
        last = feature_irreps[-1]
        if hidden == 0:
            layers.append(o3.Linear(last, out))
        else:
            gated = o3.Irreps([(hidden, irrep) for irrep in higher if last.count(irrep) > 0])
            scalars, gates = o3.Irreps(f"{hidden}x0e"), o3.Irreps([(hidden, "0e")] * len(gated))
            gate = e3nn_nn.Gate(
                scalars, [torch.nn.functional.silu], gates, [torch.sigmoid] * len(gated), gated
            )
            layers.append(
                torch.nn.Sequential(o3.Linear(last, gate.irreps_in), gate, o3.Linear(gate.irreps_out, out))
            )
        self.layers = torch.nn.ModuleList(layers)
        self.bias = torch.nn.Parameter(torch.zeros(n_elements, n_channels))
        self.scale = scale

    def forward(self, features: Sequence[Tensor], node_attrs: Tensor) -> Tensor:
        """``[n_atoms, n_channels, 1 | 4 | 9]``."""
        rows = _sum_layers(self.layers, features) * self.scale
        n = self.bias.shape[1]
        parts = [(rows[:, :n] + node_attrs @ self.bias)[..., None]]
        if rows.shape[1] > n:
            parts.append(rows[:, n : 4 * n].unflatten(-1, (n, 3)))
        if rows.shape[1] > 4 * n:
            parts.append(rows[:, 4 * n :].unflatten(-1, (n, 5)) @ quadrupoles_from_e3nn(rows))
        return torch.cat(parts, -1)


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
