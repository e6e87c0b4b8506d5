"""Plain PyTorch definition of a form of rows; the tests' source of truth."""

import torch
from torch import Tensor

from .terms import RowForm


def row_form_reference(
    x: Tensor, form: RowForm, m: Tensor | None = None, index: Tensor | None = None
) -> Tensor:
    """One term after another; arguments as in `row_form`, with ``index`` for every row that has numbers."""
    columns = [torch.zeros_like(x[:, :1].sum(1)) for _ in range(form.n_out)]
    for out, column, number, factor in form.terms:
        value = factor * (x[:, column] if column >= 0 else torch.ones(len(x)).to(x))
        if number >= 0 and m is not None and index is not None:
            value = value * m[index, number]
        columns[out] = columns[out] + value
    return torch.stack(columns, 1)
