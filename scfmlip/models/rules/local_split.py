"""
Local split charges: formal charges plus flows along bonds, q_i = q0_i + sum_in p_e - sum_out p_e.

The charge-conserving variant of LC-MACE (LSC-MACE, Baldwin et al., arXiv:2603.14700). A flow is a scalar
product of the two atoms' features with the bond's spherical harmonics, weighted by a function of the bond
length. The polarisation is ``sum (d + q0 r) + sum_e p_e (r_receiver - r_sender)``. For integer formal charges
it does not jump when an atom crosses the cell boundary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from e3nn import o3
from torch import Tensor

from ..config import LARGEST, check_numbers
from ..readouts import FeatureMix, MultipoleReadout
from .base import ChargeRule, RuleContext, RuleDensity, RuleEnergies, RuleOutput, System, make_coulomb
from .fixed import FormalCharges
from .registry import register


@dataclass(frozen=True)
class LocalSplitConfig:
    """
    Options of the rule "local_split".

    Attributes:
        charges: Formal charge of each element, e, by symbol or number.
        channels: Number of features per atom and angular momentum from which flows are built.
        hidden: Width of the perceptron on the bond length, and of the dipoles' gated layer.
    """

    charges: Mapping[str, float]
    channels: int = 16
    hidden: int = 32

    def __post_init__(self) -> None:
        check_numbers("rule", self, "charges")
        check_numbers("rule", self, "channels", "hidden", least=1, most=LARGEST)


class BondFlow(torch.nn.Module):
    """Charge that flows from sender to receiver, ``[n_edges]``."""

    def __init__(self, config: LocalSplitConfig, context: RuleContext) -> None:
        super().__init__()
        from mace.modules.blocks import RadialEmbeddingBlock

        n = config.channels
        self.sender = FeatureMix(context.feature_irreps, n)
        self.receiver = FeatureMix(context.feature_irreps, n)
        self.radial = RadialEmbeddingBlock(r_max=context.r_max, num_bessel=8, num_polynomial_cutoff=5)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(8, config.hidden, bias=False),
            torch.nn.SiLU(),
            torch.nn.Linear(config.hidden, 2 * n, bias=False),
        )
        # the reference's scale: 1/40 for its number of neighbours
        self.scale = 1 / context.avg_num_neighbors

    def forward(self, system: System) -> Tensor:
        """See the class."""
        sender, receiver = system.edge_index
        lengths = system.edge_vectors.norm(dim=1, keepdim=True)
        directions = o3.spherical_harmonics(1, system.edge_vectors, True, "component")
        s1, v1 = self.sender(system.features)
        s2, v2 = self.receiver(system.features)
        s1, v1 = system.everywhere(s1), system.everywhere(v1)
        scalars = s1[sender] + s2[receiver]
        along = ((v1[sender] + v2[receiver]) * directions[:, None]).sum(-1)
        # mace's radial basis is zero at the cutoff and the perceptron has no biases
        radial = self.radial(lengths, None, None, None)[0]
        weights = self.mlp(radial)
        return self.scale * (weights * torch.cat((scalars, along), 1)).mean(1)


@register("local_split")
class LocalSplit(ChargeRule):
    """Formal charges, flows along bonds, and local dipoles."""

    Config = LocalSplitConfig
    constraints = ("none", "charge")
    gauge_free_dipole = True

    def __init__(self, config: LocalSplitConfig, context: RuleContext) -> None:
        super().__init__(config, context)
        self.formal = FormalCharges(config.charges, context)
        self.coulomb = make_coulomb(context.density)
        self.flow = BondFlow(config, context)
        self.dipoles = None
        if context.density.l_max > 0:
            self.dipoles = MultipoleReadout(
                context.feature_irreps, len(context.elements), l_max=1, hidden=config.hidden
            )

    def forward(self, system: System) -> RuleOutput:
        """Charges that add up to the formal ones, their energy and the polarisation."""
        start = self.formal(system, self.context.constraint)
        flow = self.flow(system)
        sender, receiver = system.edge_index
        away = flow.new_zeros(system.n_everywhere).index_add(0, sender, -flow)
        q = start.index_add(0, receiver, flow) + system.at_owners(away)
        rows = q[:, None]
        moments = start[:, None] * system.positions
        if self.dipoles is not None:
            dipoles = self.dipoles(system.features, system.node_attrs)[:, 0, 1:]
            rows, moments = torch.cat((rows, dipoles), 1), moments + dipoles
        moments = moments.index_add(0, receiver, flow[:, None] * system.edge_vectors)
        geometry = system.prepare(self.coulomb)
        energy = system.coulomb_energy(geometry, rows)
        density = RuleDensity(rows, geometry, dipole=system.sum(moments))
        return RuleOutput(RuleEnergies(energy), density)
