"""
The interaction block of MACE-POLAR on a GPU in few launches, and the product block behind it.

Embeddings of the two species of an edge are inputs of both radial networks. They take few values, so what
they contribute to a first layer is a table, added to each edge inside the network. Nothing of size edges x
embedding is made.
"""

# mace-torch's modules are untyped: for torch.nn.Module every attribute is Tensor | Module
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

from functools import lru_cache
from typing import Any

import mace  # noqa: F401  (import it before e3nn, which fails to load its constants otherwise)
import torch
from mace.modules import blocks
from torch import Tensor

from scfmlip_kernels import gated
from scfmlip_kernels.identity import ByIdentity

from .contraction import one_hot_index
from .interactions import FAST_INTERACTIONS, FastConvolution, sorted_edges
from .linear import FastGate, FastLinear, FastReshape
from .networks import network_of, run_network
from .radial import FastRadialMLP
from .swapped import Swapped

_pairs: ByIdentity[Tensor] = ByIdentity(4)

_Base: Any = FAST_INTERACTIONS[blocks.RealAgnosticResidualNonLinearInteractionBlock]


def _edge_species(edge_index: Tensor, species: Tensor, n_species: int) -> Tensor:
    """``[n_edges, 2]`` the sender's species, and the receiver's behind those of senders."""
    each = species[edge_index]
    return torch.stack((each[0], each[1] + n_species), 1)


def _fits(block: Any) -> bool:
    """Whether the block's modules are those that run in few launches."""
    linears = (block.linear_up, block.linear_res, block.linear_1, block.linear_2, block.skip_tp)
    embeddings = (block.source_embedding, block.target_embedding)
    return (
        all(isinstance(linear, FastLinear) for linear in (*linears, *embeddings))
        and all(not linear.bias.numel() and len(linear.instructions) == 1 for linear in embeddings)
        and isinstance(block.conv_tp, FastConvolution)
        and isinstance(block.equivariant_nonlin, FastGate)
        and isinstance(block.reshape, FastReshape)
        and isinstance(block.conv_tp_weights, FastRadialMLP)
        and network_of(block.conv_tp_weights) is not None
        and network_of(block.density_fn) is not None
    )


class FastRealAgnosticResidualNonLinearInteractionBlock(_Base):
    """`RealAgnosticResidualNonLinearInteractionBlock`: same arguments, results and parameters."""

    _scfmlip_original = blocks.RealAgnosticResidualNonLinearInteractionBlock

    def forward(
        self,
        node_attrs: Tensor,
        node_feats: Tensor,
        edge_attrs: Tensor,
        edge_feats: Tensor,
        edge_index: Tensor,
        cutoff: Tensor | None = None,
        lammps_class: Any = None,
        lammps_natoms: tuple[int, int] = (0, 0),
        first_layer: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Messages ``[n_atoms, channels, components]``, and the features for the residual."""
        species = None
        if node_feats.is_cuda and cutoff is None and lammps_class is None and _fits(self):
            species = one_hot_index(node_attrs, self)
        if species is None:
            return super().forward(
                node_attrs,
                node_feats,
                edge_attrs,
                edge_feats,
                edge_index,
                cutoff=cutoff,
                lammps_class=lammps_class,
                lammps_natoms=lammps_natoms,
                first_layer=first_layer,
            )
        skip, up = self.skip_tp(node_feats), self.linear_up(node_feats)
        n_species = node_attrs.shape[1]
        pairs = _pairs.get((edge_index, species), None, lambda: _edge_species(edge_index, species, n_species))
        tables = self._embeddings(n_species)
        hidden = self._network(self.conv_tp_weights, edge_feats, "ones", tables, pairs)
        message = self.conv_tp(up, edge_attrs, hidden, edge_index)
        edge_density = self._network(self.density_fn, edge_feats, "tanh_square", tables, pairs)
        receivers = sorted_edges(edge_index, len(node_feats)).receiver
        density = edge_density.new_zeros((len(node_feats), 1)).index_add(0, receivers, edge_density)
        divisor = torch.addcmul(self.alpha, density, self.beta)
        opened = gated(
            self.linear_1(message), self.equivariant_nonlin._scfmlip_gate, divisor, self.linear_res(up)
        )
        return self.reshape(self.linear_2(opened)), skip

    def _embeddings(self, n_species: int) -> Tensor:
        """``[2, n_species, n]`` embeddings of senders and receivers."""
        pair = torch.stack((self.source_embedding.weight, self.target_embedding.weight))
        return pair.view(2, n_species, -1)

    def _network(self, mlp: Any, edge_feats: Tensor, end: str, tables: Tensor, pairs: Tensor) -> Tensor:
        """A network of the edges' features and both embeddings."""
        size = tables.shape[2]
        linear = mlp.net[0].weight[:, edge_feats.shape[1] :]
        scale = self.source_embedding.instructions[0].path_weight
        matrices = linear.unflatten(1, (2, size)).permute(1, 2, 0)
        offsets = torch.baddbmm(tables.new_empty((1, 1, 1)), tables, matrices, beta=0, alpha=scale)
        return run_network(mlp, edge_feats, end, offsets.flatten(0, 1), pairs)


def _one_species(rows: Tensor) -> Tensor:
    """``[n, 1]`` ones; the same tensor for the same number of rows, so that what follows from it is kept."""
    if torch.cuda.is_current_stream_capturing():  # a graph keeps its own
        return rows.new_ones((len(rows), 1))
    return _made_ones(len(rows), rows.dtype, rows.device)


@lru_cache(maxsize=4)
def _made_ones(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.ones((n, 1), dtype=dtype, device=device)


# the same under a name that fits a line
FastResidualInteraction = FastRealAgnosticResidualNonLinearInteractionBlock


class FastProductBasis(Swapped, blocks.EquivariantProductBasisBlock):
    """`EquivariantProductBasisBlock`: the one species of agnostic products is made once for a graph."""

    _scfmlip_original = blocks.EquivariantProductBasisBlock

    def forward(self, node_feats: Tensor, sc: Tensor | None, node_attrs: Tensor) -> Tensor:
        """``[n_atoms, channels, components]`` to ``[n_atoms, .]``."""
        if not (node_feats.is_cuda and self.use_agnostic_product):
            return super().forward(node_feats, sc, node_attrs)
        out = self.linear(self.symmetric_contractions(node_feats, _one_species(node_feats)))
        return out + sc if self.use_sc and sc is not None else out
