"""
Pair sums in chunks of plain PyTorch: the CPU path, and the GPU's for ranks the kernel does not hold.

For a chunk of targets, or of small systems, all Cartesian derivatives ``T_D`` of the radial function up to
the summed rank are built by the recursion ``T^n_(D + 1_x) = D_x T^(n+1)_(D - 1_x) + x T^(n+1)_D``
(McMurchie and Davidson, J. Comput. Phys. 26, 218 (1978), eq. 4.6-4.8) and contracted with the sources by
matrix products. Memory is O(atoms + chunk).
"""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..lattice.monomials import monomial_count, monomials, rank_of_count
from .radial import gaussian_radial, softened_radial

# Pairs per chunk: about 20 arrays of this size live at once.
_CHUNK_PAIRS = 1 << 16
# Pairs that cost no more than the calls for them.
_FEW_PAIRS = 1 << 12


def _cartesian_derivatives(
    xyz: tuple[Tensor, Tensor, Tensor], radial: list[Tensor], rank: int
) -> list[Tensor]:
    """``T_D`` for every monomial D of degree at most ``rank``, in their order."""
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
    Work of at most about ``_CHUNK_PAIRS`` pairs: small systems together, large ones some targets at a time.

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
    source_rank = rank_of_count(n_moments)
    total_rank = source_rank + rank
    device = positions.device
    out = moments.new_zeros((n_atoms, n_channels, n_widths, monomial_count(rank)))
    # out_A = sum_B (-1)^|B| T_(A+B) c_B: where A + B stands among the monomials of the summed rank
    number = {m: i for i, m in enumerate(monomials(total_rank))}
    place = torch.tensor(
        [
            [number[a[0] + b[0], a[1] + b[1], a[2] + b[2]] for b in monomials(source_rank)]
            for a in monomials(rank)
        ],
        device=device,
    )
    moment = torch.arange(n_moments, device=device).expand_as(place)
    signs = [-1.0 if sum(b) % 2 else 1.0 for b in monomials(source_rank)]
    sign = torch.tensor(signs, dtype=moments.dtype, device=device)[:, None, None, None]
    for begins, sizes, part in _blocks(atom_ptr.tolist()):
        begin, size = (torch.tensor(v, device=device)[:, None] for v in (begins, sizes))
        local = torch.arange(max(sizes), device=device)
        valid = local < size
        # [systems, sources], systems shorter than others filled up with their first atom, which no one sees
        source = begin + torch.where(valid, local, 0)
        target, wanted = source[:, part], valid[:, part]
        group = source // group_size
        x, y, z = (positions[target][:, :, None] - positions[source][:, None]).unbind(-1)
        same = (group[:, part, None] == group[:, None]) | ~valid[:, None] | ~wanted[..., None]
        r = (x**2 + y**2 + z**2).sqrt().masked_fill(same, 1.0)
        rows, near = target[wanted], moments[source]
        for w, width in enumerate(widths.tolist()):
            alpha = 1 / (math.sqrt(2) * width)
            if softening == 0.0:
                radial = gaussian_radial(r, alpha, total_rank)
            else:
                radial = softened_radial(r, alpha, softening, total_rank)
            radial = [f.masked_fill_(same, 0.0) for f in radial]
            derivatives = _cartesian_derivatives((x, y, z), radial, total_rank)
            columns = near[:, :, :, w].flatten(2)
            sums = torch.stack([t @ columns for t in derivatives]).unflatten(-1, (n_channels, n_moments))
            # before the sum by A, B, system, target and channel
            values = (sign * sums.movedim(-1, 1)[place, moment]).sum(1)
            out[rows, :, w] = values.movedim(0, -1)[wanted]
    return out
