"""Operator registration: dispatch, fake tensors, derivatives, public function."""

import torch
from torch import Tensor

from ..channelwise_conv.edges import EdgeOrder
from ..checks import check_floats, check_shape, check_tensors
from ..dispatch import runs_triton, vmap_by_loop
from ..operators import operator
from .formulas import gradients_plain, vectors_plain
from .kernel import launch_edge_sums, launch_edge_vectors


@operator("scfmlip::edge_vectors")
def _edge_vectors(
    positions: Tensor,
    strain: Tensor | None,
    shifts: Tensor,
    system: Tensor | None,
    system_ptr: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    by_receiver: Tensor,
    receiver_ptr: Tensor,
    by_sender: Tensor,
    sender_ptr: Tensor,
) -> Tensor:
    strain = None if strain is None else strain.contiguous()
    given = (positions.contiguous(), strain, shifts.contiguous(), system, sender, receiver)
    return launch_edge_vectors(*given)[0] if runs_triton(positions) else vectors_plain(*given)


@_edge_vectors.register_fake
def _(positions, strain, shifts, system, system_ptr, sender, *orders):
    return positions.new_empty((sender.shape[0], 4))


@operator("scfmlip::edge_vectors_backward")
def _edge_vectors_backward(
    positions: Tensor,
    strain: Tensor | None,
    shifts: Tensor,
    system: Tensor | None,
    system_ptr: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    by_receiver: Tensor,
    receiver_ptr: Tensor,
    by_sender: Tensor,
    sender_ptr: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor]:
    strain = None if strain is None else strain.contiguous()
    given = (positions.contiguous(), strain, shifts.contiguous(), system, sender, receiver)
    if not runs_triton(positions):
        d_positions, d_strain = gradients_plain(*given, grad)
        return d_positions, positions.new_empty(0) if d_strain is None else d_strain
    edges, outer = launch_edge_vectors(*given, grad.contiguous())
    orders = (by_receiver, receiver_ptr, by_sender, sender_ptr)
    d_positions, parts = launch_edge_sums(edges, None if strain is None else outer, orders, len(positions))
    if strain is None or system_ptr is None:
        return d_positions, positions.new_empty(0)
    if len(strain) == 1:
        return d_positions, parts.sum(0).view(1, 3, 3)
    sums = torch.ops.scfmlip.segment_sum(parts, system_ptr, system)
    return d_positions, sums.view(-1, 3, 3)


@_edge_vectors_backward.register_fake
def _(positions, strain, *rest):
    return torch.empty_like(positions), positions.new_empty((0,) if strain is None else strain.shape)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    positions, strain, shifts, system, system_ptr, sender, receiver, *orders = ctx.saved_tensors
    if ctx.needs_input_grad[2]:
        raise NotImplementedError("edge_vectors: no derivatives in the shifts: detach them")
    if torch.is_grad_enabled():  # differentiated again
        found = gradients_plain(positions, strain, shifts, system, sender, receiver, grad)
    else:
        found = torch.ops.scfmlip.edge_vectors_backward(
            positions, strain, shifts, system, system_ptr, sender, receiver, *orders, grad
        )
    d_strain = None if strain is None else found[1]
    return found[0], d_strain, *(None,) * 9


def _jvp(args, tangents):
    positions, strain, shifts, system, _, sender, receiver, *_ = args
    along_positions, along_strain, *others = tangents
    if any(t is not None for t in others):
        raise NotImplementedError("edge_vectors: no derivatives in the shifts: detach them")
    vectors = vectors_plain(positions, strain, shifts, system, sender, receiver)
    moved = torch.zeros_like(vectors[:, :3])
    if along_positions is not None:
        none = torch.zeros_like(shifts)
        moved = moved + vectors_plain(along_positions, strain, none, system, sender, receiver)[:, :3]
    if along_strain is not None:
        before = vectors_plain(positions, None, shifts, None, sender, receiver)[:, :3]
        bent = vectors_plain(positions, along_strain, shifts, system, sender, receiver)[:, :3]
        moved = moved + bent - before
    length = (vectors[:, :3] * moved).sum(1, keepdim=True) / vectors[:, 3:]
    return torch.cat((moved, length), 1)


_edge_vectors.register_autograd(_backward, setup_context=_setup_context, jvp=_jvp)
vmap_by_loop(_edge_vectors, "edge_vectors")
vmap_by_loop(_edge_vectors_backward, "edge_vectors_backward")


def edge_vectors(
    positions: Tensor,
    shifts: Tensor,
    edges: EdgeOrder,
    strain: Tensor | None = None,
    system: Tensor | None = None,
    system_ptr: Tensor | None = None,
) -> Tensor:
    """
    Vectors from the senders of edges to their receivers, in strained systems, and their lengths.

    ``v = b + b e`` with ``b = r_receiver - r_sender + shift`` and e the symmetric part of the system's
    strain: what strained positions and shifts give.

    Args:
        positions: ``[n_atoms, 3]`` float32 or float64.
        shifts: ``[n_edges, 3]`` lattice vectors from the receiver to its image; not differentiated.
        edges: From `sort_edges`, of one set of atoms.
        strain: ``[n_systems, 3, 3]``, or None.
        system: ``[n_atoms]`` int64 system of each atom, not decreasing; with ``strain``.
        system_ptr: ``[n_systems + 1]`` int64 first atom of each system; with ``strain``.

    Returns:
        ``[n_edges, 4]`` x, y, z and the length. Differentiable any number of times in the positions and the
        strain; bitwise reproducible the first time.

    Raises:
        TypeError: for another dtype.
        ValueError: for shapes that do not match, or tensors on different devices.

    Example:
        >>> import torch
        >>> from scfmlip_kernels import edge_vectors, sort_edges
        >>> positions = torch.tensor([[0.0, 0.0, 0.0], [3.0, 4.0, 0.0]])
        >>> edges = sort_edges(torch.tensor([0]), torch.tensor([1]), n_nodes=2)
        >>> edge_vectors(positions, torch.zeros(1, 3), edges).tolist()
        [[3.0, 4.0, 0.0, 5.0]]
    """
    tensors = {"positions": positions, "shifts": shifts}
    tensors |= {} if strain is None else {"strain": strain}
    check_tensors("edge_vectors", **tensors, edges=edges.sender)
    check_floats("edge_vectors", **tensors)
    check_shape("edge_vectors", "positions", positions, (edges.n_senders, 3))
    check_shape("edge_vectors", "shifts", shifts, (edges.sender.shape[0], 3))
    if strain is not None:
        if system is None or system_ptr is None:
            raise ValueError("edge_vectors: strains need the system of each atom: pass system and system_ptr")
        check_shape("edge_vectors", "strain", strain, (system_ptr.shape[0] - 1, 3, 3))
        check_shape("edge_vectors", "system", system, (positions.shape[0],))
    orders = (edges.by_receiver, edges.receiver_ptr, edges.by_sender, edges.sender_ptr)
    given = (positions, strain, shifts, system, system_ptr, edges.sender, edges.receiver)
    return torch.ops.scfmlip.edge_vectors(*given, *orders)
