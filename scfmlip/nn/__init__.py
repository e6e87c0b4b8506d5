"""Modules on our tensor-product operators, for building your own equivariant networks."""

from .modules import ChannelwiseConv, IndexedLinear, SymmetricContraction

__all__ = ["ChannelwiseConv", "IndexedLinear", "SymmetricContraction"]
