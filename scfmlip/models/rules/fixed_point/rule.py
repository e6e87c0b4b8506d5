"""
Fixed point: multipoles that respond to their own potential, p = p0 + R v[p].

v holds the potential's projections on Gaussians at each atom, including the external field and the Fermi
level. The response is one of
* "affine": ``R_i`` from the atom's features, scalars and vectors. It is linear in v, like the reference's
  default update, so one Krylov solve replaces its fifty mixing steps. A charge always falls as the potential
  rises, a dipole follows the field, and both responses are limited so that the state is stable, see
  `response`; the reference leaves this to training;
* "mlp": additionally a perceptron on the invariants of features and potential;
* "many_body": additionally one more MACE layer, through which atoms see the potential at their neighbours;
* "passive": ``R_i = -S_i`` with S_i positive definite and v conjugate to p. A solution always exists, and is
  the minimum of ``1/2 p.K p + 1/2 (p - p0).S^-1 (p - p0)``.
Quadrupoles (density.l_max = 2) respond in "passive" only; otherwise they are part of p0 alone.

Baldwin et al., arXiv:2603.14700.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....scf import fixed_point
from ...readouts import FeatureMix, MultipoleReadout, ScalarReadout
from ..base import ChargeRule, RuleContext, RuleDensity, RuleEnergies, RuleOutput, System, make_coulomb
from ..options import FixedPointConfig
from ..registry import register
from .field_features import FieldFeatures, quadratic_terms
from .response import Response
from .stability import amplification


@register("fixed_point")
class FixedPoint(ChargeRule):
    """Self-consistent multipoles."""

    Config = FixedPointConfig
    constraints = ("none", "charge", "fermi_level")
    iterates = True
    supports_direct = True
    highest_multipole = 2

    def __init__(self, config: FixedPointConfig, context: RuleContext) -> None:
        super().__init__(config, context)
        density, n_elements = context.density, len(context.elements)
        l_max = density.l_max
        self.features = features = FieldFeatures.of_rule(config, density)
        # the passive response includes an atom's own potential, so its energy must include it too
        with_self = config.response == "passive" or density.self_interaction
        self.coulomb = make_coulomb(density, feature_widths=features.widths, self_interaction=with_self)
        self.local = MultipoleReadout(context.feature_irreps, n_elements, l_max=l_max, hidden=config.hidden)
        self.mix = FeatureMix(context.feature_irreps, config.channels)
        self.register_buffer("norms", features.columns())
        self.response = Response(config, context, features.own(density.sigma))
        self.readout = None
        if config.energy == "quadratic":
            l_max = min(l_max, 1)
            n_terms = len(features.widths) * (min(l_max, features.l_max) + 1) + l_max + 1
            self.readout = ScalarReadout(context.feature_irreps, n_elements, n_terms, config.hidden)

    @property
    def variational(self) -> bool:
        """True for the passive response with its own energy."""
        return self.config.energy == "variational"

    def forward(self, system: System) -> RuleOutput:
        """The self-consistent density, its energy, and the Fermi level that satisfies its constraint."""
        config, constraint = self.config, self.context.constraint
        start = self.local(system.features, system.node_attrs)[:, 0]
        step = Step(self, system, start)
        if system.direct:
            assert system.reference_density is not None
            rows = step(system.reference_density, system.fermi_level if constraint != "none" else None)
            level, extra = step.level, {}
        else:
            rows, level, extra = self._solve(system, start, step)
        if level is not None:
            extra["fermi_level"] = level
        if system.stability:
            at = system.reference_density if system.direct else rows
            assert at is not None
            extra["scf_amplification"] = amplification(lambda p: step(p, level), at, system)
        geometry = step.prepare(system.positions, system.cell, system.external_field)
        response = None
        if config.energy != "none":
            field, matrix = step.values(rows, level, step.tensors), step.tensors["matrix"]
            response = self._response_energy(system, rows - start, field, matrix)
        extra["initial_charges"] = start[:, 0]
        energies = RuleEnergies(system.coulomb_energy(geometry, rows), response)
        return RuleOutput(energies, RuleDensity(rows, geometry), extra)

    def _solve(
        self, system: System, start: Tensor, step: Step
    ) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """The self-consistent rows, the Fermi level, and the solution with its status."""
        at_charge = self.context.constraint == "charge"
        solution = fixed_point(
            step.update,
            start if system.reference_density is None else system.reference_density,
            tuple(step.tensors.values()),
            batch_idx=system.segments,
            total_charge=system.total_charge if at_charge else None,
            chemical_potential=system.reference_level if at_charge else None,
            tolerance=self.config.tolerance,
            max_iterations=self.config.max_iterations,
            approximation=partial(step.update, linear=True) if self.response.many_body is not None else None,
            memory=system.reference_memory,
            source=start,
        )
        extra: dict[str, Any] = {
            "scf_iterations": solution.iterations,
            "scf_residual": solution.residual,
            "scf_status": solution.status,
        }
        if solution.memory is not None:
            extra["solver_memory"] = solution.memory
        return solution.state, solution.chemical_potential if at_charge else step.level, extra

    def _response_energy(self, system: System, change: Tensor, field: Tensor, matrix: Tensor) -> Tensor:
        """``[n_systems]`` eV for multipoles that have changed by ``change`` in the field."""
        if self.variational:
            # at the fixed point change.S^-1 change = v.S v
            return -0.5 * system.sum((field * (matrix @ field[..., None])[..., 0]).sum(1))
        assert self.readout is not None
        terms = quadratic_terms(change, field, len(self.features.widths))
        return system.sum((self.readout(system.features, system.node_attrs) * terms).sum(1))


class Step:
    """
    The update for one batch, as a function of all tensors that its fixed point depends on.

    Args:
        rule: The rule.
        system: The batch.
        start: ``[n_atoms, 1 | 4]`` multipoles at zero potential.

    Attributes:
        tensors: The parameters of the fixed point by name, in this order.
        level: ``[n_systems]`` the given Fermi level, if there is one.
        prepare: Positions, cell, external field -> geometry.
    """

    def __init__(self, rule: FixedPoint, system: System, start: Tensor) -> None:
        self.rule, self.system, response = rule, system, rule.response
        self.constraint = rule.context.constraint
        self.level = system.fermi_level if self.constraint != "none" else None
        scalars, vectors = rule.mix(system.features)
        _, self.prepare = system.operator(rule.coulomb)
        self.tensors: dict[str, Tensor] = {
            "positions": system.positions,
            "cell": system.cell,
            "start": start,
            "matrix": response.matrix(system.node_attrs, scalars, vectors),
        }
        if response.nonlinear:
            self.tensors.update(scalars=scalars, vectors=vectors)
            self.tensors.update({f"response.{name}": p for name, p in response.named_parameters()})
        if response.many_body is not None:
            attrs, weights = response.many_body.edges(system.edge_vectors)
            self.tensors.update(edge_attrs=attrs, edge_weights=weights)
        if system.external_field is not None:
            self.tensors["external_field"] = system.external_field
        embedding = system.embedding(rule.coulomb)
        if embedding is not None:
            self.tensors["external"] = rule.features.outside(embedding)
        if self.constraint == "fermi_level":
            assert system.fermi_level is not None
            self.tensors["fermi_level"] = system.fermi_level

    def values(self, state: Tensor, level: Tensor | None, given: dict[str, Tensor]) -> Tensor:
        """``[n_atoms, n_field]`` normalised projections of the potential at the atoms."""
        features, norms = self.rule.features, self.rule.norms
        assert isinstance(norms, Tensor)
        geometry = self.prepare(given["positions"], given["cell"], given.get("external_field"))
        field = features.project(geometry, state)
        if "external" in given:
            field = field + given["external"]
        if level is not None:
            field = field + features.constant(self.system.expand(level), field)
        return field / norms

    def __call__(
        self,
        state: Tensor,
        level: Tensor | None,
        given: dict[str, Tensor] | None = None,
        linear: bool = False,
    ) -> Tensor:
        """``[n_atoms, 1 | 4 | 9]`` multipoles in response to the potential of ``state``."""
        given, response, system = self.tensors if given is None else given, self.rule.response, self.system
        field = self.values(state, level, given)
        change = (given["matrix"] @ field[..., None])[..., 0]
        if response.nonlinear and not linear:
            weights = {name: given[f"response.{name}"] for name, _ in response.named_parameters()}
            halo = None if system.domain is None else system.domain.halo
            edges = (system.edge_index, given.get("edge_attrs"), given.get("edge_weights"), halo)
            arguments = (field, system.node_attrs, given["scalars"], given["vectors"], edges)
            change = change + torch.func.functional_call(response, weights, arguments)
        still = given["start"].shape[1] - change.shape[1]  # quadrupoles that do not respond
        return given["start"] + torch.nn.functional.pad(change, (0, still))

    def update(self, state: Tensor, *parameters: Tensor, linear: bool = False) -> Tensor:
        """The map whose fixed point is solved for; parameters are the potential, if any, and `tensors`."""
        level = None
        if self.constraint == "charge":
            level, *rest = parameters
            parameters = tuple(rest)
        given = dict(zip(self.tensors, parameters, strict=True))
        return self(state, given.get("fermi_level", level), given, linear)
