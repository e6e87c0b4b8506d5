"""A model of the design space: backbone x density x charge rule x Coulomb operator x energy."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scfmlip_kernels.constants import constant

from ..distributed import Domain, all_reduce
from ..electrostatics.external import ExternalCharges
from ..mace_torch.accelerate import accelerate_blocks
from ..mace_torch.graphs import stress_of
from ..mace_torch.inputs import INPUTS
from ..mace_torch.step_graphs import StepGraphs, check_cuda
from ..scf import SolverMemory
from ..scf.eager import leaves_inference_mode
from ..types import E3NN_ROWS_FROM_CARTESIAN
from ..waiting import together
from .backbone import Backbone
from .card import card_of, describe_card
from .config import Constraint, ModelConfig
from .response import born_charges, polarizability
from .rules import ChargeRule, RuleContext, RuleDensity, System, name_of, rule_class
from .systems import Scf, look_at, make_system, required_inputs

# first guesses, which a captured step reads like its batch
_STARTS = ("initial_density", "initial_level")


class Leaves(NamedTuple):
    """
    The tensors with respect to which energies are differentiated.

    Attributes:
        positions: ``[n_atoms, 3]`` angstrom.
        external: ``[n_external, 3]`` angstrom, of charges outside the model; None without such charges.
        strain: ``[n_systems, 3, 3]``; None if no stress is wanted.
    """

    positions: Tensor
    external: Tensor | None
    strain: Tensor | None


def _strain(
    batch: dict[str, Tensor], compute_force: bool, strained: bool
) -> tuple[Leaves, dict[str, Tensor], ExternalCharges | None]:
    """The differentiation variables, the batch built from them, and the charges outside the model."""
    out, index, positions, cell = dict(batch), batch["batch"], batch["positions"], batch["cell"]
    if not positions.requires_grad:
        positions = positions.detach().requires_grad_()
    external, outside, strain = ExternalCharges.from_batch(batch), None, None
    if external is not None:
        outside = external.positions
        if compute_force and not outside.requires_grad:
            outside = outside.detach().requires_grad_()
        external = dataclasses.replace(external, positions=outside)
    leaf = positions
    if strained:
        cell = cell.view(-1, 3, 3)
        strain = positions.new_zeros(len(cell), 3, 3).requires_grad_()
        symmetric = 0.5 * (strain + strain.mT)
        positions = positions + torch.einsum("ni,nij->nj", positions, symmetric[index])
        cell = cell + cell @ symmetric
        if external is not None:
            moved = torch.einsum("ni,nij->nj", external.positions, symmetric[external.index])
            external = dataclasses.replace(external, positions=external.positions + moved)
        edge_system = index[batch["edge_index"][1]]
        out["shifts"] = torch.einsum("ei,eij->ej", batch["unit_shifts"], cell[edge_system])
    if external is not None:  # for rules whose network reads them from the batch
        out["external_positions"] = external.positions
    out["positions"], out["cell"] = positions, cell.reshape(-1, 3)
    return Leaves(leaf, outside, strain), out, external


class Model(torch.nn.Module):
    """
    Energy, forces, stress, charges and more, for batches in mace-torch's layout.

    ``E = E0 + E_backbone + E_electrostatic[state] + E_response[state]``; the charge rule determines the
    state. Forces and stress are exact derivatives at the converged state.

    Args:
        config: The configuration.
        backbone: The network; a new one with random weights if None.

    Example:
        >>> import ase.build, torch
        >>> from scfmlip.mace_torch.batches import make_batch
        >>> from scfmlip.models import build
        >>> backbone = {"hidden_irreps": "4x0e", "max_ell": 1, "correlation": 1, "num_interactions": 1}
        >>> values = {"elements": ["H", "O"], "rule": "equilibrated", "constraint": "charge"}
        >>> model = build({**values, "backbone": backbone, "density": {"l_max": 0}})
        >>> water = ase.build.molecule("H2O")
        >>> water.info["charge"] = 0
        >>> out = model(make_batch(model, [water], torch.device("cpu"), torch.float32))
        >>> out["energy"].shape, out["forces"].shape, abs(round(float(out["charges"].sum()), 4))
        (torch.Size([1]), torch.Size([3, 3]), 0.0)
    """

    # captured steps, see `with_cuda_graphs`
    _graphs: StepGraphs | None = None

    def __init__(self, config: ModelConfig, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.config = config
        # of the card that is saved: data, errors, source
        self.provenance: dict[str, Any] = {}
        kind = rule_class(name_of(config.rule))
        self._check_constraint()
        self.backbone = backbone = kind.build_backbone(config) if backbone is None else backbone
        context = RuleContext(
            config.elements,
            backbone.irreps,
            config.backbone.r_max,
            config.backbone.avg_num_neighbors,
            config.density,
            config.constraint,
            config.backbone,
        )
        self.rule: ChargeRule = accelerate_blocks(kind(config.rule, context))

    @property
    def pads_cell(self) -> bool:
        """Whether batches need mace-torch's long cells along open directions instead of the frames' own."""
        return self.rule.pads_cell(self.config.rule)

    @property
    def card(self) -> dict[str, Any]:
        """What a file of it would say of itself: elements, rule, cutoff, units, data, versions."""
        count = sum(p.numel() for p in self.parameters())
        dtype = str(next(self.parameters()).dtype).removeprefix("torch.")
        return card_of(self.config, count, getattr(self, "provenance", None)) | {"dtype": dtype}

    def __repr__(self) -> str:
        """What it is, in a few lines; ``torch.nn.Module.__repr__(model)`` lists its layers."""
        rows = describe_card(self.card)
        lines = [f"  {name}: {value}" for name, value in rows if name not in ("units", "written by")]
        return "\n".join(["scfmlip model", *lines])

    @property
    def atomic_numbers(self) -> Tensor:
        """``[n_elements]`` int64."""
        return self.backbone.mace.atomic_numbers  # type: ignore[return-value]

    @property
    def r_max(self) -> Tensor:
        """Cutoff, angstrom."""
        return self.backbone.mace.r_max  # type: ignore[return-value]

    @property
    def heads(self) -> list[str]:
        """Names of the energy heads."""
        return list(self.config.backbone.heads)

    @property
    def required_info(self) -> tuple[str, ...]:
        """Keys of ``atoms.info`` that a frame needs: "charge", "spin", "fermi_level"."""
        return tuple(INPUTS[key].names[0] for key in required_inputs(self.config) if key in INPUTS)

    @property
    def embedding_specs(self) -> dict[str, Any]:
        """mace-torch's description of what its network embeds, by name."""
        return dict(self.config.backbone.options.get("embedding_specs") or {})

    @property
    def captures_steps(self) -> bool:
        """Whether its steps are captured, see `with_cuda_graphs`."""
        return self._graphs is not None

    @property
    def has_charges(self) -> bool:
        """Whether the model has a charge density."""
        return name_of(self.config.rule) != "short_range"

    def with_constraint(self, constraint: Constraint) -> Model:
        """
        The same model with another constraint, for instance a given Fermi level; weights are shared.

        Raises:
            ValueError: for a constraint that the rule does not support.
        """
        other = copy.copy(self)
        other._modules = dict(self._modules)
        other._graphs = None if self._graphs is None else StepGraphs()
        other.config = dataclasses.replace(self.config, constraint=constraint)
        rule = copy.copy(self.rule)
        rule.context = dataclasses.replace(rule.context, constraint=constraint)
        other._check_constraint()
        other.rule = rule
        return other

    def with_cuda_graphs(self) -> Model:
        """
        The same model, whose steps on a GPU are captured as CUDA graphs; weights are shared.

        For dynamics, whose atoms, cell and weights stay. Charges that are solved for take as many iterations
        as in the last step that was not captured, and one more for each eight; where they have not converged
        by then, that step is made as usual and captured anew. Results have no graph of autograd; calls with
        ``training=True``, for responses, with a solver memory or of ranks that share a system run as usual.

        Raises:
            ValueError: without CUDA.
        """
        check_cuda()
        graphed = copy.copy(self)
        graphed._graphs = StepGraphs()
        return graphed

    def __call__(self, batch: dict[str, Tensor], *args: Any, **options: Any) -> dict[str, Tensor | None]:
        """`forward`, as a CUDA graph for a model of `with_cuda_graphs`."""
        starts = {k: options[k] for k in _STARTS if isinstance(options.get(k), Tensor)}
        rest = {k: v for k, v in options.items() if k not in starts}
        plain = args or any(not isinstance(v, bool | None) for k, v in rest.items() if k != "scf")
        if self._graphs is None or plain or torch.compiler.is_compiling():
            return super().__call__(batch, *args, **options)
        return self._graphs.step(self, self._from_starts, {**batch, **starts}, rest)

    def _from_starts(self, batch: dict[str, Tensor], **options: Any) -> dict[str, Tensor | None]:
        """`forward` of a batch that holds first guesses as well."""
        starts = {k: batch[k] for k in _STARTS if k in batch}
        return super().__call__({k: v for k, v in batch.items() if k not in starts}, **starts, **options)

    def capture_token(self, batch: dict[str, Tensor]) -> tuple | None:
        """What a captured step depends on besides shapes and weights; None where it cannot be captured."""
        if ExternalCharges.from_batch(batch) is not None:
            return None
        seen = look_at(batch, self.rule)
        plans = seen.plans.known
        if any(plan.near is not None for plan in plans):  # neighbours are listed on the host
            return None
        return (seen.field, seen.periodic is None, *plans)

    def _check_constraint(self) -> None:
        kind, constraint = rule_class(name_of(self.config.rule)), self.config.constraint
        if self.config.density.l_max > kind.highest_multipole:
            raise ValueError(
                f"the rule {name_of(self.config.rule)!r} has multipoles up to l = {kind.highest_multipole}: "
                f"set density.l_max lower than {self.config.density.l_max}"
            )
        if constraint not in kind.constraints:
            raise ValueError(
                f"the rule {name_of(self.config.rule)!r} does not take constraint={constraint!r}; it takes "
                f"{', '.join(map(repr, kind.constraints))}"
            )

    @leaves_inference_mode
    @together()
    def evaluate_density(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor | None], RuleDensity]:
        """
        Outputs without derivatives, and the density, for potentials and densities at points.

        Args:
            batch: See `forward`.

        Returns:
            Outputs, and the density. ``density.geometry.at(points, density.rows)`` includes the density and
            the external field, but not the potential of external charges.

        Raises:
            ValueError: for a model without a density.
        """
        self._check_kind(batch)
        with torch.no_grad():
            cell = batch["cell"].view(-1, 3, 3)
            seen = look_at(batch, self.rule)
            field = self._field(batch, seen.field)
            external = ExternalCharges.from_batch(batch)
            known = {"external": external, "seen": seen}
            system = make_system(dict(batch), cell, field, self.config, self.rule, "converged", None, **known)
            out, density = self._energies(batch, system, False)
        if density is None or density.geometry is None:
            raise ValueError(f"the rule {name_of(self.config.rule)!r} has no density at points")
        return out, density

    @leaves_inference_mode
    @together()
    def forward(
        self,
        batch: dict[str, Tensor],
        training: bool = False,
        compute_force: bool = True,
        compute_virials: bool = False,
        compute_stress: bool = False,
        compute_potential: bool = False,
        compute_response: bool = False,
        compute_stability: bool = False,
        scf: Scf = "converged",
        initial_density: Tensor | None = None,
        initial_level: Tensor | None = None,
        solver_memory: SolverMemory | None = None,
        domain: Domain | None = None,
    ) -> dict[str, Tensor | None]:
        """
        Evaluate a batch; works in the same way under ``torch.no_grad`` and ``torch.inference_mode``.

        Args:
            batch: From `scfmlip.mace_torch.batches.make_batch`, or from mace-torch's own loader (which makes
                open directions of slabs very long, and therefore slow). It holds ``positions``,
                ``node_attrs``, ``edge_index``, ``shifts``, ``unit_shifts``, ``cell``, ``pbc``, ``batch``,
                ``ptr``. If the rule needs them: ``total_charge [n_systems]`` e and
                ``fermi_level [n_systems]`` eV. Optional: ``counter_charge [n_systems, 2]`` of slabs;
                ``external_charges [n_external]`` e at ``external_positions [n_external, 3]`` with
                ``n_external [n_systems]`` int64 per system, see `ExternalCharges`;
                ``external_field [n_systems, 3]`` V/angstrom in mace's sign, energy + field . dipole.
                ``density_coefficients`` is the density to step from with ``scf="direct"``.
            training: Keep the graph of forces and stress for a loss.
            compute_force: Whether to compute forces.
            compute_virials: Whether to compute virials.
            compute_stress: Whether to compute the stress, for the volume of the batch's cell times its
                ``volume_share [n_systems]`` if given; zero without a volume.
            compute_potential: Also return ``electrostatic_potential``.
            compute_response: Also return ``born_charges`` and ``polarizability``, see
                `scfmlip.models.response`.
            compute_stability: Also return ``scf_amplification [n_systems]``, the squared factor by which a
                fixed point's update amplifies a random perturbation of the state; differentiable.
            scf: "converged", or "direct" for one update from the given density, for rules that support it.
            initial_density: ``[n_atoms, dim]`` rows ``[q, d_y, d_z, d_x]`` as the first guess of the solve,
                for instance the last step's density; not differentiated.
            initial_level: ``[n_systems]`` eV, the ``fermi_level`` that belongs to it. At given charge fixed
                points solve for the level too, and a density alone is a poor first guess.
            solver_memory: Of the call for the last step, or an empty `scfmlip.scf.SolverMemory`; the output
                ``solver_memory`` is for the next step's. For "fixed_point" and "equilibrated" only.
            domain: The batch is this rank's part of one system that several ranks share, who all call this
                together. Results of systems are then those of the whole, of atoms those of own ones.

        Returns:
            mace-torch's names: ``energy``, ``interaction_energy``, ``electrostatic_energy``,
            ``response_energy`` ``[n_systems]`` eV; ``node_energy`` ``[n_atoms]`` eV of the backbone;
            ``forces`` and ``external_forces`` (on external charges) eV/angstrom; ``stress`` and ``virials``
            ``[n_systems, 3, 3]``; ``charges`` e, ``density_coefficients`` rows ``[q, d_y, d_z, d_x]`` (then
            quadrupoles, see `GaussianMultipoles`), ``dipole [n_systems, 3]`` e angstrom (without external
            charges; in a periodic system it depends on where the cell is cut), ``total_charge``,
            ``fermi_level`` (of the electrons, eV: minus the energy of adding a charge of 1 e),
            ``electrostatic_potential [n_atoms]`` V (of all other atoms and the external field, averaged over
            the atom's Gaussian); ``scf_iterations``, ``scf_residual``, ``scf_status``, and extra outputs of
            the rule. Outputs that the rule does not have are missing.

        Raises:
            ValueError: for a batch that lacks inputs of the rule, a system that the boundary condition does
                not allow, or weights made in inference mode.
            TypeError: for a batch with another dtype or device than the weights.
            ConvergenceError: for a solve that failed; names the systems.
        """
        self._check_kind(batch, domain)
        with torch.enable_grad():
            leaves, strained, external = _strain(batch, compute_force, compute_stress or compute_virials)
            seen = look_at(batch, self.rule, domain)
            field = self._field(batch, seen.field or compute_response, compute_response)
            if field is not None:
                strained["external_field"] = -field
            system = make_system(
                strained,
                strained["cell"].view(-1, 3, 3),
                field,
                self.config,
                self.rule,
                scf,
                initial_density,
                compute_stability,
                external,
                initial_level,
                domain,
                seen,
                solver_memory,
            )
            out, _ = self._energies(strained, system, compute_potential)
            if compute_response:
                self._add_response(out, leaves.positions, field, system, training)
            self._add_derivatives(out, leaves, batch, compute_force, training, domain)
        if not training:
            out = {k: v.detach() if isinstance(v, Tensor) else v for k, v in out.items()}
        return out

    @staticmethod
    def _add_derivatives(
        out: dict[str, Tensor | None],
        leaves: Leaves,
        batch: dict[str, Tensor],
        compute_force: bool,
        training: bool,
        domain: Domain | None,
    ) -> None:
        """Forces, forces on external charges and stress, as requested."""
        wanted = {"forces": leaves.positions, "external_forces": leaves.external} if compute_force else {}
        found = {
            name: leaf for name, leaf in {**wanted, "virials": leaves.strain}.items() if leaf is not None
        }
        if not found:
            return
        energy = out["interaction_energy"]
        assert energy is not None
        grads = torch.autograd.grad(
            # ranks differentiate the same energy together, a part of it each
            energy.sum() if domain is None else energy.sum() / domain.size,
            list(found.values()),
            create_graph=training,
            retain_graph=training,
            materialize_grads=True,
        )
        out.update({name: -grad for name, grad in zip(found, grads, strict=True)})
        if domain is not None and leaves.external is not None and compute_force:
            # each rank has its share of the external charges
            found_outside = out["external_forces"]
            assert found_outside is not None
            out["external_forces"] = all_reduce(found_outside, domain.communicator)
        if leaves.strain is not None:
            virials = -grads[-1]
            if domain is not None:
                virials = out["virials"] = all_reduce(virials, domain.communicator)
            out["stress"] = stress_of(virials, batch)

    def _check_kind(self, batch: dict[str, Tensor], domain: Domain | None = None) -> None:
        positions, weight = batch["positions"], next(self.parameters())
        if positions.dtype != weight.dtype or positions.device != weight.device:
            raise TypeError(
                f"the batch is {positions.dtype} on {positions.device}, the model {weight.dtype} on "
                f"{weight.device}: make the batch with the model's dtype and device, or move one of them"
            )
        if not len(positions) and domain is None:
            raise ValueError("the batch has no atoms: leave out frames without any")
        if batch["pbc"].dtype != torch.bool:
            raise TypeError(
                f"pbc of a batch is bool, T or F along each lattice vector; got {batch['pbc'].dtype}"
            )
        if weight.is_inference():
            raise ValueError(
                "the model's weights were created under torch.inference_mode, which rules out derivatives: "
                "build or load the model outside it; calling it inside is fine"
            )

    @staticmethod
    def _field(batch: dict[str, Tensor], needed: bool, leaf: bool = False) -> Tensor | None:
        """The physical external field (a charge q feels the force q E), if it is needed."""
        if not needed:
            return None
        field = batch.get("external_field")
        if field is None:
            field = batch["positions"].new_zeros(len(batch["ptr"]) - 1, 3)
        field = -field.to(batch["positions"].dtype).view(-1, 3)
        return field.detach().requires_grad_() if leaf else field

    def _add_response(
        self,
        out: dict[str, Tensor | None],
        positions: Tensor,
        field: Tensor | None,
        system: System,
        training: bool,
    ) -> None:
        charges, dipole = out.get("charges"), out.get("dipole")
        if charges is None or dipole is None or field is None:
            raise ValueError("compute_response needs charges: this model's rule is 'short_range'")
        gauge_free = self.rule.gauge_free_dipole
        out["born_charges"] = born_charges(charges, dipole, positions, system, gauge_free, training)
        out["polarizability"] = polarizability(dipole, field, system, training)

    def _energies(
        self, batch: dict[str, Tensor], system: System, potential: bool
    ) -> tuple[dict[str, Tensor | None], RuleDensity | None]:
        """All outputs that are not derivatives, and the density."""
        network = self.backbone(batch, system.domain, system.edge_vectors)
        system = dataclasses.replace(system, network=network.raw, features=network.features)
        result = self.rule(system)
        energy, interaction = network.energy, network.interaction_energy
        for part in result.energies.added():
            energy, interaction = energy + part, interaction + part
        out: dict[str, Any] = {
            "energy": energy,
            "interaction_energy": interaction,
            "node_energy": network.node_energy,
            "electrostatic_energy": result.energies.electrostatic,
            "response_energy": result.energies.response,
        }
        density = result.density
        if density is not None:
            rows = density.multipoles
            order = tuple(E3NN_ROWS_FROM_CARTESIAN[: rows.shape[1]])
            out["charges"] = rows[:, 0]
            out["density_coefficients"] = rows.index_select(1, constant(order, torch.int64, rows.device))
            moments = rows[:, :1] * system.positions
            moments = moments + rows[:, 1:4] if rows.shape[1] > 1 else moments
            # in one sum, which ranks that share a system make together
            sums = system.sum(torch.cat((rows[:, :1], moments), 1))
            out["total_charge"] = sums[:, 0]
            out["dipole"] = sums[:, 1:] if density.dipole is None else density.dipole
            if potential and density.geometry is not None:
                out["electrostatic_potential"] = density.potential(system)
        out.update(result.extra)
        return {key: value for key, value in out.items() if value is not None}, density
