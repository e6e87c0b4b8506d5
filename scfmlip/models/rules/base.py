"""What every charge rule answers, and what it is given."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from e3nn import o3
from torch import Tensor

from ...electrostatics import Coulomb, CoulombPlan, Geometry
from ...electrostatics.boundary import Boundary
from ...electrostatics.cutoff import check_cutoff, reference_cutoff
from ...electrostatics.external import Embedding, ExternalCharges
from ...segments import Segments
from ..backbone import Backbone
from ..config import BackboneConfig, Constraint, DensityConfig, ModelConfig


@dataclasses.dataclass(frozen=True)
class RuleContext:
    """
    What a rule may build its modules from.

    Attributes:
        elements: Atomic numbers, in the order of the one-hot encoding.
        feature_irreps: Irreps of the features of each backbone layer.
        r_max: Cutoff, angstrom.
        avg_num_neighbors: Mean number of neighbours.
        density: The density's configuration.
        constraint: What the state has to obey.
        backbone: The backbone's configuration, for rules with a network of their own.
    """

    elements: tuple[int, ...]
    feature_irreps: tuple[o3.Irreps, ...]
    r_max: float
    avg_num_neighbors: float
    density: DensityConfig
    constraint: Constraint
    backbone: BackboneConfig


@dataclasses.dataclass(frozen=True)
class System:
    """
    A batch as rules see it; shapes and units as in `scfmlip.types`.

    Attributes:
        batch: The model's own input with strained positions, for rules with a network of their own.
        network: All outputs of the backbone; none before it has run.
        features: ``[n_atoms, irreps]`` of each backbone layer; l = 1 components are Cartesian.
        node_attrs: ``[n_atoms, n_elements]`` one-hot.
        positions, cell, pbc: The geometry.
        segments: The system of each atom.
        edge_index, edge_vectors: Neighbours: ``[2, n_edges]`` sender and receiver, ``[n_edges, 3]``.
        total_charge, fermi_level: ``[n_systems]`` e and eV, where needed.
        external_field: ``[n_systems, 3]`` V/angstrom, a charge q feels q E; None without one.
        counter_charge: ``[n_systems, 2]`` ends of the slabs' counter-charges, or None, see `Coulomb.prepare`.
        external: Charges outside the model, or None.
        reference_density: ``[n_atoms, dim]`` Cartesian rows to start from or to take one step from, or None.
        direct: Take one step from ``reference_density`` instead of converging.
        stability: Also measure how the rule's update answers a disturbance, for training.
    """

    batch: dict[str, Tensor]
    network: dict[str, Any]
    features: list[Tensor]
    node_attrs: Tensor
    positions: Tensor
    cell: Tensor
    pbc: Tensor
    segments: Segments
    edge_index: Tensor
    edge_vectors: Tensor
    total_charge: Tensor | None
    fermi_level: Tensor | None
    external_field: Tensor | None
    counter_charge: Tensor | None = None
    external: ExternalCharges | None = None
    reference_density: Tensor | None = None
    direct: bool = False
    stability: bool = False
    _embeddings: dict[Coulomb, Embedding] = dataclasses.field(default_factory=dict, init=False)

    @property
    def n_systems(self) -> int:
        """Systems of the batch."""
        return self.segments.n_segments

    @property
    def index(self) -> Tensor:
        """``[n_atoms]`` system of each atom."""
        return self.segments.index

    def sum(self, values: Tensor) -> Tensor:
        """``[n_atoms, ...]`` -> ``[n_systems, ...]``, added up in float64."""
        return self.segments.sum(values.double()).to(values.dtype)

    def expand(self, values: Tensor) -> Tensor:
        """``[n_systems, ...]`` -> ``[n_atoms, ...]``."""
        return self.segments.expand(values)

    def operator(self, coulomb: Coulomb) -> tuple[CoulombPlan, Geometries]:
        """
        What a solve needs: the plan, and ``(positions, cell, external_field) -> geometry``.

        The steps of one solve share a geometry, see `Geometries`.
        """
        r = self.positions
        plan = coulomb.plan(self.cell, self.pbc, self.index, len(r), r.device, r)

        def prepare(positions: Tensor, cell: Tensor, field: Tensor | None) -> Geometry:
            return coulomb.prepare(
                positions, cell, plan=plan, external_field=field, counter_charge=self.counter_charge
            )

        return plan, Geometries(prepare)

    def prepare(self, coulomb: Coulomb, **options: Any) -> Geometry:
        """A Coulomb operator at this geometry, external field and counter-charge included."""
        return coulomb.prepare(
            self.positions,
            self.cell,
            self.pbc,
            self.index,
            external_field=self.external_field,
            counter_charge=self.counter_charge,
            **options,
        )

    def embedding(self, coulomb: Coulomb) -> Embedding | None:
        """What charges outside the model do to a density in ``coulomb``; None without any."""
        if self.external is not None and coulomb not in self._embeddings:
            geometry = (self.positions, self.cell, self.pbc, self.index)
            self._embeddings[coulomb] = Embedding(coulomb, self.external, *geometry, self.counter_charge)
        return self._embeddings.get(coulomb)

    def coulomb_energy(self, geometry: Geometry, rows: Tensor) -> Tensor:
        """``[n_systems(, n_channels)]`` eV of a density with itself and all that is outside the model."""
        energy, embedding = geometry.energy(rows), self.embedding(geometry.coulomb)
        if embedding is None:
            return energy
        potential = embedding.potential()
        return energy + self.sum((rows * (potential if rows.ndim == 2 else potential[:, None])).sum(-1))


@dataclasses.dataclass
class RuleDensity:
    """
    A density that a rule has found.

    Attributes:
        multipoles: ``[n_atoms, 1 | 4]`` Cartesian rows.
        operator: At this geometry, for potentials at atoms and points, or what makes it when it is asked for;
            None where there is none.
        slots: ``[n_atoms, 1 | 4]`` int64 columns of the operator's rows that hold an atom's multipoles, where
            it has several widths; else None.
        dipole: ``[n_systems, 3]`` e angstrom where it is not ``sum q r + d``.
    """

    multipoles: Tensor
    operator: Geometry | Callable[[], Geometry | None] | None
    slots: Tensor | None = None
    dipole: Tensor | None = None

    @functools.cached_property
    def geometry(self) -> Geometry | None:
        """The operator behind the energy."""
        return self.operator() if callable(self.operator) else self.operator

    @property
    def rows(self) -> Tensor:
        """The density in the rows of the operator behind ``geometry``."""
        if self.slots is None:
            return self.multipoles
        assert self.geometry is not None
        empty = self.multipoles.new_zeros(len(self.multipoles), self.geometry.coulomb.source.dim)
        return empty.scatter(1, self.slots, self.multipoles)

    def potential(self, system: System) -> Tensor:
        """``[n_atoms]`` V at each atom's Gaussian, of all others and of what is outside the model."""
        assert self.geometry is not None
        values = self.geometry.potential(self.rows, self_interaction=False)
        embedding = system.embedding(self.geometry.coulomb)
        if embedding is not None:
            values = values + embedding.potential()
        return values[:, 0] if self.slots is None else values.gather(1, self.slots[:, :1])[:, 0]


@dataclasses.dataclass
class RuleEnergies:
    """
    What a rule adds to the backbone's energy, ``[n_systems]`` eV each.

    Attributes:
        electrostatic: The external field's included; None without charges.
        response: What else depends on the state; None for nothing.
        total: The sum of the two where a rule has it as one.
        short_range: Of a network of the rule's own.
        included: They are part of the backbone's energy already and only reported.
    """

    electrostatic: Tensor | None = None
    response: Tensor | None = None
    total: Tensor | None = None
    short_range: Tensor | None = None
    included: bool = False

    def added(self) -> list[Tensor]:
        """What is to be added to the backbone's energy."""
        parts = [self.short_range]
        if not self.included:
            parts += [self.electrostatic, self.response] if self.total is None else [self.total]
        return [part for part in parts if part is not None]


@dataclasses.dataclass
class RuleOutput:
    """
    What a rule answers.

    Attributes:
        energies: What it adds to the backbone's.
        density: What it has found; None without charges.
        extra: Further outputs by name.
    """

    energies: RuleEnergies = dataclasses.field(default_factory=RuleEnergies)
    density: RuleDensity | None = None
    extra: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class ChargeRule(torch.nn.Module):
    """
    How the density comes about: which state, what energy, whether that is variational.

    Subclasses set ``Config`` (a frozen dataclass of their options), ``constraints`` they can obey, and
    `forward`. ``supports_direct`` says that one step from a given density is possible, ``gauge_free_dipole``
    that the dipole does not depend on where a periodic cell is cut, ``iterates`` that a first guess of the
    density helps, ``has_geometry`` that there is a Coulomb operator for potentials of the density,
    ``feels_external_charges`` that the density has an energy in the potential of charges outside the model,
    ``highest_multipole`` up to which l_max its densities may go.
    """

    Config: ClassVar[type]
    constraints: ClassVar[tuple[str, ...]] = ("none",)
    supports_direct: ClassVar[bool] = False
    gauge_free_dipole: ClassVar[bool] = False
    iterates: ClassVar[bool] = False
    has_geometry: ClassVar[bool] = True
    feels_external_charges: ClassVar[bool] = True
    highest_multipole: ClassVar[int] = 1

    def __init__(self, config: Any, context: RuleContext) -> None:
        super().__init__()
        self.config, self.context = config, context

    @property
    def variational(self) -> bool:
        """Whether the state minimises the model's energy, so that its first derivatives need no adjoint."""
        return False

    @classmethod
    def pads_cell(cls, config: Any) -> bool:
        """Whether batches of a rule with these options have mace-torch's long cells along open directions."""
        return False

    @classmethod
    def build_backbone(cls, config: ModelConfig) -> Backbone:
        """The network the rule works on."""
        return Backbone.build(config.backbone, config.elements, config.atomic_energies)

    def forward(self, system: System) -> RuleOutput:
        """Density and energy of a batch."""
        raise NotImplementedError


def make_coulomb(density: DensityConfig, **options: Any) -> Coulomb:
    """
    The Coulomb operator of a density's configuration.

    Args:
        density: The configuration.
        options: Options of `Coulomb` that differ from it.

    Raises:
        ValueError: for a cutoff that does not resolve the Gaussians.
    """
    given = {
        "l_max": density.l_max,
        "sigma": density.sigma,
        "boundary": density.boundary,
        "self_interaction": density.self_interaction,
        "tolerance": density.tolerance,
        **options,
    }
    coulomb = Coulomb(**given)
    if density.kspace_cutoff_factor is None:
        return coulomb
    widths = (*coulomb.source.widths, *(coulomb.feature_widths or ()))
    cutoff = density.kspace_cutoff_factor * reference_cutoff(widths, coulomb.source.l_max, 1.0)
    check_cutoff(min(widths) ** 2, cutoff, coulomb.source.l_max)
    return Coulomb(**given, kspace_cutoff=cutoff)


def check_level(system: System, plan: CoulombPlan) -> None:
    """
    Refuse slabs whose charge follows a Fermi level with nothing to balance it.

    Raises:
        ValueError: names them and says what to do.
    """
    slabs = [i for i, b in enumerate(plan.boundaries) if b == Boundary.SLAB]
    if slabs and system.counter_charge is None:
        raise ValueError(
            f"system(s) {slabs[:5]} of the batch are slabs at a given Fermi level without a counter-charge: "
            "the energy of a charged slab falls without limit. Set atoms.info['counter_charge'] = (lower, "
            "upper), angstrom along the normal, or use constraint='charge'"
        )


class Geometries:
    """
    ``make`` that remembers what the steps of a solve share.

    One answer without a graph, for all steps and for the solves of the adjoint, whose positions are the same
    numbers; and one with a graph, for the very tensors that it leads to.

    Args:
        make: Positions, cell and external field (or None) -> geometry.
    """

    def __init__(self, make: Callable[..., Geometry]) -> None:
        self._make = make
        self._recorded: tuple[tuple, Geometry] | None = None
        self._plain: tuple[tuple, tuple, Geometry] | None = None

    def __call__(self, *arguments: Tensor | None) -> Geometry:
        """The geometry of these tensors."""
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in arguments):
            kept = self._recorded
            if kept is None or any(a is not b for a, b in zip(arguments, kept[0], strict=True)):
                kept = self._recorded = arguments, self._make(*arguments)
            return kept[1]
        detached = tuple(None if t is None else t.detach() for t in arguments)
        try:
            key = tuple(None if t is None else (t.data_ptr(), t._version, t.dtype) for t in detached)
        except RuntimeError:  # inside torch.func, or made in inference mode: no numbers to know them by
            return self._make(*arguments)
        if self._plain is None or self._plain[0] != key:
            # tensors are held, so that no other can take their place in memory
            self._plain = key, detached, self._make(*detached)
        return self._plain[2]
