"""Convert a batch in mace-torch's layout to the input of charge rules, with all checks."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from scfmlip_kernels.constants import constant

from ..distributed import Domain, shared_segments
from ..electrostatics.checks import check_finite
from ..electrostatics.external import ExternalCharges
from ..electrostatics.kept import Plans, kept_plans
from ..scf import SolverMemory
from ..segments import Segments
from ..types import CARTESIAN_ROWS_FROM_E3NN
from ..waiting import any_bad, when
from .config import ModelConfig
from .rules import ChargeRule, System, name_of

Scf = Literal["converged", "direct"]
# inputs that a batch must hold for each constraint
REQUIRED = {
    "none": (),
    "charge": ("total_charge",),
    "charge_spin": ("total_charge", "total_spin"),
    "fermi_level": ("fermi_level",),
}


def required_inputs(config: ModelConfig) -> tuple[str, ...]:
    """Keys of a batch that a model's energy depends on, through its constraint or its network's embedding."""
    embedded = config.backbone.options.get("embedding_specs") or {}
    return tuple(dict.fromkeys((*REQUIRED[config.constraint], *embedded)))


def _meaningful(cell: Tensor, periodic: Tensor) -> Tensor:
    """``[n_systems, 3, 3]``: a frame's cell has no meaning for a molecule."""
    eye = constant(((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), cell.dtype, cell.device)
    return torch.where(periodic[:, None, None], cell, eye)


def _segments(batch: dict[str, Tensor], domain: Domain | None) -> Segments:
    """The system of each atom."""
    if domain is None:
        return Segments(batch["ptr"], batch["batch"])
    index = batch["batch"]
    return shared_segments(len(index), domain.communicator, index.device)


class Seen(NamedTuple):
    """
    What the host knows of a batch.

    Attributes:
        plans: Plans of Coulomb operators, kept from the model's last call where they hold.
        periodic: ``[n_systems]`` bool, along any direction; None if all are.
        field: Whether there is an external field.
        segments: The system of each atom.
    """

    plans: Plans
    periodic: Tensor | None
    field: bool
    segments: Segments


def look_at(batch: dict[str, Tensor], rule: ChargeRule, domain: Domain | None = None) -> Seen:
    """
    Look at all that the host has to know of a batch, in one wait.

    Raises:
        ValueError: for a periodic direction without a cell vector; names the system and says what to do.
    """
    cell, pbc = batch["cell"].detach().view(-1, 3, 3), batch["pbc"].view(-1, 3)
    positions, field = batch["positions"].detach(), batch.get("external_field")
    # open directions may have no cell vector
    empty = (cell.norm(dim=2) == 0) & pbc
    periodic = pbc.any(1)
    questions = [empty.any(), any_bad(positions), periodic.all()]
    questions += [] if field is None else [field.detach().any()]
    segments = _segments(batch, domain)
    given = positions, _meaningful(cell, periodic), pbc, segments
    plans, (bad, unknown, everywhere, *fields) = kept_plans(rule).look(*given, questions)
    if bad:
        system = int(torch.nonzero(empty.any(1))[0])
        raise ValueError(
            f"system {system} of the batch is periodic along a cell vector of length 0: set atoms.cell, or "
            "atoms.pbc = False"
        )
    if unknown and rule.has_geometry:
        check_finite("positions", positions, "angstrom")
    return Seen(plans, None if everywhere else periodic, any(fields), segments)


def make_system(
    batch: dict[str, Tensor],
    cell: Tensor,
    field: Tensor | None,
    config: ModelConfig,
    rule: ChargeRule,
    scf: Scf,
    initial_density: Tensor | None,
    stability: bool = False,
    external: ExternalCharges | None = None,
    initial_level: Tensor | None = None,
    domain: Domain | None = None,
    seen: Seen | None = None,
    memory: SolverMemory | None = None,
) -> System:
    """
    Make the input of rules, without the network's outputs; arguments as in `Model.forward`, and what
    `look_at` saw of the batch.

    Raises:
        ValueError: for missing or invalid input; names the system and says what to do.
    """
    if scf not in ("converged", "direct"):
        raise ValueError(f"scf must be 'converged' or 'direct', got {scf!r}")
    index, dtype = batch["batch"], batch["positions"].dtype
    n_systems, pbc = len(batch["ptr"]) - 1, batch["pbc"].view(-1, 3)
    if external is not None and not rule.feels_external_charges:
        raise ValueError(
            f"the rule {name_of(config.rule)!r} does not support external charges: leave external_charges "
            "out, or use another rule"
        )
    direct = scf == "direct" and rule.supports_direct
    rows = batch.get("density_coefficients") if direct else initial_density
    if rows is not None or direct:
        rows = _reference_rows(rows, len(index), config.density.l_max, direct).to(dtype)
    seen = look_at(batch, rule, domain) if seen is None else seen
    if seen.periodic is not None:
        cell = _meaningful(cell, seen.periodic)
    sender, receiver = batch["edge_index"]
    positions = batch["positions"]
    everywhere = positions if domain is None else domain.halo.extend(positions)
    vectors = positions[receiver] - everywhere[sender] + batch["shifts"]
    segments = seen.segments
    seen.plans.bind(positions, cell, pbc, segments)
    return System(
        batch=batch,
        network={},
        features=[],
        node_attrs=batch["node_attrs"],
        positions=positions,
        cell=cell,
        pbc=pbc,
        segments=segments,
        edge_index=batch["edge_index"],
        edge_vectors=vectors,
        external_field=field,
        counter_charge=batch.get("counter_charge"),
        external=external,
        reference_density=rows,
        reference_level=_reference_level(initial_level, n_systems, dtype),
        reference_memory=memory,
        direct=direct,
        stability=stability,
        domain=domain,
        plans=seen.plans,
        **_targets(batch, config, scf, n_systems),
    )


def _targets(
    batch: dict[str, Tensor], config: ModelConfig, scf: Scf, n_systems: int
) -> dict[str, Tensor | None]:
    """The values that the constraint fixes, ``[n_systems]`` each; None for the others."""
    dtype = batch["positions"].dtype
    given: dict[str, Tensor | None] = {"total_charge": None, "fermi_level": None}
    for needs in REQUIRED[config.constraint]:
        if batch.get(needs) is None:
            raise ValueError(
                f"the batch lacks {needs} [n_systems], which constraint={config.constraint!r} needs"
            )
        if needs in given:
            given[needs] = batch[needs].to(dtype).view(n_systems)
    if scf == "direct" and given["fermi_level"] is None and batch.get("fermi_level") is not None:
        given["fermi_level"] = batch["fermi_level"].to(dtype).view(n_systems)
    return given


def _reference_level(level: Tensor | None, n_systems: int, dtype: torch.dtype) -> Tensor | None:
    """``[n_systems]`` eV to start from, or None."""
    if level is None:
        return None

    def refuse() -> None:
        raise ValueError(
            f"initial_level must be finite numbers of shape {[n_systems]}, eV, got shape "
            f"{list(level.shape)}: {level.detach().flatten()[:5].tolist()}"
        )

    if level.shape != (n_systems,):
        refuse()
    when(any_bad(level), refuse)
    return level.detach().to(dtype)


def _reference_rows(rows: Tensor | None, n_atoms: int, l_max: int, direct: bool) -> Tensor:
    """Convert a given density from mace-torch's order to Cartesian rows ``[n_atoms, 1 | 4]``."""
    dim = (l_max + 1) ** 2
    name = "density_coefficients of scf='direct'" if direct else "initial_density"
    if rows is None or rows.shape != (n_atoms, dim):
        raise ValueError(
            f"{name} must have shape {[n_atoms, dim]}, rows [q, d_y, d_z, d_x], got "
            f"{None if rows is None else list(rows.shape)}"
        )
    order = constant(tuple(CARTESIAN_ROWS_FROM_E3NN[:dim]), torch.int64, rows.device)
    return rows.detach().index_select(1, order)
