"""The batch of one rank's part of a system, from what an engine that spreads atoms over ranks knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..distributed import Domain, Halo
from ..transfers import to_device
from .cells import reference_cell
from .inputs import EXTERNAL, INPUTS
from .protocol import elements_and_cutoff, pads_cell


@dataclasses.dataclass(frozen=True)
class DomainEdges:
    """
    Neighbours of own atoms.

    Attributes:
        index: ``[2, n_edges]`` int64 senders, ghosts behind own atoms, and receivers, own atoms.
        shifts: ``[n_edges, 3]`` lattice vectors: ``positions[receiver] - positions[sender] + shift @ cell``
            leads from one to the other.
    """

    index: Tensor
    shifts: Tensor


def make_domain_batch(
    model: torch.nn.Module,
    positions: Tensor,
    species: Tensor,
    cell: np.ndarray,
    pbc: np.ndarray,
    edges: DomainEdges,
    halo: Halo,
    inputs: Mapping[str, Any],
    head: int = 0,
) -> tuple[dict[str, Tensor], Domain]:
    """
    What `scfmlip.models.Model` takes of a system that several ranks share.

    Args:
        model: Of `scfmlip.models`.
        positions: ``[n_owned, 3]`` angstrom, in the model's dtype and on its device.
        species: ``[n_all]`` int64 element of own atoms and ghosts, in the order of the model's.
        cell: ``[3, 3]`` angstrom, the same on every rank.
        pbc: ``[3]`` bool.
        edges: Neighbours within the model's cutoff.
        halo: The ghosts.
        inputs: By the batch's names (`INPUTS`): numbers, and fields of three. ``external_charges`` ``[n]`` e
            at ``external_positions`` ``[n, 3]`` angstrom are all there are, the same on every rank.
        head: Number of the model's head.

    Returns:
        The batch and the domain for `Model.forward`. Every rank calls this together.
    """
    device, dtype = positions.device, positions.dtype
    n_owned, n_elements = len(positions), len(model.atomic_numbers)  # type: ignore[arg-type]
    node_attrs = torch.nn.functional.one_hot(species, n_elements).to(positions.dtype)
    own, extra = np.asarray(cell, dtype=float), {}
    if pads_cell(model):
        padded = _padded(positions, own, pbc, elements_and_cutoff(model)[1], halo)
        share = abs(np.linalg.det(own) / np.linalg.det(padded))
        extra = {
            "volume_share": torch.tensor([share], dtype=dtype),
            "slab_axis": torch.tensor([int(np.argmin(pbc)) if pbc.sum() == 2 else -1]),
        }
        own = padded
    host = {
        "cell": torch.tensor(own, dtype=dtype),
        "pbc": torch.tensor(np.asarray(pbc, dtype=bool))[None],
        "batch": torch.zeros(n_owned, dtype=torch.int64),
        "ptr": torch.tensor([0, n_owned]),
        "head": torch.tensor([head]),
        "total_charge": torch.zeros(1, dtype=dtype),
        "total_spin": torch.ones(1, dtype=dtype),
        "fermi_level": torch.zeros(1, dtype=dtype),
        "external_field": torch.zeros(1, 3, dtype=dtype),
        **extra,
    }
    if inputs.get(EXTERNAL[0]) is not None:
        host.update((name, _numbers(inputs[name], dtype)) for name in EXTERNAL)
        host["n_external"] = torch.tensor([len(host[EXTERNAL[0]])])
    for name, value in inputs.items():
        if name in EXTERNAL:
            continue
        shape = (1, INPUTS[name].size) if name in INPUTS and INPUTS[name].size > 1 else (1, -1)
        given = _numbers(value, dtype).reshape(shape)
        host[name] = given[:, 0] if shape == (1, -1) and given.shape[1] == 1 else given
    batch = to_device(host, device)
    shifts = edges.shifts.to(positions.dtype)
    batch |= {
        "positions": positions,
        "node_attrs": node_attrs[:n_owned],
        "edge_index": edges.index,
        "unit_shifts": shifts,
        "shifts": shifts @ batch["cell"],
    }
    return batch, Domain(halo, node_attrs)


def _numbers(value: Any, dtype: torch.dtype) -> Tensor:
    return torch.as_tensor(np.asarray(value, dtype=float), dtype=dtype)


def _padded(positions: Tensor, cell: np.ndarray, pbc: np.ndarray, cutoff: float, halo: Halo) -> np.ndarray:
    """mace-torch's long cell, which the outermost atoms of all ranks decide."""
    if pbc.all():
        return cell
    vectors = np.asarray(cell)[pbc]
    if np.abs(vectors[:, ~pbc]).max(initial=0.0) > 1e-6 * np.abs(vectors).max(initial=1.0):
        raise ValueError(
            "this model's energy depends on a long cell along the open direction, not known here for "
            "periodic vectors that lean towards it: use a box without that tilt, or boundary p p f"
        )
    host = positions.detach().double().cpu()
    corners = host.new_full((2, 3), -np.inf)
    if len(host):
        corners = torch.stack((host.amax(0), -host.amin(0)))
    high, low = halo.communicator.all_reduce(corners, "max").numpy()
    # the corners of the box around all atoms have its largest coordinate
    return reference_cell(np.stack((high, -low)), cell, pbc, cutoff)
