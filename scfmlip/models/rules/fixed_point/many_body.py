"""A response to the potential at neighbours: one more MACE layer in every step of a fixed point."""

from __future__ import annotations

import mace  # noqa: F401  (import it before e3nn, which fails to load its constants otherwise)
import torch
from e3nn import o3
from mace import modules
from torch import Tensor

from ....distributed import Halo
from ....mace_torch.accelerate import accelerate_blocks
from ..base import RuleContext


class ManyBody(torch.nn.Module):
    """
    Charges and dipoles from messages of neighbours; zero if the messages are zero.

    One interaction and one product of mace-torch, of at most two messages, accelerated. Messages and output
    are bounded, ``x / sqrt(1 + |x|^2)``, so a fixed point still exists when they are added to a stable linear
    response (Brouwer). Without the bound, training on a metal ended with weights for which no batch
    converged.

    Args:
        n: Number of scalars and of vectors per atom in a message.
        l_max: Highest multipole.
        context: Provides the backbone's cutoff, radial basis, elements, and harmonics up to l = 2.
    """

    def __init__(self, n: int, l_max: int, context: RuleContext) -> None:
        super().__init__()
        backbone, elements = context.backbone, len(context.elements)
        hidden = o3.Irreps(f"{n}x0e+{n}x1o")
        harmonics = o3.Irreps.spherical_harmonics(min(2, backbone.max_ell))
        messages = o3.Irreps([(n, ir) for _, ir in harmonics])
        self.harmonics = o3.SphericalHarmonics(harmonics, normalize=True, normalization="component")
        self.radial = modules.RadialEmbeddingBlock(
            context.r_max, backbone.num_bessel, backbone.num_polynomial_cutoff
        )
        interaction = modules.interaction_classes["RealAgnosticInteractionBlock"](
            node_attrs_irreps=o3.Irreps(f"{elements}x0e"),
            node_feats_irreps=hidden,
            edge_attrs_irreps=harmonics,
            edge_feats_irreps=o3.Irreps(f"{backbone.num_bessel}x0e"),
            target_irreps=messages,
            hidden_irreps=hidden,
            avg_num_neighbors=context.avg_num_neighbors,
            radial_MLP=list(backbone.radial_MLP),
        )
        product = modules.EquivariantProductBasisBlock(
            messages, hidden, 2, use_sc=False, num_elements=elements, use_reduced_cg=False
        )
        # edge weights do not depend on the state: compute them once, not in every step
        self.radial_network = interaction.get_submodule("conv_tp_weights")
        interaction.conv_tp_weights = torch.nn.Identity()
        self.layer = accelerate_blocks(torch.nn.ModuleList((interaction, product)))
        self.readout = o3.Linear(hidden, o3.Irreps("0e+1o" if l_max > 0 else "0e"))

    def edges(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Harmonics and weights of edges with ``vectors [n_edges, 3]``, which are the same in all steps."""
        lengths = vectors.norm(dim=1, keepdim=True)
        # the basis depends on the length only, not on the elements
        nothing = vectors.new_zeros(0)
        basis, _ = self.radial(lengths, nothing, nothing, nothing)
        return self.harmonics(vectors), self.radial_network(basis)

    def forward(
        self,
        scalars: Tensor,
        vectors: Tensor,
        attrs: Tensor,
        edge_index: Tensor,
        edge_attrs: Tensor,
        edge_weights: Tensor,
        halo: Halo | None = None,
    ) -> Tensor:
        """
        ``[n_atoms, 1 | 4]`` from ``scalars [n_atoms, n]``, ``vectors [n_atoms, n, 3]``, one-hot elements.

        ``halo``: of atoms that other processes own.
        """
        interaction, product = self.layer
        scalars = scalars / (1 + scalars**2).sqrt()
        vectors = vectors / (1 + (vectors**2).sum(2, keepdim=True)).sqrt()
        messages, _ = interaction(
            node_attrs=attrs,
            node_feats=torch.cat((scalars, vectors.flatten(1)), 1),
            edge_attrs=edge_attrs,
            edge_feats=edge_weights,
            edge_index=edge_index,
            lammps_class=halo,
            lammps_natoms=(0, 0) if halo is None else halo.natoms,
        )
        return self.readout(product(node_feats=messages, sc=None, node_attrs=attrs))
