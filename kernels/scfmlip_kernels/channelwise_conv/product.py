"""What a channel-wise tensor product computes: segments, paths and coefficients."""

import math
from itertools import accumulate
from typing import Any, NamedTuple

from ..registry import described


class ProductPath(NamedTuple):
    """
    One path: a segment of x times a segment of y gives a segment of the output.

    Attributes:
        x: Number of the segment of x.
        y: Number of the segment of y.
        coefficients: Terms ``(i, j, k, value)`` with components of x, y and the output. Nonzero terms only,
            with the path weight included.
        dim: Components of the output, 2 l + 1.

    Example:
        >>> from scfmlip_kernels import ProductPath
        >>> dot = [(i, i, 0, 3**-0.5) for i in range(3)]  # two vectors give a scalar: sum_i x_i y_i / sqrt(3)
        >>> path = ProductPath(x=0, y=0, coefficients=tuple(dot), dim=1)
        >>> path.dim, len(path.coefficients)
        (1, 3)
    """

    x: int
    y: int
    coefficients: tuple[tuple[int, int, int, float], ...]
    dim: int


class ChannelwiseProduct(NamedTuple):
    """
    A tensor product that acts on each channel separately, with one weight per path and channel.

    Attributes:
        x: Channels and components of each segment of x.
        y: Components of each segment of y, which has one channel.
        paths: The paths. Each has its own segment of the output, in this order, with the channels of its
            segment of x. Weights are in the same order.
        layout: Layout of the segments of x and of the output: ``"mul_ir"`` is ``[channels, components]``,
            ``"ir_mul"`` is ``[components, channels]``.

    Example:
        >>> from scfmlip_kernels import ChannelwiseProduct, ProductPath
        >>> scalar = ProductPath(x=0, y=0, coefficients=((0, 0, 0, 1.0),), dim=1)  # scalar x scalar
        >>> vector = ProductPath(0, 1, tuple((0, i, i, 1.0) for i in range(3)), 3)  # scalar x vector
        >>> product = ChannelwiseProduct(x=((8, 1),), y=(1, 3), paths=(scalar, vector), layout="ir_mul")
        >>> product.x_dim, product.y_dim, product.out_dim, product.weight_numel
        (8, 4, 32, 16)
    """

    x: tuple[tuple[int, int], ...]
    y: tuple[int, ...]
    paths: tuple[ProductPath, ...]
    layout: str = "mul_ir"

    @classmethod
    def from_json(cls, x: list, y: list, paths: list, layout: str) -> "ChannelwiseProduct":
        """See `registry`."""

        def path(a: int, b: int, terms: list[Any], dim: int) -> ProductPath:
            return ProductPath(a, b, tuple(tuple(term) for term in terms), dim)

        return cls(tuple((c, d) for c, d in x), tuple(y), tuple(path(*p) for p in paths), layout)

    def check(self) -> None:
        """Raise ValueError if the description is inconsistent."""
        if self.layout not in ("mul_ir", "ir_mul"):
            raise ValueError(f"ChannelwiseProduct: layout must be 'mul_ir' or 'ir_mul', got {self.layout!r}")
        if not self.paths:
            raise ValueError("ChannelwiseProduct: there must be at least one path")
        for channels, dim in self.x:
            if channels < 1 or dim < 1:
                raise ValueError(
                    f"ChannelwiseProduct: segment of x with {channels} channels, {dim} components"
                )
        for n, path in enumerate(self.paths):
            if not (0 <= path.x < len(self.x) and 0 <= path.y < len(self.y)):
                raise ValueError(f"ChannelwiseProduct: path {n} names segments ({path.x}, {path.y})")
            limits = (self.x[path.x][1], self.y[path.y], path.dim)
            if min(limits) < 1:
                raise ValueError(f"ChannelwiseProduct: path {n} has segments of {limits} components")
            seen = set()
            for *term, value in path.coefficients:
                if not all(0 <= index < limit for index, limit in zip(term, limits, strict=True)):
                    raise ValueError(
                        f"ChannelwiseProduct: path {n} has a term {tuple(term)}, limits are {limits}"
                    )
                if not math.isfinite(value):
                    raise ValueError(f"ChannelwiseProduct: path {n} has the coefficient {value}")
                seen.add(tuple(term))
            if len(seen) != len(path.coefficients):
                raise ValueError(f"ChannelwiseProduct: path {n} has two values for one term")

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
        """Number of weights per edge."""
        return sum(self.x[path.x][0] for path in self.paths)


def product_of(text: str) -> ChannelwiseProduct:
    """The product that a graph holds as text, see `registry`."""
    return described(text, ChannelwiseProduct)


def offsets(sizes: list[int]) -> list[int]:
    """Where each of consecutive segments starts."""
    return list(accumulate(sizes, initial=0))[:-1]
