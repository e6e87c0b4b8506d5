"""Modules for people who build their own equivariant networks, on our tensor-product operators."""

from .modules import ChannelwiseConv, IndexedLinear, SymmetricContraction

__all__ = ["ChannelwiseConv", "IndexedLinear", "SymmetricContraction"]
