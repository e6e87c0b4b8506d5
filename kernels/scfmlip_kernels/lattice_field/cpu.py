"""
CPU path of the lattice field: the adjoint of the CPU structure factor.

The coefficients of a box are contracted with the column functions of the second and third axis in one
matrix product per chunk of atoms, then with ``(i h)^a e^{i h xi}`` of the first axis. Memory is
O(points + chunk), never O(atoms x points).

Systems so small that all their phases fit in the cache take one product with the stored phases.
"""

import torch
from torch import Tensor

from ..lattice.basis import chunk_atoms, derivative, from_exponentials
from ..lattice.monomials import monomial_count, monomials
from ..lattice.phases import MAX_RANK, StoredPhases, axis_tables, kept_tables


def _from_stored_phases(coefficients: Tensor, phases: StoredPhases, rank: int) -> Tensor:
    """``[n_monomials, n_channels, n_atoms]`` of one system."""
    real, imag = coefficients[phases.points].to(phases.waves.dtype).permute(2, 1, 0)
    n_channels, n_points = real.shape
    # of cosine and sine, for even and for odd degrees
    bases = torch.stack((real, -imag, -imag, -real), -1).view(n_channels, n_points, 2, 2)
    bases = bases.permute(2, 0, 1, 3).reshape(2, n_channels, 2 * n_points)
    weights = bases.new_empty((monomial_count(rank), n_channels, 2 * n_points))
    for degree in range(rank + 1):
        mine = slice(monomial_count(degree - 1), monomial_count(degree))
        torch.mul(bases[degree % 2], phases.powers[mine, None], out=weights[mine])
    field = weights.flatten(0, 1) @ phases.waves.T
    return field.view(*weights.shape[:2], field.shape[1])


def lattice_field_cpu(
    frac: Tensor,
    coefficients: Tensor,
    boxes: Tensor,
    atom_ptr: Tensor,
    rank: int,
    dtype: torch.dtype,
) -> Tensor:
    """Fields at every atom; arguments as in `lattice_field`, contiguous, on the CPU."""
    n_atoms, n_channels = frac.shape[0], coefficients.shape[1]
    sets = [(b, g) for a, b, g in monomials(rank) if a == 0]
    place = {m: i for i, m in enumerate(monomials(rank))}
    out = torch.zeros((monomial_count(rank), n_channels, n_atoms), dtype=dtype)
    ptr = atom_ptr.tolist()
    p = torch.view_as_complex(coefficients)
    kept = kept_tables(frac, boxes, atom_ptr, dtype)
    stored = kept.phases if rank <= MAX_RANK else {}
    for phases in stored.values():
        out[..., phases.atoms] = _from_stored_phases(coefficients, phases, rank)
    for table in boxes.tolist():
        i, h_first, h_count, n_k, n_l, first = table
        if i in stored:
            continue
        n_y, n_z = 2 * n_k + 1, 2 * n_l + 1
        h = torch.arange(h_first, h_first + h_count)
        box = p[first : first + h_count * n_y * n_z].T.reshape(n_channels, h_count, n_y, n_z)
        real_basis = from_exponentials(from_exponentials(box, -1), -2)
        pairs = torch.stack((real_basis.real, real_basis.imag))
        # coefficients of the series whose second and third axis are differentiated b and g times
        rows = torch.stack([(-1) ** (b + g) * derivative(derivative(pairs, -2, b), -1, g) for b, g in sets])
        rows = rows.to(dtype).reshape(len(sets) * 2 * n_channels * h_count, n_y * n_z)
        powers = h.to(dtype)[:, None]
        step = chunk_atoms(n_y * n_z, dtype)
        for start in range(ptr[i], ptr[i + 1], step):
            stop = min(start + step, ptr[i + 1])
            if first in kept.axes:
                cos, sin, columns = kept.axes[first].chunk(start - ptr[i], stop - ptr[i])
            else:
                cos, sin, columns = axis_tables(frac[start:stop], table, dtype).chunk(0, stop - start)
            planes = rows @ columns
            planes = planes.view(len(sets), 2, n_channels, h_count, stop - start)
            for a in range(rank + 1):
                # (i h)^a e^{i h xi} = h^a i^a (cos + i sin); only the real part of the sum survives
                if a > 0:
                    cos, sin = -sin * powers, cos * powers
                n_keep = sum(a + b + g <= rank for b, g in sets)  # graded: the first ones
                sums = (planes[:n_keep, 0] * cos).addcmul_(planes[:n_keep, 1], sin, value=-1)
                sums = sums.sum(2)
                for s, (b, g) in enumerate(sets[:n_keep]):
                    out[place[a, b, g], :, start:stop] += sums[s]
    return out.permute(2, 1, 0).contiguous()
