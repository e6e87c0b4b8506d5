"""Convert ase.Atoms to batches for mace-torch models, and model outputs to per-frame results."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..neighbours import neighbour_pairs
from ..transfers import to_host
from .cells import reference_cell
from .graphs import Neighbours, collate, external_charges, make_graph
from .inputs import (
    EXTERNAL,
    INPUTS,
    check_spin,
    input_of,
    read_embedded,
    read_input,
    read_inputs,
    resolve_head,
    similar_keys,
)
from .protocol import elements_and_cutoff, embedding_specs, is_a, is_density_model, pads_cell, required_info
from .swapped import Swapped
from .turned import is_upright

if TYPE_CHECKING:
    from ase import Atoms

# angstrom: largest rounding of positions; beyond it, float32 warns and float64 raises
_ROUGH = 1e-4


def check_structure(atoms: Atoms, elements: Sequence[int], where: str) -> None:
    """
    Refuse a frame that no model for these elements can evaluate.

    Args:
        atoms: The frame.
        elements: Atomic numbers of the model.
        where: Name of the frame in messages.

    Raises:
        ValueError: for a frame without atoms, positions that are NaN or so far away that rounding matters, a
            cell that does not match ``pbc``, or an element that the model lacks.
    """
    if len(atoms) == 0:
        raise ValueError(f"{where} has no atoms")
    if not np.isfinite(atoms.positions).all():
        bad = int(np.flatnonzero(~np.isfinite(atoms.positions).all(1))[0])
        raise ValueError(
            f"{where} has NaN or infinite positions, first at atom {bad} ({_symbol(atoms.numbers[bad])}): "
            f"{atoms.positions[bad].tolist()}. Nothing was computed"
        )
    far = np.abs(atoms.positions).max(1)
    if np.spacing(far.max()) > _ROUGH:
        bad = int(far.argmax())
        raise ValueError(
            f"{where} has atom {bad} ({_symbol(atoms.numbers[bad])}) at "
            f"{atoms.positions[bad].tolist()}, so far away that its position is rounded by "
            f"{np.spacing(far[bad]):.0e} angstrom: move it to the origin"
        )
    cell = np.asarray(atoms.cell)
    vectors = cell[np.asarray(atoms.pbc)]
    if not np.isfinite(cell).all():
        raise ValueError(f"{where} has NaN or infinite lattice vectors: {cell.tolist()}")
    if len(vectors) and np.linalg.matrix_rank(vectors) < len(vectors):
        raise ValueError(
            f"{where} is periodic (pbc={atoms.pbc.tolist()}) but its cell {cell.tolist()} has no volume: set "
            "atoms.cell, or atoms.pbc = False"
        )
    missing = sorted(set(atoms.numbers.tolist()) - {int(z) for z in elements})
    if missing:
        raise ValueError(
            f"{where} holds {', '.join(map(_symbol, missing))}, which the model does not support; it has "
            f"{', '.join(_symbol(z) for z in sorted(elements))}"
        )


def _symbol(number: int) -> str:
    from ase.data import chemical_symbols

    return chemical_symbols[number] if 0 < number < len(chemical_symbols) else f"the element {number}"


def check_frame(model: torch.nn.Module, atoms: Atoms, where: str) -> None:
    """
    Refuse a frame that the model cannot evaluate.

    Args:
        model: A mace-torch model, or one of `scfmlip.models`.
        atoms: The frame.
        where: How to name it in messages.

    Raises:
        ValueError: as in `check_structure`; also for a missing charge or spin, inputs that are not numbers
            or contradict each other, an impossible multiplicity, or external charges that the model does
            not support.
    """
    check_structure(atoms, elements_and_cutoff(model)[0], where)
    if pads_cell(model) and not isinstance(model, Swapped) and not is_density_model(model):
        _check_reference(model, atoms, where)
    needed = required_info(model)
    given = read_inputs(atoms, where, "spin" in needed)
    read_embedded(atoms, embedding_specs(model), where)
    for key in (EXTERNAL[0], "counter_charge"):
        if atoms.info.get(key) is not None and not is_density_model(model):
            raise ValueError(
                f"{where} has {key.replace('_', ' ')} in atoms.info, which a {type(model).__name__} does not "
                f"support: only models of scfmlip.models do. Remove atoms.info[{key!r}]"
            )
    absent = [key for key in needed if input_of(key) not in given]
    if absent:
        meant = [INPUTS[which] for which in map(input_of, needed) if which]
        keys = " and ".join(f"atoms.info[{key!r}]" for key in absent)
        example = " and ".join(f"atoms.info[{m.names[0]!r}] = {m.example}" for m in meant)
        similar = [key for name in absent for key in similar_keys(atoms.info, name)]
        unread = f" ({', '.join(map(repr, similar))} of its info is not read)" if similar else ""
        raise ValueError(
            f"{where} lacks {keys}{unread}: this model's energy depends on "
            f"{' and '.join(m.meaning for m in meant)}. Set them, for instance {example}"
        )
    if "spin" in needed:
        check_spin(atoms, given.get("total_charge", 0.0), given["total_spin"], where)


def _check_reference(model: torch.nn.Module, atoms: Atoms, where: str) -> None:
    """Refuse cells for which mace-torch's own electrostatics is wrong."""
    cell = reference_cell(atoms.positions, np.asarray(atoms.cell), np.asarray(atoms.pbc), 1.0)
    if atoms.pbc.any() and np.linalg.det(cell) < 0:
        raise ValueError(
            f"{where} has left-handed lattice vectors, for which mace-torch's own electrostatics is wrong: "
            "use scfmlip.accelerate, or swap two lattice vectors"
        )
    if is_a(model, "PolarMACE") and not is_upright(torch.tensor(cell), torch.tensor(atoms.pbc)):
        raise ValueError(
            f"{where} is a slab whose normal is not z, or whose open vector is not the last: mace-torch's "
            "own electrostatics treats it as a crystal. Use scfmlip.accelerate, or rotate it"
        )


def _warn_of_fields(model: torch.nn.Module, frames: Sequence[Atoms], names: Sequence[str]) -> None:
    """Warn about a field without effect: the model has no charges, or its name is not read."""
    answers = getattr(model, "has_charges", is_a(model, "PolarMACE"))
    for atoms, name in zip(frames, names, strict=True):
        field = read_input(atoms.info, "external_field")
        if field is not None and field.any() and not answers:
            warnings.warn(
                f"{name} has an external_field in atoms.info, which has no effect on this model without "
                "charges",
                stacklevel=3,
            )
        unread = [
            key
            for key in atoms.info
            if isinstance(key, str) and key.lower().removeprefix("ref_") in ("electric_field", "efield")
        ]
        if unread and field is None and answers:
            warnings.warn(
                f"{name} has {unread[0]} in atoms.info, which is not read: use external_field, in "
                "V/angstrom with the sign of energy + field . dipole",
                stacklevel=3,
            )


def batch_kind(atoms: Atoms) -> tuple[Any, ...]:
    """Key that the frames of a batch must share: MACE-POLAR treats molecules differently beside crystals."""
    return (*atoms.pbc.tolist(), atoms.info.get("counter_charge") is not None)


def make_batch(
    model: torch.nn.Module,
    frames: Sequence[Atoms],
    device: torch.device,
    dtype: torch.dtype,
    head: str | None = None,
    names: Sequence[str] | None = None,
    neighbours: Neighbours = neighbour_pairs,
) -> dict[str, Tensor]:
    """
    Make a model's input for several frames.

    ``atoms.info`` is read through `inputs.INPUTS`: the total charge (e), the spin multiplicity, the external
    field (V/angstrom, mace's sign: energy + field.dipole) and the head. Models of `scfmlip.models` also read
    ``fermi_level`` (eV), ``counter_charge`` (see `scfmlip.Coulomb`; for all frames or none),
    ``external_charges`` (``[n]`` e) and ``external_positions`` (``[n, 3]`` angstrom). The cell is the frame's
    own, except for PolarMACE and MACELES, which use a long padded cell; ``volume_share`` is then the frame's
    fraction of its volume.

    Args:
        model: A mace-torch model, or one of `scfmlip.models`.
        frames: Frames, as ase.Atoms.
        device: Device of the tensors.
        dtype: float32 or float64, the dtype of the model.
        head: Name of the model's head for all frames, with priority over the frames' own; if None, see
            `inputs.resolve_head`.
        names: Name of each frame in messages.
        neighbours: As in `make_graph`; a `SkinList` is for one frame.

    Raises:
        ValueError: as in `check_frame`, and for an unknown head.
    """
    names = names or [f"frame {i}" for i in range(len(frames))]
    heads = list(getattr(model, "heads", None) or ["Default"])
    chosen = []
    for atoms, name in zip(frames, names, strict=True):
        check_frame(model, atoms, name)
        try:
            chosen.append(resolve_head(heads, head, atoms.info))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        far = float(np.abs(atoms.positions).max())
        if dtype == torch.float32 and np.spacing(np.float32(far)) > _ROUGH:
            warnings.warn(
                f"{name} reaches {far:.0f} angstrom from the origin, where float32 rounds positions by "
                f"{np.spacing(np.float32(far)):.0e}: use float64, or move it to the origin",
                stacklevel=2,
            )
    _warn_of_fields(model, frames, names)
    spin = "spin" in required_info(model)
    graphs = []
    for atoms, which, name in zip(frames, chosen, names, strict=True):
        try:
            graph = make_graph(
                atoms,
                *elements_and_cutoff(model),
                dtype,
                heads=heads,
                head=which,
                inputs={**read_inputs(atoms, spin=spin), **read_embedded(atoms, embedding_specs(model))},
                pad_cell=pads_cell(model),
                neighbours=neighbours,
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        graphs.append(graph)
    return collate(graphs, device)


def split_outputs(out: dict[str, Any], frames: Sequence[Atoms]) -> list[dict[str, Any]]:
    """
    Results of each frame as numpy arrays.

    Args:
        out: Output of the model for the batch.
        frames: The frames, in order.

    Returns:
        Per frame ``energy`` and ``free_energy`` (eV), ``forces``, ``stress`` (Voigt, eV/angstrom^3, of the
        frame's own volume) if requested and defined, ``charges`` (e), ``dipole`` (e angstrom) and the
        model's other outputs under mace's names.
    """
    sizes = [len(atoms) for atoms in frames]
    ends = np.cumsum(sizes)
    per_atom = {
        "forces": "forces",
        "node_energy": "energies",
        "charges": "charges",
        "latent_charges": "latent_charges",
        "spins": "spins",
        "density_coefficients": "density_coefficients",
        "spin_charge_density": "spin_charge_density",
        "electrostatic_potential": "potential",
        "born_charges": "born_charges",
    }
    per_system = {
        "energy": "energy",
        "dipole": "dipole",
        "total_charge": "total_charge",
        "interaction_energy": "interaction_energy",
        "electrostatic_energy": "electrostatic_energy",
        "electron_energy": "electron_energy",
        "response_energy": "response_energy",
        "les_energy": "les_energy",
        "fermi_level": "fermi_level",
        "polarizability": "polarizability",
        "scf_iterations": "scf_iterations",
        "scf_residual": "scf_residual",
        "scf_status": "scf_status",
    }
    host = {k: v.numpy() for k, v in to_host(out).items()}
    if "charges_history" in host:  # PolarMACE always reports 0
        host.pop("fermi_level", None)
    counts = [len(external_charges(atoms)[0]) for atoms in frames]
    last = np.cumsum(counts)
    results: list[dict[str, Any]] = []
    for i, (atoms, size, end) in enumerate(zip(frames, sizes, ends, strict=True)):
        result: dict[str, Any] = {}
        for key, name in per_atom.items():
            if key in host:
                result[name] = host[key][end - size : end]
        for key, name in per_system.items():
            if key in host:
                value = host[key][i]
                result[name] = float(value) if value.ndim == 0 else value
        if "external_forces" in host:
            result["external_forces"] = host["external_forces"][last[i] - counts[i] : last[i]]
        result["free_energy"] = result["energy"]
        if out.get("virials") is not None and atoms.cell.rank == 3:
            # mace pads the cell along open directions; the stress refers to the user's volume
            strain = -host["virials"][i] / atoms.get_volume()
            result["stress"] = strain.reshape(9)[[0, 4, 8, 5, 2, 1]]
        results.append(result)
    return results
