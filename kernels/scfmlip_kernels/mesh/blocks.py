"""
What both CPU paths make of the places of atoms: products of matrices, block of mesh points by block.

The spline of an atom is a product of three vectors, one per axis, that are 0 but at a few points. Atoms of
one block reach the same small box of mesh points. Padded to this box, their vectors are columns of matrices,
and a sum over atoms is a product of matrices. Blocks are taken layer by layer along the first axis.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lattice.monomials import monomials
from ..recent import Recent
from .grid import blocks_of, lower_points
from .splines import spline_weights

# bytes of what one product works on, and of vectors that are kept between calls at the same places
_CHUNK_BYTES, _KEPT_BYTES = 1 << 20, 128 << 20
# atoms of a product: a block that has more takes several
_FEWEST, _MOST = 4, 64


@dataclass
class Layer:
    """
    Blocks of one system with the same place along the first axis.

    Attributes:
        shape: Mesh points of the system.
        first_point: Of the system.
        start: First mesh point along the first axis.
        blocks: Number along the second and third axis.
        rounds: Blocks, ``[n]``, and atoms in each of them, ``[n, n_slots]`` places in the sorted list or its
            length where a slot is empty. No block is twice in a round.
    """

    shape: tuple[int, int, int]
    first_point: int
    start: int
    blocks: tuple[int, int]
    rounds: list[tuple[Tensor, Tensor]]


class Places:
    """
    Atoms in blocks, and the splines' vectors in boxes.

    Args:
        coords: ``[n_atoms, 3]`` float64 in mesh spacings.
        atoms: Sorted, see `MeshPlaces`.
        block_ptr: See `MeshPlaces`.
        shapes: Of all meshes, in one list.
        block: Mesh points along each axis of a block.
        order: Of the splines.
        rank: Highest derivative.
        dtype: Of the vectors.
    """

    def __init__(
        self,
        coords: Tensor,
        atoms: Tensor,
        block_ptr: Tensor,
        shapes: Sequence[int],
        block: Sequence[int],
        order: int,
        rank: int,
        dtype: torch.dtype,
    ) -> None:
        self.atoms, self.order, self.rank, self.dtype = atoms, order, rank, dtype
        self.block, self.box = tuple(block), tuple(b + order - 1 for b in block)
        n = len(atoms)
        counts = block_ptr.diff()
        mean = n / max(1, int((counts > 0).sum()))
        self.n_slots = int(min(_MOST, max(_FEWEST, 4 * round(mean / 4))))
        self.layers = self._make_layers(block_ptr, counts, shapes, n)
        sizes = torch.tensor(shapes, dtype=torch.int64).view(-1, 3)
        n_blocks = torch.tensor([a * b * c for a, b, c in blocks_of(shapes, block)], dtype=torch.int64)
        ends = block_ptr[n_blocks.cumsum(0)]
        rows = sizes.repeat_interleave(ends.diff(prepend=ends.new_zeros(1)), 0)  # of each sorted atom
        first, self.offsets = lower_points(coords[atoms], order)
        self.shift = first.remainder(rows).remainder(torch.tensor(self.block))
        # one more row for empty slots
        self.offsets = torch.cat((self.offsets, self.offsets.new_zeros(1, 3)))
        self.shift = torch.cat((self.shift, self.shift.new_zeros(1, 3)))
        per_atom = (rank + 1) * sum(self.box) * torch.finfo(dtype).bits // 8
        self.vectors = self._make_vectors(torch.arange(n + 1)) if n * per_atom <= _KEPT_BYTES else None

    def _make_layers(
        self, block_ptr: Tensor, counts: Tensor, shapes: Sequence[int], n_atoms: int
    ) -> list[Layer]:
        layers, first_block, first_point = [], 0, 0
        for i, (a, b, c) in enumerate(blocks_of(shapes, self.block)):
            shape = (shapes[3 * i], shapes[3 * i + 1], shapes[3 * i + 2])
            for x in range(a):
                begin = first_block + x * b * c
                layer = Layer(shape, first_point, x * self.block[0], (b, c), [])
                number = torch.nonzero(counts[begin : begin + b * c]).flatten()
                start, left = block_ptr[begin + number], counts[begin + number]
                while len(number):
                    slots = torch.arange(self.n_slots)
                    atom = torch.where(slots < left[:, None], start[:, None] + slots, n_atoms)
                    layer.rounds.append((number, atom))
                    more = left > self.n_slots
                    number, start, left = number[more], start[more], left[more]
                    start, left = start + self.n_slots, left - self.n_slots
                if layer.rounds:
                    layers.append(layer)
            first_block, first_point = first_block + a * b * c, first_point + shape[0] * shape[1] * shape[2]
        return layers

    def _make_vectors(self, rows: Tensor) -> list[Tensor]:
        """``[n, rank + 1, box]`` for each axis, 0 where a spline has ended and in empty slots."""
        weights = spline_weights(self.offsets[rows].to(self.dtype), self.order, self.rank)
        shift, found = self.shift[rows], []
        for axis, size in enumerate(self.box):
            place = (shift[:, axis, None, None] + torch.arange(self.order)).expand(-1, self.rank + 1, -1)
            padded = weights.new_zeros((len(rows), self.rank + 1, size))
            found.append(padded.scatter_(2, place, weights[:, axis]))
        found[0][rows == len(self.offsets) - 1] = 0
        return found

    def of(self, slots: Tensor, rank: int) -> list[Tensor]:
        """Vectors ``[n, rank + 1, box]`` of each axis, of slots ``[n]``."""
        if self.vectors is not None:
            return [v.index_select(0, slots)[:, : rank + 1] for v in self.vectors]
        return [v[:, : rank + 1] for v in self._make_vectors(slots)]

    def chunks(self, layer: Layer, rank: int) -> list[tuple[Tensor, Tensor]]:
        """The rounds of a layer, cut so that a product fits into the cache."""
        bits = torch.finfo(self.dtype).bits
        per_block = self.n_slots * (rank + 1) * self.box[1] * self.box[2] * bits // 8
        step = max(1, _CHUNK_BYTES // per_block)
        return [
            (number[i : i + step], atom[i : i + step])
            for number, atom in layer.rounds
            for i in range(0, len(number), step)
        ]


_recent: Recent[Places] = Recent(2)


def find_places(
    coords: Tensor,
    atoms: Tensor,
    block_ptr: Tensor,
    shapes: Sequence[int],
    block: Sequence[int],
    order: int,
    rank: int,
    dtype: torch.dtype,
) -> Places:
    """The places of these coordinates, kept from the last calls where they are the same."""
    for most in range(rank, rank + 3):
        found = _recent.find(coords, (tuple(shapes), tuple(block), order, most, dtype))
        if found is not None:
            return found
    # one derivative more will be asked for, by the gradient or by the field
    most = min(max(rank, 1), order - 1)
    made = Places(coords, atoms, block_ptr, shapes, block, order, most, dtype)
    return _recent.keep(made, coords, (tuple(shapes), tuple(block), order, most, dtype))


def monomial_tree(rank: int) -> dict[int, dict[int, list[tuple[int, int]]]]:
    """``{a: {b: [(c, place of a, b, c)]}}`` of the monomials of a rank."""
    tree: dict[int, dict[int, list[tuple[int, int]]]] = {}
    for place, (a, b, c) in enumerate(monomials(rank)):
        tree.setdefault(a, {}).setdefault(b, []).append((c, place))
    return tree


def fold_axis(values: Tensor, step: int, n: int) -> Tensor:
    """
    Overlapping boxes added up along a periodic axis.

    Args:
        values: ``[n_before, n_boxes, size, n_after]``, boxes ``step`` apart.
        step: Points from one box to the next.
        n: Points of the axis.

    Returns:
        ``[n_before, n, n_after]``.
    """
    before, boxes, size, after = values.shape
    pieces = -(-size // step)
    line = values.new_zeros((before, (boxes + pieces - 1) * step, after))
    for k in range(pieces):
        width = min(step, size - k * step)
        target = line[:, k * step : (k + boxes) * step].unflatten(1, (boxes, step))
        target[:, :, :width] += values[:, :, k * step : k * step + width]
    out = line[:, :n]
    if line.shape[1] <= n:
        return torch.nn.functional.pad(line, (0, 0, 0, n - line.shape[1]))
    for begin in range(n, line.shape[1], n):
        part = line[:, begin : begin + n]
        out[:, : part.shape[1]] += part
    return out


def wrapped(n_boxes: int, step: int, size: int, n: int) -> Tensor:
    """Points of overlapping boxes on a periodic axis of n points, ``[(n_boxes - 1) step + size]``."""
    return torch.arange((n_boxes - 1) * step + size) % n
