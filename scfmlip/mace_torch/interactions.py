"""Convolutions that gather and sum, and mace-torch's interaction blocks that hand them their edges."""

# mace-torch's and e3nn's modules are untyped: for torch.nn.Module every attribute is Tensor | Module
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import mace  # noqa: F401  (import it before e3nn, which fails to load its constants otherwise)
from e3nn import o3
from mace.modules import blocks
from torch import Tensor

from scfmlip_kernels import EdgeOrder, channelwise_conv, sort_edges
from scfmlip_kernels.identity import ByIdentity

from ..distributed import Halo
from .radial import last_radial_layer
from .swapped import Swapped

INTERACTIONS = (
    "RealAgnosticInteractionBlock",
    "RealAgnosticResidualInteractionBlock",
    "RealAgnosticDensityInteractionBlock",
    "RealAgnosticDensityResidualInteractionBlock",
    "RealAgnosticAttResidualInteractionBlock",
    "RealAgnosticResidualNonLinearInteractionBlock",
)


class FastConvolution(Swapped, o3.TensorProduct):
    """
    `conv_tp` with gather and sum inside.

    Its third argument holds hidden radial features (see the module), or weights if there is no radial
    network.
    """

    _scfmlip_original = o3.TensorProduct

    def forward(self, x: Tensor, y: Tensor, weight: Tensor, edge_index: Tensor) -> Tensor:
        """Node features, edge attributes, hidden radial features, edges -> ``[n_nodes, .]``."""
        edges = sorted_edges(edge_index, x.shape[0])
        return channelwise_conv(x, y, weight, edges, self._scfmlip_product, last_radial_layer(self))


_edges: ByIdentity[EdgeOrder] = ByIdentity(4)


def sorted_edges(edge_index: Tensor, n_nodes: int) -> EdgeOrder:
    """Edges ``[2, n_edges]`` sorted for convolutions, once for all layers of a model."""
    return _edges.get((edge_index,), n_nodes, lambda: sort_edges(edge_index[0], edge_index[1], n_nodes))


def _with_ghosts(
    self: Any, node_feats: Tensor, lammps_class: Any, lammps_natoms: tuple[int, int], first_layer: bool
) -> Tensor:
    """Own rows with those of ghosts, by a halo of ours, whose derivatives are not of first order alone."""
    if isinstance(lammps_class, Halo):
        if first_layer:  # made from the elements, which ranks know of their ghosts
            return node_feats
        return lammps_class.extend(node_feats[: lammps_class.n_owned].contiguous())
    return blocks.InteractionBlock.handle_lammps(self, node_feats, lammps_class, lammps_natoms, first_layer)


def _fast_interaction(original: type) -> type:
    """A subclass that passes ``edge_index`` to its ``conv_tp``, the block's own switch for fused products."""
    name = f"Fast{original.__name__}"
    docstring = f"`{original.__name__}` whose ``conv_tp`` gathers and sums."
    return type(
        name,
        (Swapped, original),
        {
            "__module__": __name__,
            "__qualname__": name,
            "__doc__": docstring,
            "_scfmlip_original": original,
            "conv_fusion": True,
            "handle_lammps": _with_ghosts,
        },
    )


FAST_INTERACTIONS = {
    getattr(blocks, name): _fast_interaction(getattr(blocks, name))
    for name in INTERACTIONS
    if hasattr(blocks, name)
}
globals().update(
    {fast.__qualname__: fast for fast in FAST_INTERACTIONS.values()}
)  # pickle finds these classes by name
