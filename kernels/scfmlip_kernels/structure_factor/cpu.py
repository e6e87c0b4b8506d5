"""
CPU path of the structure factor: three small tables and one matrix product per box.

For a box of Miller indices (h, k, l) the sum factorises into row functions ``c (-i h)^a e^{-i h xi}``
of the first axis, which carry the multipoles, and column functions of the other two
(`lattice.basis`). One product over a chunk of atoms does all the work; chunks are added in float64.
Factors k^b l^c of higher multipoles are derivatives of the column functions: they are applied to the
sums, once. Memory is O(points + chunk), never O(atoms x points).

Systems so small that all their phases fit in the cache take one product with the stored phases.
"""

import torch
from torch import Tensor

from ..lattice.basis import chunk_atoms, derivative, to_exponentials
from ..lattice.monomials import monomial_count, monomials, rank_of_count
from ..lattice.phases import MAX_RANK, StoredPhases, axis_tables, kept_tables


def _row_functions(
    cos: Tensor, sin: Tensor, moments: Tensor, h: Tensor, sets: list[tuple[int, int]], rank: int
) -> Tensor:
    """Moments times ``(-i h)^a e^{-i h xi}``: ``[n_sets * 2 * n_channels * n_h, n_atoms]``."""
    n_atoms, n_channels, _ = moments.shape
    powers = [h.to(moments.dtype)[:, None] ** a for a in range(rank + 1)]
    place = {m: i for i, m in enumerate(monomials(rank))}
    out = moments.new_empty((len(sets), 2, n_channels, len(h), n_atoms))
    c = moments.permute(2, 1, 0).contiguous()[:, :, None, :]  # [n_monomials, n_channels, 1, n_atoms]
    for s, (b, g) in enumerate(sets):
        # p = sum_a c_a (-i h)^a, split into its real and imaginary part
        real, imag = c[place[0, b, g]], None
        for a in range(1, rank + 1 - b - g):
            term = c[place[a, b, g]] * powers[a]
            if a % 4 in (1, 2):  # (-i)^a = -i, -1, i, 1
                term = -term
            if a % 2 == 0:
                real = real + term
            else:
                imag = term if imag is None else imag + term
        torch.mul(real, cos, out=out[s, 0])
        torch.mul(real, -sin, out=out[s, 1])
        if imag is not None:
            out[s, 0].addcmul_(imag, sin)
            out[s, 1].addcmul_(imag, cos)
    return out.flatten(0, 3)


def _from_stored_phases(moments: Tensor, phases: StoredPhases, rank: int) -> Tensor:
    """``[n_points, n_channels, 2]`` of one system."""
    n_atoms, n_channels, n_monomials = moments[phases.atoms].shape
    rows = moments[phases.atoms].reshape(n_atoms, n_channels * n_monomials)
    sums = (rows.T @ phases.waves).unflatten(0, (n_channels, n_monomials))  # of m_iA times cosine and sine
    even, odd = sums[:, 0], None
    for degree in range(1, rank + 1):
        mine = slice(monomial_count(degree - 1), monomial_count(degree))
        term = (sums[:, mine] * phases.powers[mine]).sum(1)
        if degree % 2 == 0:
            even = even + term
        else:
            odd = term if odd is None else odd + term
    even = even.unflatten(1, (-1, 2))
    out = sums.new_empty((even.shape[1], n_channels, 2), dtype=torch.float64)
    out[..., 0], out[..., 1] = even[..., 0].T, -even[..., 1].T
    if odd is not None:
        out -= odd.unflatten(1, (-1, 2)).flip(2).transpose(0, 1)
    return out


def structure_factor_cpu(frac: Tensor, moments: Tensor, boxes: Tensor, atom_ptr: Tensor) -> Tensor:
    """Sums of every box; arguments as in `structure_factor`, contiguous, on the CPU."""
    rank = rank_of_count(moments.shape[-1])
    dtype, n_channels = moments.dtype, moments.shape[1]
    sets = [(b, g) for a, b, g in monomials(rank) if a == 0]
    ptr = atom_ptr.tolist()
    kept = kept_tables(frac, boxes, atom_ptr, dtype)
    parts, done = [], set()
    for box in boxes.tolist():
        i, h_first, h_count, n_k, n_l, first = box
        if i in kept.phases and rank <= MAX_RANK:
            if i not in done:
                done.add(i)
                parts.append(_from_stored_phases(moments, kept.phases[i], rank))
            continue
        n_y, n_z = 2 * n_k + 1, 2 * n_l + 1
        h = torch.arange(h_first, h_first + h_count)
        step = chunk_atoms(n_y * n_z, dtype)
        raw = frac.new_zeros((len(sets) * 2 * n_channels * h_count, n_y * n_z))
        for start in range(ptr[i], ptr[i + 1], step):
            stop = min(start + step, ptr[i + 1])
            if first in kept.axes:
                cos, sin, columns = kept.axes[first].chunk(start - ptr[i], stop - ptr[i])
            else:
                cos, sin, columns = axis_tables(frac[start:stop], box, dtype).chunk(0, stop - start)
            rows = _row_functions(cos, sin, moments[start:stop], h, sets, rank)
            raw += rows @ columns.T
        raw = raw.view(len(sets), 2, n_channels, h_count, n_y, n_z)
        sums = raw[0]
        for s, (b, g) in enumerate(sets[1:], start=1):
            sums = sums + derivative(derivative(raw[s], -2, b), -1, g)
        sums = to_exponentials(to_exponentials(torch.complex(sums[0], sums[1]), -2), -1)
        parts.append(torch.view_as_real(sums.flatten(1).T.contiguous()))
    return torch.cat(parts) if parts else frac.new_zeros((0, n_channels, 2))
