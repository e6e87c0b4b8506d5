"""What a linear map between blocks of columns computes: blocks, paths, and where each path's weights are."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ..constants import constant
from ..registry import describe, described


class Block(NamedTuple):
    """
    Columns of a row that hold several channels of several components each.

    Attributes:
        first: First column.
        channels: Number of channels.
        dim: Components of a channel.
        layout: ``"mul_ir"``: components of a channel are neighbours; ``"ir_mul"``: channels are.

    Example:
        >>> from scfmlip_kernels import Block
        >>> Block(first=8, channels=4, dim=3).strides  # columns to the next channel, to the next component
        (3, 1)
    """

    first: int
    channels: int
    dim: int
    layout: str = "mul_ir"

    @property
    def strides(self) -> tuple[int, int]:
        """Columns from a channel to the next, and from a component to the next."""
        return (self.dim, 1) if self.layout == "mul_ir" else (1, self.channels)


class BlockPath(NamedTuple):
    """
    A matrix between the channels of a block of x and of a block of the output.

    Attributes:
        x: Number of the block of x.
        out: Number of the block of the output, of as many components.
        first: Index of the first weight.
        strides: Distances between weights of neighbouring species, channels of x, channels of the output.
        scale: Factor of the path.

    Example:
        >>> from scfmlip_kernels import BlockPath
        >>> BlockPath(x=0, out=1, first=12, strides=(0, 4, 1)).scale  # [n_in, 4] weights from 12 on
        1.0
    """

    x: int
    out: int
    first: int
    strides: tuple[int, int, int]
    scale: float = 1.0


class BlockMap(NamedTuple):
    """
    A linear map between blocks; it acts on channels, every component alike.

    Attributes:
        x: Blocks of a row of x, which they cover.
        out: Blocks of a row of the output, which they cover.
        paths: The paths.
        n_weights: Number of weights.
        n_species: Number of species, each with its own matrices.
        biases: For each block of the output the first of its biases, or -1; empty if there are none.
        x_parts: Widths of matrices that x consists of, one behind the other in one vector, each with whole
            blocks; empty for one matrix.
        out_parts: Likewise for the output.

    Example:
        >>> from scfmlip_kernels import Block, BlockMap, BlockPath
        >>> x, out = Block(0, channels=4, dim=3), Block(0, channels=2, dim=3)  # vectors, 4 to 2 channels
        >>> linear = BlockMap((x,), (out,), (BlockPath(0, 0, first=0, strides=(0, 2, 1)),), n_weights=8)
        >>> linear.x_dim, linear.out_dim
        (12, 6)
    """

    x: tuple[Block, ...]
    out: tuple[Block, ...]
    paths: tuple[BlockPath, ...]
    n_weights: int
    n_species: int = 1
    biases: tuple[int, ...] = ()
    x_parts: tuple[int, ...] = ()
    out_parts: tuple[int, ...] = ()

    @classmethod
    def from_json(
        cls, x: list, out: list, paths: list, n_weights: int, n_species: int, *rest: list
    ) -> BlockMap:
        """See `registry`."""
        each = tuple(BlockPath(a, b, first, tuple(strides), scale) for a, b, first, strides, scale in paths)
        blocks = tuple(Block(*b) for b in x), tuple(Block(*b) for b in out)
        return cls(*blocks, each, n_weights, n_species, *map(tuple, rest))

    @property
    def x_dim(self) -> int:
        """Columns of x."""
        return sum(block.channels * block.dim for block in self.x)

    @property
    def out_dim(self) -> int:
        """Columns of the output."""
        return sum(block.channels * block.dim for block in self.out)

    @property
    def n_biases(self) -> int:
        """Number of biases."""
        most = 0
        for block, first in zip(self.out, self.biases, strict=False):
            if first >= 0:
                most = max(most, first + block.channels)
        return most

    def check(self) -> None:
        """Raise ValueError if the description is inconsistent."""
        if self.biases and (
            len(self.biases) != len(self.out)
            or any(first >= 0 and block.dim != 1 for block, first in zip(self.out, self.biases, strict=True))
        ):
            raise ValueError(
                "BlockMap: biases are for blocks of the output with one component, -1 for others"
            )
        for name, blocks in (("x", self.x), ("out", self.out)):
            end = 0
            for block in sorted(blocks):
                if block.layout not in ("mul_ir", "ir_mul"):
                    raise ValueError(
                        f"BlockMap: layout must be 'mul_ir' or 'ir_mul', a block of {name} has "
                        f"{block.layout!r}"
                    )
                if block.first != end or min(block.channels, block.dim) < 1:
                    raise ValueError(
                        f"BlockMap: blocks of {name} must cover its columns, one has {block.channels} x "
                        f"{block.dim} columns from {block.first}, the next one is {end}"
                    )
                end += block.channels * block.dim
        self._check_parts()
        if self.n_species < 1:
            raise ValueError(f"BlockMap: there must be at least one species, got {self.n_species}")
        for n, path in enumerate(self.paths):
            self._check_path(n, path)

    def _check_parts(self) -> None:
        for name, blocks, parts in (("x", self.x, self.x_parts), ("output", self.out, self.out_parts)):
            ends = list(accumulate(parts))
            whole = parts and ends[-1] != sum(block.channels * block.dim for block in blocks)
            crossing = any(
                block.first < end < block.first + block.channels * block.dim
                for block in blocks
                for end in ends
            )
            if whole or crossing:
                raise ValueError(f"BlockMap: parts {parts} of the {name} must consist of whole blocks")
        if self.out_parts and self.biases:
            raise ValueError("BlockMap: a map to several matrices has no biases")

    def _check_path(self, n: int, path: BlockPath) -> None:
        if not (0 <= path.x < len(self.x) and 0 <= path.out < len(self.out)):
            raise ValueError(f"BlockMap: path {n} names blocks {path.x} of x and {path.out} of the output")
        x, out = self.x[path.x], self.out[path.out]
        if x.dim != out.dim:
            raise ValueError(f"BlockMap: path {n} maps {x.dim} components to {out.dim}")
        sizes = (self.n_species, x.channels, out.channels)
        last = path.first + sum((size - 1) * s for size, s in zip(sizes, path.strides, strict=True))
        if path.first < 0 or min(path.strides) < 0 or last >= self.n_weights:
            raise ValueError(
                f"BlockMap: path {n} uses weights {path.first} to {last}, there are {self.n_weights}"
            )


@lru_cache(maxsize=1024)
def map_of(text: str) -> BlockMap:
    """The map that a text describes."""
    return described(text, BlockMap)


@lru_cache(maxsize=1024)
def transposed(text: str) -> str:
    """Text of the map in the other direction, with the same weights."""
    linear = map_of(text)
    paths = tuple(
        BlockPath(p.out, p.x, p.first, (p.strides[0], p.strides[2], p.strides[1]), p.scale)
        for p in linear.paths
    )
    sizes = linear.n_weights, linear.n_species
    return describe(BlockMap(linear.out, linear.x, paths, *sizes, (), linear.out_parts, linear.x_parts))


def part_of(block: Block, parts: tuple[int, ...]) -> tuple[int, int]:
    """First column and width of the matrix that holds a block; of the only one 0 and -1."""
    first = 0
    for width in parts:
        if block.first < first + width:
            return first, width
        first += width
    return 0, -1


def count_rows(values: Tensor, parts: tuple[int, ...]) -> int:
    """Rows of a matrix, or of several in one vector."""
    n_rows = values.shape[0]  # len() would fix the size in a compiled graph
    return n_rows // sum(parts) if parts else n_rows


def allocate(n_rows: int, dim: int, parts: tuple[int, ...], like: Tensor) -> Tensor:
    """A matrix, or a vector of several."""
    return like.new_empty(n_rows * dim if parts else (n_rows, dim))


def bias_gradient(grad: Tensor, linear: BlockMap) -> Tensor:
    """``[n_biases]`` sums over the rows of the columns that have a bias."""
    places = [
        first + channel
        for first, block in zip(linear.biases, linear.out, strict=True)
        for channel in range(block.channels)
        if first >= 0
    ]
    columns = [
        block.first + channel * block.strides[0]
        for first, block in zip(linear.biases, linear.out, strict=True)
        for channel in range(block.channels)
        if first >= 0
    ]
    sums = grad.sum(0).index_select(0, constant(tuple(columns), torch.int64, grad.device))
    if places == list(range(linear.n_biases)):
        return sums
    empty = grad.new_zeros(linear.n_biases)
    return empty.index_add(0, constant(tuple(places), torch.int64, grad.device), sums)
