"""
Pair sums in chunks of plain PyTorch: the CPU path, and the GPU path for ranks that the kernel does not cover.

For a chunk of targets, or of small systems, all Cartesian derivatives ``T_D`` of the radial function up to
the summed rank are built by the recursion ``T^n_(D + 1_x) = D_x T^(n+1)_(D - 1_x) + x T^(n+1)_D``
(McMurchie and Davidson, J. Comput. Phys. 26, 218 (1978), eq. 4.6-4.8) and contracted with the sources by
matrix products. Memory is O(atoms + chunk).

Solvers and their derivatives sum small systems many times at one geometry. From the second call on, the sums
of the last few geometries are cached as matrices, and a sum is one matrix product.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..lattice.monomials import monomial_count, monomials, rank_of_count
from ..recent import Recent
from .radial import gaussian_radial, softened_radial

# Pairs per chunk: about 20 arrays of this size live at once.
_CHUNK_PAIRS = 1 << 16
# Number of pairs that cost no more than the calls that sum them.
_FEW_PAIRS = 1 << 12
# Cached matrices: size below which they are built at once, largest size, and number of geometries.
_FEW_BYTES = 1 << 17
_KEPT_BYTES = 8 << 20


class Block(NamedTuple):
    """
    Targets and sources of systems that are computed together.

    Attributes:
        source: ``[systems, sources]`` atoms; shorter systems are padded with their first atom, masked by
            ``blind``.
        wanted: ``[systems, targets]`` which targets are atoms.
        rows: The atoms of those targets.
        blind: ``[systems, targets, sources]`` pairs that are left out.
        xyz, r: ``[systems, targets, sources]`` distance vectors and their lengths; 1 for pairs left out.
    """

    source: Tensor
    wanted: Tensor
    rows: Tensor
    blind: Tensor
    xyz: tuple[Tensor, Tensor, Tensor]
    r: Tensor


def cartesian_derivatives(
    xyz: tuple[Tensor, Tensor, Tensor], radial: list[Tensor], rank: int
) -> list[Tensor]:
    """``T_D`` for every monomial D of degree at most ``rank``, in the order of `monomials`."""
    levels: dict[tuple[int, int, int], list[Tensor]] = {(0, 0, 0): radial}
    for exponents in monomials(rank)[1:]:
        axis = next(a for a in range(3) if exponents[a])
        below = list(exponents)
        below[axis] -= 1
        previous = levels[tuple(below)]  # type: ignore[index]
        count = rank - sum(exponents) + 1
        values = [xyz[axis] * previous[n + 1] for n in range(count)]
        if below[axis] > 0:
            twice = list(below)
            twice[axis] -= 1
            deeper = levels[tuple(twice)]  # type: ignore[index]
            values = [v + below[axis] * deeper[n + 1] for n, v in enumerate(values)]
        levels[exponents] = values
    return [levels[exponents][0] for exponents in monomials(rank)]


def _blocks(ptr: list[int]) -> Iterator[tuple[list[int], list[int], slice]]:
    """
    Chunks of about ``_CHUNK_PAIRS`` pairs: small systems together, large ones a few targets at a time.

    Yields:
        First atoms and sizes of the systems, and which of their atoms are targets.
    """
    begins: list[int] = []
    sizes: list[int] = []
    for size, begin in sorted((end - begin, begin) for begin, end in itertools.pairwise(ptr)):
        if size == 0:
            continue
        if size**2 > _CHUNK_PAIRS:
            step = max(1, _CHUNK_PAIRS // size)
            for start in range(0, size, step):
                yield [begin], [size], slice(start, min(start + step, size))
            continue
        filled = (len(sizes) + 1) * size**2
        useful = sum(n**2 for n in sizes) + size**2
        if sizes and (filled > _CHUNK_PAIRS or filled > 1.5 * useful + _FEW_PAIRS):
            yield begins, sizes, slice(0, max(sizes))
            begins, sizes = [], []
        begins.append(begin)
        sizes.append(size)
    if sizes:
        yield begins, sizes, slice(0, max(sizes))


def _block(positions: Tensor, begins: list[int], sizes: list[int], part: slice, group_size: int) -> Block:
    """Distances between some targets and all sources."""
    begin, size = (torch.tensor(v, device=positions.device)[:, None] for v in (begins, sizes))
    position = torch.arange(max(sizes), device=positions.device)
    valid = position < size
    source = begin + torch.where(valid, position, 0)
    target, wanted = source[:, part], valid[:, part]
    group = source // group_size
    x, y, z = (positions[target][:, :, None] - positions[source][:, None]).unbind(-1)
    blind = (group[:, part, None] == group[:, None]) | ~valid[:, None] | ~wanted[..., None]
    r = (x**2 + y**2 + z**2).sqrt().masked_fill(blind, 1.0)
    return Block(source, wanted, target[wanted], blind, (x, y, z), r)


def _derivatives(block: Block, width: float, softening: float, rank: int) -> list[Tensor]:
    """``T_D [systems, targets, sources]`` for every monomial D of degree at most ``rank``."""
    alpha = 1 / (math.sqrt(2) * width)
    if softening == 0.0:
        radial = gaussian_radial(block.r, alpha, rank)
    else:
        radial = softened_radial(block.r, alpha, softening, rank)
    return cartesian_derivatives(block.xyz, [f.masked_fill_(block.blind, 0.0) for f in radial], rank)


def contraction(rank: int, source_rank: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """For ``out_A = sum_B (-1)^|B| T_(A+B) c_B``: ``[A, B]`` index of monomial A + B, ``[B]`` signs."""
    number = {m: i for i, m in enumerate(monomials(rank + source_rank))}
    place = [
        [number[a[0] + b[0], a[1] + b[1], a[2] + b[2]] for b in monomials(source_rank)]
        for a in monomials(rank)
    ]
    signs = [-1.0 if sum(b) % 2 else 1.0 for b in monomials(source_rank)]
    return torch.tensor(place, device=like.device), torch.tensor(signs, dtype=like.dtype, device=like.device)


# per block: source, wanted, rows, and one matrix for every width
Matrices = list[tuple[Tensor, Tensor, Tensor, list[Tensor]]]


class _Geometry:
    """A recent geometry, and its matrices from the second call on."""

    matrices: Matrices | None = None


_recent: Recent[_Geometry] = Recent(6)


def _recalled(positions: Tensor, key: tuple, build: Callable[[], Matrices], at_once: bool) -> Matrices | None:
    """The result of ``build`` for a geometry; on its first call None unless ``at_once``."""
    found = _recent.find(positions, key)
    if found is None:
        found = _recent.keep(_Geometry(), positions, key)
        if not at_once:
            return None
    if found.matrices is None:
        found.matrices = build()
    return found.matrices


def _matrices(
    positions: Tensor,
    widths: list[float],
    ptr: list[int],
    rank: int,
    source_rank: int,
    softening: float,
    group_size: int,
) -> Matrices:
    """The sum of each block as matrices ``[systems, A x targets, B x sources]``, one per width."""
    place, sign = contraction(rank, source_rank, positions)
    found = []
    for begins, sizes, part in _blocks(ptr):
        block, matrices = _block(positions, begins, sizes, part, group_size), []
        for width in widths:
            values = torch.stack(_derivatives(block, width, softening, rank + source_rank))
            pairs = values[place] * sign[:, None, None, None]  # A, B, system, target, source
            matrices.append(pairs.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2))
        found.append((block.source, block.wanted, block.rows, matrices))
    return found


def gaussian_pairs_chunked(
    positions: Tensor,
    moments: Tensor,
    widths: Tensor,
    atom_ptr: Tensor,
    rank: int,
    softening: float,
    group_size: int,
) -> Tensor:
    """Pair sums of every system; arguments as in `gaussian_pairs`, contiguous."""
    n_atoms, n_channels, n_widths, n_moments = moments.shape
    source_rank, ptr = rank_of_count(n_moments), atom_ptr.tolist()
    out = moments.new_zeros((n_atoms, n_channels, n_widths, monomial_count(rank)))
    n_pairs = sum((end - begin) ** 2 for begin, end in itertools.pairwise(ptr))
    matrix_bytes = n_pairs * monomial_count(rank) * n_moments * n_widths * moments.element_size()
    found = None
    if positions.device.type == "cpu" and matrix_bytes <= _KEPT_BYTES:
        key = (widths.tolist(), ptr, rank, source_rank, softening, group_size)
        found = _recalled(positions, key, lambda: _matrices(positions, *key), matrix_bytes <= _FEW_BYTES)
    if found is not None:
        for source, wanted, rows, matrices in found:
            near = moments[source].permute(3, 0, 4, 1, 2).flatten(2, 3)  # width, system, B x source
            for w, matrix in enumerate(matrices):
                values = (matrix @ near[w]).unflatten(1, (-1, wanted.shape[1]))
                out[rows, :, w] = values.permute(0, 2, 3, 1)[wanted]
        return out
    place, sign = contraction(rank, source_rank, moments)
    moment = torch.arange(n_moments, device=positions.device).expand_as(place)
    for begins, sizes, part in _blocks(ptr):
        block = _block(positions, begins, sizes, part, group_size)
        near = moments[block.source]
        for w, width in enumerate(widths.tolist()):
            derivatives = _derivatives(block, width, softening, rank + source_rank)
            columns = near[:, :, :, w].flatten(2)
            sums = torch.stack([t @ columns for t in derivatives]).unflatten(-1, (n_channels, n_moments))
            # indexed by A, B, system, target and channel before the sum
            values = (sign[:, None, None, None] * sums.movedim(-1, 1)[place, moment]).sum(1)
            out[block.rows, :, w] = values.movedim(0, -1)[block.wanted]
    return out
