"""Convert a batch in mace-torch's layout to the input of charge rules, with all checks."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..distributed import Domain, shared_segments
from ..electrostatics.external import ExternalCharges
from ..segments import Segments
from ..types import CARTESIAN_ROWS_FROM_E3NN
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
) -> System:
    """
    Make the input of rules, without the network's outputs; arguments as in `Model.forward`.

    Raises:
        ValueError: for missing or invalid input; names the system and says what to do.
    """
    if scf not in ("converged", "direct"):
        raise ValueError(f"scf must be 'converged' or 'direct', got {scf!r}")
    ptr, index, dtype = batch["ptr"], batch["batch"], batch["positions"].dtype
    n_systems = len(ptr) - 1
    pbc = batch["pbc"].view(-1, 3)
    # open directions may have no cell vector
    empty = cell.detach().norm(dim=2) == 0
    if bool((empty & pbc).any()):
        bad = int(torch.nonzero((empty & pbc).any(1))[0])
        raise ValueError(
            f"system {bad} of the batch is periodic along a cell vector of length 0: set atoms.cell, or "
            "atoms.pbc = False"
        )
    if external is not None and not rule.feels_external_charges:
        raise ValueError(
            f"the rule {name_of(config.rule)!r} does not support external charges: leave external_charges "
            "out, or use another rule"
        )
    isolated = ~pbc.any(1)
    if bool(isolated.any()):  # the frame's cell has no meaning for a molecule
        eye = torch.eye(3, dtype=cell.dtype, device=cell.device)
        cell = torch.where(isolated[:, None, None], eye, cell)
    direct = scf == "direct" and rule.supports_direct
    rows = batch.get("density_coefficients") if direct else initial_density
    if rows is not None or direct:
        rows = _reference_rows(rows, len(index), config.density.l_max, direct).to(dtype)
    segments = Segments(ptr, index)
    if domain is not None:
        segments = shared_segments(len(index), domain.communicator, index.device)
        if external is not None:
            raise ValueError("external charges are not known for systems that ranks share: leave them out")
    sender, receiver = batch["edge_index"]
    positions = batch["positions"]
    everywhere = positions if domain is None else domain.halo.extend(positions)
    vectors = positions[receiver] - everywhere[sender] + batch["shifts"]
    return System(
        batch=batch,
        network={},
        features=[],
        node_attrs=batch["node_attrs"],
        positions=batch["positions"],
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
        direct=direct,
        stability=stability,
        domain=domain,
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
    if level.shape != (n_systems,) or not bool(torch.isfinite(level).all()):
        raise ValueError(
            f"initial_level must be finite numbers of shape {[n_systems]}, eV, got shape "
            f"{list(level.shape)}: {level.detach().flatten()[:5].tolist()}"
        )
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
    return rows.detach()[:, CARTESIAN_ROWS_FROM_E3NN[:dim]]
