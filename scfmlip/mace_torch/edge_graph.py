"""
mace-torch's preparation of a graph on a GPU: vectors, lengths and strain of the edges in one launch.

mace-torch strains positions and cells, gathers both ends of every edge and subtracts; its backward pass
scatters with sorts. Here an edge's vector is strained, which is the same, and its derivative adds over the
edges of an atom in the order that the convolutions have sorted them in.
"""

# mace-torch's modules are untyped: for torch.nn.Module every attribute is Tensor | Module
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from mace.modules.utils import GraphContext, InteractionKwargs, prepare_graph
from torch import Tensor

from scfmlip_kernels import edge_vectors

from .interactions import sorted_edges
from .polar_rows import strained_positions

# outputs that are derivatives in the vectors of edges alone, where lengths have to follow from them
_OF_EDGES = ("compute_edge_forces", "compute_atomic_stresses", "lammps_mliap")


def _fits(data: dict[str, Any], lammps_mliap: bool) -> bool:
    """Whether a graph is one that is prepared here: on a GPU, whole, in cells that are not differentiated."""
    positions = data["positions"]
    if lammps_mliap or "lammps_class" in data or torch.compiler.is_compiling() or not positions.is_cuda:
        return False
    cells = [t for t in (data.get("cell"), data.get("unit_shifts"), data["shifts"]) if t is not None]
    return len(cells) == 3 and not any(t.requires_grad for t in cells)


def _shifts(data: dict[str, Tensor], n_graphs: int) -> Tensor:
    """``[n_edges, 3]`` lattice vectors of the edges."""
    cell = data["cell"].view(-1, 3, 3)
    if n_graphs == 1:
        return data["unit_shifts"] @ cell[0]
    systems = data["batch"][data["edge_index"][0]]
    return (data["unit_shifts"][:, None] @ cell[systems])[:, 0]


def prepare_edges(
    data: dict[str, Tensor],
    compute_virials: bool = False,
    compute_stress: bool = False,
    compute_displacement: bool = False,
    lammps_mliap: bool = False,
    strain_positions: bool = False,
) -> GraphContext:
    """
    What mace-torch's ``prepare_graph`` returns; only ``strain_positions`` writes strained ones into the data.

    Not for outputs that are derivatives in the vectors alone: lengths do not depend on them here.
    """
    strained = compute_virials or compute_stress or compute_displacement
    if not _fits(data, lammps_mliap):
        return prepare_graph(data, compute_virials, compute_stress, compute_displacement, lammps_mliap)
    positions, batch, ptr = data["positions"].requires_grad_(True), data["batch"], data["ptr"]
    heads, n_graphs = data.get("head"), len(ptr) - 1
    displacement = data.get("displacement")
    if displacement is None or not strained:
        displacement = positions.new_zeros(n_graphs, 3, 3).requires_grad_(strained)
    edges = sorted_edges(data["edge_index"], len(positions))
    if strained:
        shifts = _shifts(data, n_graphs)
        found = edge_vectors(positions, shifts, edges, displacement, batch, ptr)
    else:
        found = edge_vectors(positions, data["shifts"], edges)
    vectors, lengths = found.split((3, 1), 1)
    if strained and strain_positions:
        data["positions"] = strained_positions(positions, displacement, batch, ptr)
    return GraphContext(
        is_lammps=False,
        num_graphs=n_graphs,
        num_atoms_arange=torch.arange(len(positions), device=positions.device),
        displacement=displacement,
        positions=positions,
        vectors=vectors,
        lengths=lengths,
        cell=data["cell"],
        node_heads=torch.zeros_like(batch) if heads is None else heads[batch],
        interaction_kwargs=InteractionKwargs(None, (0, 0)),
    )


def with_prepared_edges(forward: Callable[..., Any]) -> Callable[..., Any]:
    """
    mace-torch's forward pass of a model, with `prepare_edges` in the place of ``prepare_graph``.

    Calls with outputs of edges, and those with flags by position, run the original.
    """
    scope = {**forward.__globals__, "prepare_graph": prepare_edges}  # type: ignore[attr-defined]
    fast = FunctionType(forward.__code__, scope, forward.__name__, forward.__defaults__, forward.__closure__)  # type: ignore[attr-defined]
    fast.__kwdefaults__ = forward.__kwdefaults__  # type: ignore[attr-defined]

    @functools.wraps(forward)
    def run(self: Any, data: dict[str, Tensor], *flags: Any, **options: Any) -> Any:
        whole = data["positions"].is_cuda if "positions" in data else False
        if whole and not flags and not any(options.get(name) for name in _OF_EDGES):
            return fast(self, data, **options)
        return forward(self, data, *flags, **options)

    return run
