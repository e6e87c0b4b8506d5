"""A second network that sees the charges, as in NequIP-LR (Maruf et al., arXiv:2503.17949)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..backbone import Backbone
from ..config import LARGEST, check_numbers
from .base import RuleContext, System


@dataclasses.dataclass(frozen=True)
class FeedbackConfig:
    """
    Options of a second network whose species embedding sees the charges, each expanded in Gaussians.

    Attributes:
        n_categories: Number of Gaussians, of width range / n_categories.
        range: Charges of the first and last Gaussian, e.
        num_interactions, hidden_irreps: Options of the network; the others are the backbone's.
    """

    n_categories: int = 8
    range: tuple[float, ...] = (-2.0, 2.0)
    num_interactions: int = 1
    hidden_irreps: str = "32x0e"

    def __post_init__(self) -> None:
        check_numbers("rule.feedback", self, "n_categories", least=1, most=LARGEST)
        check_numbers("rule.feedback", self, "num_interactions", least=1, most=100)
        check_numbers("rule.feedback", self, "range")
        if len(self.range) != 2 or not self.range[1] > self.range[0]:
            raise ValueError(f"rule.feedback.range must be (lower, upper), got {self.range!r}")


class Feedback(torch.nn.Module):
    """Short-range energy of a network that sees the charges."""

    def __init__(self, config: FeedbackConfig, context: RuleContext) -> None:
        super().__init__()
        low, high = config.range
        self.width = (high - low) / config.n_categories
        self.register_buffer("centres", torch.linspace(low, high, config.n_categories))
        self.network = Backbone.build(
            dataclasses.replace(
                context.backbone,
                num_interactions=config.num_interactions,
                hidden_irreps=config.hidden_irreps,
                shift=0.0,
                pair_repulsion=False,
                options={},
            ),
            context.elements,
            [0.0] * len(context.elements),
            embedding_specs={
                "atomic_charge": {
                    "type": "continuous",
                    "per": "node",
                    "in_dim": config.n_categories,
                    "emb_dim": 32,
                }
            },
        )

    def forward(self, system: System, charges: Tensor) -> Tensor:
        """``[n_systems]`` eV."""
        assert isinstance(self.centres, Tensor)
        smeared = torch.exp(-(((charges[:, None] - self.centres) / self.width) ** 2))
        batch = {**system.batch, "atomic_charge": smeared}
        return self.network(batch, system.domain, system.edge_vectors).interaction_energy
