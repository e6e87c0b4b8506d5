"""Any segmented polynomial in plain PyTorch: one einsum per group of paths with equal shapes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

# most columns of all operands of one einsum; limits the memory per row
_COLUMNS = 1 << 15


class _Group(torch.nn.Module):
    """Paths of one product whose segments have the same shapes."""

    def __init__(self, product: Any, paths: list[Any], operands: list[int]) -> None:
        super().__init__()
        self.shapes = [(len(paths), *product.get_segment_shape(n, paths[0])) for n in operands]
        names = [product.subscripts.operands[n] for n in operands]
        self.formula = (
            ",".join([f"P{product.coefficient_subscripts}", *(f"ZP{name}" for name in names[:-1])])
            + f"->{'Z' if names[:-1] else ''}P{names[-1]}"
        )
        coefficients = torch.from_numpy(np.stack([np.asarray(path.coefficients) for path in paths]))
        self.register_buffer("coefficients", coefficients.to(torch.float64), persistent=False)
        for n, operand in enumerate(operands):
            slices = product.operands[operand].segment_slices()
            columns = [
                torch.arange(slices[p.indices[operand]].start, slices[p.indices[operand]].stop) for p in paths
            ]
            self.register_buffer(f"columns_{n}", torch.cat(columns), persistent=False)

    def forward(self, inputs: list[Tensor], out: Tensor) -> Tensor:
        """Add these paths' results to the columns of ``out``."""
        factors = [
            x.index_select(1, getattr(self, f"columns_{n}")).view(x.shape[0], *shape)
            for n, (x, shape) in enumerate(zip(inputs, self.shapes[:-1], strict=True))
        ]
        coefficients: Tensor = self.coefficients  # type: ignore[assignment]
        # shared rows stay a single row: einsum broadcasts an extent of 1
        found = torch.einsum(self.formula, coefficients.to(out.dtype), *factors)
        columns = getattr(self, f"columns_{len(inputs)}")
        return out.index_add(1, columns, found.reshape(-1, len(columns)).expand(out.shape[0], -1))


class GeneralPolynomial(torch.nn.Module):
    """
    Sums of products of segments, for inputs with as many rows as the batch, or one row.

    Args:
        polynomial: A ``cuequivariance.SegmentedPolynomial``.
    """

    def __init__(self, polynomial: Any) -> None:
        super().__init__()
        self.sizes = [operand.size for operand in polynomial.outputs]
        self.groups = torch.nn.ModuleList()
        self.buffers_of: list[tuple[list[int], int]] = []
        n_inputs = polynomial.num_inputs
        for operation, product in polynomial.operations:
            last, buffer = operation.output_operand_buffer(n_inputs)
            operands = [*(n for n in range(product.num_operands) if n != last), last]
            by_shape: dict[tuple, list[Any]] = {}
            for path in product.paths:
                shapes = tuple(product.get_segment_shape(n, path) for n in operands)
                # a multiplicity of 0 adds nothing
                if any(0 in shape for shape in (*shapes, np.shape(path.coefficients))):
                    continue
                by_shape.setdefault(shapes, []).append(path)
            for shapes, paths in by_shape.items():
                step = max(1, _COLUMNS // max(1, *map(math.prod, shapes)))
                for first in range(0, len(paths), step):
                    self.groups.append(_Group(product, paths[first : first + step], operands))
                    inputs = [operation.buffers[n] for n in operands[:-1]]
                    self.buffers_of.append((inputs, buffer - n_inputs))

    def forward(self, inputs: list[Tensor]) -> list[Tensor]:
        """``[batch, size]`` per output; one row if no input has a batch."""
        n_rows = next((len(x) for x in inputs if len(x) != 1), 1)
        out = [inputs[0].new_zeros(n_rows, size) for size in self.sizes]
        for group, (used, buffer) in zip(self.groups, self.buffers_of, strict=True):
            out[buffer] = group([inputs[n] for n in used], out[buffer])
        return out
