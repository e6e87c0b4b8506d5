"""
Closed charges: what is missing of each spin's charge, distributed over the atoms of a system.

Grid: (systems). One program adds over the atoms of its system in float64, then writes their rows. The
derivatives do the same with the charges' gradients, which need one more sum; theirs need four. No atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tuned import compiler_options

_BLOCK = 256


@triton.jit
def _close_charges_kernel(
    charges_ptr,  # [n_atoms, 2 m]
    update_ptr,  # [n_atoms, UPDATED * 2 m + 2]
    targets_ptr,  # [n_systems, 2]
    ptr_ptr,  # [n_systems + 1] int64
    out_ptr,  # [n_atoms, 2 m]
    totals_ptr,  # [n_systems, 4] weights of both spins, what is missing of both, out
    m,
    UPDATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    dtype = out_ptr.dtype.element_ty
    system = tl.program_id(0).to(tl.int64)
    first = tl.load(ptr_ptr + system)
    last = tl.load(ptr_ptr + system + 1)
    width = 2
    if UPDATED:
        width = 2 * m + 2
    for spin in tl.static_range(2):
        charge = tl.zeros((BLOCK,), tl.float64)
        weight = tl.zeros((BLOCK,), tl.float64)
        for start in range(first, last, BLOCK):
            atom = start + tl.arange(0, BLOCK)
            inside = atom < last
            q = tl.load(charges_ptr + atom * 2 * m + spin * m, mask=inside, other=0.0)
            if UPDATED:
                q += tl.load(update_ptr + atom * width + spin * m, mask=inside, other=0.0)
            charge += q.to(tl.float64)
            weight += tl.load(update_ptr + atom * width + width - 2 + spin, mask=inside, other=0.0).to(
                tl.float64
            )
        norm = tl.sum(weight, 0).to(dtype)
        missing = tl.load(targets_ptr + 2 * system + spin) - tl.sum(charge, 0).to(dtype)
        tl.store(totals_ptr + 4 * system + spin, norm)
        tl.store(totals_ptr + 4 * system + 2 + spin, missing)
        share = missing / tl.where(norm == 0, norm + 1, norm)
        for start in range(first, last, BLOCK):
            atom = start + tl.arange(0, BLOCK)
            inside = atom < last
            for column in range(m):
                place = spin * m + column
                q = tl.load(charges_ptr + atom * 2 * m + place, mask=inside, other=0.0)
                if UPDATED:
                    q += tl.load(update_ptr + atom * width + place, mask=inside, other=0.0)
                monopole = inside & (atom * 0 + column == 0)
                w = tl.load(update_ptr + atom * width + width - 2 + spin, mask=monopole, other=0.0)
                tl.store(out_ptr + atom * 2 * m + place, q + w * share, mask=inside)


@triton.jit
def _close_charges_backward_kernel(
    grad_ptr,  # [n_atoms, 2 m]
    update_ptr,  # [n_atoms, UPDATED * 2 m + 2]
    totals_ptr,  # [n_systems, 4] see above
    more_ptr,  # [n_systems, 4] derivatives in the totals, or None
    ptr_ptr,  # [n_systems + 1] int64
    d_charges_ptr,  # [n_atoms, 2 m]
    d_update_ptr,  # [n_atoms, UPDATED * 2 m + 2]
    d_targets_ptr,  # [n_systems, 2]
    m,
    UPDATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    dtype = grad_ptr.dtype.element_ty
    system = tl.program_id(0).to(tl.int64)
    first = tl.load(ptr_ptr + system)
    last = tl.load(ptr_ptr + system + 1)
    width = 2
    if UPDATED:
        width = 2 * m + 2
    for spin in tl.static_range(2):
        norm = tl.load(totals_ptr + 4 * system + spin)
        missing = tl.load(totals_ptr + 4 * system + 2 + spin)
        inverse = 1.0 / tl.where(norm == 0, norm + 1, norm)
        sums = tl.zeros((BLOCK,), tl.float64)
        for start in range(first, last, BLOCK):
            atom = start + tl.arange(0, BLOCK)
            inside = atom < last
            g = tl.load(grad_ptr + atom * 2 * m + spin * m, mask=inside, other=0.0)
            w = tl.load(update_ptr + atom * width + width - 2 + spin, mask=inside, other=0.0)
            sums += (g * w).to(tl.float64)
        back = (tl.sum(sums, 0) * inverse.to(tl.float64)).to(dtype)
        of_weight = -missing * inverse * tl.where(norm == 0, back * 0, back)
        if more_ptr is not None:
            of_weight += tl.load(more_ptr + 4 * system + spin)
            back += tl.load(more_ptr + 4 * system + 2 + spin)
        tl.store(d_targets_ptr + 2 * system + spin, back)
        for start in range(first, last, BLOCK):
            atom = start + tl.arange(0, BLOCK)
            inside = atom < last
            for column in range(m):
                place = spin * m + column
                g = tl.load(grad_ptr + atom * 2 * m + place, mask=inside, other=0.0)
                monopole = atom * 0 + column == 0
                d = g - tl.where(monopole, back, back * 0)
                tl.store(d_charges_ptr + atom * 2 * m + place, d, mask=inside)
                if UPDATED:
                    tl.store(d_update_ptr + atom * width + place, d, mask=inside)
                d = missing * inverse * g + of_weight
                tl.store(d_update_ptr + atom * width + width - 2 + spin, d, mask=inside & monopole)


@triton.jit
def _close_charges_second_kernel(
    v_charges_ptr,  # [n_atoms, 2 m] or None
    v_update_ptr,  # [n_atoms, UPDATED * 2 m + 2] or None
    v_targets_ptr,  # [n_systems, 2] or None
    grad_ptr,  # [n_atoms, 2 m]
    update_ptr,  # [n_atoms, UPDATED * 2 m + 2]
    totals_ptr,  # [n_systems, 4] see above
    ptr_ptr,  # [n_systems + 1] int64
    of_grad_ptr,  # [n_atoms, 2 m]
    of_update_ptr,  # [n_atoms, UPDATED * 2 m + 2]
    of_totals_ptr,  # [n_systems, 4]
    m,
    UPDATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    dtype = grad_ptr.dtype.element_ty
    system = tl.program_id(0).to(tl.int64)
    first = tl.load(ptr_ptr + system)
    last = tl.load(ptr_ptr + system + 1)
    width = 2
    if UPDATED:
        width = 2 * m + 2
    for spin in tl.static_range(2):
        norm = tl.load(totals_ptr + 4 * system + spin)
        missing = tl.load(totals_ptr + 4 * system + 2 + spin)
        filled = (norm != 0).to(dtype)
        inverse = 1.0 / tl.where(norm == 0, norm + 1, norm)
        along_w = tl.zeros((BLOCK,), tl.float64)
        along_b = tl.zeros((BLOCK,), tl.float64)
        sum_a = tl.zeros((BLOCK,), tl.float64)
        sum_b = tl.zeros((BLOCK,), tl.float64)
        for start in range(first, last, BLOCK):
            atom = start + tl.arange(0, BLOCK)
            inside = atom < last
            g = tl.load(grad_ptr + atom * 2 * m + spin * m, mask=inside, other=0.0)
            w = tl.load(update_ptr + atom * width + width - 2 + spin, mask=inside, other=0.0)
            along_w += (g * w).to(tl.float64)
            if v_charges_ptr is not None:
                sum_a += tl.load(v_charges_ptr + atom * 2 * m + spin * m, mask=inside, other=0.0).to(
                    tl.float64
                )
            if v_update_ptr is not None:
                b = tl.load(v_update_ptr + atom * width + width - 2 + spin, mask=inside, other=0.0)
                along_b += (b * g).to(tl.float64)
                sum_b += b.to(tl.float64)
                if UPDATED:
                    sum_a += tl.load(v_update_ptr + atom * width + spin * m, mask=inside, other=0.0).to(
                        tl.float64
                    )
        back = (tl.sum(along_w, 0) * inverse.to(tl.float64)).to(dtype)
        share = missing * inverse
        of_b = filled * tl.sum(sum_b, 0).to(dtype)
        lost = -tl.sum(sum_a, 0).to(dtype) - share * of_b
        if v_targets_ptr is not None:
            lost += tl.load(v_targets_ptr + 2 * system + spin)
        of_missing = (tl.sum(along_b, 0).to(dtype) - of_b * back) * inverse
        lost = lost * inverse
        tl.store(of_totals_ptr + 4 * system + spin, -filled * (share * of_missing + lost * back))
        tl.store(of_totals_ptr + 4 * system + 2 + spin, of_missing)
        for start in range(first, last, BLOCK):
            atom = start + tl.arange(0, BLOCK)
            inside = atom < last
            for column in range(m):
                place = spin * m + column
                monopole = inside & (atom * 0 + column == 0)
                a = tl.zeros((BLOCK,), dtype)
                if v_charges_ptr is not None:
                    a += tl.load(v_charges_ptr + atom * 2 * m + place, mask=inside, other=0.0)
                if v_update_ptr is not None:
                    if UPDATED:
                        a += tl.load(v_update_ptr + atom * width + place, mask=inside, other=0.0)
                    weight = atom * width + width - 2 + spin
                    a += share * tl.load(v_update_ptr + weight, mask=monopole, other=0.0)
                w = tl.load(update_ptr + atom * width + width - 2 + spin, mask=monopole, other=0.0)
                tl.store(of_grad_ptr + atom * 2 * m + place, a + lost * w, mask=inside)
                if UPDATED:
                    tl.store(of_update_ptr + atom * width + place, a * 0, mask=inside)
                g = tl.load(grad_ptr + atom * 2 * m + place, mask=monopole, other=0.0)
                tl.store(of_update_ptr + atom * width + width - 2 + spin, lost * g, mask=monopole)


def launch_close_charges(
    charges: Tensor, update: Tensor, targets: Tensor, ptr: Tensor
) -> tuple[Tensor, Tensor]:
    """``[n_atoms, 2 m]``, and ``[n_systems, 4]`` for the derivatives; contiguous arguments."""
    out, totals = torch.empty_like(charges), charges.new_empty((len(targets), 4))
    if len(targets):
        _close_charges_kernel[(len(targets),)](
            charges_ptr=charges,
            update_ptr=update,
            targets_ptr=targets,
            ptr_ptr=ptr,
            out_ptr=out,
            totals_ptr=totals,
            m=charges.shape[1] // 2,
            UPDATED=update.shape[1] > 2,
            BLOCK=_BLOCK,
            **compiler_options(4, 1, charges),
        )
    return out, totals


def launch_close_charges_backward(
    grad: Tensor, more: Tensor | None, update: Tensor, totals: Tensor, ptr: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives in charges, update and targets; contiguous arguments."""
    d_charges, d_update = torch.empty_like(grad), torch.empty_like(update)
    d_targets = grad.new_empty((len(totals), 2))
    if len(totals):
        _close_charges_backward_kernel[(len(totals),)](
            grad_ptr=grad,
            update_ptr=update,
            totals_ptr=totals,
            more_ptr=more,
            ptr_ptr=ptr,
            d_charges_ptr=d_charges,
            d_update_ptr=d_update,
            d_targets_ptr=d_targets,
            m=grad.shape[1] // 2,
            UPDATED=update.shape[1] > 2,
            BLOCK=_BLOCK,
            **compiler_options(4, 1, grad),
        )
    return d_charges, d_update, d_targets


def launch_close_charges_second(
    along: tuple[Tensor | None, ...], grad: Tensor, update: Tensor, totals: Tensor, ptr: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of the derivatives; see `plain.second_plain`. Contiguous arguments."""
    of_grad, of_update, of_totals = (torch.empty_like(t) for t in (grad, update, totals))
    if len(totals):
        _close_charges_second_kernel[(len(totals),)](
            v_charges_ptr=along[0],
            v_update_ptr=along[1],
            v_targets_ptr=along[2],
            grad_ptr=grad,
            update_ptr=update,
            totals_ptr=totals,
            ptr_ptr=ptr,
            of_grad_ptr=of_grad,
            of_update_ptr=of_update,
            of_totals_ptr=of_totals,
            m=grad.shape[1] // 2,
            UPDATED=update.shape[1] > 2,
            BLOCK=_BLOCK,
            **compiler_options(4, 1, grad),
        )
    return of_grad, of_update, of_totals
