"""
Recursion: MACE-POLAR, with a fixed number of polarisation steps and Fukui equilibration of charge and spin.

The network is an accelerated PolarMACE of mace-torch (Batatia et al., arXiv:2602.19411) with the reference's
conventions throughout. Its weights load unchanged and give the same results. This includes results that
depend on more than the system: energies of slabs depend on their position and on the padded cell, and a
warning says so. Potentials of the density, which the reference does not compute, are exact for the frame's
own periodicity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from scfmlip_kernels.constants import constant

from ...electrostatics import Geometry
from ...mace_torch.whole import PolarMACE
from ...types import CARTESIAN_ROWS_FROM_E3NN
from ..backbone import Backbone, mace_arguments
from ..config import ModelConfig, check_numbers, check_positive
from .base import ChargeRule, RuleContext, RuleDensity, RuleEnergies, RuleOutput, System, make_coulomb
from .registry import register


@dataclass(frozen=True)
class RecursionConfig:
    """
    Options, named as in PolarMACE; l_max, width and cutoff factor are in the density's configuration.

    Attributes:
        num_recursion_steps: Number of polarisation steps.
        field_feature_max_l, field_feature_widths, field_feature_norms, field_norm_factor, field_si: Options
            of the potential's projections.
        add_local_electron_energy: Whether to add the electron-energy readout.
        fixedpoint_update_config, field_readout_config: ``type`` and arguments of PolarMACE's blocks.
    """

    num_recursion_steps: int = 2
    field_feature_max_l: int = 1
    field_feature_widths: tuple[float, ...] = (1.5, 3.0)
    field_feature_norms: tuple[float, ...] = (20.0, 20.0, 0.5, 0.5)
    field_norm_factor: float = 1.0
    field_si: bool = False
    add_local_electron_energy: bool = True
    fixedpoint_update_config: Mapping[str, Any] = field(
        default_factory=lambda: {
            "type": "AgnosticEmbeddedOneBodyVariableUpdate",
            "potential_embedding_cls": "AgnosticChargeBiasedLinearPotentialEmbedding",
            "nonlinearity_cls": "MLPNonLinearity",
        }
    )
    field_readout_config: Mapping[str, Any] = field(
        default_factory=lambda: {"type": "OneBodyMLPFieldReadout"}
    )

    def __post_init__(self) -> None:
        check_numbers("rule", self, "num_recursion_steps", least=1, most=100)
        check_numbers("rule", self, "field_norm_factor")
        check_positive("rule", self, "field_feature_widths", "field_feature_norms")
        if self.field_feature_max_l not in (0, 1):
            raise ValueError(f"rule.field_feature_max_l must be 0 or 1, got {self.field_feature_max_l!r}")
        count = len(self.field_feature_widths) * (self.field_feature_max_l + 1)
        if not count or len(self.field_feature_norms) != count:
            raise ValueError(
                f"rule.field_feature_norms needs {count} numbers, one for each l and width, got "
                f"{list(self.field_feature_norms)}"
            )


@register("recursion")
class Recursion(ChargeRule):
    """The densities of PolarMACE's last step, for two spins."""

    Config = RecursionConfig
    constraints = ("charge_spin",)

    def __init__(self, config: RecursionConfig, context: RuleContext) -> None:
        super().__init__(config, context)
        self.coulomb = make_coulomb(replace(context.density, kspace_cutoff_factor=None))

    @classmethod
    def pads_cell(cls, config: RecursionConfig) -> bool:
        """True: results equal the reference's only with its padded cells."""
        return True

    @classmethod
    def build_backbone(cls, config: ModelConfig) -> Backbone:
        """Build a PolarMACE with random weights."""
        rule, density = config.rule, config.density
        return Backbone(
            PolarMACE(
                kspace_cutoff_factor=density.kspace_cutoff_factor or 1.5,
                atomic_multipoles_max_l=density.l_max,
                atomic_multipoles_smearing_width=density.sigma,
                include_electrostatic_self_interaction=density.self_interaction,
                num_recursion_steps=rule.num_recursion_steps,
                field_feature_max_l=rule.field_feature_max_l,
                field_feature_widths=list(rule.field_feature_widths),
                field_feature_norms=list(rule.field_feature_norms),
                field_norm_factor=rule.field_norm_factor,
                field_si=rule.field_si,
                add_local_electron_energy=rule.add_local_electron_energy,
                fixedpoint_update_config=dict(rule.fixedpoint_update_config),
                field_readout_config=dict(rule.field_readout_config),
                **mace_arguments(config.backbone, config.elements, config.atomic_energies),
            )
        )

    def forward(self, system: System) -> RuleOutput:
        """PolarMACE's outputs."""
        out, rows = system.network, system.network["density_coefficients"]
        order = tuple(CARTESIAN_ROWS_FROM_E3NN[: rows.shape[1]])
        rows = rows.index_select(1, constant(order, torch.int64, rows.device))
        return RuleOutput(
            RuleEnergies(out["electrostatic_energy"], out["electron_energy"], included=True),
            RuleDensity(rows, lambda: self._geometry(system), dipole=out["dipole"]),
            {name: out[name] for name in ("spins", "spin_charge_density", "electron_energy")},
        )

    def _geometry(self, system: System) -> Geometry | None:
        """Geometry for potentials; None for wires, and for fields along periodic directions."""
        field, pbc = system.external_field, system.pbc
        if bool((pbc.sum(1) == 1).any()) or (field is not None and bool((field.bool() & pbc).any())):
            return None
        return system.prepare(self.coulomb)
