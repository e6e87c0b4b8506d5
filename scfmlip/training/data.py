"""Read files into graphs with labels, and draw batches from them."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from ase import Atoms
from mace.data import AtomicData
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from ..mace_torch.batches import check_structure
from ..mace_torch.graphs import collate, make_graph
from ..mace_torch.inputs import INPUTS, check_spin, read_embedded, resolve_head
from .config import DataConfig
from .frames import PROPERTIES, is_isolated, iterate, labelled, read_frames
from .losses import TERMS

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclasses.dataclass
class Frames:
    """Frames of one set, with a name for each."""

    frames: Sequence[Atoms]
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def part(self, indices: Sequence[int]) -> Frames:
        """A subset; frames of HDF5 files stay on disk."""
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
    Read the frames of "train", "valid" and "test"; the last two may be empty.

    Raises:
        FileNotFoundError, ValueError: as in `read_frames`; also if the fractions leave nothing to train on.
    """
    sets = {}
    for name in ("train", "valid", "test"):
        parts = [(path, read_frames(path, config, f"data.{name}")) for path in getattr(config, name)]
        names = [f"frame {i} of {path}" for path, frames in parts for i in range(len(frames))]
        sets[name] = Frames(_Joined([f for _, f in parts]) if parts else [], names)
    if not len(sets["train"]):
        raise ValueError("data.train names no files")
    whole = sets["train"]
    order = np.random.default_rng(config.split_seed).permutation(len(whole)).tolist()
    # reference atoms stay in the training set, for training or for their energies
    atoms = {i for i, frame in enumerate(iterate(whole.frames)) if is_isolated(frame)}
    order = [i for i in order if i not in atoms]
    total = len(order)
    for name, fraction in (("valid", config.valid_fraction), ("test", config.test_fraction)):
        if fraction and not getattr(config, name):
            count = max(1, round(fraction * total))
            chosen, order = sorted(order[:count]), order[count:]
            sets[name] = whole.part(chosen)
    if not order:
        raise ValueError(
            f"{total} frames are too few for these validation and test fractions"
            + (f" (besides {len(atoms)} of isolated atoms)" if atoms else "")
        )
    if len(order) < total:
        sets["train"] = whole.part(sorted([*order, *atoms]))
    return sets


class GraphDataset(Dataset[AtomicData]):
    """
    Graphs with labels. An index is ``(frame, counts)``; a frame that does not count has weight 0.

    The label ``energy`` is the interaction energy: atomic energies are subtracted in float64, because in
    float32 they would swamp the rest. Missing labels are zero with weight 0.

    Args:
        frames: Frames and their names.
        keys: Keys of the labels.
        elements: Atomic numbers of the model.
        energies: Atomic energies, eV, per element, or per head and element.
        r_max: Cutoff, angstrom.
        dtype: dtype of the graphs.
        width: Columns of the density, 1 or 4.
        heads: Heads of the model.
        pad_cell: Whether to use mace's very long cells along open directions instead of the frames' own.
        needed: Inputs that the model's energy depends on, by the batch's names. A missing total charge counts
            as 0, a missing multiplicity as 1.
        embedded: mace-torch's description of additional inputs that the network embeds.
    """

    def __init__(
        self,
        frames: Frames,
        keys: DataConfig,
        elements: Sequence[int],
        energies: Sequence[Any],
        r_max: float,
        dtype: torch.dtype,
        width: int,
        heads: Sequence[str] = ("Default",),
        pad_cell: bool = False,
        needed: Collection[str] = (),
        embedded: Mapping[str, Any] | None = None,
    ) -> None:
        self.frames, self.keys, self.dtype, self.width = frames, keys, dtype, width
        self.elements, self.heads, self.needed = list(elements), tuple(heads), tuple(needed)
        rows = np.atleast_2d(np.asarray(energies, dtype=np.float64))
        self.energies = np.broadcast_to(rows, (len(self.heads), len(self.elements)))
        self.r_max, self.pad_cell, self.embedded = r_max, pad_cell, dict(embedded or {})
        self._graphs: dict[int, AtomicData] = {}

    def __len__(self) -> int:
        return len(self.frames)

    def check(self, quiet: bool = True) -> dict[str, list[int]]:
        """
        Check every frame before the training starts.

        Args:
            quiet: No progress bar.

        Returns:
            For each input that the model needs, the frames without it.

        Raises:
            ValueError: names the first frame that cannot be used, and why.
        """
        missing: dict[str, list[int]] = {}
        countered = 0
        for i, name in enumerate(
            tqdm(self.frames.names, "graphs", unit="frame", disable=quiet or None, leave=False)
        ):
            atoms = self.frames.frames[i]
            check_structure(atoms, self.elements, name)
            frame = self._labelled(i)
            self._head(frame, name)
            read_embedded(atoms, self.embedded, name)
            for which in self.needed:
                if which not in frame.info and which in INPUTS:
                    missing.setdefault(which, []).append(i)
            initial = float(atoms.get_initial_charges().sum())
            if i in missing.get("total_charge", ()) and round(initial):
                raise ValueError(
                    f"{name} has no total charge, but initial charges that sum to {initial:g}, which are not "
                    "read: set atoms.info['charge']"
                )
            if "fermi_level" in missing:
                raise ValueError(
                    f"{name} lacks atoms.info[{self.keys.fermi_key!r}] (data.fermi_key): this model's energy "
                    "depends on the electrons' Fermi level"
                )
            if "total_spin" in self.needed:
                charge, spin = frame.info.get("total_charge", 0.0), frame.info.get("total_spin", 1.0)
                check_spin(atoms, charge, spin, name)
            countered += "counter_charge" in frame.info
            if countered not in (0, i + 1):
                raise ValueError(
                    f"{self.frames.names[0]} and {name}: one has a counter_charge, the other has none; "
                    "all frames of a training must have it, or none"
                )
            # check neighbours too: a bad validation frame would end the first epoch
            self[i, True]
        return missing

    def _labelled(self, number: int) -> Atoms:
        try:
            return labelled(self.frames.frames[number], self.keys, "total_spin" in self.needed)
        except ValueError as error:
            raise ValueError(f"{self.frames.names[number]}: {error}") from None

    def _head(self, frame: Atoms, name: str) -> str:
        try:
            return resolve_head(self.heads, None, frame.info)
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
            graph = copy.copy(graph)  # shares the tensors
            graph.weight = torch.zeros_like(graph.weight)
            graph["counts"] = torch.zeros_like(graph.weight)
        return graph

    @cached_property
    def n_atoms(self) -> int:
        """Number of atoms in all frames."""
        return sum(len(self.frames.frames[i]) for i in range(len(self)))

    def _make(self, number: int) -> AtomicData:
        frame, name = self._labelled(number), self.frames.names[number]
        head = self._head(frame, name)
        if "energy" in frame.info:
            composition = np.array([np.count_nonzero(frame.numbers == z) for z in self.elements])
            frame.info["energy"] -= float(composition @ self.energies[self.heads.index(head)])
        values = {**frame.info, **frame.arrays}
        inputs = {which: values[which] for which in INPUTS if which in values and which != "head"}
        inputs |= read_embedded(self.frames.frames[number], self.embedded, name)
        try:
            graph = make_graph(
                frame,
                self.elements,
                self.r_max,
                self.dtype,
                heads=self.heads,
                head=head,
                inputs=inputs,
                labels={which: values[which] for which in PROPERTIES if which in values},
                pad_cell=self.pad_cell,
            )
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

        def tensor(value: Any) -> Tensor:
            return torch.tensor(value, dtype=self.dtype)

        n_atoms = len(frame)
        potential = tensor(frame.arrays.get("potential", np.zeros(n_atoms)))
        ours = {"counts": tensor(1.0), "frame_number": torch.tensor(number), "potential": potential}
        rows = frame.arrays.get("density_coefficients")
        if rows is None:
            # charges only: a reference density without dipoles and quadrupoles
            rows = np.zeros((n_atoms, self.width))
            rows[:, 0] = frame.arrays.get("charges", 0.0)
        if rows.shape[1] < self.width:
            raise ValueError(
                f"{name}: {self.keys.multipoles_key!r} has {rows.shape[1]} numbers an atom, but the model's "
                f"density {self.width} (density.l_max = {math.isqrt(self.width) - 1})"
            )
        graph.density_coefficients = tensor(rows[:, : self.width])
        for label in {term.label for term in TERMS.values()} - {
            "energy",
            "forces",
            "stress",
            "dipole",
            "charges",
        }:
            # make_graph has set the weights of the others
            weight = frame.info.get(f"config_{label}_weight", 1.0) if label in values else 0.0
            ours[f"{label}_weight"] = tensor(float(weight))
        for key, value in ours.items():
            graph[key] = value
        return graph


class EpochBatches(Sampler[list[tuple[int, bool]]]):
    """
    One process's share of every batch of an epoch.

    The order depends on seed and epoch only, so it can be repeated without stored state. A process whose
    share of a batch is empty gets a frame that does not count.

    Args:
        size: Number of frames.
        batch_size: Frames per batch, over all processes.
        seed: Seed of the order; None keeps the order of the frames.
        rank, world: Rank of this process, and number of processes.
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
    """Load batches as the dictionaries that models take, on the CPU."""
    workers = {}
    if num_workers:
        workers = {"num_workers": num_workers, "persistent_workers": True, "worker_init_fn": _be_quiet}
    return DataLoader(
        cast(Dataset[Any], dataset),
        batch_sampler=batches,
        collate_fn=collate,
        # a private generator, because loaders draw a seed for their workers
        generator=torch.Generator().manual_seed(0),
        **workers,
    )


def _be_quiet(_: int) -> None:
    """In a worker: suppress errors about a parent that ends while a thread sends it tensors."""
    sys.excepthook = lambda *_: None
