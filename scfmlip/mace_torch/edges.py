"""What mace-torch makes of edges, directions and lengths, in one launch each on a GPU."""

# mace-torch's and e3nn's modules are untyped: for torch.nn.Module every attribute is Tensor | Module
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import mace  # noqa: F401  (import it before e3nn, which fails to load its constants otherwise)
import torch
from e3nn import o3
from mace.modules.blocks import RadialEmbeddingBlock
from mace.modules.radial import BesselBasis, PolynomialCutoff
from torch import Tensor

from scfmlip_kernels import radial_basis, spherical_harmonics

from .swapped import Swapped, Swaps

_HIGHEST = 8


class FastSphericalHarmonics(Swapped, o3.SphericalHarmonics):
    """e3nn's harmonics of all l up to the highest, normalised as MACE has them."""

    _scfmlip_original = o3.SphericalHarmonics

    def forward(self, x: Tensor) -> Tensor:
        """``[n_edges, 3]`` -> ``[n_edges, (l_max + 1)^2]``."""
        if not x.is_cuda or x.ndim != 2:
            return super().forward(x)
        return spherical_harmonics(x, self._lmax)


class FastRadialEmbedding(Swapped, RadialEmbeddingBlock):
    """mace-torch's Bessel functions and polynomial cutoff of lengths."""

    _scfmlip_original = RadialEmbeddingBlock

    def forward(
        self, edge_lengths: Tensor, node_attrs: Tensor, edge_index: Tensor, atomic_numbers: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """``[n_edges, 1]`` -> radial features ``[n_edges, n_basis]``, and the cutoff if it is kept apart."""
        bessel, cutoff = self.bessel_fn, self.cutoff_fn
        if not edge_lengths.is_cuda:
            return super().forward(edge_lengths, node_attrs, edge_index, atomic_numbers)
        lengths = edge_lengths
        if hasattr(self, "distance_transform"):
            lengths = self.distance_transform(edge_lengths, node_attrs, edge_index, atomic_numbers)
        separate = not getattr(self, "apply_cutoff", True)
        found = radial_basis(
            lengths,
            bessel.bessel_weights,
            bessel.prefactor,
            cutoff.r_max,
            cutoff.p,
            edge_lengths,
            separate,
        )
        if not separate:
            return found, None
        radial, cut = found.split((found.shape[1] - 1, 1), 1)
        return radial, cut


def _harmonics_fit(module: Any) -> bool:
    """Whether a module gives all l up to the highest, once each, of normalised vectors."""
    kind = (module.normalize, module.normalization)
    return kind == (True, "component") and module._is_range_lmax and module._lmax <= _HIGHEST


def _radial_fits(module: Any) -> bool:
    kinds = (type(module.bessel_fn), type(module.cutoff_fn))
    return kinds == (BesselBasis, PolynomialCutoff) and module.cutoff_fn.p.numel() == 1


def find_edge_swaps(model: torch.nn.Module) -> Swaps:
    """Harmonics and radial embeddings to replace; those of other kinds stay."""
    swaps: Swaps = {}
    for module in model.modules():
        if type(module) is o3.SphericalHarmonics and _harmonics_fit(module):
            swaps[id(module)] = (FastSphericalHarmonics, {})
        elif type(module) is RadialEmbeddingBlock and _radial_fits(module):
            swaps[id(module)] = (FastRadialEmbedding, {})
    return swaps
