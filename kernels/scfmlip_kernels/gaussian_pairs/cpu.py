"""
Pair sums in chunks of plain PyTorch: the CPU path, and the GPU's for ranks the kernel does not hold.

For a chunk of targets all Cartesian derivatives ``T_D`` of the radial function up to the summed rank
are built by the recursion ``T^n_(D + 1_x) = D_x T^(n+1)_(D - 1_x) + x T^(n+1)_D`` (McMurchie and
Davidson, J. Comput. Phys. 26, 218 (1978), eq. 4.6-4.8) and contracted with the sources by matrix
products. Memory is O(atoms + chunk).
"""

import itertools
import math

import torch
from torch import Tensor

from ..lattice.monomials import monomial_count, monomials, rank_of_count
from .radial import gaussian_radial, softened_radial

# Pairs per chunk: about 20 arrays of this size live at once.
_CHUNK_PAIRS = 1 << 16


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
    out = moments.new_zeros((n_atoms, n_channels, n_widths, monomial_count(rank)))
    # out_A = sum_B (-1)^|B| T_(A+B) c_B: where A + B stands among the monomials of the summed rank
    place = {m: i for i, m in enumerate(monomials(total_rank))}
    targets, sources = monomials(rank), monomials(source_rank)
    ptr = atom_ptr.tolist()
    for begin, end in itertools.pairwise(ptr):
        if end == begin:
            continue
        group = torch.arange(begin, end, device=positions.device) // group_size
        r_all = positions[begin:end]
        step = max(1, _CHUNK_PAIRS // (end - begin))
        for start in range(begin, end, step):
            stop = min(start + step, end)
            x, y, z = (positions[start:stop, None] - r_all[None]).unbind(-1)
            r = (x**2 + y**2 + z**2).sqrt()
            same = group[start - begin : stop - begin, None] == group[None]
            r = r.masked_fill(same, 1.0)
            for w, width in enumerate(widths.tolist()):
                alpha = 1 / (math.sqrt(2) * width)
                if softening == 0.0:
                    radial = gaussian_radial(r, alpha, total_rank)
                else:
                    radial = softened_radial(r, alpha, softening, total_rank)
                radial = [f.masked_fill_(same, 0.0) for f in radial]
                derivatives = _cartesian_derivatives((x, y, z), radial, total_rank)
                columns = moments[begin:end, :, w].reshape(end - begin, n_channels * n_moments)
                sums = [(t @ columns).view(stop - start, n_channels, n_moments) for t in derivatives]
                for a, (ax, ay, az) in enumerate(targets):
                    for b, (bx, by, bz) in enumerate(sources):
                        value = sums[place[ax + bx, ay + by, az + bz]][:, :, b]
                        sign = -1.0 if (bx + by + bz) % 2 else 1.0
                        out[start:stop, :, w, a].add_(value, alpha=sign)
    return out
