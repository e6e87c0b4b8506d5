"""
Steps of a model as CUDA graphs: one launch for energy, forces and stress instead of hundreds.

A graph repeats launches on the same memory. Neighbours change in number from step to step, so edges are
padded up to a bucket: an atom and an image of itself that is farther away than the cutoff, where every model
of mace-torch has no interaction. Whether that holds is checked when a graph is captured: its numbers are
compared with those of the plain step. Atoms are not padded; another number of atoms, other cells of an
electrostatic model or changed weights are captured anew. All that the host has to know is looked at before,
and checks of values after the replay. Solvers repeat what they decided in a plain step, with an iteration to
spare; where that was not enough, the step is made in the plain way and captured anew (`scfmlip.decisions`).
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..decisions import Decisions, OtherPath, deciding
from ..electrostatics.kept import frozen
from ..waiting import Pending, late

# edges of a bucket are a multiple of this, and so much more than there are, and graphs may have so much more
_STEP, _ROOM, _SPARE = 64, 1.05, 1.25
_EDGES = ("edge_index", "shifts", "unit_shifts")
# labels, which no model reads
_LABELS = ("energy", "forces", "stress", "virials", "polarizability", "rcell", "volume")
# largest difference between a captured step and a plain one, relative to the largest number
_SAME = {torch.float32: 1e-3, torch.float64: 1e-8}
# what exists for every edge, or needs derivatives beyond the first
_PLAIN = (
    *("training", "compute_hessian", "compute_edge_forces", "compute_atomic_stresses"),
    *("compute_response", "compute_stability"),
)

_ROUGH = (
    "an edge beyond the cutoff changes the energy of this {}, which is not smooth there: its edges cannot be "
    "padded, and cuda_graph=True captures a graph for every number of edges. In dynamics this costs more "
    "than it saves: leave it out"
)
Step = Callable[..., dict[str, Any]]


@dataclass
class _Graph:
    """A captured step."""

    key: tuple
    held: tuple
    capacity: int
    inputs: dict[str, Tensor]
    n_edges: Tensor
    outputs: dict[str, Any]
    pending: Pending
    flags: Tensor | None
    replay: Callable[[], None]
    taken: Decisions


def check_cuda() -> None:
    """
    Refuse graphs where there is no CUDA.

    Raises:
        ValueError: says what to do.
    """
    if not torch.cuda.is_available():
        raise ValueError(
            "cuda_graph=True needs a CUDA device, and torch finds none here: leave it out, a CPU has no "
            "launches to save"
        )


class StepGraphs:
    """
    The graphs of one model; not part of it when it is copied or saved.

    Args:
        most: How many graphs are kept, those used last.
    """

    def __init__(self, most: int = 8) -> None:
        self.most = most
        self._graphs: list[_Graph] = []
        self._lock = threading.Lock()
        self._padded = True
        self.captures = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> StepGraphs:
        return StepGraphs(self.most)

    def __reduce__(self) -> tuple:
        return StepGraphs, (self.most,)

    def step(self, model: Any, run: Step, data: Mapping[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        """
        One step of a model.

        Args:
            model: The model.
            run: Its forward pass, ``(batch, **options)``.
            data: The batch.
            options: Arguments of the forward pass by name.

        Returns:
            Its outputs, without a graph of autograd.

        Raises:
            ValueError: for a batch that is not on a GPU.
            RuntimeError: for a model that cannot be captured; says why and what to do.
        """
        device = data["positions"].device
        if device.type != "cuda":
            raise ValueError(
                f"this model was made with cuda_graph=True, and its batch is on {device}: move both to a "
                "CUDA device, or leave cuda_graph out"
            )
        tensors = all(isinstance(v, Tensor) for v in data.values())
        named = {k: v for k, v in options.items() if v is not None and v is not False}
        if (
            not tensors
            or any(named.get(k) for k in _PLAIN)
            or any(isinstance(v, Tensor) for v in named.values())
        ):
            return run(data, **options)
        with self._lock, torch.cuda.device(device):
            read = [k for k in data if k not in _LABELS and not k.endswith("weight")]
            given = {k: data[k].detach() for k in read}
            state = _state(model, data, given, options) if data["edge_index"].shape[1] else None
            if state is None:
                return run(data, **options)
            return self._step(model, run, given, options, *state)

    def _step(
        self, model: Any, run: Step, data: dict[str, Tensor], options: dict[str, Any], key: tuple, held: tuple
    ) -> dict[str, Any]:
        n_edges = data["edge_index"].shape[1]
        graph = next(
            (g for g in self._graphs if g.key == key and _fits(g.capacity, n_edges, self._padded)), None
        )
        if graph is not None:
            self._graphs = [graph, *(g for g in self._graphs if g is not graph)]
            with contextlib.suppress(OtherPath):
                return _replayed(graph, data)
            self._graphs = self._graphs[1:]
        plain, taken = _plain(run, data, options)
        state = _state(model, data, data, options)  # plans that were missing have been made
        if state is None:
            return plain
        taken = taken if graph is None else taken.widened(graph.taken)
        with contextlib.suppress(OtherPath):  # where rounding decides
            graph = self._new(model, run, data, options, *state, plain, taken)
            self._graphs = [graph, *self._graphs][: self.most]
            return _replayed(graph, data)
        return {k: v.detach() if isinstance(v, Tensor) else v for k, v in plain.items()}

    def _new(
        self,
        model: Any,
        run: Step,
        data: dict[str, Tensor],
        options: dict[str, Any],
        key: tuple,
        held: tuple,
        plain: dict[str, Any],
        taken: Decisions,
    ) -> _Graph:
        """Capture a step, and compare it with the plain one, or with a plain one that decides as it does."""
        if taken.taken:
            with deciding(taken.rewound(), Pending()):
                plain = run(dict(data), **options)
        want = {k: v.detach().clone() for k, v in plain.items() if isinstance(v, Tensor)}
        reach = 2.0 * float(model.r_max)
        for padded in (True, False) if self._padded else (False,):
            capacity = _bucket(data["edge_index"].shape[1], padded)
            try:
                graph = _capture(run, data, options, capacity, reach, key, held, taken)
            except OtherPath:
                raise
            except RuntimeError as error:
                raise RuntimeError(
                    f"this {type(model).__name__} cannot be captured in a CUDA graph ({error}): leave "
                    "cuda_graph=True out"
                ) from error
            _fill(graph, data)
            graph.replay()
            self.captures += 1
            if _same(graph.outputs, want):
                if self._padded and not padded:
                    self._padded = False
                    warnings.warn(_ROUGH.format(type(model).__name__), stacklevel=6)
                return graph
        raise RuntimeError(
            f"a captured step of this {type(model).__name__} has other numbers than a plain one: leave "
            "cuda_graph=True out"
        )


def _state(
    model: Any, data: Mapping[str, Any], given: dict[str, Tensor], options: dict[str, Any]
) -> tuple[tuple, tuple] | None:
    """What a graph is for, and what has to live as long as it; None where a step cannot be captured."""
    token = model.capture_token(data)
    if token is None:
        return None
    weights = (*model.parameters(), *model.buffers())
    held = (*token, *weights)
    key = (
        tuple(sorted((k, None if k in _EDGES else v.shape, v.dtype) for k, v in given.items())),
        tuple(sorted(options.items())),
        tuple(id(part) for part in held),
        tuple((w.data_ptr(), w._version, w.device) for w in weights),
    )
    return key, held


def _plain(run: Step, data: dict[str, Tensor], options: dict[str, Any]) -> tuple[dict[str, Any], Decisions]:
    """A plain step, and what it decided."""
    pending, taken = Pending(), Decisions()
    try:
        with deciding(taken, pending):
            out = run(dict(data), **options)
    except Exception:
        pending.look()  # what failed before is the cause
        raise
    pending.look()
    return out, taken


def _replayed(graph: _Graph, data: dict[str, Tensor]) -> dict[str, Any]:
    """
    A captured step.

    Raises:
        OtherPath: if it had to decide otherwise.
    """
    _fill(graph, data)
    graph.replay()
    flags, waits = graph.flags, late(data["positions"].device)
    if flags is None or waits is None or graph.taken.taken:
        graph.pending.look(flags)
    else:  # the next replay writes into the graph's own
        flags = flags.clone()
        waits.add(flags.any(), lambda: graph.pending.look(flags))
    return _copied(graph.outputs)


def _bucket(n_edges: int, padded: bool) -> int:
    """Edges that a graph is captured for."""
    return -(-int(_ROOM * n_edges) // _STEP) * _STEP if padded else n_edges


def _fits(capacity: int, n_edges: int, padded: bool) -> bool:
    return (
        n_edges <= capacity <= max(_SPARE * n_edges, n_edges + 2 * _STEP) if padded else capacity == n_edges
    )


def _fill(graph: _Graph, data: dict[str, Tensor]) -> None:
    """Copy a batch to where the graph reads it."""
    n_edges = data["edge_index"].shape[1]
    pairs = []
    for name, value in graph.inputs.items():
        given = data[name]
        if name == "edge_index":  # by rows, which are contiguous
            pairs += [(row[:n_edges], new) for row, new in zip(value, given, strict=True)]
        else:
            pairs.append((value[:n_edges] if name in _EDGES else value, given))
    _copy(pairs)
    graph.n_edges.fill_(n_edges)


def _copy(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Copy the second of each pair to the first: one launch for all of a dtype."""
    kinds: dict[tuple, list[tuple[Tensor, Tensor]]] = {}
    for to, given in pairs:
        if to.numel():
            kinds.setdefault((to.dtype, given.dtype), []).append((to, given.contiguous()))
    with torch.no_grad():
        for kind in kinds.values():
            targets, sources = zip(*kind, strict=True)
            torch._foreach_copy_(list(targets), list(sources))  # pyright: ignore[reportPrivateImportUsage]


def _copied(outputs: dict[str, Any]) -> dict[str, Any]:
    """Copies of the tensors among outputs, which the next replay overwrites."""
    out = {
        k: torch.empty_like(v, memory_format=torch.contiguous_format) if isinstance(v, Tensor) else v
        for k, v in outputs.items()
    }
    _copy([(out[k], v) for k, v in outputs.items() if isinstance(v, Tensor)])
    return out


def _padded(inputs: dict[str, Tensor], n_edges: Tensor, reach: float) -> dict[str, Tensor]:
    """
    The batch with edges that do nothing in place of those that are not used.

    They lead from atoms to their own images, along the longest cell vector of any system: with the cell's
    strain they stay out of reach. Without any cell vector, along x.
    """
    data = {k: v.detach() for k, v in inputs.items()}
    cell, ptr = data["cell"].view(-1, 3, 3), data["ptr"]
    lengths = cell.norm(dim=2).flatten()
    longest = lengths.argmax(0, keepdim=True)
    length, vector = lengths.index_select(0, longest), cell.flatten(0, 1).index_select(0, longest)
    system = longest // 3
    first, count = ptr.index_select(0, system), ptr.diff().index_select(0, system)
    number = torch.arange(data["edge_index"].shape[1], device=cell.device)
    unused = number >= n_edges
    atom = first + number % count
    empty = length == 0
    images = torch.where(empty, 0.0, torch.ceil(reach / torch.where(empty, 1.0, length)))
    axes = torch.eye(3, dtype=cell.dtype, device=cell.device)
    unit = images[:, None] * axes.index_select(0, longest % 3)
    shift = torch.where(empty[:, None], reach * axes[:1], images[:, None] * vector)
    data["edge_index"] = torch.where(unused, atom, data["edge_index"])
    data["unit_shifts"] = torch.where(
        unused[:, None], unit.to(data["unit_shifts"].dtype), data["unit_shifts"]
    )
    data["shifts"] = torch.where(unused[:, None], shift.to(data["shifts"].dtype), data["shifts"])
    return data


def _capture(
    run: Step,
    data: dict[str, Tensor],
    options: dict[str, Any],
    capacity: int,
    reach: float,
    key: tuple,
    held: tuple,
    taken: Decisions,
) -> _Graph:
    inputs = {}
    for name, value in data.items():
        inputs[name] = value.clone()
        if name in _EDGES:
            shape = (2, capacity) if name == "edge_index" else (capacity, 3)
            inputs[name] = value.new_zeros(shape)
    counted = torch.zeros((), dtype=torch.int64, device=data["positions"].device)
    exact = capacity == data["edge_index"].shape[1]

    def step() -> tuple[dict[str, Any], Pending, Tensor | None]:
        pending = Pending()
        given = {k: v.detach() for k, v in inputs.items()} if exact else _padded(inputs, counted, reach)
        with deciding(taken.rewound(), pending), frozen():
            out = run(given, **options)
        out = {k: v.detach() if isinstance(v, Tensor) else v for k, v in out.items()}
        return out, pending, pending.flags()

    graph = _Graph(key, held, capacity, inputs, counted, {}, Pending(), None, lambda: None, taken)
    _fill(graph, data)
    side, main = torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(main)
    with torch.cuda.stream(side):  # kernels are compiled, constants made, plans kept
        for _ in range(2):
            step()
    main.wait_stream(side)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        graph.outputs, graph.pending, graph.flags = step()
    graph.replay = captured.replay
    return graph


def _same(got: dict[str, Any], want: dict[str, Tensor]) -> bool:
    """Whether all outputs agree, up to the order of sums."""
    for name, value in want.items():
        if not value.is_floating_point():
            continue
        scale = value.abs().max() if value.numel() else value.new_zeros(())
        near = ((got[name] - value).abs() <= _SAME[value.dtype] * (1 + scale)) | value.isnan()
        if not bool(near.all()):
            return False
    return True
