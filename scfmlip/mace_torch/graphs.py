"""
Convert frames to mace-torch's graphs, and graphs to the input of models.

Keys and shapes are those of ``mace.data.AtomicData.from_config``. The neighbour list is our own, right in
every cell, and independent of PyTorch's default dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..neighbours import neighbour_pairs
from ..transfers import to_device
from .cells import reference_cell
from .inputs import EXTERNAL, number, read_inputs, resolve_head

if TYPE_CHECKING:
    from ase import Atoms
    from mace.data import AtomicData

# mace-torch's labels: shape ("n" is the number of atoms) and shape of the weight
_LABELS: dict[str, tuple[tuple[Any, ...], tuple[int, ...]]] = {
    "energy": ((), ()),
    "forces": (("n", 3), ()),
    "stress": ((1, 3, 3), ()),
    "virials": ((1, 3, 3), ()),
    "dipole": ((1, 3), (1, 3)),
    "charges": (("n",), ()),
    "polarizability": ((1, 3, 3), (1, 3, 3)),
}
_VOIGT = [0, 5, 4, 5, 1, 3, 4, 3, 2]
# positions, cell, pbc, cutoff -> pairs and images
Neighbours = Callable[[Any, Any, Any, float], tuple[np.ndarray, np.ndarray]]


def make_graph(
    atoms: Atoms,
    elements: Sequence[int],
    r_max: float,
    dtype: torch.dtype = torch.float64,
    *,
    heads: Sequence[str] = ("Default",),
    head: str | None = None,
    inputs: Mapping[str, Any] | None = None,
    labels: Mapping[str, Any] | None = None,
    pad_cell: bool = False,
    neighbours: Neighbours = neighbour_pairs,
) -> AtomicData:
    """
    Make mace-torch's graph of a frame: neighbours within ``r_max``, species, inputs, labels.

    Args:
        atoms: The frame, which must pass `check_frame`.
        elements: Atomic numbers of the model, in its order.
        r_max: Cutoff of the neighbour list, angstrom.
        dtype: float32 or float64.
        heads: Heads of the model.
        head: The head to use, see `resolve_head`.
        inputs: Inputs by the batch's names; `read_inputs` of the frame if None.
        labels: Labels by mace-torch's names: energy, forces, stress (tensor or Voigt), ...; their weights are
            the frame's ``config_{name}_weight``.
        pad_cell: Use the cell of mace-torch's electrostatics, `reference_cell`, instead of the frame's own.
        neighbours: Finds the pairs, like `neighbour_pairs`; for instance a `SkinList`.

    Returns:
        A ``mace.data.AtomicData``; missing labels are zero with weight 0. Besides mace-torch's keys, a
        padded graph has ``volume_share``, the frame's own fraction of the cell's volume, and ``slab_axis``,
        the lattice vector along which a slab is open, or -1. Without this key, PolarMACE knows slabs along z
        only, as mace-torch does. External charges have their own keys.

    Raises:
        ValueError: for an unknown head, or inputs that are not numbers or contradict each other.
    """
    from mace.data import AtomicData

    inputs = read_inputs(atoms) if inputs is None else inputs
    labels = {} if labels is None else labels
    n_atoms = len(atoms)
    own, pbc = np.array(atoms.cell, dtype=float), np.array(atoms.pbc, dtype=bool)
    positions = np.array(atoms.positions, dtype=float)
    edge_index, images = neighbours(positions, own, pbc, float(r_max))
    cell = reference_cell(positions, own, pbc, float(r_max)) if pad_cell else own
    volume = np.linalg.det(cell)
    reciprocal = 2 * np.pi * np.linalg.inv(cell.T) if volume else np.zeros((3, 3))
    species = np.array([list(elements).index(z) for z in atoms.numbers], dtype=int)

    def tensor(value: Any) -> Tensor:
        return torch.tensor(np.asarray(value, dtype=float), dtype=dtype)

    fields: dict[str, Any] = {
        "edge_index": torch.tensor(edge_index),
        "positions": tensor(positions),
        "shifts": tensor(images @ cell),
        "unit_shifts": tensor(images),
        "cell": tensor(cell),
        "rcell": tensor(reciprocal),
        "volume": tensor(volume),
        "pbc": torch.tensor(pbc)[None],
        "node_attrs": tensor(np.eye(len(elements))[species]),
        "head": torch.tensor(list(heads).index(resolve_head(heads, head, atoms.info))),
        "weight": tensor(number(atoms.info.get("config_weight", 1.0), "config_weight")),
        "elec_temp": tensor(0.0),
        "density_coefficients": tensor(np.zeros((n_atoms, 1))),
        "total_charge": tensor(0.0),
        "total_spin": tensor(1.0),
        "fermi_level": tensor(0.0),
        "external_field": tensor(np.zeros((1, 3))),
    }
    for name, value in inputs.items():
        fields[name] = tensor(value)[None] if name == "external_field" else tensor(value)
    for name, (shape, weight_shape) in _LABELS.items():
        shape = tuple(n_atoms if n == "n" else n for n in shape)
        given = labels.get(name)
        if given is None:
            value, weight = np.zeros(shape), 0.0
        else:
            value = np.asarray(given, dtype=float)
            value = value.reshape(-1)[_VOIGT] if value.size == 6 and shape == (1, 3, 3) else value
            weight = atoms.info.get(f"config_{name}_weight", 1.0)
        fields[name] = tensor(value.reshape(shape))
        fields[f"{name}_weight"] = tensor(np.broadcast_to(np.asarray(weight, dtype=float), weight_shape))
    if pad_cell:
        fields["volume_share"] = tensor(abs(np.linalg.det(own) / volume))
        fields["slab_axis"] = torch.tensor(int(np.argmin(pbc)) if pbc.sum() == 2 else -1)
    graph = AtomicData(**fields)
    if atoms.info.get("counter_charge") is not None:
        graph["counter_charge"] = tensor(_bounds(atoms.info["counter_charge"]))
    if any(atoms.info.get(key) is not None for key in EXTERNAL):
        _put_external(graph, *external_charges(atoms), dtype)
    return graph


def _bounds(given: Any) -> np.ndarray:
    """``[1, 2]`` ends of a slab's counter-charge along the normal, angstrom."""
    try:
        bounds = np.asarray(given, dtype=float).reshape(1, 2)
    except (TypeError, ValueError):
        bounds = np.full((1, 2), np.nan)
    if not np.isfinite(bounds).all():
        raise ValueError(f"atoms.info['counter_charge'] must be (lower, upper), angstrom, got {given!r}")
    return bounds


def external_charges(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """
    Charges ``[n]`` (e) and positions ``[n, 3]`` (angstrom) of the charges outside the model.

    Raises:
        ValueError: for shapes that do not match, or values that are not numbers.
    """
    values = [() if atoms.info.get(key) is None else atoms.info[key] for key in EXTERNAL]
    try:
        charges, positions = (np.asarray(value, dtype=float) for value in values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"atoms.info[{EXTERNAL[0]!r}] and [{EXTERNAL[1]!r}] must be numbers: {error}"
        ) from None
    shapes = list(charges.shape), list(positions.shape)
    charges = np.atleast_1d(charges)
    positions = np.atleast_2d(positions) if positions.size else np.zeros((0, 3))
    if charges.ndim != 1 or positions.shape != (len(charges), 3):
        raise ValueError(
            "atoms.info['external_charges'] [n] (e) and atoms.info['external_positions'] [n, 3] (angstrom) "
            f"belong together, got shapes {shapes[0]} and {shapes[1]}"
        )
    return charges, positions


def _put_external(graph: AtomicData, charges: Any, positions: Any, dtype: torch.dtype) -> None:
    graph["external_charges"] = torch.as_tensor(charges, dtype=dtype)
    graph["external_positions"] = torch.as_tensor(positions, dtype=dtype)
    graph["n_external"] = torch.tensor([len(charges)])


def stress_of(virials: Tensor, batch: Mapping[str, Tensor], owner: Tensor | None = None) -> Tensor:
    """
    Stress for the frames' own volumes.

    Args:
        virials: ``[n, 3, 3]`` eV, minus the derivative of the energy with respect to the strain.
        batch: Holds ``cell``, and ``volume_share`` if that is not the frame's own cell, see `make_graph`.
        owner: ``[n]`` system of each virial; one virial per system if None.

    Returns:
        ``[n, 3, 3]`` eV/angstrom^3; zero for systems without a volume.
    """
    volume = torch.linalg.det(batch["cell"].detach().view(-1, 3, 3)).abs()
    if "volume_share" in batch:
        volume = volume * batch["volume_share"]
    volume = (volume if owner is None else volume[owner])[:, None, None]
    return torch.where(volume > 0, -virials / torch.where(volume > 0, volume, 1), 0)


def collate(graphs: Sequence[AtomicData], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """
    Make a model's input from the graphs of its systems.

    Raises:
        ValueError: without graphs, or for inputs that only some of them have.
    """
    from mace.tools import torch_geometric

    if not graphs:
        raise ValueError("a batch needs at least one frame, got none")
    if any("n_external" in graph for graph in graphs):
        # systems without external charges contribute none
        for graph in graphs:
            if "n_external" not in graph:
                _put_external(graph, torch.zeros(0), torch.zeros(0, 3), graph.positions.dtype)
    # inputs that the first graph lacks would be dropped
    keys = [set(graph.keys) for graph in graphs]
    partial = sorted(set.union(*keys) - set.intersection(*keys))
    if partial:
        has = [i for i, found in enumerate(keys) if partial[0] in found]
        raise ValueError(
            f"only systems {has[:5]} of {len(graphs)} have {partial[0]}: in one batch all or none must have "
            "it. Evaluate them separately"
        )
    batch = torch_geometric.batch.Batch.from_data_list(list(graphs))  # type: ignore[arg-type]
    return to_device(batch.to_dict(), device)
