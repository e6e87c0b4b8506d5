"""From files to graphs with labels, and what a model is given by its training frames."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from mace import modules
from mace.data import AtomicData
from mace.tools.torch_tools import default_dtype
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..interfaces.mace.batches import check_frame, collate, make_graph
from ..models.config import atomic_number
from .config import DataConfig, TrainConfig
from .frames import PROPERTIES, available_keys, find, iterate, labelled, read_frames
from .losses import TERMS

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclasses.dataclass
class Frames:
    """Frames of one purpose, with a name for each."""

    frames: Sequence[Atoms]
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def part(self, indices: Sequence[int]) -> Frames:
        """Some of them; frames of HDF5 files stay on disk."""
        return Frames(_Part(self.frames, list(indices)), [self.names[i] for i in indices])


class _Part(Sequence[Atoms]):
    def __init__(self, frames: Sequence[Atoms], indices: list[int]) -> None:
        self.frames, self.indices = frames, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Atoms:  # type: ignore[override]
        return self.frames[self.indices[index]]


class _Joined(Sequence[Atoms]):
    def __init__(self, parts: list[Sequence[Atoms]]) -> None:
        self.parts, self.ends = parts, np.cumsum([len(p) for p in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Atoms:  # type: ignore[override]
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part][index - (int(self.ends[part - 1]) if part else 0)]


def read_sets(config: DataConfig) -> dict[str, Frames]:
    """
    The frames of "train", "valid" and "test"; the last two may be empty.

    Raises:
        FileNotFoundError, ValueError: as `read_frames`; or if the fractions leave nothing to train on.
    """
    sets = {}
    for name in ("train", "valid", "test"):
        parts = [(path, read_frames(path, config, f"data.{name}")) for path in getattr(config, name)]
        names = [f"frame {i} of {path}" for path, frames in parts for i in range(len(frames))]
        sets[name] = Frames(_Joined([f for _, f in parts]) if parts else [], names)
    if not len(sets["train"]):
        raise ValueError("data.train names no files")
    total = len(sets["train"])
    order = np.random.default_rng(config.split_seed).permutation(total).tolist()
    whole = sets["train"]
    for name, fraction in (("valid", config.valid_fraction), ("test", config.test_fraction)):
        if fraction and not getattr(config, name):
            count = max(1, round(fraction * total))
            chosen, order = sorted(order[:count]), order[count:]
            sets[name] = whole.part(chosen)
    if not order:
        raise ValueError(f"{total} frames are too few for the validation and test fractions asked for")
    if len(order) < total:
        sets["train"] = whole.part(sorted(order))
    return sets


def check_labels(sets: Mapping[str, Frames], config: TrainConfig) -> dict[str, int]:
    """
    How many training frames have each label.

    Raises:
        ValueError: if a term of the loss, or a key the user named, is in no training frame.
    """
    keys, defaults = config.data, DataConfig(train=("",))
    counts = {
        name: sum(find(atoms, getattr(keys, option), where) is not None for atoms in iterate(frames))
        for frames in [sets["train"].frames]
        for name, (option, where) in PROPERTIES.items()
    }
    needed = {
        TERMS[t].label: f"loss term {t!r}"
        for stage in config.stages
        for t, w in stage.loss.items()
        if w and t in TERMS
    }
    # a missing total charge means a neutral system
    needed.pop("total_charge", None)
    for name, (option, _) in PROPERTIES.items():
        if getattr(keys, option) != getattr(defaults, option):
            needed.setdefault(name, "the configuration")
    for name, who in needed.items():
        if not counts[name]:
            option = PROPERTIES[name][0]
            raise ValueError(
                f"no training frame holds {getattr(keys, option)!r} (data.{option}), which {who} asks for; "
                f"{available_keys(iterate(sets['train'].frames))}"
            )
    return counts


def average_energies(frames: Sequence[Atoms], elements: Sequence[int], key: str) -> dict[str, float]:
    """
    Energy of each element, eV: least squares of the frames' energies, the shortest of equal solutions.

    Raises:
        ValueError: if no frame has an energy.
    """
    rows, energies = [], []
    for atoms in iterate(frames):
        energy = find(atoms, key, "info")
        if energy is not None:
            rows.append([np.count_nonzero(atoms.numbers == z) for z in elements])
            energies.append(float(energy))
    if not rows:
        raise ValueError(
            f"atomic_energies: average needs energies, but no training frame holds {key!r} "
            f"(data.energy_key); {available_keys(iterate(frames))}"
        )
    solution = np.linalg.lstsq(np.array(rows, dtype=float), np.array(energies), rcond=None)[0]
    return {chemical_symbols[z]: float(e) for z, e in zip(elements, solution, strict=True)}


def isolated_energies(frames: Sequence[Atoms], elements: Sequence[int], key: str) -> dict[str, float]:
    """
    Energy of each element, eV, from single atoms with ``config_type=IsolatedAtom``.

    Raises:
        ValueError: names the elements without one.
    """
    found: dict[str, float] = {}
    for atoms in iterate(frames):
        energy = find(atoms, key, "info")
        if is_isolated(atoms) and energy is not None:
            found[atoms.get_chemical_symbols()[0]] = float(energy)
    missing = [chemical_symbols[z] for z in elements if chemical_symbols[z] not in found]
    if missing:
        raise ValueError(
            "atomic_energies: isolated needs a frame of one atom with config_type=IsolatedAtom and "
            f"{key!r} of every element; there is none of {', '.join(missing)}"
        )
    return {chemical_symbols[z]: found[chemical_symbols[z]] for z in elements}


def is_isolated(atoms: Atoms) -> bool:
    """Whether a frame is a reference atom."""
    return len(atoms) == 1 and atoms.info.get("config_type") == "IsolatedAtom"


class GraphDataset(Dataset[AtomicData]):
    """
    Graphs with labels; an index is ``(frame, counts)``, and a frame that does not count has weight 0.

    The label ``energy`` is the interaction energy: atomic energies are taken off in float64, before they
    would drown the rest in float32. Labels that the frame lacks are zero with weight 0.

    Args:
        frames: Frames and their names.
        keys: Under which they hold their labels.
        elements: Atomic numbers of the model.
        energies: eV of each of them.
        r_max: Cutoff, angstrom.
        dtype: Of the graphs.
        width: Columns of the density, 1 or 4.
        heads: Of the model.
        pad_cell: Whether its open directions are mace's, very long ones, instead of the frames' own.
    """

    def __init__(
        self,
        frames: Frames,
        keys: DataConfig,
        elements: Sequence[int],
        energies: Sequence[float],
        r_max: float,
        dtype: torch.dtype,
        width: int,
        heads: Sequence[str] = ("Default",),
        pad_cell: bool = False,
    ) -> None:
        self.frames, self.keys, self.dtype, self.width = frames, keys, dtype, width
        self.elements, self.energies = list(elements), np.asarray(energies, dtype=np.float64)
        self.r_max, self.heads, self.pad_cell = r_max, tuple(heads), pad_cell
        self._graphs: dict[int, AtomicData] = {}

    def __len__(self) -> int:
        return len(self.frames)

    def check(self) -> None:
        """
        Look at every frame before the training starts.

        Raises:
            ValueError: names the first frame that cannot be used, and why.
        """
        known = cast(torch.nn.Module, SimpleNamespace(atomic_numbers=self.elements))
        for i, name in enumerate(self.frames.names):
            atoms = self.frames.frames[i]
            check_frame(known, atoms, name)
            try:
                labelled(atoms, self.keys)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None

    def __getitem__(self, index: tuple[int, bool]) -> AtomicData:
        number, counts = index
        graph = self._graphs.get(number)
        if graph is None:
            graph = self._make(number)
            if self.keys.cache:
                self._graphs[number] = graph
        if not counts:
            graph = copy.copy(graph)  # its tensors are shared
            graph.weight = torch.zeros_like(graph.weight)
            graph["counts"] = torch.zeros_like(graph.weight)
        return graph

    @cached_property
    def n_atoms(self) -> int:
        """Atoms of all frames."""
        return sum(len(self.frames.frames[i]) for i in range(len(self)))

    def _make(self, number: int) -> AtomicData:
        frame = labelled(self.frames.frames[number], self.keys)
        head = frame.info.get("head")
        if head is not None and head not in self.heads:
            raise ValueError(
                f"{self.frames.names[number]} belongs to head {head!r}; the model has {list(self.heads)}"
            )
        if "energy" in frame.info:
            counts = np.array([np.count_nonzero(frame.numbers == z) for z in self.elements])
            frame.info["energy"] -= float(counts @ self.energies)
        stores = {"info": frame.info, "arrays": frame.arrays}
        present = {n for n, (_, where) in PROPERTIES.items() if n in stores[where]}
        graph = make_graph(
            frame,
            self.elements,
            self.r_max,
            self.dtype,
            heads=self.heads,
            head=head,
            info_keys={n: n for n in present - {"head"} if PROPERTIES[n][1] == "info"},
            arrays_keys={n: n for n in present - {"potential"} if PROPERTIES[n][1] == "arrays"},
            pad_cell=self.pad_cell,
        )

        def tensor(value: Any) -> Tensor:
            return torch.tensor(value, dtype=self.dtype)

        n_atoms = len(frame)
        potential = tensor(frame.arrays.get("potential", np.zeros(n_atoms)))
        ours = {"counts": tensor(1.0), "frame_number": torch.tensor(number), "potential": potential}
        rows = frame.arrays.get("density_coefficients")
        if rows is None:
            # charges alone are a reference density without dipoles
            rows = np.zeros((n_atoms, self.width))
            rows[:, 0] = frame.arrays.get("charges", 0.0)
        if rows.shape[1] < self.width:
            raise ValueError(
                f"{self.frames.names[number]}: {self.keys.multipoles_key!r} holds charges only, but the "
                "model's density has dipoles (density.l_max = 1)"
            )
        graph.density_coefficients = tensor(rows[:, : self.width])
        for name in {term.label for term in TERMS.values()}:
            if name not in present:
                weight = torch.zeros_like(getattr(graph, f"{name}_weight", tensor(0.0)))
            elif name in ("energy", "forces", "stress", "dipole", "charges"):
                continue  # mace has set it
            else:
                weight = tensor(float(frame.info.get(f"config_{name}_weight", 1.0)))
            ours[f"{name}_weight"] = weight
        for name, value in ours.items():
            graph[name] = value
        return graph


class EpochBatches(Sampler[list[tuple[int, bool]]]):
    """
    One process's share of every batch of an epoch.

    The order depends on seed and epoch only, so that nothing needs to be remembered to repeat it; a process
    whose share of a batch is empty gets a frame that does not count.

    Args:
        size: Frames.
        batch_size: Frames of a batch, over all processes.
        seed: Of the order; None keeps that of the frames.
        rank, world: This process, and how many.
    """

    def __init__(self, size: int, batch_size: int, seed: int | None, rank: int = 0, world: int = 1) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.rank, self.world, self.epoch = rank, world, 0

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        order = np.arange(self.size)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        for start in range(0, self.size, self.batch_size):
            batch = order[start : start + self.batch_size].tolist()
            yield [(i, True) for i in batch[self.rank :: self.world]] or [(batch[0], False)]


def make_loader(
    dataset: GraphDataset, batches: EpochBatches, num_workers: int = 0
) -> DataLoader[dict[str, Tensor]]:
    """Batches as the dictionaries models take, on the CPU."""
    workers = {}
    if num_workers:
        workers = {"num_workers": num_workers, "persistent_workers": True, "worker_init_fn": _be_quiet}
    return DataLoader(
        cast(Dataset[Any], dataset),
        batch_sampler=batches,
        collate_fn=collate,
        # loaders draw a seed for their workers: not from the global generator
        generator=torch.Generator().manual_seed(0),
        **workers,
    )


def _be_quiet(_: int) -> None:
    """In a worker: say nothing about a parent that goes away while a thread hands it tensors."""
    sys.excepthook = lambda *_: None


def complete_model(config: TrainConfig, sets: dict[str, Frames]) -> dict[str, Any]:
    """
    The model's dictionary with everything filled in that the training frames decide.

    Reference atoms leave the training set when they give the atomic energies.
    """
    model = {**config.model, "backbone": dict(config.model.get("backbone") or {})}
    train = sets["train"]
    if config.dtype is not None:
        if model.get("dtype", config.dtype) != config.dtype:
            raise ValueError(f"dtype is {config.dtype}, but model.dtype is {model['dtype']}: give one")
        model["dtype"] = config.dtype
    model.setdefault("dtype", "float32")
    if model["dtype"] not in DTYPES:
        raise ValueError(f"dtype must be one of {list(DTYPES)}, got {model['dtype']!r}")
    model.setdefault("seed", config.seed)
    elements = model.get("elements") or sorted({int(z) for a in iterate(train.frames) for z in a.numbers})
    model["elements"] = [atomic_number(e) for e in elements]
    energies = model.get("atomic_energies", "average")
    if energies == "average":
        energies = average_energies(train.frames, model["elements"], config.data.energy_key)
    elif energies == "isolated":
        energies = isolated_energies(train.frames, model["elements"], config.data.energy_key)
        keep = [i for i in range(len(train)) if not is_isolated(train.frames[i])]
        if not keep:
            raise ValueError("the training frames are reference atoms only")
        sets["train"] = train.part(keep)
    elif isinstance(energies, str):
        raise ValueError(
            f"model.atomic_energies must be 'average', 'isolated' or eV by element, got {energies!r}"
        )
    model["atomic_energies"] = energies
    return model


def fill_statistics(model: dict[str, Any], dataset: GraphDataset) -> None:
    """Mean number of neighbours and RMS force (eV/angstrom), where the model's dictionary lacks them."""
    backbone = model["backbone"]
    with default_dtype(torch.float64):
        if "avg_num_neighbors" not in backbone:
            graphs = (dataset[i, True] for i in range(len(dataset)))
            backbone["avg_num_neighbors"] = float(modules.compute_avg_num_neighbors(cast(Any, graphs)))
        if "scale" not in backbone:
            squares = [
                dataset[i, True].forces.double().square().flatten()
                for i in range(len(dataset))
                if float(dataset[i, True].forces_weight) > 0
            ]
            rms = float(torch.cat(squares).mean().sqrt()) if squares else 0.0
            backbone["scale"] = rms if rms > 1e-6 else 1.0
