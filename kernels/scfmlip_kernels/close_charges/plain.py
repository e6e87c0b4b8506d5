"""Closed charges and their derivatives in PyTorch, on any device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..segments import segment_expand, segment_sum


def _totals(values: Tensor, ptr: Tensor, index: Tensor) -> Tensor:
    """``[n_atoms, 2]`` sum of each row's system, added in float64."""
    sums = segment_sum(values.double(), ptr, index).to(values.dtype)
    return segment_expand(sums, ptr, index)


def _parts(
    charges: Tensor, update: Tensor, targets: Tensor, ptr: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Rows ``[n, 2, m]``, weights, their sums, 1 where these are 0, and what is missing."""
    rows = charges if update.shape[1] == 2 else charges + update[:, :-2]
    rows, weights = rows.unflatten(1, (2, -1)), update[:, -2:]
    norm = _totals(weights, ptr, index)
    empty = norm == 0
    norm = torch.where(empty, torch.ones_like(norm), norm)
    missing = segment_expand(targets, ptr, index) - _totals(rows[..., 0], ptr, index)
    return rows, weights, norm, empty, missing


def close_charges_plain(
    charges: Tensor, update: Tensor, targets: Tensor, ptr: Tensor, index: Tensor
) -> Tensor:
    """``[n_atoms, 2 m]``; arguments as in `close_charges`."""
    rows, weights, norm, _, missing = _parts(charges, update, targets, ptr, index)
    monopoles = rows[..., 0] + weights / norm * missing
    return torch.cat((monopoles[..., None], rows[..., 1:]), -1).flatten(1)


def _joined(d_rows: Tensor, d_weights: Tensor, update: Tensor) -> Tensor:
    return d_weights if update.shape[1] == 2 else torch.cat((d_rows, d_weights), 1)


def gradients_plain(
    charges: Tensor,
    update: Tensor,
    targets: Tensor,
    ptr: Tensor,
    index: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives in the charges, the update and the targets; differentiable."""
    _, weights, norm, empty, missing = _parts(charges, update, targets, ptr, index)
    g = grad.unflatten(1, (2, -1))
    shares = g[..., 0] * weights / norm
    back = _totals(shares, ptr, index)
    d_rows = torch.cat(((g[..., 0] - back)[..., None], g[..., 1:]), -1).flatten(1)
    inner = torch.where(empty, torch.zeros_like(back), back)
    d_weights = missing / norm * (g[..., 0] - inner)
    return d_rows, _joined(d_rows, d_weights, update), segment_sum(shares, ptr, index)


def tangent_plain(tensors: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
    """Derivative of the values along tangents of charges, update and targets."""
    charges, update, targets, ptr, index = tensors
    c_t, u_t, t_t = (
        torch.zeros_like(t) if along is None else along
        for t, along in zip((charges, update, targets), tangents[:3], strict=True)
    )
    _, weights, norm, empty, missing = _parts(charges, update, targets, ptr, index)
    rows_t, weights_t, norm_t, _, missing_t = _parts(c_t, u_t, t_t, ptr, index)
    norm_t = torch.where(empty | (norm_t == 1) & (_totals(weights_t, ptr, index) == 0), 0 * norm_t, norm_t)
    shares_t = weights_t / norm - weights * norm_t / norm**2
    monopoles = rows_t[..., 0] + shares_t * missing + weights / norm * missing_t
    return torch.cat((monopoles[..., None], rows_t[..., 1:]), -1).flatten(1)
