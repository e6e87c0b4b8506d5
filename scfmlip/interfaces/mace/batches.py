"""From ase.Atoms to the batches mace-torch models take, and from their outputs to per-frame results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .swapped import Swapped

if TYPE_CHECKING:
    from ase import Atoms
    from mace.data import AtomicData

# info keys users set, and what mace calls them
_SYSTEM_KEYS = {
    "total_charge": "charge",
    "total_spin": "spin",
    "external_field": "external_field",
    "fermi_level": "fermi_level",
}


# charges outside the model
_EXTERNAL = ("external_charges", "external_positions")


def required_info(model: torch.nn.Module) -> tuple[str, ...]:
    """Keys of ``atoms.info`` that the model's energy depends on and the user has to give."""
    from mace.modules.extensions import PolarMACE

    own = getattr(model, "required_info", None)
    if own is not None:  # one of scfmlip.models
        return own
    specs = getattr(model, "embedding_specs", None) or {}
    polar = isinstance(model, PolarMACE) or any(k in specs for k in ("total_charge", "total_spin"))
    return ("charge", "spin") if polar else ()


_MEANING = {
    "charge": "total charge (e)",
    "spin": "spin multiplicity 2S+1",
    "fermi_level": "the electrons' Fermi level (eV)",
}
_EXAMPLE = {"charge": 0, "spin": 1, "fermi_level": -4.5}


def check_frame(model: torch.nn.Module, atoms: Atoms, where: str) -> None:
    """
    Refuse a frame the model cannot evaluate.

    Args:
        model: A mace-torch model.
        atoms: The frame.
        where: How to name it in messages.

    Raises:
        ValueError: for no atoms, NaN positions, a cell that does not fit ``pbc``, an element the model
            lacks, or a missing charge or spin.
    """
    if len(atoms) == 0:
        raise ValueError(f"{where} has no atoms")
    if not np.isfinite(atoms.positions).all():
        bad = int(np.flatnonzero(~np.isfinite(atoms.positions).all(1))[0])
        raise ValueError(
            f"{where} has NaN or infinite positions, first at atom {bad} ({atoms.symbols[bad]}): "
            f"{atoms.positions[bad].tolist()}. Nothing was computed"
        )
    vectors = np.asarray(atoms.cell)[np.asarray(atoms.pbc)]
    if len(vectors) and np.linalg.matrix_rank(vectors) < len(vectors):
        raise ValueError(
            f"{where} is periodic (pbc={atoms.pbc.tolist()}) but its cell "
            f"{np.asarray(atoms.cell).tolist()} has no volume: set atoms.cell, or atoms.pbc = False"
        )
    reference = type(model).__name__ in ("PolarMACE", "MACELES") and not isinstance(model, Swapped)
    if reference and atoms.pbc.any() and np.linalg.det(np.asarray(atoms.cell)) < 0:
        raise ValueError(
            f"{where} has left-handed lattice vectors, for which mace-torch's own electrostatics is wrong: "
            "use scfmlip.accelerate, or exchange two lattice vectors"
        )
    known = {int(z) for z in model.atomic_numbers}  # type: ignore[union-attr]
    missing = sorted(set(atoms.get_chemical_symbols()) - {_symbol(z) for z in known})
    if missing:
        raise ValueError(
            f"{where} holds {', '.join(missing)}, which the model was not made for; it knows "
            f"{', '.join(_symbol(z) for z in sorted(known))}"
        )
    if any(key in atoms.info for key in _EXTERNAL) and not hasattr(model, "evaluate_density"):
        raise ValueError(
            f"{where} has external charges in atoms.info, which a {type(model).__name__} cannot answer to: "
            "they are for models of scfmlip.models. Remove atoms.info['external_charges']"
        )
    needed = required_info(model)
    absent = [key for key in needed if key not in atoms.info]
    if absent:
        keys = " and ".join(f"atoms.info[{key!r}]" for key in absent)
        example = " and ".join(f"atoms.info[{key!r}] = {_EXAMPLE[key]}" for key in needed)
        raise ValueError(
            f"{where} lacks {keys}: this model's energy depends on "
            f"{' and '.join(_MEANING[key] for key in needed)}. Set them, for instance {example}"
        )


def _symbol(number: int) -> str:
    from ase.data import chemical_symbols

    return chemical_symbols[number]


def make_graph(
    atoms: Atoms,
    elements: Sequence[int],
    r_max: float,
    dtype: torch.dtype = torch.float64,
    *,
    heads: Sequence[str] = ("Default",),
    head: str | None = None,
    info_keys: Mapping[str, str] | None = None,
    arrays_keys: Mapping[str, str] | None = None,
    pad_cell: bool = True,
) -> AtomicData:
    """
    One frame as mace-torch's graph: neighbours within ``r_max``, species, labels.

    Args:
        atoms: The frame; `check_frame` says what it must fulfil.
        elements: Atomic numbers the model knows, in its order.
        r_max: Cutoff of the neighbour list, angstrom.
        dtype: float32 or float64.
        heads: Heads of the model.
        head: Which of them; the last one if None.
        info_keys: mace's name of a property of the system to its key in ``atoms.info``; charge, spin and
            field are found under "charge", "spin" and "external_field" if None.
        arrays_keys: Likewise for ``atoms.arrays``.
        pad_cell: Keep mace's cell, whose open directions are as long as it takes; else the frame's own.

    Returns:
        A ``mace.data.AtomicData``; labels that the frame lacks are zero with weight 0.
    """
    from mace import data
    from mace.tools import AtomicNumberTable, torch_tools

    keys = data.KeySpecification(
        info_keys=dict(_SYSTEM_KEYS if info_keys is None else info_keys), arrays_keys=dict(arrays_keys or {})
    )
    with torch_tools.default_dtype(dtype):
        graph = data.AtomicData.from_config(
            data.config_from_atoms(
                atoms, key_specification=keys, head_name=heads[-1] if head is None else head
            ),
            z_table=AtomicNumberTable([int(z) for z in elements]),
            cutoff=float(r_max),
            heads=list(heads),
        )
        if not pad_cell:
            graph.cell = torch.tensor(np.asarray(atoms.cell), dtype=dtype)
        if "counter_charge" in atoms.info:
            bounds = np.asarray(atoms.info["counter_charge"], dtype=float).reshape(1, 2)
            graph["counter_charge"] = torch.tensor(bounds, dtype=dtype)
        if any(key in atoms.info for key in _EXTERNAL):
            _put_external(graph, *_external(atoms), dtype)
    return graph


def _external(atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """``[n]`` e and ``[n, 3]`` angstrom of the charges outside the model."""
    given = [np.asarray(atoms.info.get(key, ()), dtype=float) for key in _EXTERNAL]
    charges = np.atleast_1d(given[0])
    positions = np.atleast_2d(given[1]) if given[1].size else np.zeros((0, 3))
    if charges.ndim != 1 or positions.shape != (len(charges), 3):
        raise ValueError(
            "atoms.info['external_charges'] [n] (e) and atoms.info['external_positions'] [n, 3] (angstrom) "
            f"belong together, got shapes {list(given[0].shape)} and {list(given[1].shape)}"
        )
    return charges, positions


def _put_external(graph: AtomicData, charges: Any, positions: Any, dtype: torch.dtype) -> None:
    graph["external_charges"] = torch.as_tensor(charges, dtype=dtype)
    graph["external_positions"] = torch.as_tensor(positions, dtype=dtype)
    graph["n_external"] = torch.tensor([len(charges)])


def collate(graphs: Sequence[AtomicData], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The dictionary a model takes, from the graphs of its systems."""
    from mace.tools import torch_geometric

    if any("n_external" in graph for graph in graphs):
        # systems without charges outside have none of them
        for graph in graphs:
            if "n_external" not in graph:
                _put_external(graph, torch.zeros(0), torch.zeros(0, 3), graph.positions.dtype)
    batch = torch_geometric.batch.Batch.from_data_list(list(graphs))  # type: ignore[arg-type]
    return batch.to(device).to_dict()  # type: ignore[return-value]


def make_batch(
    model: torch.nn.Module,
    frames: Sequence[Atoms],
    device: torch.device,
    dtype: torch.dtype,
    head: str | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Tensor]:
    """
    The dictionary a model takes, for several frames.

    Args:
        model: A mace-torch model, or one of `scfmlip.models`.
        frames: ase.Atoms; ``info["charge"]``, ``info["spin"]`` (multiplicity) and
            ``info["external_field"]`` (V/angstrom, mace's sign: energy + field.dipole) are passed on, to
            models of ours also ``info["fermi_level"]`` (eV) and ``info["counter_charge"]`` (see
            `scfmlip.Coulomb`; all frames or none), ``info["external_charges"]`` (``[n]`` e) and
            ``info["external_positions"]`` (``[n, 3]`` angstrom).
        device: Of the tensors.
        dtype: float32 or float64, that of the model.
        head: Name of the model's head; its last one if None.
        names: What to call each frame in messages.

    Raises:
        ValueError: as `check_frame`.
    """
    names = names or [f"frame {i}" for i in range(len(frames))]
    for atoms, name in zip(frames, names, strict=True):
        check_frame(model, atoms, name)
    return collate(
        [
            make_graph(
                atoms,
                model.atomic_numbers.tolist(),  # type: ignore[union-attr, operator]
                float(model.r_max),  # type: ignore[arg-type]
                dtype,
                heads=list(getattr(model, "heads", None) or ["Default"]),
                head=head,
                pad_cell=getattr(model, "pads_cell", True),
            )
            for atoms in frames
        ],
        device,
    )


def split_outputs(out: dict[str, Any], frames: Sequence[Atoms]) -> list[dict[str, Any]]:
    """
    Results of each frame as numpy arrays.

    Args:
        out: What a mace-torch model returned for the batch.
        frames: The frames, in order.

    Returns:
        Per frame ``energy`` and ``free_energy`` (eV), ``forces``, ``stress`` (Voigt, eV/angstrom^3, of the
        frame's own volume) where asked for and defined, ``charges`` (e), ``dipole`` (e angstrom) and the
        model's further outputs under mace's names.
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
    host = {k: v.detach().cpu().numpy() for k, v in out.items() if isinstance(v, Tensor)}
    if "charges_history" in host:  # PolarMACE says 0 whatever it is
        host.pop("fermi_level", None)
    counts = [len(np.atleast_1d(atoms.info.get("external_charges", ()))) for atoms in frames]
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
            # mace pads the cell of non-periodic directions; the stress belongs to the user's volume
            strain = -host["virials"][i] / atoms.get_volume()
            result["stress"] = strain.reshape(9)[[0, 4, 8, 5, 2, 1]]
        results.append(result)
    return results
