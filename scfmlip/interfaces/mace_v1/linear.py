"""The linear operations of MACE v1's kernel contract as modules: maps, and products with scalars."""

from __future__ import annotations

import torch
from torch import Tensor

from scfmlip_kernels import indexed_linear

from .weighted import Irreps, Weighted, from_blocks, to_blocks


class _Terms:
    """
    The terms of a linear map: the inputs that feed each output, and its weights ``[copies, fan in]``.

    Attributes:
        copies: For each weight, copies of the input term it reads.
        fan_in: For each weight, copies of all input terms that feed its output.
    """

    def __init__(self, irreps_in: Irreps, irreps_out: Irreps) -> None:
        self.sources: list[list[int]] = []
        self.shapes: list[tuple[int, int]] = []
        self.slices: list[slice] = []
        self.copies: list[int] = []
        self.fan_in: list[int] = []
        for mul, *irrep in irreps_out:
            sources = [i for i, (_, *other) in enumerate(irreps_in) if other == irrep]
            copies = [irreps_in[i][0] for i in sources for _ in range(irreps_in[i][0])]
            start = len(self.copies)
            self.copies += mul * copies
            self.fan_in += mul * len(copies) * [len(copies)]
            self.sources.append(sources)
            self.shapes.append((mul, len(copies)))
            self.slices.append(slice(start, len(self.copies)))

    def inputs(self, blocks: list[Tensor], out: int) -> Tensor:
        """Inputs ``[n, 2 l + 1, fan in]`` of an output."""
        found = [blocks[i] for i in self.sources[out]]
        return found[0] if len(found) == 1 else torch.cat(found, 2)


class Linear(Weighted):
    """
    Linear map between equal irreps, one weight for each pair of copies.

    Args:
        irreps_in: Terms of the input.
        irreps_out: Terms of the output; those without inputs are 0.
        has_bias: Whether the even scalars have a bias.
        layout: ``"mul_ir"`` or ``"ir_mul"``, for input and output.
        dtype: dtype of the parameters.

    Attributes:
        weight: ``[n_weights]``: output term, output copy, then input copies of the same irrep in order.
        bias: ``[n_even_scalars]``, empty without a bias.
        scales: ``1 / sqrt(fan in)``.
    """

    def __init__(
        self,
        irreps_in: Irreps,
        irreps_out: Irreps,
        has_bias: bool = False,
        layout: str = "mul_ir",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out, self.layout = irreps_in, irreps_out, layout
        self.terms = _Terms(irreps_in, irreps_out)
        n, n_bias = len(self.terms.copies), 0
        self.bias_slices: list[slice | None] = []
        for mul, *irrep in irreps_out:
            biased = has_bias and irrep == [0, 1]
            self.bias_slices.append(slice(n_bias, n_bias + mul) if biased else None)
            n_bias += mul * biased
        self.scales = torch.tensor(self.terms.fan_in, dtype=torch.float64) ** -0.5
        # parameters that nothing depends on have no gradient
        self.weight = torch.nn.Parameter(torch.zeros(n, dtype=dtype), requires_grad=n > 0)
        self.bias = torch.nn.Parameter(torch.zeros(n_bias, dtype=dtype), requires_grad=n_bias > 0)

    def forward(self, features: Tensor) -> Tensor:
        """``[n, columns_in]`` -> ``[n, columns_out]``. Differentiable any number of times."""
        blocks, found = to_blocks(features, self.irreps_in, self.layout), []
        for n, (mul, l, _) in enumerate(self.irreps_out):
            if self.terms.sources[n]:
                w = self.weight[self.terms.slices[n]].view(self.terms.shapes[n])
                out = torch.nn.functional.linear(self.terms.inputs(blocks, n), w)
            else:
                out = features.new_zeros(features.shape[0], 2 * l + 1, mul)
            bias = self.bias_slices[n]
            found.append(out if bias is None else out + self.bias[bias])
        return from_blocks(found, self.layout)


class SkipProduct(Weighted):
    """
    Fully connected product with even scalars: one linear map per scalar, weighted by the scalar.

    Args:
        irreps_in: Terms of the features.
        n_scalars: Number of scalars.
        irreps_out: Terms of the output; those without inputs are 0.
        layout: ``"mul_ir"`` or ``"ir_mul"``, for features and output.
        dtype: dtype of the parameters.

    Attributes:
        weight: ``[n_scalars, n_weights]``, each row as in `Linear`.
        scales: ``1 / sqrt(copies of the input term * n_scalars)``.
    """

    def __init__(
        self,
        irreps_in: Irreps,
        n_scalars: int,
        irreps_out: Irreps,
        layout: str = "mul_ir",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out, self.layout = irreps_in, irreps_out, layout
        self.terms = _Terms(irreps_in, irreps_out)
        self.scales = (torch.tensor(self.terms.copies, dtype=torch.float64) * n_scalars) ** -0.5
        n = len(self.terms.copies)
        self.weight = torch.nn.Parameter(torch.zeros(n_scalars, n, dtype=dtype), requires_grad=n > 0)

    def forward(self, features: Tensor, attributes: Tensor) -> Tensor:
        """
        The product. Differentiable any number of times.

        One-hot attributes need the matrix of their species only. This shortcut is taken on a CPU, in eager
        mode, and if no derivative with respect to the attributes is needed. Elsewhere reading the values
        would synchronise or break the graph, and each node's matrix is a mixture of all matrices.

        Args:
            features: ``[n, columns_in]``.
            attributes: ``[n, n_scalars]``, any values.

        Returns:
            ``[n, columns_out]``.
        """
        species = _species(attributes)
        blocks, found = to_blocks(features, self.irreps_in, self.layout), []
        for n, (mul, l, _) in enumerate(self.irreps_out):
            if not self.terms.sources[n]:
                found.append(features.new_zeros(features.shape[0], 2 * l + 1, mul))
                continue
            x, w = self.terms.inputs(blocks, n), self.weight[:, self.terms.slices[n]]
            if species is None:
                found.append(x @ (attributes @ w).unflatten(1, self.terms.shapes[n]).mT)
            else:
                found.append(indexed_linear(x, w.unflatten(1, self.terms.shapes[n]).mT, species))
        return from_blocks(found, self.layout)


def _species(attributes: Tensor) -> Tensor | None:
    """``[n]`` species of one-hot attributes; None if they are not one-hot or cannot be read."""
    if torch.compiler.is_compiling() or attributes.device.type != "cpu" or attributes.requires_grad:
        return None
    if attributes.numel() == 0:
        return None
    top, index = attributes.max(1)
    return index if bool(((top == 1) & (attributes.count_nonzero(1) == 1)).all()) else None
