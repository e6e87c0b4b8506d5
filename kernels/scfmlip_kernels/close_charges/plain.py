"""
Closed charges and their derivatives in PyTorch, on any device.

With a spin's weights w, their sum N, and what is missing M: ``q_i + w_i M / N``. Sums of 0 count as 1, and
have no derivatives. N and M of every system are results too, so that second derivatives can be told in them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..segments import segment_expand, segment_sum


def _sums(values: Tensor, ptr: Tensor, index: Tensor) -> Tensor:
    """Sum of each system, added in float64."""
    return segment_sum(values.double(), ptr, index).to(values.dtype)


def _norms(totals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each system and spin: what weights are divided by, whether it has derivatives, what is missing."""
    norm, missing = totals.split(2, 1)
    filled = norm != 0
    return torch.where(filled, norm, torch.ones_like(norm)), filled.to(norm.dtype), missing


def _rows(charges: Tensor, update: Tensor) -> Tensor:
    """``[n_atoms, 2, m]`` multipoles before they are closed."""
    rows = charges if update.shape[1] == 2 else charges + update[:, :-2]
    return rows.unflatten(1, (2, -1))


def _totals(rows: Tensor, weights: Tensor, targets: Tensor, ptr: Tensor, index: Tensor) -> Tensor:
    """``[n_systems, 4]`` sums of weights, and what is missing; linear in all arguments."""
    sums = _sums(torch.cat((weights, rows[..., 0]), 1), ptr, index)
    return torch.cat((sums[:, :2], targets - sums[:, 2:]), 1)


def _changed(rows: Tensor, change: Tensor) -> Tensor:
    """``[n_atoms, 2 m]`` rows with something added to their charges."""
    return torch.cat(((rows[..., 0] + change)[..., None], rows[..., 1:]), -1).flatten(1)


def close_charges_plain(
    charges: Tensor, update: Tensor, targets: Tensor, ptr: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    """``[n_atoms, 2 m]`` and ``[n_systems, 4]``; arguments as in `close_charges`."""
    rows, weights = _rows(charges, update), update[:, -2:]
    totals = _totals(rows, weights, targets, ptr, index)
    norm, _, missing = _norms(totals)
    return _changed(rows, weights * segment_expand(missing / norm, ptr, index)), totals


def gradients_plain(
    grad: Tensor, more: Tensor | None, update: Tensor, totals: Tensor, ptr: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives in charges, update and targets from those of the values and the totals; differentiable."""
    g, weights = grad.unflatten(1, (2, -1)), update[:, -2:]
    norm, filled, missing = _norms(totals)
    back = _sums(g[..., 0] * weights, ptr, index) / norm
    share = missing / norm
    of_weights, of_charges, of_targets = -share * back * filled, -back, back
    if more is not None:
        of_weights = of_weights + more[:, :2]
        of_charges, of_targets = of_charges - more[:, 2:], of_targets + more[:, 2:]
    each = segment_expand(torch.cat((share, of_weights, of_charges), 1), ptr, index)
    d_rows = _changed(g, each[:, 4:])
    d_weights = each[:, :2] * g[..., 0] + each[:, 2:4]
    d_update = d_weights if update.shape[1] == 2 else torch.cat((d_rows, d_weights), 1)
    return d_rows, d_update, of_targets


def second_plain(
    along: Sequence[Tensor | None],
    grad: Tensor,
    update: Tensor,
    totals: Tensor,
    ptr: Tensor,
    index: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Derivatives of `gradients_plain` in the gradient, the update and the totals; differentiable.

    ``along`` are the gradients of its three results, None where there are none.
    """
    v_charges, v_update, v_targets = along
    g, weights = grad.unflatten(1, (2, -1)), update[:, -2:]
    a = torch.zeros_like(grad) if v_charges is None else v_charges
    b = torch.zeros_like(weights) if v_update is None else v_update[:, -2:]
    if v_update is not None and update.shape[1] > 2:
        a = a + v_update[:, :-2]
    a = a.unflatten(1, (2, -1))
    norm, filled, missing = _norms(totals)
    products = (g[..., 0] * weights, b * g[..., 0], a[..., 0], b)
    back, along_b, of_a, of_b = _sums(torch.cat(products, 1), ptr, index).split(2, 1)
    back, share = back / norm, missing / norm
    lost = -of_a - filled * share * of_b
    lost = lost if v_targets is None else lost + v_targets
    of_missing = (along_b - filled * of_b * back) / norm
    # what is divided by the sum of weights: the share, and back
    of_norm = -filled * (share * of_missing + lost * back / norm)
    each = segment_expand(torch.cat((share, lost / norm), 1), ptr, index)
    d_grad = _changed(a, each[:, :2] * b + each[:, 2:] * weights)
    d_update = torch.nn.functional.pad(each[:, 2:] * g[..., 0], (update.shape[1] - 2, 0))
    return d_grad, d_update, torch.cat((of_norm, of_missing), 1)


def tangent_plain(
    tensors: Sequence[Tensor], totals: Tensor, tangents: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Derivatives of the values and totals along tangents of charges, update and targets."""
    charges, update, targets, ptr, index = tensors
    c_t, u_t, t_t = (
        torch.zeros_like(t) if along is None else along
        for t, along in zip((charges, update, targets), tangents[:3], strict=True)
    )
    rows_t, weights, weights_t = _rows(c_t, u_t), update[:, -2:], u_t[:, -2:]
    totals_t = _totals(rows_t, weights_t, t_t, ptr, index)
    norm, filled, missing = _norms(totals)
    share = missing / norm
    share_t = (totals_t[:, 2:] - share * filled * totals_t[:, :2]) / norm
    each = segment_expand(torch.cat((share, share_t), 1), ptr, index)
    return _changed(rows_t, weights_t * each[:, :2] + weights * each[:, 2:]), totals_t


def gradients_tangent_plain(
    tensors: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of `gradients_plain` along tangents of the gradient, the update and the totals."""
    grad, update, totals, ptr, index = tensors
    grad_t, update_t, totals_t = (
        torch.zeros_like(t) if along is None else along
        for t, along in zip((grad, update, totals), tangents[:3], strict=True)
    )
    g, g_t = grad.unflatten(1, (2, -1)), grad_t.unflatten(1, (2, -1))
    q, q_t, weights, weights_t = g[..., 0], g_t[..., 0], update[:, -2:], update_t[:, -2:]
    norm, filled, missing = _norms(totals)
    norm_t, missing_t = filled * totals_t[:, :2], totals_t[:, 2:]
    sums = _sums(torch.cat((q * weights, q_t * weights + q * weights_t), 1), ptr, index)
    back, share = sums[:, :2] / norm, missing / norm
    back_t, share_t = (sums[:, 2:] - back * norm_t) / norm, (missing_t - share * norm_t) / norm
    inner_t = -filled * (share_t * back + share * back_t)
    each = segment_expand(torch.cat((share, share_t, inner_t, back_t), 1), ptr, index)
    rows_t = _changed(g_t, -each[:, 6:])
    of_weights = each[:, :2] * q_t + each[:, 2:4] * q + each[:, 4:6]
    of_update = of_weights if update.shape[1] == 2 else torch.cat((rows_t, of_weights), 1)
    return rows_t, of_update, back_t
