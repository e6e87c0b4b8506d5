"""
Sums over listed pairs in chunks of plain PyTorch: the CPU path, and the GPU's for ranks the kernel does not
hold.

For the pairs of a chunk of targets all Cartesian derivatives of the radial function are built as in
`gaussian_pairs.cpu`, times the moments of their sources, and summed by target. Memory is O(targets + chunk).

A geometry is summed many times by solvers: what costs most, the radial functions, is kept for the last few.
"""

import torch
from torch import Tensor

from ..gaussian_pairs.cpu import cartesian_derivatives, contraction
from ..gaussian_pairs.radial import gaussian_radial
from ..lattice.monomials import monomial_count, rank_of_count
from ..recent import Recent

# Pairs per chunk: about 30 arrays of this size live at once, in the cache of a core.
_CHUNK_PAIRS = 1 << 14
_CHUNK_PAIRS_GPU = 1 << 22
# Radial functions of one geometry that are kept, and how many geometries.
_KEPT_BYTES = 128 << 20
# chunks of targets, the list they belong to, and of each chunk and width the radial functions
_recent: Recent[tuple[Tensor, list[list[list[Tensor]]]]] = Recent(3)


def _chunks(ptr: Tensor, most: int) -> list[tuple[int, int, int, int]]:
    """First and last target, first and last pair, of chunks of about ``most`` pairs; one target at least."""
    ends, n = ptr.cpu(), len(ptr) - 1
    found, begin = [], 0
    while begin < n:
        first = int(ends[begin])
        end = int(torch.searchsorted(ends, first + most, right=True)) - 1
        end = min(max(end, begin + 1), n)
        last = int(ends[end])
        if last > first:
            found.append((begin, end, first, last))
        begin = end
    return found


def _radial(r: Tensor, inner: float, outer: float, order: int) -> list[Tensor]:
    """``((1/r) d/dr)^n`` of the difference of two Gaussian interactions for n = 0 .. order."""
    root = 2.0**0.5
    values = gaussian_radial(r, 1 / (root * inner), order)
    if outer == float("inf"):
        return values
    return [a - b for a, b in zip(values, gaussian_radial(r, 1 / (root * outer), order), strict=True)]


def listed_pairs_chunked(
    targets: Tensor,
    sources: Tensor,
    moments: Tensor,
    widths: Tensor,
    target_ptr: Tensor,
    near: Tensor,
    rank: int,
) -> Tensor:
    """Sums over listed pairs; arguments as in `listed_pairs`, contiguous, the list by target only."""
    n_channels, n_widths, n_moments = moments.shape[1:]
    order = rank + rank_of_count(n_moments)
    place, sign = contraction(rank, rank_of_count(n_moments), moments)
    places, signs = place.tolist(), sign.tolist()
    pairs_of_widths: list[list[float]] = widths.tolist()
    out = moments.new_zeros((len(targets), n_channels, n_widths, monomial_count(rank)))
    chunks = _chunks(target_ptr, _CHUNK_PAIRS_GPU if targets.is_cuda else _CHUNK_PAIRS)
    kept = _recalled(targets, sources, near, (order, pairs_of_widths, _CHUNK_PAIRS))
    counts = target_ptr.diff()
    for number, (begin, end, first, last) in enumerate(chunks):
        source = near[first:last]
        here = counts[begin:end]
        vectors = targets[begin:end].repeat_interleave(here, 0, output_size=last - first) - sources[source]
        x, y, z = vectors.T.contiguous().unbind(0)
        if kept is not None and number < len(kept):
            radials = kept[number]
        else:
            r = (x**2 + y**2 + z**2).sqrt()
            radials = [_radial(r, inner, outer, order) for inner, outer in pairs_of_widths]
            if kept is not None:
                kept.append(radials)
        offsets = target_ptr[begin : end + 1] - first
        values = moments.new_empty((n_widths, monomial_count(rank), n_channels, last - first))
        rows = moments[source].permute(2, 3, 1, 0).contiguous()  # widths, B, channels, pairs
        for w, radial in enumerate(radials):
            tensors = cartesian_derivatives((x, y, z), radial, order)
            for a, wanted in enumerate(places):
                total = values[w, a]
                torch.mul(rows[w, 0], tensors[wanted[0]], out=total)
                for b in range(1, n_moments):
                    total.addcmul_(rows[w, b], tensors[wanted[b]], value=signs[b])
        flat = values.flatten(0, 2).T.contiguous()
        sums = torch.segment_reduce(flat, "sum", offsets=offsets, axis=0, initial=0.0)
        out[begin:end] = sums.unflatten(1, (n_widths, -1, n_channels)).permute(0, 3, 1, 2)
    return out


def _recalled(targets: Tensor, sources: Tensor, near: Tensor, key: tuple) -> list[list[list[Tensor]]] | None:
    """
    Where the chunks' radial functions of a geometry are kept; None where they are too many.

    A list is known by its place in memory, which is kept with it so that no other can be there.
    """
    order, widths, _ = key
    size = len(near) * (order + 1) * len(widths) * targets.element_size()
    if targets.is_cuda or size > _KEPT_BYTES:
        return None
    points = torch.cat((targets, sources))
    key = (*key, near.data_ptr(), near._version, len(targets))
    found = _recent.find(points, key)
    if found is None:
        found = _recent.keep((near, []), points, key)
    return found[1]
