"""Forms of rows in PyTorch, on any device."""

import torch
from torch import Tensor

from ..constants import constant
from .terms import form_of


def _products(x: Tensor, text: str) -> tuple[Tensor, Tensor, Tensor]:
    """``[n_rows, n_terms]`` columns of x times factors, and columns of the result and numbers of terms."""
    form = form_of(text)
    outs, columns, numbers, factors = zip(*form.terms, strict=True)
    places = constant(tuple(c if c >= 0 else form.n_x for c in columns), torch.int64, x.device)
    values = torch.nn.functional.pad(x, (0, 1), value=1.0).index_select(1, places)
    values = values * constant(factors, x.dtype, x.device)
    return values, constant(outs, torch.int64, x.device), constant(numbers, torch.int64, x.device)


def _of_rows(values: Tensor, index: Tensor | None, n_rows: int) -> Tensor:
    if index is not None:
        return values.index_select(0, index)
    return values if len(values) == n_rows else values.expand(n_rows, -1)


def row_form_plain(x: Tensor, m: Tensor | None, index: Tensor | None, text: str) -> Tensor:
    """``[n_rows, n_out]``; arguments as in `row_form`."""
    form = form_of(text)
    out = x.new_zeros((len(x), form.n_out))
    if not form.terms:
        return out
    values, outs, numbers = _products(x, text)
    if m is not None:
        padded = torch.nn.functional.pad(m, (1, 0), value=1.0)
        values = values * _of_rows(padded, index, len(x)).index_select(1, numbers + 1)
    return out.index_add(1, outs, values)


def row_form_sums_plain(g: Tensor, x: Tensor, index: Tensor | None, n_systems: int, text: str) -> Tensor:
    """``[n_systems, n_m]`` derivatives in m, summed in float64; arguments as in `row_form_sums`."""
    form = form_of(text)
    out = x.new_zeros((n_systems, form.n_m), dtype=torch.float64)
    if form.terms and len(x):
        values, outs, numbers = _products(x, text)
        values = (values * g.index_select(1, outs)).double()
        each = x.new_zeros((len(x), form.n_m + 1), dtype=torch.float64).index_add(1, numbers + 1, values)
        rows = each[:, 1:]
        out = rows.sum(0, keepdim=True) if index is None else out.index_add(0, index, rows)
    return out.to(x.dtype)
