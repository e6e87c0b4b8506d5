"""Convolution, symmetric contraction and sums into segments of MACE v1's kernel contract as modules."""

from __future__ import annotations

import torch
from torch import Tensor

from scfmlip_kernels import (
    ChannelwiseProduct,
    SymmetricPolynomial,
    segment_sum,
    sort_edges,
    symmetric_contraction,
)

from ...nn import ChannelwiseConv
from .weighted import Irreps, Weighted, from_blocks, to_blocks


class Convolution(torch.nn.Module):
    """
    Messages of a channel-wise tensor product, summed at their receivers.

    Args:
        product: Segments, paths and coefficients; its layout is that of the features and the output.
    """

    def __init__(self, product: ChannelwiseProduct) -> None:
        super().__init__()
        self.conv = ChannelwiseConv(product)

    @property
    def num_paths(self) -> int:
        """Number of weights per edge and channel."""
        return len(self.conv.product.paths)

    def forward(
        self,
        node_features: Tensor,
        edge_attributes: Tensor,
        radial_weights: Tensor,
        sender: Tensor,
        receiver: Tensor,
        num_nodes: int,
    ) -> Tensor:
        """
        Compute the sums, 0 at nodes without edges; differentiable any number of times in floating tensors.

        Args:
            node_features: ``[n_nodes, x_dim]``.
            edge_attributes: ``[n_edges, y_dim]``.
            radial_weights: ``[n_edges, n_paths, n_channels]``.
            sender: ``[n_edges]`` int64.
            receiver: ``[n_edges]`` int64.
            num_nodes: Number of rows of the result.

        Returns:
            ``[num_nodes, out_dim]``, one segment per path. Bitwise reproducible.
        """
        edges = sort_edges(sender, receiver, node_features.shape[0], num_nodes)
        return self.conv(node_features, edge_attributes, radial_weights.flatten(1), edges)


class Contraction(Weighted):
    """
    Polynomial of each node's and channel's components, with the weights of the node's element.

    Args:
        irreps_in: Terms of one channel.
        irreps_out: Terms of one channel of the output, one copy each.
        blocks: First component of the output and coefficients
            ``[components, inputs, ..., inputs, paths]`` float64 per body order and output, in the order of
            the weights.
        n_elements: Number of elements.
        n_channels: Number of channels.
        layout: ``"mul_ir"`` or ``"ir_mul"``, for input and output.
        dtype: dtype of the parameters.
        metadata: Metadata that a checkpoint stores with the weights.

    Attributes:
        weight: ``[n_elements, n_paths, n_channels]``, block by block.
        scales: 1.
    """

    def __init__(
        self,
        irreps_in: Irreps,
        irreps_out: Irreps,
        blocks: list[tuple[int, Tensor]],
        n_elements: int,
        n_channels: int,
        layout: str = "mul_ir",
        dtype: torch.dtype = torch.float64,
        metadata: dict[str, object] | None = None,
    ) -> None:
        super().__init__()
        self.n_channels, self.layout, self.metadata = n_channels, layout, metadata or {}
        self.irreps_in, self.dims = irreps_in, [2 * l + 1 for _, l, _ in irreps_out]
        self.expanded = tuple((n_channels * mul, l, p) for mul, l, p in irreps_in)
        self.polynomial = SymmetricPolynomial.from_dense(blocks)
        self.path_counts = [u.shape[-1] for _, u in blocks]
        self.scales = torch.ones((), dtype=torch.float64)
        shape = (n_elements, self.polynomial.n_weights, n_channels)
        self.weight = torch.nn.Parameter(torch.zeros(shape, dtype=dtype))

    def forward(self, features: Tensor, element: Tensor) -> Tensor:
        """
        Evaluate the polynomial; differentiable any number of times in ``features`` and the weights.

        Args:
            features: ``[n, n_channels * inputs]``.
            element: ``[n]`` int64.

        Returns:
            ``[n, n_channels * outputs]``. Bitwise reproducible.
        """
        # copy u of channel c is copy c * copies + u of the term
        parts = [
            block.unflatten(2, (self.n_channels, mul)).permute(0, 2, 3, 1).flatten(2)
            for block, (mul, *_) in zip(
                to_blocks(features, self.expanded, self.layout), self.irreps_in, strict=True
            )
        ]
        out = symmetric_contraction(torch.cat(parts, 2), self.weight, element, self.polynomial)
        return from_blocks([part.mT for part in out.split(self.dims, 2)], self.layout)

    def canonical_metadata(self) -> dict[str, object]:
        """Names of the terms that the weights on the path axis multiply."""
        return self.metadata

    def to_canonical(self) -> dict[str, Tensor]:
        """``weight``, and ``path_counts`` int64: paths of each body order and output."""
        return {**super().to_canonical(), "path_counts": torch.tensor(self.path_counts)}

    def load_canonical(self, state: dict[str, Tensor]) -> None:
        """
        Load weights from `to_canonical` of this backend or another.

        Raises:
            KeyError: if a name is missing.
            ValueError: if a shape, or the paths of a body order and output, differ.
        """
        found = state["path_counts"].tolist()
        if found != self.path_counts:
            raise ValueError(f"load_canonical: path_counts must be {self.path_counts}, got {found}")
        super().load_canonical(state)


class SegmentSum(torch.nn.Module):
    """Sums of rows with equal index, in the order of the rows; bitwise reproducible."""

    def forward(self, values: Tensor, index: Tensor, num_segments: int) -> Tensor:
        """``values [n, ...]``, ``index [n]`` int64 -> ``[num_segments, ...]``; any number of derivatives."""
        segment, order = torch.sort(index, stable=True)
        ptr = torch.searchsorted(segment, torch.arange(num_segments + 1, device=index.device))
        return segment_sum(values.index_select(0, order), ptr, segment)
