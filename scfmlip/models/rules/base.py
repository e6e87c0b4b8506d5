"""The interface of charge rules: their input and output."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from e3nn import o3
from torch import Tensor

from ...distributed import Domain
from ...electrostatics import Coulomb, CoulombPlan, Geometry
from ...electrostatics.boundary import Boundary
from ...electrostatics.cutoff import check_cutoff, reference_cutoff
from ...electrostatics.external import Embedding, ExternalCharges
from ...electrostatics.joint import energy_with
from ...electrostatics.kept import Plans
from ...scf import SolverMemory
from ...segments import Segments
from ..backbone import Backbone
from ..config import BackboneConfig, Constraint, DensityConfig, ModelConfig


@dataclasses.dataclass(frozen=True)
class RuleContext:
    """
    Everything that a rule may use to build its modules.

    Attributes:
        elements: Atomic numbers, in the order of the one-hot encoding.
        feature_irreps: Irreps of the features of each backbone layer.
        r_max: Cutoff, angstrom.
        avg_num_neighbors: Mean number of neighbours.
        density: The density's configuration.
        constraint: Constraint on the state.
        backbone: The backbone's configuration, for rules that have their own network.

    Example:
        >>> import torch
        >>> from e3nn import o3
        >>> from scfmlip.models import BackboneConfig, DensityConfig, RuleContext
        >>> from scfmlip.models.rules.local import Local, LocalConfig
        >>> features = (o3.Irreps("8x0e"),)  # of one layer
        >>> options = DensityConfig(l_max=0), "none", BackboneConfig()
        >>> context = RuleContext((1, 8), features, 5.0, 12.0, *options)  # cutoff, number of neighbours
        >>> rule = Local(LocalConfig(), context)
        >>> rule.context.density.sigma
        1.5
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
    A batch in the form that rules receive; shapes and units as in `scfmlip.types`.

    Attributes:
        batch: The model's input with strained positions, for rules that have their own network.
        network: All outputs of the backbone; empty before it has run.
        features: ``[n_atoms, irreps]`` of each backbone layer; l = 1 components are Cartesian.
        node_attrs: ``[n_atoms, n_elements]`` one-hot.
        positions, cell, pbc: The geometry.
        segments: The system of each atom.
        edge_index, edge_vectors: Neighbours: ``[2, n_edges]`` sender and receiver, ``[n_edges, 3]``.
        total_charge, fermi_level: ``[n_systems]`` e and eV, where needed.
        external_field: ``[n_systems, 3]`` V/angstrom, a charge q feels q E; None without one.
        counter_charge: ``[n_systems, 2]`` ends of the slabs' counter-charges, or None, see `Coulomb.prepare`.
        external: Charges outside the model, or None.
        reference_density: ``[n_atoms, dim]`` Cartesian rows, the first guess or the start of one step, or
            None.
        reference_level: ``[n_systems]`` eV, the Fermi level of that density as a first guess where the charge
            is given, or None.
        reference_memory: What solves hand on to each other, see `scfmlip.scf.SolverMemory`; None if not asked
            for.
        direct: Take one step from ``reference_density`` instead of converging.
        stability: Also measure how the rule's update responds to a perturbation, for training.
        domain: This rank's part of the one system, if several ranks share it.
        plans: Plans of operators that are kept between calls; None makes them anew.

    Example:
        >>> import ase.build, dataclasses, torch
        >>> from scfmlip.mace_torch.batches import make_batch
        >>> from scfmlip.models import ChargeRule, RuleOutput, System, build, register
        >>> @register("counting")
        ... class Counting(ChargeRule):
        ...     Config = dataclasses.make_dataclass("Config", [], frozen=True)
        ...     def forward(self, system: System) -> RuleOutput:  # a rule is given the system
        ...         electrons = system.sum(system.node_attrs @ torch.tensor([1.0, 8.0]))
        ...         return RuleOutput(extra={"electrons": electrons})
        >>> backbone = {"hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "num_interactions": 1}
        >>> model = build({"elements": ["H", "O"], "rule": "counting", "backbone": backbone})
        >>> batch = make_batch(model, [ase.build.molecule("H2O")], torch.device("cpu"), torch.float32)
        >>> model(batch)["electrons"]
        tensor([10.])
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
    reference_level: Tensor | None = None
    reference_memory: SolverMemory | None = None
    direct: bool = False
    stability: bool = False
    domain: Domain | None = None
    plans: Plans | None = None
    _embeddings: dict[Coulomb, Embedding] = dataclasses.field(default_factory=dict, init=False)

    @property
    def n_systems(self) -> int:
        """Number of systems in the batch."""
        return self.segments.n_segments

    @property
    def index(self) -> Tensor:
        """``[n_atoms]`` system of each atom."""
        return self.segments.index

    def sum(self, values: Tensor) -> Tensor:
        """``[n_atoms, ...]`` -> ``[n_systems, ...]``, summed in float64."""
        return self.segments.sum(values.double()).to(values.dtype)

    def expand(self, values: Tensor) -> Tensor:
        """``[n_systems, ...]`` -> ``[n_atoms, ...]``."""
        return self.segments.expand(values)

    def everywhere(self, values: Tensor) -> Tensor:
        """``[n_atoms, ...]`` -> the same, behind it those of neighbours that other processes own."""
        return values if self.domain is None else self.domain.halo.extend(values)

    @property
    def n_everywhere(self) -> int:
        """Atoms, and neighbours that other processes own."""
        return len(self.positions) if self.domain is None else self.domain.halo.n_all

    def at_owners(self, values: Tensor) -> Tensor:
        """The adjoint of `everywhere`: what came together at atoms of other processes goes to these."""
        return values if self.domain is None else self.domain.halo.collect(values)

    def operator(self, coulomb: Coulomb) -> tuple[CoulombPlan, Geometries]:
        """
        The plan, and a function ``(positions, cell, external_field) -> geometry``, as solves need them.

        All steps of a solve share a geometry, see `Geometries`.
        """
        r, plan = self.positions, self._kept_plan(coulomb)
        if plan is None:
            plan = coulomb.plan(self.cell, self.pbc, self.segments, len(r), r.device, r)

        def prepare(positions: Tensor, cell: Tensor, field: Tensor | None) -> Geometry:
            return coulomb.prepare(
                positions, cell, plan=plan, external_field=field, counter_charge=self.counter_charge
            )

        return plan, Geometries(prepare)

    def prepare(self, coulomb: Coulomb, **options: Any) -> Geometry:
        """A Coulomb operator at this geometry, including external field and counter-charge."""
        return coulomb.prepare(
            self.positions,
            self.cell,
            self.pbc,
            self.segments,
            plan=self._kept_plan(coulomb),
            external_field=self.external_field,
            counter_charge=self.counter_charge,
            **options,
        )

    def _kept_plan(self, coulomb: Coulomb) -> CoulombPlan | None:
        """The plan, from an earlier call where it holds; None where none is kept."""
        if self.plans is None or torch._C._are_functorch_transforms_active():
            return None
        mine = self.positions, self.cell, self.pbc, self.segments
        # a rule may have put something else into its system
        return self.plans.plan(coulomb) if self.plans.are_of(*mine) else None

    def embedding(self, coulomb: Coulomb) -> Embedding | None:
        """The action of charges outside the model on a density in ``coulomb``; None without such charges."""
        if self.external is not None and coulomb not in self._embeddings:
            geometry = (self.positions, self.cell, self.pbc, self.segments)
            self._embeddings[coulomb] = Embedding(coulomb, self.external, *geometry, self.counter_charge)
        return self._embeddings.get(coulomb)

    def energy_with(
        self, geometry: Geometry, rows: Tensor, *values: Tensor, inside: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`Geometry.energy`, and sums of ``[n_atoms]`` values; for processes see `joint.energies`."""
        if not self.segments.shared:
            return geometry.energy(rows), tuple(self.sum(v) for v in values)
        parts = (self.segments.own_sum(v.double()) for v in values)
        own = geometry.coulomb.self_interaction
        energy, sums = energy_with(geometry, rows, *parts, self_interaction=own, inside=inside)
        return energy.to(rows.dtype), tuple(v.to(rows.dtype) for v in sums)

    def coulomb_energy(self, geometry: Geometry, rows: Tensor) -> Tensor:
        """``[n_systems(, n_channels)]`` eV of a density with itself and everything outside the model."""
        embedding = self.embedding(geometry.coulomb)
        if embedding is None:
            return geometry.energy(rows)
        potential = embedding.potential()
        if rows.ndim == 3:
            return geometry.energy(rows) + self.sum((rows * potential[:, None]).sum(-1))
        energy, (outside,) = self.energy_with(geometry, rows, (rows * potential).sum(-1))
        return energy + outside


@dataclasses.dataclass
class RuleDensity:
    """
    The density that a rule determined.

    Attributes:
        multipoles: ``[n_atoms, 1 | 4]`` Cartesian rows.
        operator: The Coulomb operator at this geometry, for potentials at atoms and points, or a function
            that makes it on demand; None without an operator.
        slots: ``[n_atoms, 1 | 4]`` int64 columns of the operator's rows that hold an atom's multipoles, if it
            has several widths; else None.
        dipole: ``[n_systems, 3]`` e angstrom if it is not ``sum q r + d``; else None.

    Example:
        >>> import ase.build, torch
        >>> from scfmlip.mace_torch.batches import make_batch
        >>> from scfmlip.models import build
        >>> backbone = {"hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "num_interactions": 1}
        >>> rule = {"name": "fixed", "charges": {"H": 0.4, "O": -0.8}}
        >>> model = build({"elements": ["H", "O"], "rule": rule, "backbone": backbone})
        >>> batch = make_batch(model, [ase.build.molecule("H2O")], torch.device("cpu"), torch.float32)
        >>> _, density = model.evaluate_density(batch)
        >>> density.multipoles.flatten()  # e
        tensor([-0.8000,  0.4000,  0.4000])
        >>> density.geometry.at(torch.tensor([[0.0, 0.0, 3.0]]), density.rows).potential  # V
        tensor([-0.6008])
    """

    multipoles: Tensor
    operator: Geometry | Callable[[], Geometry | None] | None
    slots: Tensor | None = None
    dipole: Tensor | None = None

    @functools.cached_property
    def geometry(self) -> Geometry | None:
        """The Coulomb operator that gives the energy."""
        return self.operator() if callable(self.operator) else self.operator

    @property
    def rows(self) -> Tensor:
        """The density in the rows of ``geometry``."""
        if self.slots is None:
            return self.multipoles
        assert self.geometry is not None
        empty = self.multipoles.new_zeros(len(self.multipoles), self.geometry.coulomb.source.dim)
        return empty.scatter(1, self.slots, self.multipoles)

    def potential(self, system: System) -> Tensor:
        """``[n_atoms]`` V at each atom's Gaussian, from all other atoms and everything outside the model."""
        assert self.geometry is not None
        values = self.geometry.potential(self.rows, self_interaction=False)
        embedding = system.embedding(self.geometry.coulomb)
        if embedding is not None:
            values = values + embedding.potential()
        return values[:, 0] if self.slots is None else values.gather(1, self.slots[:, :1])[:, 0]


@dataclasses.dataclass
class RuleEnergies:
    """
    The energies that a rule adds to the backbone's, ``[n_systems]`` eV each.

    Attributes:
        electrostatic: Electrostatic energy, including the external field's; None without charges.
        response: Other energies that depend on the state; None without any.
        total: The sum of the two, for rules that compute it directly.
        short_range: Energy of the rule's own network.
        included: The energies are already part of the backbone's energy and only reported.

    Example:
        >>> import torch
        >>> from scfmlip.models import RuleEnergies
        >>> energies = RuleEnergies(electrostatic=torch.tensor([-0.3]), response=torch.tensor([0.1]))
        >>> sum(energies.added())  # eV of one system, on top of the backbone's
        tensor([-0.2000])
    """

    electrostatic: Tensor | None = None
    response: Tensor | None = None
    total: Tensor | None = None
    short_range: Tensor | None = None
    included: bool = False

    def added(self) -> list[Tensor]:
        """The terms to add to the backbone's energy."""
        parts = [self.short_range]
        if not self.included:
            parts += [self.electrostatic, self.response] if self.total is None else [self.total]
        return [part for part in parts if part is not None]


@dataclasses.dataclass
class RuleOutput:
    """
    The output of a rule.

    Attributes:
        energies: Energies to add to the backbone's.
        density: The density; None without charges.
        extra: Additional outputs by name.

    Example:
        >>> import torch
        >>> from scfmlip.models import RuleDensity, RuleEnergies, RuleOutput
        >>> charges = torch.tensor([[-0.8], [0.4], [0.4]])
        >>> density = RuleDensity(charges, operator=None)  # no Coulomb operator: no potentials at points
        >>> output = RuleOutput(RuleEnergies(torch.tensor([-1.2])), density, {"gap": torch.tensor([7.0])})
        >>> output.extra  # becomes outputs of the model
        {'gap': tensor([7.])}
    """

    energies: RuleEnergies = dataclasses.field(default_factory=RuleEnergies)
    density: RuleDensity | None = None
    extra: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class ChargeRule(torch.nn.Module):
    """
    Base class of the rules that determine the density, its energy, and whether that is variational.

    Subclasses define ``Config`` (a frozen dataclass of their options), the ``constraints`` that they support,
    and `forward`. Class attributes describe the rule:

    * ``supports_direct``: one step from a given density is possible;
    * ``gauge_free_dipole``: the dipole does not depend on where a periodic cell is cut;
    * ``iterates``: a first guess of the density helps;
    * ``has_geometry``: there is a Coulomb operator for potentials of the density;
    * ``feels_external_charges``: the density has an energy in the potential of charges outside the model;
    * ``highest_multipole``: the largest l_max of its densities.

    Example:
        >>> import ase.build, dataclasses, torch
        >>> from scfmlip.mace_torch.batches import make_batch
        >>> from scfmlip.models import ChargeRule, RuleDensity, RuleEnergies, RuleOutput, build, register
        >>> from scfmlip.models.rules.base import make_coulomb
        >>> @register("even")  # the total charge, shared evenly by the atoms
        ... class Even(ChargeRule):
        ...     Config = dataclasses.make_dataclass("Config", [], frozen=True)
        ...     constraints = ("charge",)
        ...     def forward(self, system):
        ...         each = system.total_charge / system.sum(torch.ones_like(system.positions[:, 0]))
        ...         rows = system.expand(each)[:, None]
        ...         geometry = system.prepare(make_coulomb(self.context.density, l_max=0))
        ...         energies = RuleEnergies(system.coulomb_energy(geometry, rows))
        ...         return RuleOutput(energies, RuleDensity(rows, geometry))
        >>> backbone = {"hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "num_interactions": 1}
        >>> values = {"elements": ["H", "O"], "rule": "even", "constraint": "charge", "backbone": backbone}
        >>> model, atoms = build(values), ase.build.molecule("H2O")
        >>> atoms.info["charge"] = 1
        >>> batch = make_batch(model, [atoms], torch.device("cpu"), torch.float32)
        >>> model(batch)["charges"]
        tensor([0.3333, 0.3333, 0.3333])
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
        """Whether the state minimises the model's energy, so that first derivatives need no adjoint."""
        return False

    @classmethod
    def pads_cell(cls, config: Any) -> bool:
        """Whether batches need mace-torch's long cells along open directions, for these options."""
        return False

    @classmethod
    def build_backbone(cls, config: ModelConfig) -> Backbone:
        """Build the network that the rule works on."""
        return Backbone.build(config.backbone, config.elements, config.atomic_energies)

    def forward(self, system: System) -> RuleOutput:
        """Compute density and energy of a batch."""
        raise NotImplementedError


def make_coulomb(density: DensityConfig, **options: Any) -> Coulomb:
    """
    Make the Coulomb operator of a density's configuration.

    Args:
        density: The configuration.
        options: Options of `Coulomb` that override the configuration.

    Raises:
        ValueError: for a cutoff that is too small to resolve the Gaussians.
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
    Refuse slabs at a given Fermi level without a counter-charge.

    Raises:
        ValueError: names the systems and says what to do.
    """
    slabs = [i for i, b in enumerate(plan.boundaries) if b == Boundary.SLAB]
    if slabs and system.counter_charge is None:
        raise ValueError(
            f"system(s) {slabs[:5]} of the batch are slabs at a given Fermi level without a counter-charge: "
            "the energy of a charged slab is unbounded. Set atoms.info['counter_charge'] = (lower, "
            "upper), angstrom along the normal, or use constraint='charge'"
        )


class Geometries:
    """
    A cache of the geometries that the steps of a solve share.

    It holds one geometry without a graph, for all steps and for adjoint solves, which have the same position
    values; and one with a graph, for the exact tensors that the graph leads to.

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
        except RuntimeError:  # inside torch.func, or made in inference mode: values cannot be compared
            return self._make(*arguments)
        if self._plain is None or self._plain[0] != key:
            # keep the tensors alive, so that no other tensor can take their memory
            self._plain = key, detached, self._make(*detached)
        return self._plain[2]
