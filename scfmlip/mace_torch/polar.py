"""
MACE-POLAR's forward pass on our Coulomb operator.

The steps are those of ``mace.modules.extensions.PolarMACE`` (Batatia et al., arXiv:2602.19411): a MACE
backbone; charges of two spin channels from every layer, corrected to the system's charge and spin by Fukui
weights; a fixed number of recursion steps that feed the potential of the charges back; then electron,
electrostatic and field energies. Here both spin channels share one pass over the wave vectors, phases are not
stored, and positions and cell carry the strain, so the stress is complete. Charges outside the model, which
the reference does not have,
act like its external field: half of their potential's features on either spin channel, and all of it in the
energy.
"""

# mace-torch's modules are untyped: for torch.nn.Module every attribute is Tensor | Module
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any, ClassVar, NamedTuple

import torch
from mace.modules.extensions import PolarMACE
from mace.modules.utils import get_atomic_virials_stresses, get_outputs, prepare_graph
from torch import Tensor

from ..distributed import Halo, shared_segments
from ..electrostatics import Coulomb, Geometry
from ..electrostatics.external import Embedding, ExternalCharges
from ..electrostatics.kept import kept_plans
from ..segments import Segments
from ..types import BoundaryName
from ..waiting import together
from .edge_graph import prepare_edges
from .graphs import stress_of
from .joined import join, joining
from .kept import kept_of_buffers
from .packed import packed
from .polar_blocks import FastFeatureMixer, find_block_swaps, maps_of_layer, parameters_to_pack
from .polar_rows import (
    centred,
    closed_charges,
    dipoles_and_charges,
    field_energies,
    half_field_features,
    in_e3nn_order,
    of_both_spins,
    spin_targets,
    strained_cells,
    system_sums,
)
from .polar_slabs import warn_of_slabs
from .polar_tables import PolarSums
from .swapped import SwappedModel, Swaps, not_compiled
from .turned import Turn, orientation, prepare_upright
from .whole import WHOLE_MODELS

# Versions whose PolarMACE.forward was compared with this one.
KNOWN_VERSIONS = ("0.3.16",)


def check_polar_version() -> None:
    """Refuse mace-torch versions whose PolarMACE was not compared with this forward pass."""
    version = importlib.metadata.version("mace-torch")
    if version not in KNOWN_VERSIONS:
        raise RuntimeError(
            f"accelerate supports PolarMACE of mace-torch {' and '.join(KNOWN_VERSIONS)}, this is "
            f"{version}: results could differ. Install a supported one, or use the model unaccelerated"
        )


class Layers(NamedTuple):
    """
    Output of the backbone for a batch.

    Attributes:
        node_e0: ``[n_atoms]`` eV of isolated atoms.
        node_energy: ``[n_atoms]`` eV of all layers.
        features: ``[n_atoms, .]`` of each layer.
        charges: ``[n_atoms, 2 (l + 1)^2]`` first multipoles of both spins.
        edge_attrs: ``[n_edges, .]`` harmonics, as far as field updates use them.
        edge_feats: ``[n_edges, .]`` radial features.
    """

    node_e0: Tensor
    node_energy: Tensor
    features: list[Tensor]
    charges: Tensor
    edge_attrs: Tensor
    edge_feats: Tensor


class FastPolarMACE(SwappedModel, PolarMACE):
    """`PolarMACE`: same call, outputs and state dict; made by `scfmlip.accelerate`."""

    _scfmlip_original = PolarMACE
    # boundary of each system by itself, independent of the batch
    _scfmlip_boundary: BoundaryName = "separate"

    def _coulomb(self, use_pbc_evaluator: bool) -> Coulomb:
        """The operator."""
        cutoff = self.kspace_cutoff
        assert isinstance(cutoff, Tensor)
        return Coulomb(
            l_max=self.atomic_multipoles_max_l,
            sigma=self.atomic_multipoles_smearing_width,
            boundary="mixed_periodic" if use_pbc_evaluator else self._scfmlip_boundary,
            kspace_cutoff=kept_of_buffers(self, "cutoff", [cutoff], lambda: float(cutoff)),
            compat="graph_longrange",
            order="e3nn",
        )

    def capture_token(self, data: dict[str, Any]) -> tuple | None:
        """The plan; None for charges outside the model, and for slabs that may have to be turned."""
        if ExternalCharges.from_batch(data) is not None or "lammps_class" in data:
            return None
        cell, pbc = _strained_cell(data, None), data["pbc"].view(-1, 3)
        given = data["positions"], cell, pbc, _segments(data, False)
        plans, _ = kept_plans(self).look(*given)
        if "slab_axis" in data and orientation(cell, pbc, plans)[0]:
            return None
        return (plans.plan(self._coulomb(False)),)

    def _geometry(
        self,
        data: dict[str, Tensor],
        displacement: Tensor | None,
        segments: Segments,
        use_pbc_evaluator: bool,
    ) -> tuple[Geometry, Turn | None]:
        """The Coulomb operator at the (strained) positions and cell, and the rotation of its slabs."""
        coulomb = self._coulomb(use_pbc_evaluator)
        positions, cell = data["positions"], _strained_cell(data, displacement)
        pbc = data["pbc"].view(-1, 3)
        plans, _ = kept_plans(self).look(positions, cell, pbc, segments)
        warn_of_slabs(self, data, plans)
        if "slab_axis" in data:
            return prepare_upright(coulomb, positions, cell, pbc, segments, plans)
        return coulomb.prepare(positions, cell, plan=plans.plan(coulomb)), None

    def _embedding(
        self, data: dict[str, Tensor], displacement: Tensor | None, segments: Segments
    ) -> Embedding | None:
        """The action of charges outside the model, exact for every boundary; None without such charges."""
        external = ExternalCharges.from_batch(data)
        if external is None:
            return None
        if displacement is not None:
            strain = (0.5 * (displacement + displacement.mT))[external.index]
            moved = torch.einsum("ni,nij->nj", external.positions, strain)
            external = dataclasses.replace(external, positions=external.positions + moved)
        coulomb = Coulomb(
            l_max=self.atomic_multipoles_max_l,
            sigma=self.atomic_multipoles_smearing_width,
            feature_widths=self.field_feature_widths,
            order="e3nn",
        )
        pbc, cell = data["pbc"].view(-1, 3), _strained_cell(data, displacement)
        return Embedding(coulomb, external, data["positions"], cell, pbc, segments, None)

    @not_compiled("PolarMACE")
    @together()
    def forward(
        self,
        data: dict[str, Tensor],
        training: bool = False,
        compute_force: bool = True,
        compute_virials: bool = False,
        compute_stress: bool = False,
        compute_displacement: bool = False,
        compute_hessian: bool = False,
        compute_edge_forces: bool = False,
        compute_atomic_stresses: bool = False,
        lammps_mliap: bool = False,
        use_pbc_evaluator: bool = False,
        fermi_level: Tensor | None = None,
        external_field: Tensor | None = None,
    ) -> dict[str, Tensor | None]:
        """Arguments and results of ``PolarMACE.forward``; ``stress`` includes the long-range part."""
        segments = _segments(data, lammps_mliap)
        strained = compute_virials or compute_stress or compute_displacement
        data = dict(data)  # prepare_graph writes strained positions into it
        leaf = data["positions"]
        of_edges = compute_edge_forces or compute_atomic_stresses
        wanted = (compute_virials, compute_stress, compute_displacement, lammps_mliap)
        ctx = (
            prepare_graph(data, *wanted) if of_edges else prepare_edges(data, *wanted, strain_positions=True)
        )
        fermi_level = data["fermi_level"] if fermi_level is None else fermi_level
        field = data["external_field"] if external_field is None else external_field
        displacement = ctx.displacement if strained else None
        with packed(parameters_to_pack(self) if leaf.is_cuda else {}), joining():
            layers = self._layers(data, ctx)
            sums = PolarSums(self, *self._geometry(data, displacement, segments, use_pbc_evaluator))
            embedding = self._embedding(data, displacement, segments)
            charges, first, features = self._recursion(data, layers, field, sums, embedding, segments)
            out = self._energies(data, layers, charges, first, features, field, sums, embedding, segments)
        forces, virials, stress, hessian, edge_forces = get_outputs(
            energy=out["energy"],
            positions=leaf,
            displacement=ctx.displacement,
            vectors=ctx.vectors,
            cell=ctx.cell,
            training=training,
            compute_force=compute_force,
            compute_virials=compute_virials,
            compute_stress=compute_stress,
            compute_hessian=compute_hessian,
            compute_edge_forces=compute_edge_forces or compute_atomic_stresses,
        )
        if compute_stress and "volume_share" in data:
            stress = stress_of(virials, data)
        atomic_virials = atomic_stresses = None
        if compute_atomic_stresses and edge_forces is not None:
            atomic_virials, atomic_stresses = get_atomic_virials_stresses(
                edge_forces=edge_forces,
                edge_index=data["edge_index"],
                vectors=ctx.vectors,
                num_atoms=len(leaf),
                batch=data["batch"],
                cell=ctx.cell,
            )
            if "volume_share" in data:
                atomic_stresses = stress_of(atomic_virials, data, data["batch"])
        return {
            **out,
            "forces": forces,
            "edge_forces": edge_forces,
            "virials": virials,
            "stress": stress,
            "atomic_virials": atomic_virials,
            "atomic_stresses": atomic_stresses,
            "hessian": hessian,
            "displacement": ctx.displacement,
            "fermi_level": torch.zeros_like(fermi_level),
            "external_field": field,
        }

    def _mul_ir(self, values: Tensor) -> Tensor:
        """Multipoles in the order of the Coulomb operator."""
        convert = getattr(self, "_charges_to_mul_ir", None)
        return values if convert is None else convert(values)

    def _layers(self, data: dict[str, Tensor], ctx: Any) -> Layers:
        """Run the MACE backbone, and read energy and charges from each of its layers."""
        atoms, heads = ctx.num_atoms_arange, ctx.node_heads
        single = len(self.heads) == 1
        node_e0 = self.atomic_energies_fn(data["node_attrs"])
        node_e0 = node_e0[: len(atoms)].flatten() if single else node_e0[atoms, heads]
        node_feats = self.node_embedding(data["node_attrs"])
        edge_attrs = self.spherical_harmonics(in_e3nn_order(ctx.vectors))
        edge_feats, cutoff = self.radial_embedding(
            ctx.lengths, data["node_attrs"], data["edge_index"], self.atomic_numbers
        )
        features: list[Tensor] = []
        energies: list[Tensor] = []
        charges: list[Tensor] = []
        attrs, given = data["node_attrs"], ctx.interaction_kwargs
        # ghosts stand behind the atoms of this process, in the first layer only
        own = attrs if len(attrs) == len(atoms) else attrs[: len(atoms)]
        for i, (interaction, product, source) in enumerate(
            zip(self.interactions, self.products, self.lr_source_maps, strict=True)
        ):
            node_feats, skip = interaction(
                node_attrs=attrs if i == 0 else own,
                node_feats=node_feats,
                edge_attrs=edge_attrs,
                edge_feats=edge_feats,
                edge_index=data["edge_index"],
                cutoff=cutoff,
                first_layer=(i == 0),
                lammps_class=given.lammps_class,
                lammps_natoms=given.lammps_natoms,
            )
            node_feats = product(node_feats=node_feats, sc=skip, node_attrs=own)
            features.append(node_feats)
            if node_feats.is_cuda:
                join(node_feats, maps_of_layer(self, i), ("maps", i))
            readout = self.readouts[min(i, len(self.readouts) - 1)]
            each = readout(node_feats, heads)
            energies.append(each.flatten() if single else each[atoms, heads])
            charges.append(source(node_feats).squeeze(-2))
        total = sum(energies[1:], energies[0])
        return Layers(
            node_e0,
            self._scaled(total) if single else self.scale_shift(total, heads),
            features,
            sum(charges[1:], charges[0]),
            edge_attrs[:, : self.from_ell_max_field_update],
            edge_feats,
        )

    def _scaled(self, energies: Tensor) -> Tensor:
        """The energies of models with one head, scaled and shifted."""
        return torch.addcmul(self.scale_shift.shift, energies, self.scale_shift.scale)

    def _features_of_field(self, positions: Tensor, field: Tensor, segments: Segments) -> Tensor:
        """``[n_atoms, 2 n_features]`` half the features of a field on either spin, over their norms."""
        matrix: Any = self.external_field_contribution.matrix
        norms: Any = self.field_feature_norms
        values = kept_of_buffers(self, "field", [matrix, norms], lambda: _host(matrix, norms))
        return half_field_features(positions, field, segments, *values)

    def _recursion(
        self,
        data: dict[str, Tensor],
        layers: Layers,
        field: Tensor,
        sums: PolarSums,
        embedding: Embedding | None,
        segments: Segments,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Update the charges from their potential, a fixed number of times.

        Returns:
            ``[n_atoms, 2, (l + 1)^2]`` final and initial charges of both spins, and the features of the last
            potential.
        """
        positions, attrs = data["positions"], data["node_attrs"]
        attrs = attrs if len(attrs) == segments.n_rows else attrs[: segments.n_rows]
        dtype = layers.edge_attrs.dtype
        targets = spin_targets(data, dtype)
        fukui_input = layers.features[-1]
        if getattr(self, "_fukui_to_mul_ir", None) is not None:
            fukui_input = self._fukui_to_mul_ir(fukui_input)
        weights = self.fukui_source_map(fukui_input)
        first = charges = closed_charges(layers.charges, weights, targets, segments)
        mixer: Any = self.layer_feature_mixer
        known = isinstance(mixer, FastFeatureMixer)
        mixed = mixer(layers.features if known else torch.stack(layers.features))
        outside = self._features_of_field(centred(positions, segments).to(dtype), field, segments)
        from_mul_ir = getattr(self, "_field_from_mul_ir", None) or (lambda values: values)
        norms = self.field_feature_norms.repeat(2)
        if embedding is not None:
            more = 0.5 * from_mul_ir(embedding.features(self.field_feature_widths, self.field_feature_max_l))
            outside = outside + more.repeat(1, 2) / norms
        features = outside
        if not len(self.field_dependent_charges_maps):
            features = positions.new_zeros((len(positions), self.potential_irreps.dim))
        for update in self.field_dependent_charges_maps:
            both = sums.features(self._mul_ir(charges.unflatten(1, (2, -1))))
            features = torch.addcdiv(outside, from_mul_ir(both).flatten(1), norms)
            change = update(
                node_attrs=attrs,
                node_feats=mixed,
                edge_attrs=layers.edge_attrs,
                edge_feats=layers.edge_feats,
                edge_index=data["edge_index"],
                potential_features=features,
                local_charges=charges,
            )
            charges = closed_charges(charges, change, targets, segments)
        charges, first = (rows.unflatten(1, (2, -1)) for rows in (charges, first))
        return charges, first, features

    def _energies(
        self,
        data: dict[str, Tensor],
        layers: Layers,
        charges: Tensor,
        first: Tensor,
        features: Tensor,
        field: Tensor,
        sums: PolarSums,
        embedding: Embedding | None,
        segments: Segments,
    ) -> dict[str, Tensor | None]:
        """Density and energies, under the names of PolarMACE's outputs."""
        electrons = self.local_electron_energy(
            node_attrs=data["node_attrs"][: segments.n_rows],
            node_feats=layers.features[-1],
            edge_attrs=layers.edge_attrs,
            edge_feats=layers.edge_feats,
            edge_index=data["edge_index"],
            field_feats=features,
            charges_0=first.flatten(1),
            charges_induced=charges.flatten(1),
        )
        parts = (electrons, layers.node_energy, layers.node_e0)
        electron_energy, interaction, e0 = system_sums(segments, *parts)
        if not self.add_local_electron_energy:
            electron_energy = torch.zeros_like(electron_energy)
        spins = self._mul_ir(charges)
        density, spin_density = of_both_spins(spins, 1), of_both_spins(spins, -1)
        electrostatic = sums.energy(density)
        if embedding is not None:
            electrostatic = electrostatic + segments.sum((density * embedding.potential()).sum(1))
        dipole, total_charge = dipoles_and_charges(spins, data["positions"], segments)
        total = e0.to(interaction.dtype) + interaction + electron_energy
        return {
            "energy": total + electrostatic + field_energies(field, dipole),
            "node_energy": layers.node_e0.double() + layers.node_energy.double(),
            "interaction_energy": interaction,
            "node_feats": torch.cat(layers.features, -1),
            "density_coefficients": density,
            "spin_density": spin_density,
            "charges_history": spins.detach().clone()[..., None],
            "charges": density[:, 0],
            "spins": spin_density[:, 0],
            "dipole": dipole,
            "total_charge": total_charge,
            "electrostatic_energy": electrostatic,
            "electron_energy": electron_energy,
            "electrostatic_potentials": None,
            "spin_charge_density": spins,
        }


class FastPolarMACEAsInMace(FastPolarMACE):
    """The same with ``compat="mace"``, see `scfmlip.accelerate`."""

    _scfmlip_original = PolarMACE
    _scfmlip_options: ClassVar[dict[str, Any]] = {"compat": "mace"}
    _scfmlip_boundary: BoundaryName = "auto"


def find_polar_swaps(model: torch.nn.Module, compat: str | None) -> tuple[Swaps, dict[int, str]]:
    """
    Modules to replace in a PolarMACE besides its backbone, and modules that stay, as in `find_swaps`.

    Raises:
        RuntimeError: for a mace-torch version whose PolarMACE was not compared.
    """
    check_polar_version()
    swaps, left = find_block_swaps(model)
    if type(model) in (PolarMACE, WHOLE_MODELS[PolarMACE]):
        swaps[id(model)] = (FastPolarMACE if compat is None else FastPolarMACEAsInMace, {})
    elif not isinstance(model, FastPolarMACE):
        left[id(model)] = "a subclass of PolarMACE with its own forward, including its electrostatics"
    return swaps, left


def _segments(data: dict[str, Any], lammps_mliap: bool) -> Segments:
    """The system of each atom, of one that processes share where there is a halo in an engine's place."""
    halo = data.get("lammps_class")
    if isinstance(halo, Halo):
        return shared_segments(halo.n_owned, halo.communicator, data["positions"].device)
    if lammps_mliap:
        raise NotImplementedError(
            "accelerated PolarMACE has no ML-IAP mode: its sums run over all atoms of a system, which ML-IAP "
            "does not hand over. scfmlip.interfaces.lammps.attach runs it in LAMMPS"
        )
    return Segments(data["ptr"], data["batch"])


def _strained_cell(data: dict[str, Tensor], displacement: Tensor | None) -> Tensor:
    """``[n_systems, 3, 3]`` strained cells of a batch whose positions are strained already."""
    return strained_cells(data["cell"].view(-1, 3, 3), displacement).to(data["positions"].dtype)


def _host(matrix: Tensor, norms: Tensor) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]:
    """The features of fields and their norms as numbers."""
    rows = matrix.detach().to("cpu", torch.float64).tolist()
    return tuple(map(tuple, rows)), tuple(norms.detach().to("cpu", torch.float64).tolist())
