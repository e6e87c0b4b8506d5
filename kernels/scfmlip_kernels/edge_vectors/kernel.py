"""
Vectors along strained edges and their lengths, and the derivatives in positions and strains.

Values: blocks of edges. Derivatives: blocks of edges for what an edge passes on, then one program for each
atom, which adds over the atom's edges in the order of `sort_edges`. No atomics: bitwise reproducible.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..tuned import compiler_options

_EDGES = 128


@triton.jit
def _edge(positions_ptr, shifts_ptr, sender_ptr, receiver_ptr, edge, inside, axis: tl.constexpr):
    """One component of vectors before the strain."""
    sender = tl.load(sender_ptr + edge, mask=inside, other=0)
    receiver = tl.load(receiver_ptr + edge, mask=inside, other=0)
    to = tl.load(positions_ptr + receiver * 3 + axis, mask=inside, other=0.0)
    away = tl.load(positions_ptr + sender * 3 + axis, mask=inside, other=0.0)
    return to - away + tl.load(shifts_ptr + edge * 3 + axis, mask=inside, other=0.0)


@triton.jit
def _half(strain, i: tl.constexpr, j: tl.constexpr, inside):
    """An element of the symmetric part of strains."""
    one = tl.load(strain + 3 * i + j, mask=inside, other=0.0)
    return 0.5 * (one + tl.load(strain + 3 * j + i, mask=inside, other=0.0))


@triton.jit
def _edge_vectors_kernel(
    positions_ptr,  # [n_atoms, 3]
    strain_ptr,  # [n_systems, 3, 3]
    shifts_ptr,  # [n_edges, 3]
    system_ptr,  # [n_atoms] int64
    sender_ptr,  # [n_edges] int64
    receiver_ptr,  # [n_edges] int64
    grad_ptr,  # [n_edges, 4], for derivatives
    out_ptr,  # [n_edges, 4] values, or [n_edges, 3] what goes to the positions
    outer_ptr,  # [n_edges, 9] what goes to the strains
    n_edges,
    STRAINED: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = edge < n_edges
    bx = _edge(positions_ptr, shifts_ptr, sender_ptr, receiver_ptr, edge, inside, 0)
    by = _edge(positions_ptr, shifts_ptr, sender_ptr, receiver_ptr, edge, inside, 1)
    bz = _edge(positions_ptr, shifts_ptr, sender_ptr, receiver_ptr, edge, inside, 2)
    x = bx
    y = by
    z = bz
    if STRAINED:
        sender = tl.load(sender_ptr + edge, mask=inside, other=0)
        strain = strain_ptr + tl.load(system_ptr + sender, mask=inside, other=0) * 9
        xx = _half(strain, 0, 0, inside)
        xy = _half(strain, 0, 1, inside)
        xz = _half(strain, 0, 2, inside)
        yy = _half(strain, 1, 1, inside)
        yz = _half(strain, 1, 2, inside)
        zz = _half(strain, 2, 2, inside)
        x = bx + (bx * xx + by * xy + bz * xz)
        y = by + (bx * xy + by * yy + bz * yz)
        z = bz + (bx * xz + by * yz + bz * zz)
    square = x * x + y * y + z * z
    length = tl.sqrt(square) if positions_ptr.dtype.element_ty == tl.float64 else tl.sqrt_rn(square)
    if DERIVATIVE:
        there = square > 0.0
        scale = tl.load(grad_ptr + edge * 4 + 3, mask=inside, other=0.0)
        scale = tl.where(there, scale / tl.where(there, length, length + 1.0), length * 0.0)
        gx = tl.load(grad_ptr + edge * 4, mask=inside, other=0.0) + scale * x
        gy = tl.load(grad_ptr + edge * 4 + 1, mask=inside, other=0.0) + scale * y
        gz = tl.load(grad_ptr + edge * 4 + 2, mask=inside, other=0.0) + scale * z
        x = gx
        y = gy
        z = gz
        if STRAINED:
            x = gx + (xx * gx + xy * gy + xz * gz)
            y = gy + (xy * gx + yy * gy + yz * gz)
            z = gz + (xz * gx + yz * gy + zz * gz)
            outer = outer_ptr + edge * 9
            a = 0.5 * (bx * gy + by * gx)
            b = 0.5 * (bx * gz + bz * gx)
            c = 0.5 * (by * gz + bz * gy)
            tl.store(outer, bx * gx, mask=inside)
            tl.store(outer + 1, a, mask=inside)
            tl.store(outer + 2, b, mask=inside)
            tl.store(outer + 3, a, mask=inside)
            tl.store(outer + 4, by * gy, mask=inside)
            tl.store(outer + 5, c, mask=inside)
            tl.store(outer + 6, b, mask=inside)
            tl.store(outer + 7, c, mask=inside)
            tl.store(outer + 8, bz * gz, mask=inside)
        out = out_ptr + edge * 3
    else:
        out = out_ptr + edge * 4
        tl.store(out + 3, length, mask=inside)
    tl.store(out, x, mask=inside)
    tl.store(out + 1, y, mask=inside)
    tl.store(out + 2, z, mask=inside)


@triton.jit
def _edge_sums_kernel(
    edges_ptr,  # [n_edges, 3]
    outer_ptr,  # [n_edges, 9]
    by_receiver_ptr,  # [n_edges] int64
    receiver_ptr_ptr,  # [n_atoms + 1] int64
    by_sender_ptr,  # [n_edges] int64
    sender_ptr_ptr,  # [n_atoms + 1] int64
    out_ptr,  # [n_atoms, 3]
    strain_ptr,  # [n_atoms, 9]
    STRAINED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    atom = tl.program_id(0).to(tl.int64)
    axis = tl.arange(0, 4)
    element = tl.arange(0, 16)
    total = tl.zeros((BLOCK, 4), edges_ptr.dtype.element_ty)
    whole = tl.zeros((BLOCK, 16), edges_ptr.dtype.element_ty)
    begin = tl.load(receiver_ptr_ptr + atom)
    end = tl.load(receiver_ptr_ptr + atom + 1)
    for start in range(begin, end, BLOCK):
        place = start + tl.arange(0, BLOCK)
        edge = tl.load(by_receiver_ptr + place, mask=place < end, other=0)
        keep = (place < end)[:, None] & (axis < 3)[None, :]
        total += tl.load(edges_ptr + edge[:, None] * 3 + axis[None, :], mask=keep, other=0.0)
    begin = tl.load(sender_ptr_ptr + atom)
    end = tl.load(sender_ptr_ptr + atom + 1)
    for start in range(begin, end, BLOCK):
        place = start + tl.arange(0, BLOCK)
        edge = tl.load(by_sender_ptr + place, mask=place < end, other=0)
        keep = (place < end)[:, None] & (axis < 3)[None, :]
        total -= tl.load(edges_ptr + edge[:, None] * 3 + axis[None, :], mask=keep, other=0.0)
        if STRAINED:
            keep = (place < end)[:, None] & (element < 9)[None, :]
            whole += tl.load(outer_ptr + edge[:, None] * 9 + element[None, :], mask=keep, other=0.0)
    tl.store(out_ptr + atom * 3 + axis, tl.sum(total, 0), mask=axis < 3)
    if STRAINED:
        tl.store(strain_ptr + atom * 9 + element, tl.sum(whole, 0), mask=element < 9)


def launch_edge_vectors(
    positions: Tensor,
    strain: Tensor | None,
    shifts: Tensor,
    system: Tensor | None,
    sender: Tensor,
    receiver: Tensor,
    grad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Values ``[n_edges, 4]``; with ``grad`` what edges pass on, ``[n_edges, 3]`` and ``[n_edges, 9]``."""
    n_edges = len(sender)
    out = positions.new_empty((n_edges, 4 if grad is None else 3))
    outer = out
    if grad is not None and strain is not None:
        outer = positions.new_empty((n_edges, 9))
    if n_edges:
        _edge_vectors_kernel[(triton.cdiv(n_edges, _EDGES),)](
            positions_ptr=positions,
            strain_ptr=strain,
            shifts_ptr=shifts,
            system_ptr=system,
            sender_ptr=sender,
            receiver_ptr=receiver,
            grad_ptr=grad,
            out_ptr=out,
            outer_ptr=outer,
            n_edges=n_edges,
            STRAINED=strain is not None,
            DERIVATIVE=grad is not None,
            BLOCK=_EDGES,
            **compiler_options(4, 1, positions),
        )
    return out, outer


def launch_edge_sums(
    edges: Tensor, outer: Tensor | None, orders: tuple[Tensor, Tensor, Tensor, Tensor], n_atoms: int
) -> tuple[Tensor, Tensor]:
    """``[n_atoms, 3]``, and ``[n_atoms, 9]`` if there are strains, else of no meaning."""
    out = edges.new_empty((n_atoms, 3))
    strain = out if outer is None else edges.new_empty((n_atoms, 9))
    if n_atoms:
        _edge_sums_kernel[(n_atoms,)](
            edges_ptr=edges,
            outer_ptr=outer,
            by_receiver_ptr=orders[0],
            receiver_ptr_ptr=orders[1],
            by_sender_ptr=orders[2],
            sender_ptr_ptr=orders[3],
            out_ptr=out,
            strain_ptr=strain,
            STRAINED=outer is not None,
            BLOCK=32,
            **compiler_options(1, 1, edges),
        )
    return out, strain
