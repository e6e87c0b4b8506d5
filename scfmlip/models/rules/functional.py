"""
Energy functional: the density minimises E[p] = sum_i e_i(p_i; h_i) + 1/2 p.K p + external fields.

A coarse-grained density functional (Thomas et al., arXiv:2406.10915; Baldwin et al., arXiv:2603.14700). The
energy is variational, so forces need no response of the density. The local energy of an atom is
* "quadratic": ``b.p + 1/2 p.A p`` with A positive definite and full (charge and dipole couple);
* "convex": additionally ``sum_k c_k log cosh(q - t_k)`` and ``g (sqrt(1 + |d|^2) - 1)`` with positive c and
  g: the stiffness depends on the charge, and the minimum is still unique;
* "general": additionally a perceptron on the invariants of density and features. There may be several minima;
  the one downhill from the start is taken.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...scf import minimize_functional
from ..readouts import FeatureMix, MultipoleReadout, ScalarReadout, hardness_parameter
from .base import (
    ChargeRule,
    RuleContext,
    RuleDensity,
    RuleEnergies,
    RuleOutput,
    System,
    check_level,
    make_coulomb,
)
from .options import FunctionalConfig
from .registry import register


@register("functional")
class Functional(ChargeRule):
    """Multipoles at the minimum of a learned functional."""

    Config = FunctionalConfig
    constraints = ("charge", "fermi_level")
    iterates = True

    def __init__(self, config: FunctionalConfig, context: RuleContext) -> None:
        super().__init__(config, context)
        n_elements, irreps = len(context.elements), context.feature_irreps
        self.l_max = context.density.l_max
        self.coulomb = make_coulomb(context.density, self_interaction=True)
        lone = config.source == "charge"
        scale = 0.1 if lone else 1.0
        self.linear = MultipoleReadout(
            irreps, n_elements, l_max=self.l_max, hidden=config.hidden, scale=scale
        )
        self.mix = FeatureMix(irreps, config.channels)
        self.raw_hardness = hardness_parameter(
            config.hardness, config.dipole_hardness, lone, context.elements, self.l_max
        )
        self.strengths = self.mlp = None
        if config.form != "quadratic":
            self.strengths = ScalarReadout(irreps, n_elements, len(config.kinks) + self.l_max, config.hidden)
            self.register_buffer("kinks", torch.tensor(config.kinks))
        if config.form == "general":
            n_in = 1 + config.channels + self.l_max * (1 + config.channels)
            self.mlp = torch.nn.Sequential(
                torch.nn.Linear(n_in, config.hidden),
                torch.nn.SiLU(),
                torch.nn.Linear(config.hidden, 1, bias=False),
            )

    def _matrix(self, attrs: Tensor, scalars: Tensor, vectors: Tensor) -> Tensor:
        """``[n_atoms, 1 | 4, 1 | 4]`` positive definite."""
        raw = attrs @ self.raw_hardness
        own = raw.exp() if self.config.source == "charge" else torch.nn.functional.softplus(raw)
        rows = scalars[..., None]
        if self.l_max > 0:
            rows = torch.cat((rows, vectors), 2)
            own = torch.cat((own[:, :1], own[:, 1:].expand(-1, 3)), 1)
        return rows.mT @ rows + torch.diag_embed(own)

    def _local(self, p: Tensor, given: dict[str, Tensor]) -> Tensor:
        """``[n_atoms]`` eV, the local energies."""
        energy = (given["linear"] * p).sum(1) + 0.5 * (p * (given["matrix"] @ p[..., None])[..., 0]).sum(1)
        q, square = p[:, :1], (p[:, 1:] ** 2).sum(1, keepdim=True)
        if "strengths" in given:
            assert isinstance(self.kinks, Tensor)
            x = q - self.kinks.to(p.dtype)
            # log cosh without overflow
            terms = [torch.nn.functional.softplus(2 * x) - x - math.log(2)]
            if self.l_max > 0:
                terms.append((1 + square).sqrt() - 1)
            energy = energy + (given["strengths"] * torch.cat(terms, 1)).sum(1)
        if self.mlp is not None:
            inputs = [q, given["scalars"]]
            if self.l_max > 0:
                inputs += [square, (given["vectors"] @ p[:, 1:, None])[..., 0]]
            weights = {name: given[f"mlp.{name}"] for name, _ in self.mlp.named_parameters()}
            energy = energy + torch.func.functional_call(self.mlp, weights, (torch.cat(inputs, 1),))[:, 0]
        return energy

    @property
    def variational(self) -> bool:
        """Always."""
        return True

    def forward(self, system: System) -> RuleOutput:
        """The density at the minimum, its energy and Fermi level."""
        config, at_level = self.config, self.context.constraint == "fermi_level"
        plan, prepare = system.operator(self.coulomb)
        if at_level:
            check_level(system, plan)
        tensors, alone = self._tensors(system)
        keys = list(tensors)

        def functional(p: Tensor, *parameters: Tensor) -> Tensor:
            given = dict(zip(keys, parameters, strict=True))
            geometry = prepare(given["positions"], given["cell"], given.get("external_field"))
            parts = (self._local(p, given), p[:, 0]) if at_level else (self._local(p, given),)
            energy, (local, *charge) = system.energy_with(geometry, p, *parts, inside=True)
            if at_level:  # electrons, whose charge is negative, are exchanged at this level
                return local + energy + given["fermi_level"] * charge[0]
            return local + energy

        start = system.reference_density
        solution = minimize_functional(
            functional,
            torch.zeros_like(tensors["linear"]) if start is None else start,
            tuple(tensors.values()),
            batch_idx=system.segments,
            total_charge=None if at_level else system.total_charge,
            tolerance=config.tolerance,
            max_iterations=config.max_iterations,
        )
        geometry = prepare(system.positions, system.cell, system.external_field)
        electrostatic = system.coulomb_energy(geometry, solution.state)
        total = solution.energy if alone is None else solution.energy + alone
        level = system.fermi_level
        if solution.chemical_potential is not None:
            level = -solution.chemical_potential
        assert level is not None
        extra = {
            "fermi_level": level,
            "scf_iterations": solution.iterations,
            "scf_residual": solution.residual,
            "scf_status": solution.status,
        }
        energies = RuleEnergies(electrostatic, total - electrostatic, total)
        return RuleOutput(energies, RuleDensity(solution.state, geometry), extra)

    def _tensors(self, system: System) -> tuple[dict[str, Tensor], Tensor | None]:
        """All tensors that the functional depends on, by name, and a constant ``[n_systems]`` eV."""
        attrs = system.node_attrs
        scalars, vectors = self.mix(system.features)
        linear, matrix = self.linear(system.features, attrs)[:, 0], self._matrix(attrs, scalars, vectors)
        alone = None
        if self.config.source == "charge":
            # the constant completes the square: 1/2 (p - p0).A (p - p0)
            own, linear = linear, -(matrix @ linear[..., None])[..., 0]
            alone = -0.5 * system.sum((own * linear).sum(1))
        embedding = system.embedding(self.coulomb)
        if embedding is not None:
            linear = linear + embedding.potential()
        tensors = {"positions": system.positions, "cell": system.cell, "linear": linear, "matrix": matrix}
        if self.strengths is not None:
            raw = self.strengths(system.features, attrs)
            tensors["strengths"] = torch.nn.functional.softplus(raw)
        if self.mlp is not None:
            tensors.update(scalars=scalars, vectors=vectors)
            tensors.update({f"mlp.{name}": p for name, p in self.mlp.named_parameters()})
        if system.external_field is not None:
            tensors["external_field"] = system.external_field
        if self.context.constraint == "fermi_level":
            assert system.fermi_level is not None
            tensors["fermi_level"] = system.fermi_level
        return tensors, alone
