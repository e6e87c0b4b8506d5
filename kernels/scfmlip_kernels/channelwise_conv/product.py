"""What a channel-wise tensor product computes: segments, paths and coefficients, and a short key."""

import hashlib
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch


class ProductPath(NamedTuple):
    """
    One path: a segment of x times a segment of y gives a segment of the output.

    Attributes:
        x: Number of the segment of x.
        y: Number of the segment of y.
        coefficients: Terms ``(i, j, k, value)``, component of x, of y and of the output; nonzero ones
            only, the weight of the path folded in.
        dim: Components of the output, 2 l + 1.
    """

    x: int
    y: int
    coefficients: tuple[tuple[int, int, int, float], ...]
    dim: int


class ChannelwiseProduct(NamedTuple):
    """
    A tensor product that acts on each channel by itself, with one weight for each path and channel.

    Attributes:
        x: Channels and components of each segment of x.
        y: Components of each segment of y, which have one channel.
        paths: Each path has its own segment of the output, in this order, with the channels of its
            segment of x. Weights come in the same order.
        layout: Of the segments of x and of the output: ``"mul_ir"`` is ``[channels, components]``,
            ``"ir_mul"`` is ``[components, channels]``.
    """

    x: tuple[tuple[int, int], ...]
    y: tuple[int, ...]
    paths: tuple[ProductPath, ...]
    layout: str = "mul_ir"

    @property
    def x_dim(self) -> int:
        """Columns of x."""
        return sum(channels * dim for channels, dim in self.x)

    @property
    def y_dim(self) -> int:
        """Columns of y."""
        return sum(self.y)

    @property
    def out(self) -> tuple[tuple[int, int], ...]:
        """Channels and components of each segment of the output."""
        return tuple((self.x[path.x][0], path.dim) for path in self.paths)

    @property
    def out_dim(self) -> int:
        """Columns of the output."""
        return sum(channels * dim for channels, dim in self.out)

    @property
    def weight_numel(self) -> int:
        """Weights of an edge."""
        return sum(self.x[path.x][0] for path in self.paths)


def offsets(sizes: list[int]) -> list[int]:
    """Where each of consecutive segments starts."""
    return list(accumulate(sizes, initial=0))[:-1]


def check_product(product: ChannelwiseProduct) -> None:
    """Raise ValueError where a description contradicts itself."""
    if product.layout not in ("mul_ir", "ir_mul"):
        raise ValueError(f"ChannelwiseProduct: layout must be 'mul_ir' or 'ir_mul', got {product.layout!r}")
    if not product.paths:
        raise ValueError("ChannelwiseProduct: there must be at least one path")
    for channels, dim in product.x:
        if channels < 1 or dim < 1:
            raise ValueError(f"ChannelwiseProduct: segment of x with {channels} channels, {dim} components")
    for n, path in enumerate(product.paths):
        if not (0 <= path.x < len(product.x) and 0 <= path.y < len(product.y)):
            raise ValueError(f"ChannelwiseProduct: path {n} names segments ({path.x}, {path.y})")
        limits = (product.x[path.x][1], product.y[path.y], path.dim)
        seen = set()
        for *term, _ in path.coefficients:
            if not all(0 <= index < limit for index, limit in zip(term, limits, strict=True)):
                raise ValueError(
                    f"ChannelwiseProduct: path {n} has a term {tuple(term)}, limits are {limits}"
                )
            seen.add(tuple(term))
        if len(seen) != len(path.coefficients):
            raise ValueError(f"ChannelwiseProduct: path {n} has two values for one term")


_registered: dict[str, ChannelwiseProduct] = {}


@lru_cache(maxsize=1024)
def _key(product: ChannelwiseProduct) -> str:
    check_product(product)
    key = hashlib.sha256(repr(product).encode()).hexdigest()[:16]
    _registered[key] = product
    return key


@torch.compiler.assume_constant_result
def product_key(product: ChannelwiseProduct) -> str:
    """Short name under which the operators find a product; a compiled graph holds the name only."""
    return _key(product)


def product_of(key: str) -> ChannelwiseProduct:
    """The product with this key."""
    if key not in _registered:
        raise KeyError(f"channelwise_conv: no product {key} in this process: build the model first")
    return _registered[key]
