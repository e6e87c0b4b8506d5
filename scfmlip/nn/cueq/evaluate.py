"""Evaluate recognised polynomials on our operators, with the indices and shapes of cuequivariance's call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scfmlip_kernels import channelwise_conv, indexed_linear, sort_edges, symmetric_contraction

from .recognise import ContractionPlan, ConvolutionPlan, LinearPlan, Plan


class Call(NamedTuple):
    """
    The checked arguments of one call; floating tensors have the dtype of the arithmetic.

    Attributes:
        inputs: Inputs, ``[rows, size]`` each.
        indices: ``[batch]`` int64 or None for each input.
        out_index: ``[batch]`` int64 or None.
        n_out: Number of rows of the output.
        n_rows: Number of rows of the batch.
    """

    inputs: list[Tensor]
    indices: list[Tensor | None]
    out_index: Tensor | None
    n_out: int
    n_rows: int

    def gathered(self, n: int) -> Tensor:
        """Rows ``[batch or 1, size]`` of an input."""
        index = self.indices[n]
        return self.inputs[n] if index is None else self.inputs[n].index_select(0, index)

    def rows(self, n: int) -> Tensor:
        """Rows ``[batch, size]`` of an input."""
        found = self.gathered(n)
        return found.expand(self.n_rows, -1) if found.shape[0] == 1 else found

    def row_of(self, n: int) -> Tensor:
        """``[batch]`` row of the input that each row of the batch reads."""
        index = self.indices[n]
        return self._same(self.inputs[n].shape[0]) if index is None else index.expand(self.n_rows)

    def target(self) -> Tensor:
        """``[batch]`` row of the output to which each row of the batch is added."""
        return self._same(self.n_out) if self.out_index is None else self.out_index.expand(self.n_rows)

    def _same(self, rows: int) -> Tensor:
        device = self.inputs[0].device
        if rows == 1:
            return torch.zeros(self.n_rows, dtype=torch.int64, device=device)
        return torch.arange(self.n_rows, device=device)

    def summed(self, values: Tensor) -> Tensor:
        """Sum rows of the batch, or one row for all, into rows of the output."""
        if self.out_index is None and values.shape[0] == self.n_out:
            return values
        if self.out_index is None and self.n_out != 1:
            return values.expand(self.n_out, -1)
        values = values.expand(self.n_rows, -1)
        if self.out_index is None:
            return values.sum(0, keepdim=True)
        return values.new_zeros(self.n_out, values.shape[1]).index_add(0, self.target(), values)


def fits(plan: Plan, call: Call) -> bool:
    """Whether the operator supports this call: matrices and contractions need weights of few species."""
    if isinstance(plan, ConvolutionPlan):
        return True
    return call.indices[plan.weights] is not None or call.inputs[plan.weights].shape[0] == 1


def evaluate(plan: Plan, call: Call) -> Tensor:
    """``[n_out, size]`` of a call that `fits`."""
    if isinstance(plan, ConvolutionPlan):
        edges = sort_edges(call.row_of(plan.x), call.target(), call.inputs[plan.x].shape[0], call.n_out)
        return channelwise_conv(
            call.inputs[plan.x], call.rows(plan.y), call.rows(plan.weights), edges, plan.product
        )
    if isinstance(plan, ContractionPlan):
        shape = (plan.polynomial.n_inputs, plan.n_channels)
        x = call.rows(plan.x).unflatten(1, shape).mT
        weights = call.inputs[plan.weights].unflatten(1, (plan.polynomial.n_weights, plan.n_channels))
        out = symmetric_contraction(x, weights, call.row_of(plan.weights), plan.polynomial)
        return call.summed(out.mT.flatten(1))
    return call.summed(_linear(plan, call))


def _linear(plan: LinearPlan, call: Call) -> Tensor:
    x, weights, index = call.rows(plan.x), call.inputs[plan.weights], call.row_of(plan.weights)
    parts: dict[tuple[int, int], Tensor] = {}
    for path in plan.paths:
        i, u = path.rows
        columns = x[:, path.x : path.x + i * u]
        rows = columns.unflatten(1, (u, i)).mT if plan.x_transposed else columns.unflatten(1, (i, u))
        w = weights[:, path.weights : path.weights + u * path.columns]
        w = (
            w.unflatten(1, (path.columns, u)).mT
            if plan.weights_transposed
            else w.unflatten(1, (u, path.columns))
        )
        found = indexed_linear(rows, path.coefficient * w, index)
        found = (found.mT if plan.out_transposed else found).flatten(1)
        # not found.shape, which torch.jit.trace turns into tensors, which are never equal keys
        place = (path.out, i * path.columns)
        before = parts.get(place)
        parts[place] = found if before is None else before + found
    # segments in order, with zeros for those that no path writes
    columns, at = [], 0
    for first, width in sorted(parts):
        if first > at:
            columns.append(x.new_zeros(call.n_rows, first - at))
        columns.append(parts[first, width])
        at = first + width
    if at < plan.size:
        columns.append(x.new_zeros(call.n_rows, plan.size - at))
    return torch.cat(columns, 1)
