"""
Convolution, symmetric contraction and species-dependent linear map as PyTorch modules.

They take segments, paths and coefficients, not irreps. `ChannelwiseConv.from_e3nn` makes these from e3nn's
tensor products. All modules run in float32 or float64, the dtype of their parameters; under `torch.autocast`
in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scfmlip_kernels import (
    ChannelwiseProduct,
    EdgeOrder,
    SymmetricPolynomial,
    channelwise_conv,
    indexed_linear,
    sort_edges,
    symmetric_contraction,
)

from .descriptors import channelwise_product


def _check(module: torch.nn.Module, description: Any, kind: type | None, **sizes: Any) -> None:
    """Raise for a description of the wrong type, and for sizes that are not integers of at least 1."""
    name = type(module).__name__
    if kind is not None and not isinstance(description, kind):
        raise TypeError(f"{name} needs a {kind.__name__}, got {type(description).__name__}")
    for key, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name}: {key} must be an integer of at least 1, got {size!r}")


class ChannelwiseConv(torch.nn.Module):
    """
    Channel-wise tensor product with gather by sender and sum by receiver, see `channelwise_conv`.

    Args:
        product: Segments, paths and coefficients.
        n_hidden: Width of the radial features if the convolution includes the last radial layer. It then owns
            the layer's matrix and never stores edge weights. None if the weights are passed in.

    Attributes:
        matrix: ``[n_hidden, weight_numel]`` parameter, or None.

    Example:
        >>> import torch
        >>> from e3nn import o3
        >>> from scfmlip.nn import ChannelwiseConv
        >>> paths = [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True)]  # scalar x scalar, scalar x vector
        >>> product = o3.TensorProduct("8x0e", "0e + 1o", "8x0e + 8x1o", paths, shared_weights=False)
        >>> conv = ChannelwiseConv.from_e3nn(product)
        >>> edges = torch.tensor([[0, 0, 1, 2], [1, 2, 0, 0]])  # water: senders, receivers
        >>> out = conv(torch.randn(3, 8), torch.randn(4, 4), torch.randn(4, product.weight_numel), edges)
        >>> out.shape  # 8 scalars and 8 vectors of each atom
        torch.Size([3, 32])
    """

    def __init__(self, product: ChannelwiseProduct, n_hidden: int | None = None) -> None:
        super().__init__()
        _check(self, product, ChannelwiseProduct, **({} if n_hidden is None else {"n_hidden": n_hidden}))
        self.product = product
        self.matrix = None
        if n_hidden is not None:
            start = torch.randn(n_hidden, product.weight_numel) / n_hidden**0.5
            self.matrix = torch.nn.Parameter(start)

    @classmethod
    def from_e3nn(cls, tensor_product: Any, n_hidden: int | None = None) -> ChannelwiseConv:
        """
        Make the module from an ``e3nn.o3.TensorProduct`` of "uvu" paths with external weights.

        Raises:
            ValueError: for another kind of product.
        """
        product = channelwise_product(tensor_product)
        if product is None:
            raise ValueError(
                "this tensor product is not channel-wise: it needs 'uvu' paths with weights, one channel on "
                "the right, a separate output segment for every path, and no shared weights"
            )
        return cls(product, n_hidden)

    def forward(self, x: Tensor, y: Tensor, weights: Tensor, edges: EdgeOrder | Tensor) -> Tensor:
        """
        Sum all messages at their receivers.

        Args:
            x: ``[n_nodes, x_dim]`` features.
            y: ``[n_edges, y_dim]`` edge attributes.
            weights: ``[n_edges, weight_numel]``, or ``[n_edges, n_hidden]``.
            edges: From `scfmlip_kernels.sort_edges`, or ``[2, n_edges]`` senders and receivers.

        Returns:
            ``[n_nodes, out_dim]``.
        """
        if isinstance(edges, Tensor):
            if edges.ndim != 2 or edges.shape[0] != 2:
                raise ValueError(
                    f"ChannelwiseConv: edges must be [2, n_edges], senders and receivers, got "
                    f"{list(edges.shape)}: transpose it?"
                )
            edges = sort_edges(edges[0], edges[1], x.shape[0])
        return channelwise_conv(x, y, weights, edges, self.product, self.matrix)


class SymmetricContraction(torch.nn.Module):
    """
    Polynomial of the atomic basis with weights per species and channel (MACE's product basis).

    Args:
        polynomial: The terms, for instance from `scfmlip_kernels.SymmetricPolynomial.from_dense`.
        n_species: Number of species.
        n_channels: Number of channels.

    Attributes:
        weights: ``[n_species, n_weights, n_channels]`` parameter.

    Example:
        >>> import torch
        >>> from scfmlip.nn import SymmetricContraction
        >>> from scfmlip_kernels import SymmetricPolynomial
        >>> norm = SymmetricPolynomial.from_dense([(0, torch.eye(3).view(1, 3, 3, 1))])  # x.x of a vector
        >>> contraction = SymmetricContraction(norm, n_species=2, n_channels=8)
        >>> contraction(torch.randn(5, 8, 3), torch.tensor([0, 1, 1, 0, 1])).shape
        torch.Size([5, 8, 1])
    """

    def __init__(self, polynomial: SymmetricPolynomial, n_species: int, n_channels: int) -> None:
        super().__init__()
        _check(self, polynomial, SymmetricPolynomial, n_species=n_species, n_channels=n_channels)
        self.polynomial = polynomial
        start = torch.randn(n_species, polynomial.n_weights, n_channels) / max(1, polynomial.n_weights)
        self.weights = torch.nn.Parameter(start)

    def forward(self, x: Tensor, species: Tensor) -> Tensor:
        """``x [n_atoms, n_channels, n_inputs]``, ``species [n_atoms]`` -> ``[n_atoms, n_channels, .]``."""
        return symmetric_contraction(x, self.weights, species, self.polynomial)


class IndexedLinear(torch.nn.Module):
    """
    A linear map of the channels with one matrix per species.

    Args:
        n_species: Number of species.
        n_in: Number of input channels.
        n_out: Number of output channels.

    Attributes:
        weights: ``[n_species, n_in, n_out]`` parameter.

    Example:
        >>> import torch
        >>> from scfmlip.nn import IndexedLinear
        >>> linear = IndexedLinear(n_species=2, n_in=8, n_out=16)
        >>> linear(torch.randn(5, 3, 8), torch.tensor([0, 1, 1, 0, 1])).shape  # vectors of five atoms
        torch.Size([5, 3, 16])
    """

    def __init__(self, n_species: int, n_in: int, n_out: int) -> None:
        super().__init__()
        _check(self, None, None, n_species=n_species, n_in=n_in, n_out=n_out)
        self.weights = torch.nn.Parameter(torch.randn(n_species, n_in, n_out) / n_in**0.5)

    def forward(self, x: Tensor, species: Tensor) -> Tensor:
        """``x [n_rows, n_components, n_in]``, ``species [n_rows]`` -> ``[n_rows, n_components, n_out]``."""
        return indexed_linear(x, self.weights, species)
