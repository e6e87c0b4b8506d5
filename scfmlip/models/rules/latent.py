"""
Latent Ewald summation: charges without labels, in several channels.

E = E_SR + sum over channels of the Coulomb energy without self-interaction. The charges are not constrained.
Cheng, npj Comput. Mater. 11, 80 (2025).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from e3nn import o3
from mace.modules.blocks import LinearReadoutBlock, NonLinearReadoutBlock
from torch import Tensor

from ...mace_torch.accelerate import accelerate_blocks
from ...mace_torch.latent import LesOptions, charge_scale, latent_coulomb
from ..config import LARGEST, BackboneConfig, check_numbers, check_positive
from ..readouts import MultipoleReadout
from .base import ChargeRule, RuleContext, RuleDensity, RuleEnergies, RuleOutput, System, make_coulomb
from .registry import register


@dataclass(frozen=True)
class LatentConfig:
    """
    Options of the rule "latent".

    Attributes:
        channels: Number of independent charge densities.
        hidden: Width of the gated layer of the last readout.
        sigma: Gaussian width of the charges in LES's convention, angstrom (LES uses 1): exp(-sigma^2 k^2 / 2)
            for a pair, so each Gaussian has the width sigma / sqrt(2). None takes the density's width.
        compat: "les" reproduces MACELES: its readouts, wave vectors up to 2 pi / dl, and the constant of the
            package `les`. Slabs are evaluated as periodic in cells that mace-torch pads along open
            directions, so their energies depend on the padding, as those of MACELES do. There is one channel
            of charges, and of the density's options only sigma is used. The reported charges are those whose
            Coulomb energy is the model's: 0.998 of the latent ones with the older norm_factor.
        dl: Resolution in reciprocal space, angstrom; for compat="les".
        remove_self_interaction: Whether to leave out self terms; for compat="les".
        norm_factor: The package's 1 / 2 eps0, eV angstrom / e^2: 90.0474 until April 2026, 90.4756 since;
            for compat="les".
    """

    channels: int = 1
    hidden: int = 16
    sigma: float | None = None
    compat: Literal["les"] | None = None
    dl: float = 2.0
    remove_self_interaction: bool = True
    norm_factor: float = 90.0474

    def __post_init__(self) -> None:
        check_positive("rule", self, "dl", "norm_factor", "sigma")
        check_numbers("rule", self, "channels", least=1, most=LARGEST)
        check_numbers("rule", self, "hidden", least=0, most=LARGEST)
        les_only = self.dl, self.remove_self_interaction, self.norm_factor
        if self.compat is None and les_only != (2.0, True, 90.0474):
            raise ValueError(
                "rule.dl, rule.remove_self_interaction and rule.norm_factor are for compat='les'"
            )
        if self.compat == "les" and self.channels != 1:
            raise ValueError(f"compat='les' has one channel, got rule.channels = {self.channels!r}")


class LesReadout(torch.nn.Module):
    """
    MACELES's ``les_readouts``: one more readout per layer like the energy's, the last with a perceptron.

    Args:
        feature_irreps: Irreps of each layer.
        backbone: Gives the hidden features, the heads, and whether only the last layer is read.
    """

    def __init__(self, feature_irreps: Sequence[o3.Irreps], backbone: BackboneConfig) -> None:
        super().__init__()
        n_heads = len(backbone.heads)
        out = o3.Irreps(f"{n_heads}x0e")
        # a network with a single layer has a linear readout
        linear = feature_irreps[:-1] or feature_irreps
        layers: list[torch.nn.Module] = []
        if not backbone.options.get("use_last_readout_only"):
            layers += [LinearReadoutBlock(irreps, out) for irreps in linear]
        if len(feature_irreps) > 1:
            hidden: Any = o3.Irreps("+".join([backbone.MLP_irreps] * n_heads))
            silu = torch.nn.functional.silu
            last = NonLinearReadoutBlock(feature_irreps[-1], hidden.simplify(), silu, out, n_heads)
            layers.append(accelerate_blocks(last))
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, features: Sequence[Tensor], heads: Tensor) -> Tensor:
        """``[n_atoms]`` latent charges, for the head of each atom's system."""
        read = features[-len(self.layers) :]
        each = [layer(x, heads) for layer, x in zip(self.layers, read, strict=True)]
        return torch.stack(each).sum(0).gather(1, heads[:, None])[:, 0]


@register("latent")
class Latent(ChargeRule):
    """Latent charges, and dipoles and quadrupoles with density.l_max = 1, 2."""

    Config = LatentConfig
    highest_multipole = 2

    def __init__(self, config: LatentConfig, context: RuleContext) -> None:
        super().__init__(config, context)
        density = context.density
        if config.compat == "les":
            if density.l_max != 0:
                raise ValueError("compat='les' has charges only: set density.l_max = 0")
            options = self.les_options()
            self.coulomb = latent_coulomb(options["sigma"], options["dl"], options["remove_self_interaction"])
            self.readout = LesReadout(context.feature_irreps, context.backbone)
            return
        width = density.sigma if config.sigma is None else config.sigma / 2**0.5
        self.coulomb = make_coulomb(density, sigma=width, self_interaction=False)
        self.readout = MultipoleReadout(
            context.feature_irreps,
            len(context.elements),
            n_channels=config.channels,
            l_max=density.l_max,
            hidden=config.hidden,
        )

    def les_options(self) -> LesOptions:
        """The arguments of `les` that correspond to this rule with compat="les"."""
        config: LatentConfig = self.config
        sigma = self.context.density.sigma * 2**0.5 if config.sigma is None else config.sigma
        return {
            "sigma": sigma,
            "dl": config.dl,
            "remove_self_interaction": config.remove_self_interaction,
            "norm_factor": config.norm_factor,
        }

    @classmethod
    def pads_cell(cls, config: LatentConfig) -> bool:
        """True with compat="les", because MACELES uses padded cells."""
        return config.compat == "les"

    def forward(self, system: System) -> RuleOutput:
        """Latent multipoles and their energy; the reported density is the sum of the channels."""
        if isinstance(self.readout, LesReadout):
            head = system.batch.get("head", torch.zeros_like(system.segments.ptr[1:]))
            charges = self.readout(system.features, head[system.index])
            rows = charge_scale(self.config.norm_factor) * charges[:, None, None]
            system = dataclasses.replace(system, pbc=system.pbc.any(1, keepdim=True).expand(-1, 3))
        else:
            rows = self.readout(system.features, system.node_attrs)
            charges = rows[..., 0]
        geometry = system.prepare(self.coulomb)
        energy = system.coulomb_energy(geometry, rows).sum(1)
        density = RuleDensity(rows.sum(1), geometry)
        return RuleOutput(RuleEnergies(energy), density, {"latent_charges": charges})
