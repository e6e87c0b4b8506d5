"""
Fixed point: multipoles that respond to the potential they make, p = p0 + R v[p].

v holds the potential's projections on Gaussians at each atom, the external field and the Fermi level
included. The response is one of
* "affine": ``R_i`` from the atom's features, scalars and vectors, linear in v as the reference's default
  update, so that one Krylov solve takes the place of its fifty mixing steps. A charge always falls as the
  potential rises, a dipole follows the field, and neither so far that the state becomes unstable, see
  `field_response`; the reference leaves that to training;
* "mlp": the same plus a perceptron on the invariants of features and potential;
* "many_body": the same plus one more MACE layer, through which atoms see the potential at their neighbours;
* "passive": ``R_i = -S_i`` with S_i positive definite and v conjugate to p, so that a solution always exists
  and is the minimum of ``1/2 p.K p + 1/2 (p - p0).S^-1 (p - p0)``.

Baldwin et al., arXiv:2603.14700.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ....scf import fixed_point
from ...readouts import FeatureMix, MultipoleReadout, ScalarReadout
from ..base import ChargeRule, RuleContext, RuleOutput, System, make_coulomb
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

    def __init__(self, config: FixedPointConfig, context: RuleContext) -> None:
        super().__init__(config, context)
        density, n_elements = context.density, len(context.elements)
        l_max = density.l_max
        self.features = features = FieldFeatures.of_rule(config, density)
        # the passive response answers an atom's own potential too: its energy has to hold that
        with_self = config.response == "passive" or density.self_interaction
        self.coulomb = make_coulomb(density, feature_widths=features.widths, self_interaction=with_self)
        self.local = MultipoleReadout(context.feature_irreps, n_elements, l_max=l_max, hidden=config.hidden)
        self.mix = FeatureMix(context.feature_irreps, config.channels)
        self.register_buffer("norms", features.columns())
        self.response = Response(config, context, features.own(density.sigma))
        self.readout = None
        if config.energy == "quadratic":
            n_terms = len(features.widths) * (min(l_max, features.l_max) + 1) + l_max + 1
            self.readout = ScalarReadout(context.feature_irreps, n_elements, n_terms, config.hidden)

    @property
    def variational(self) -> bool:
        """Of the passive response with its own energy."""
        return self.config.energy == "variational"

    def forward(self, system: System) -> RuleOutput:
        """The self-consistent density, its energy, and the Fermi level that its constraint needs."""
        config, constraint = self.config, self.context.constraint
        attrs = system.node_attrs
        start = self.local(system.features, attrs)[:, 0]
        scalars, vectors = self.mix(system.features)
        plan, prepare = system.operator(self.coulomb)
        tensors: dict[str, Tensor] = {
            "positions": system.positions,
            "cell": system.cell,
            "start": start,
            "matrix": self.response.matrix(attrs, scalars, vectors),
        }
        names = [name for name, _ in self.response.named_parameters()]
        if self.response.nonlinear:
            tensors.update(scalars=scalars, vectors=vectors)
            tensors.update({f"response.{name}": p for name, p in self.response.named_parameters()})
        if self.response.many_body is not None:
            edge_attrs, edge_weights = self.response.many_body.edges(system.edge_vectors)
            tensors.update(edge_attrs=edge_attrs, edge_weights=edge_weights)
        if system.external_field is not None:
            tensors["external_field"] = system.external_field
        embedding = system.embedding(self.coulomb)
        if embedding is not None:
            tensors["external"] = self.features.outside(embedding)
        if constraint == "fermi_level":
            assert system.fermi_level is not None
            tensors["fermi_level"] = system.fermi_level
        keys, norms = list(tensors), self.norms
        assert isinstance(norms, Tensor)

        def values(state: Tensor, level: Tensor | None, given: dict[str, Tensor]) -> Tensor:
            geometry = prepare(given["positions"], given["cell"], given.get("external_field"))
            field = self.features.project(geometry, state)
            if "external" in given:
                field = field + given["external"]
            if level is not None:
                field = field + self.features.constant(system.expand(level), field)
            return field / norms

        def step(
            state: Tensor, level: Tensor | None, given: dict[str, Tensor], linear: bool = False
        ) -> Tensor:
            field = values(state, level, given)
            change = (given["matrix"] @ field[..., None])[..., 0]
            if self.response.nonlinear and not linear:
                weights = {name: given[f"response.{name}"] for name in names}
                edges = (system.edge_index, given.get("edge_attrs"), given.get("edge_weights"))
                arguments = (field, attrs, given["scalars"], given["vectors"], edges)
                change = change + torch.func.functional_call(self.response, weights, arguments)
            return given["start"] + change

        def update(state: Tensor, *parameters: Tensor, linear: bool = False) -> Tensor:
            level = None
            if constraint == "charge":
                level, *parameters = parameters  # type: ignore[assignment]
            given = dict(zip(keys, parameters, strict=True))
            return step(state, given.get("fermi_level", level), given, linear)

        extra: dict[str, Tensor] = {}
        level = system.fermi_level if constraint != "none" else None
        if system.direct:
            assert system.reference_density is not None
            rows = step(system.reference_density, level, tensors)
        else:
            first = system.reference_density if system.reference_density is not None else start
            solution = fixed_point(
                update,
                first,
                tuple(tensors.values()),
                batch_idx=system.index,
                n_systems=system.n_systems,
                total_charge=system.total_charge if constraint == "charge" else None,
                tolerance=config.tolerance,
                max_iterations=config.max_iterations,
                approximation=partial(update, linear=True) if self.response.many_body is not None else None,
            )
            rows = solution.state
            if constraint == "charge":
                level = solution.chemical_potential
            extra.update(
                scf_iterations=solution.iterations,
                scf_residual=solution.residual,
                scf_status=solution.status,
            )
        if level is not None:
            extra["fermi_level"] = level
        if system.stability:
            at = system.reference_density if system.direct else rows
            assert at is not None
            extra["scf_amplification"] = amplification(lambda p: step(p, level, tensors), at, system)
        geometry = system.prepare(self.coulomb, plan=plan)
        response = None
        if config.energy != "none":
            field = values(rows, level, tensors)
            response = self._response_energy(system, rows - start, field, tensors["matrix"])
        extra["initial_charges"] = start[:, 0]
        return RuleOutput(system.coulomb_energy(geometry, rows), response, rows, geometry, extra=extra)

    def _response_energy(self, system: System, change: Tensor, field: Tensor, matrix: Tensor) -> Tensor:
        """``[n_systems]`` eV of multipoles that have changed by ``change`` in the field."""
        if self.variational:
            # at the fixed point change.S^-1 change = v.S v
            return -0.5 * system.sum((field * (matrix @ field[..., None])[..., 0]).sum(1))
        assert self.readout is not None
        terms = quadratic_terms(change, field, len(self.features.widths))
        return system.sum((self.readout(system.features, system.node_attrs) * terms).sum(1))
