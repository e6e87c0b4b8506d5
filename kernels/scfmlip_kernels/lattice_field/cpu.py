"""
CPU path of the lattice field: the adjoint of the CPU structure factor.

For each run of planes and chunk of atoms, one matrix product multiplies the coefficients with the columns
that reach the run (`lattice.sphere`); the result is multiplied with sine and cosine of ``2 pi h u``. Memory
is O(points + chunk), never O(atoms x points).

Small systems, whose phases all fit in the cache, need one product with the stored phases.
"""

import torch
from torch import Tensor

from ..lattice.monomials import monomial_count, monomials
from ..lattice.series import plane_sets, spread
from ..lattice.sphere import HalfSphere, half_spheres
from ..lattice.waves import Waves, chunk_atoms, kept_waves, make_waves, rotated


def _by_phases(coefficients: Tensor, sphere: HalfSphere, phases: Tensor, rank: int) -> Tensor:
    """``[n_monomials, n_channels, n_atoms]`` of one system; ``coefficients [n, n_channels, 2]``."""
    real, imag = coefficients.to(phases.dtype).permute(2, 1, 0)
    pairs = torch.stack((real, -imag), -1)
    terms = spread(pairs[None], sphere.powers(monomials(rank), phases.dtype), rank, 3)[0]
    return (terms.flatten(0, 1) @ phases).view(*terms.shape[:2], phases.shape[1])


def _plane_terms(coefficients: Tensor, sphere: HalfSphere, rank: int, dtype: torch.dtype) -> Tensor:
    """``[2 n_planes, n_sets, n_channels, 2 n_columns]`` coefficients of sine and cosine rows and columns."""
    n_channels, n_planes, n_columns = coefficients.shape[1], sphere.n_planes, len(sphere.columns)
    slots = coefficients.new_zeros((2 * n_planes * n_columns, n_channels, 2))
    slots = slots.index_copy_(0, sphere.slots, coefficients)
    slots = slots.view(2, n_planes, n_columns, n_channels, 2).permute(0, 4, 1, 3, 2)
    (real, imag), (mirror_real, mirror_imag) = slots
    # Re e^{i h xi} [P (c + i s) + P' (c - i s)]
    terms = torch.empty((n_planes, 2, n_channels, n_columns, 2), dtype=dtype)
    torch.add(real, mirror_real, out=terms[:, 1, ..., 0])
    torch.sub(mirror_imag, imag, out=terms[:, 1, ..., 1])
    torch.add(imag, mirror_imag, out=terms[:, 0, ..., 0]).neg_()
    torch.sub(mirror_real, real, out=terms[:, 0, ..., 1])
    return spread(terms.flatten(0, 1), sphere.powers(plane_sets(rank), dtype), rank, 2)


def _by_columns(
    frac: Tensor,
    coefficients: Tensor,
    sphere: HalfSphere,
    waves: Waves | None,
    rank: int,
    dtype: torch.dtype,
) -> Tensor:
    """``[n_monomials, n_channels, n_atoms]`` of one system, plane by plane."""
    terms = _plane_terms(coefficients, sphere, rank, dtype)
    n_rows, n_sets, n_channels, n_functions = terms.shape
    n_atoms, per_row = len(frac), n_sets * n_channels
    terms = terms.flatten(0, 2)
    sets, order = plane_sets(rank), []
    step = chunk_atoms(n_functions // 2, len(terms), dtype)
    runs, index = sphere.runs(min(step, n_atoms), per_row), torch.arange(sphere.n_planes)
    out = terms.new_empty((monomial_count(rank), n_channels, n_atoms))
    order = [(a, b, g) for a in range(rank + 1) for b, g in sets if a + b + g <= rank]
    planes = terms.new_empty(len(terms) * min(step, n_atoms))
    for begin in range(0, n_atoms, step):
        end = min(begin + step, n_atoms)
        if waves is None:
            here = make_waves(frac[begin:end], sphere, dtype)
            rows, columns = here.rows, here.chunk(0, end - begin)
        else:
            rows, columns = waves.rows[..., begin:end], waves.chunk(begin, end)
        sums = planes[: len(terms) * (end - begin)].view(len(terms), end - begin)
        for first, last, reach in runs:
            # sin(0) = 0 needs no product
            mine = slice(max(2 * first, 1) * per_row, 2 * last * per_row)
            torch.mm(terms[mine, : 2 * reach], columns[: 2 * reach], out=sums[mine])
        sums[:per_row] = 0
        sums, place = sums.view(n_rows, n_sets, n_channels, end - begin), 0
        for a in range(rank + 1):
            n_keep = (rank - a + 1) * (rank - a + 2) // 2  # in graded order, the first ones
            product = sums[:, :n_keep] * rows.flatten(0, 1)[:, None, None]
            torch.sum(product, 0, out=out[place : place + n_keep, :, begin:end])
            place += n_keep
            if a < rank:
                rows = rotated(rows, index)
    return out[[order.index(m) for m in monomials(rank)]]


def lattice_field_cpu(
    frac: Tensor,
    coefficients: Tensor,
    points: Tensor,
    atom_ptr: Tensor,
    rank: int,
    dtype: torch.dtype,
) -> Tensor:
    """Fields at every atom; arguments as in `lattice_field`, contiguous, on the CPU."""
    n_channels = coefficients.shape[1]
    ptr, spheres = atom_ptr.tolist(), half_spheres(points)
    kept = kept_waves(frac, spheres, ptr, dtype)
    out = torch.zeros((len(frac), n_channels, monomial_count(rank)), dtype=dtype)
    for i, sphere in enumerate(spheres):
        mine, waves = slice(ptr[i], ptr[i + 1]), kept[i]
        if ptr[i + 1] == ptr[i] or n_channels == 0:
            continue
        p = coefficients[sphere.points]
        if waves is not None and waves.phases is not None:
            found = _by_phases(p, sphere, waves.phases, rank)
        else:
            found = _by_columns(frac[mine], p, sphere, waves, rank, dtype)
        out[mine] = found.permute(2, 1, 0)
    return out
