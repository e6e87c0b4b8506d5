"""
Charge equilibration: the state minimises chi.s + 1/2 s.(J + K) s at given total charge or Fermi level.

chi and J come from the network. K is the Coulomb operator of Gaussians: l = 0 for charges, l = 1 for induced
dipoles. ``energy="functional"`` adds the whole functional, which is variational (CENT, MACE-QEq, HIPNN-ChEQ).
``energy="coulomb"`` adds its Coulomb part only, optionally screened at short range (4G-HDNNP, Ko et al., Nat.
Commun. 12, 398 (2021)). ``feedback`` passes the charges to a second network, whose energy is added: NequIP-LR
(Maruf et al., arXiv:2503.17949).
"""

from __future__ import annotations

import torch
from torch import Tensor

from scfmlip_kernels.constants import constant

from ....scf import charge_equilibration
from ...config import per_element
from ...readouts import MultipoleReadout, ScalarReadout, hardness_parameter
from ..base import (
    ChargeRule,
    RuleContext,
    RuleDensity,
    RuleEnergies,
    RuleOutput,
    System,
    check_level,
    make_coulomb,
)
from ..feedback import Feedback
from ..options import EquilibratedConfig
from ..registry import register
from .range_split import RangeSplit, split_energy
from .screening import screened_energy


def _element_widths(config: EquilibratedConfig, context: RuleContext) -> list[float]:
    if config.sigma is None:
        return [context.density.sigma] * len(context.elements)
    if config.sigma == "covalent":
        from ase.data import covalent_radii

        return [float(covalent_radii[z]) for z in context.elements]
    assert not isinstance(config.sigma, str)
    return per_element("rule.sigma", config.sigma, context.elements)


def _given(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


@register("equilibrated")
class Equilibrated(ChargeRule):
    """Charges, and dipoles with density.l_max = 1, at the minimum of a quadratic functional."""

    Config = EquilibratedConfig
    constraints = ("charge", "fermi_level")
    iterates = True

    def __init__(self, config: EquilibratedConfig, context: RuleContext) -> None:
        super().__init__(config, context)
        density, n_elements = context.density, len(context.elements)
        self.l_max = density.l_max
        widths = _element_widths(config, context)
        unique = sorted(set(widths))
        self.coulomb = make_coulomb(density, sigma=tuple(unique), self_interaction=True)
        self.register_buffer("width_index", torch.tensor([unique.index(w) for w in widths]))
        self.register_buffer("widths", torch.tensor(widths))
        # exact widths: the buffer is rounded if the model is float32
        self.element_widths = widths
        self.narrow = RangeSplit(density, widths)
        lone = config.source == "charge"
        # electronegativity (for dipoles, minus the field that acts on them), or s0
        self.electronegativity = MultipoleReadout(
            context.feature_irreps,
            n_elements,
            l_max=self.l_max,
            hidden=config.hidden,
            scale=0.1 if lone else 1.0,
        )
        self.raw_hardness = hardness_parameter(
            config.hardness, config.dipole_hardness, lone, context.elements, self.l_max
        )
        self.local_hardness = None
        if config.local_hardness:
            self.local_hardness = ScalarReadout(
                context.feature_irreps, n_elements, self.l_max + 1, config.hidden
            )
        if config.screening is not None:
            if self.l_max > 0:
                raise ValueError("rule.screening works for charges only: set density.l_max = 0")
            if config.screening[1] > context.r_max:
                raise ValueError(
                    f"rule.screening ends at {config.screening[1]:g} angstrom, beyond the backbone's cutoff "
                    f"of {context.r_max:g}"
                )
        self.feedback = None if config.feedback is None else Feedback(config.feedback, context)

    def hardness(self, system: System) -> Tensor:
        """``[n_atoms, 1 | 4]`` positive diagonal of the functional."""
        raw = system.node_attrs @ self.raw_hardness
        if self.local_hardness is not None:
            raw = raw + self.local_hardness(system.features, system.node_attrs)
        stiff = raw.exp() if self.config.source == "charge" else torch.nn.functional.softplus(raw)
        return torch.cat((stiff[:, :1], stiff[:, 1:].expand(-1, 3)), 1) if self.l_max > 0 else stiff

    @property
    def variational(self) -> bool:
        """True for the whole functional without a network that sees the charges."""
        return self.config.energy == "functional" and self.feedback is None

    def forward(self, system: System) -> RuleOutput:
        """The state at the minimum, its energy and chemical potential."""
        assert isinstance(self.width_index, Tensor)
        config, species = self.config, system.node_attrs.argmax(1)
        each = constant(tuple(self.element_widths), system.positions.dtype, species.device)
        index, widths = self.width_index[species], each[species]
        split = self.narrow.split(system)
        geometry, pairs = (system.prepare(self.coulomb), None) if split is None else split
        at_charge = self.context.constraint == "charge"
        if not at_charge:
            check_level(system, geometry.plan)
        chi = self.electronegativity(system.features, system.node_attrs)[:, 0]
        hardness, alone = self.hardness(system), None
        if config.source == "charge":
            # constant that completes the square
            chi, alone = -hardness * chi, system.sum(0.5 * (hardness * chi**2).sum(1))
        slots = self.coulomb.source.columns(index.device)[index]
        embedding, outside = system.embedding(self.coulomb), None
        if embedding is not None:
            outside = embedding.potential().gather(1, slots)
        solution = charge_equilibration(
            geometry,
            chi if outside is None else chi + outside,
            hardness,
            system.total_charge if at_charge else None,
            chemical_potential=None if at_charge else -_given(system.fermi_level),
            width_index=index if pairs is None else None,
            widths=None if pairs is None else widths,
            pairs=pairs,
            interaction="direct" if pairs is None else "auto",
            initial=system.reference_density,
            tolerance=config.tolerance,
            max_iterations=config.max_iterations,
            memory=system.reference_memory,
        )
        operator = geometry if pairs is None else lambda: system.prepare(self.coulomb)
        density = RuleDensity(solution.state, operator, slots)
        extra = {
            # for electrons, whose charge is negative
            "fermi_level": -solution.chemical_potential,
            "electronegativity": chi[:, 0],
            "hardness": hardness[:, 0],
            "scf_iterations": solution.iterations,
            "scf_residual": solution.residual,
            "scf_status": solution.status,
        }
        if solution.memory is not None:
            extra["solver_memory"] = solution.memory
        parts = () if outside is None else ((solution.state * outside).sum(1),)
        if pairs is None:
            electrostatic, beyond = system.energy_with(geometry, density.rows, *parts)
        else:
            electrostatic = split_energy(geometry, pairs, widths, solution.state[:, 0])
            beyond = tuple(system.sum(part) for part in parts)
        electrostatic = sum(beyond, electrostatic)
        functional = solution.energy if alone is None else solution.energy + alone
        energies = self._energies(system, solution.state[:, 0], widths, electrostatic, functional)
        return RuleOutput(energies, density, extra)

    def _energies(
        self, system: System, charges: Tensor, widths: Tensor, electrostatic: Tensor, functional: Tensor
    ) -> RuleEnergies:
        """The energies; ``functional [n_systems]`` eV is electrostatics and response together."""
        energies = RuleEnergies(electrostatic)
        if self.config.energy == "functional":
            # a single node of the graph, whose first derivatives need no adjoint
            energies.total, energies.response = functional, functional - electrostatic
        elif self.config.screening:
            energies.response = -screened_energy(system, charges, widths, *self.config.screening)
        if self.feedback is not None:
            energies.short_range = self.feedback(system, charges)
        return energies
