"""
Atoms sorted into blocks of mesh points, so that both CPU paths become matrix products per block.

The spline of an atom is a product of three vectors, one per axis, that are nonzero at a few points only.
Atoms of one block reach the same small box of mesh points. Padded to this box, their vectors are columns of
matrices, and a sum over atoms is a matrix product. Blocks are processed layer by layer along the first axis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..lattice.monomials import monomials
from ..recent import Recent
from .grid import blocks_of, lower_points
from .splines import spline_weights

# bytes of one product's operands, and bytes of vectors cached between calls at the same coordinates
_CHUNK_BYTES, _KEPT_BYTES = 1 << 20, 128 << 20
# most atoms of one block in a product; blocks with more atoms need several products
_MOST = 64


@dataclass
class Layer:
    """
    Blocks of one system at the same position along the first axis.

    Attributes:
        shape: Mesh points of the system along each axis.
        first_point: Index of the system's first mesh point.
        start: First mesh point of the layer along the first axis.
        blocks: Number of blocks along the second and third axis.
        number, first, count: ``[n]`` blocks that have atoms, the first of these atoms in the sorted list, and
            how many there are; fullest blocks first.
    """

    shape: tuple[int, int, int]
    first_point: int
    start: int
    blocks: tuple[int, int]
    number: Tensor
    first: Tensor
    count: Tensor


class Chunk(NamedTuple):
    """
    The blocks of one product.

    Attributes:
        number: ``[n]`` different blocks.
        slots: ``[n * n_slots]`` indices of their atoms in the sorted list; the list's length in empty slots.
        again: Whether an earlier chunk already held atoms of these blocks.
    """

    number: Tensor
    slots: Tensor
    again: bool


class Places:
    """
    Atoms in blocks, with their spline vectors padded to boxes.

    Args:
        coords: ``[n_atoms, 3]`` float64 in mesh spacings.
        atoms: Atoms sorted by block, see `MeshPlaces`.
        block_ptr: See `MeshPlaces`.
        shapes: Mesh points of all systems, in one list.
        block: Mesh points along each axis of a block.
        order: Order of the splines.
        rank: Highest derivative.
        dtype: dtype of the vectors.
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
        self.layers = self._make_layers(block_ptr, shapes)
        self._chunks: dict[tuple[int, int], list[Chunk]] = {}
        sizes = torch.tensor(shapes, dtype=torch.int64).view(-1, 3)
        n_blocks = torch.tensor([a * b * c for a, b, c in blocks_of(shapes, block)], dtype=torch.int64)
        ends = block_ptr[n_blocks.cumsum(0)]
        rows = sizes.repeat_interleave(ends.diff(prepend=ends.new_zeros(1)), 0)  # of each sorted atom
        first, self.offsets = lower_points(coords[atoms], order)
        self.shift = first.remainder(rows).remainder(torch.tensor(self.block))
        # an extra row for empty slots
        self.offsets = torch.cat((self.offsets, self.offsets.new_zeros(1, 3)))
        self.shift = torch.cat((self.shift, self.shift.new_zeros(1, 3)))
        per_atom = (rank + 1) * sum(self.box) * torch.finfo(dtype).bits // 8
        self.vectors = self._make_vectors(torch.arange(n + 1)) if n * per_atom <= _KEPT_BYTES else None

    def _make_layers(self, block_ptr: Tensor, shapes: Sequence[int]) -> list[Layer]:
        layers, first_block, first_point, counts = [], 0, 0, block_ptr.diff()
        for i, (a, b, c) in enumerate(blocks_of(shapes, self.block)):
            shape = (shapes[3 * i], shapes[3 * i + 1], shapes[3 * i + 2])
            for x in range(a):
                begin = first_block + x * b * c
                count, number = counts[begin : begin + b * c].sort(descending=True, stable=True)
                used = int((count > 0).sum())
                if used:
                    number, count = number[:used], count[:used]
                    first = block_ptr[begin + number]
                    layers.append(Layer(shape, first_point, x * self.block[0], (b, c), number, first, count))
            first_block, first_point = first_block + a * b * c, first_point + shape[0] * shape[1] * shape[2]
        return layers

    def _make_vectors(self, rows: Tensor) -> list[Tensor]:
        """``[n, rank + 1, box]`` for each axis; 0 outside the spline and in empty slots."""
        weights = spline_weights(self.offsets[rows].to(self.dtype), self.order, self.rank)
        shift, found = self.shift[rows], []
        for axis, size in enumerate(self.box):
            place = (shift[:, axis, None, None] + torch.arange(self.order)).expand(-1, self.rank + 1, -1)
            padded = weights.new_zeros((len(rows), self.rank + 1, size))
            found.append(padded.scatter_(2, place, weights[:, axis]))
        found[0][rows == len(self.offsets) - 1] = 0
        return found

    def of(self, slots: Tensor, rank: int) -> list[Tensor]:
        """Vectors ``[n, rank + 1, box]`` of each axis, for slots ``[n]``."""
        if self.vectors is not None:
            return [v.index_select(0, slots)[:, : rank + 1] for v in self.vectors]
        return [v[:, : rank + 1] for v in self._make_vectors(slots)]

    def chunks(self, which: int, rank: int) -> list[Chunk]:
        """Split the blocks of a layer into chunks whose product fits into the cache."""
        found = self._chunks.get((which, rank))
        if found is not None:
            return found
        layer, found, again = self.layers[which], [], False
        number, first, count = layer.number, layer.first, layer.count
        per_slot = (rank + 1) * self.box[1] * self.box[2] * torch.finfo(self.dtype).bits // 8
        while len(number):
            counts, i = count.tolist(), 0
            while i < len(counts):
                slots = torch.arange(min(_MOST, counts[i]))
                end = i + max(1, _CHUNK_BYTES // (per_slot * len(slots)))
                atom = torch.where(slots < count[i:end, None], first[i:end, None] + slots, len(self.atoms))
                found.append(Chunk(number[i:end], atom.flatten(), again))
                i = end
            more = count > _MOST
            number, first, count, again = number[more], first[more] + _MOST, count[more] - _MOST, True
        self._chunks[which, rank] = found
        return found


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
    """The sorted atoms for these coordinates, cached from recent calls."""
    for most in range(rank, rank + 3):
        found = _recent.find(coords, (tuple(shapes), tuple(block), order, most, dtype))
        if found is not None:
            return found
    # the gradient or the field will need one more derivative
    most = min(max(rank, 1), order - 1)
    made = Places(coords, atoms, block_ptr, shapes, block, order, most, dtype)
    return _recent.keep(made, coords, (tuple(shapes), tuple(block), order, most, dtype))


def monomial_tree(rank: int) -> dict[int, dict[int, list[tuple[int, int]]]]:
    """``{a: {b: [(c, index of a, b, c)]}}`` for the monomials of a rank."""
    tree: dict[int, dict[int, list[tuple[int, int]]]] = {}
    for place, (a, b, c) in enumerate(monomials(rank)):
        tree.setdefault(a, {}).setdefault(b, []).append((c, place))
    return tree


def folded(boxes: Tensor, steps: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """
    Add up overlapping boxes on the last two axes of a periodic mesh.

    Args:
        boxes: ``[n_y, n_z, n, box_y, box_z]``, ``steps`` apart.
        steps: Mesh points from one box to the next along both axes.
        shape: Mesh points along both axes.

    Returns:
        ``[n, *shape]``.
    """
    n_y, n_z, n, box_y, box_z = boxes.shape
    step_y, step_z = steps
    size_y, size_z = (n_y - 1) * step_y + box_y, (n_z - 1) * step_z + box_z
    pieces_y, pieces_z = -(-box_y // step_y), -(-box_z // step_z)
    plane = boxes.new_zeros((n, (n_y + pieces_y - 1) * step_y, (n_z + pieces_z - 1) * step_z))
    for j in range(pieces_y):
        for k in range(pieces_z):
            y, z = slice(j * step_y, (j + n_y) * step_y), slice(k * step_z, (k + n_z) * step_z)
            target = plane[:, y, z].unflatten(1, (n_y, step_y)).unflatten(3, (n_z, step_z))
            part = boxes[..., j * step_y : (j + 1) * step_y, k * step_z : (k + 1) * step_z]
            target[:, :, : part.shape[3], :, : part.shape[4]] += part.permute(2, 0, 3, 1, 4)
    plane = _wrap(plane[:, :size_y, :size_z], shape[0], 1)
    return _wrap(plane, shape[1], 2)


def _wrap(line: Tensor, n: int, dim: int) -> Tensor:
    """Wrap a line that is longer or shorter than a periodic axis of n points onto the axis."""
    length = line.shape[dim]
    if length < n:
        missing = list(line.shape)
        missing[dim] = n - length
        return torch.cat((line, line.new_zeros(missing)), dim)
    out = line.narrow(dim, 0, n)
    for begin in range(n, length, n):
        part = line.narrow(dim, begin, min(n, length - begin))
        out.narrow(dim, 0, part.shape[dim]).add_(part)
    return out


def wrapped(n_boxes: int, step: int, size: int, n: int) -> Tensor:
    """Mesh points of overlapping boxes on a periodic axis of n points, ``[(n_boxes - 1) step + size]``."""
    return torch.arange((n_boxes - 1) * step + size) % n
