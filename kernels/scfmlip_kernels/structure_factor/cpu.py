"""
CPU path of the structure factor: three small tables and one matrix product per box.

For a box of Miller indices (h, k, l) the sum factorises into row functions ``c (-i h)^a e^{-i h xi}``
of the first axis, which carry the multipoles, and column functions of the other two
(`lattice.basis`). One product over a chunk of atoms does all the work; chunks are added in float64.
Factors k^b l^c of higher multipoles are derivatives of the column functions: they are applied to the
sums, once. Memory is O(points + chunk), never O(atoms x points).
"""

import torch
from torch import Tensor

from ..lattice.basis import chunk_atoms, column_table, derivative, harmonics, to_exponentials
from ..lattice.monomials import monomials, rank_of_count


def _row_functions(
    turns: Tensor, moments: Tensor, h: Tensor, sets: list[tuple[int, int]], rank: int
) -> Tensor:
    """Moments times ``(-i h)^a e^{-i h xi}``: ``[n_sets * 2 * n_channels * n_h, n_atoms]``."""
    n_atoms, n_channels, _ = moments.shape
    cos, sin = harmonics(turns, int(h[-1]), moments.dtype)
    cos, sin = cos[h], sin[h]
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


def structure_factor_cpu(frac: Tensor, moments: Tensor, boxes: Tensor, atom_ptr: Tensor) -> Tensor:
    """Sums of every box; arguments as in `structure_factor`, contiguous, on the CPU."""
    rank = rank_of_count(moments.shape[-1])
    dtype, n_channels = moments.dtype, moments.shape[1]
    sets = [(b, g) for a, b, g in monomials(rank) if a == 0]
    ptr = atom_ptr.tolist()
    parts = []
    for i, h_first, h_count, n_k, n_l, _ in boxes.tolist():
        n_y, n_z = 2 * n_k + 1, 2 * n_l + 1
        h = torch.arange(h_first, h_first + h_count)
        step = chunk_atoms(n_y * n_z, dtype)
        raw = frac.new_zeros((len(sets) * 2 * n_channels * h_count, n_y * n_z))
        for start in range(ptr[i], ptr[i + 1], step):
            stop = min(start + step, ptr[i + 1])
            u = frac[start:stop]
            rows = _row_functions(u[:, 0], moments[start:stop], h, sets, rank)
            raw += rows @ column_table(u, n_k, n_l, dtype).T
        raw = raw.view(len(sets), 2, n_channels, h_count, n_y, n_z)
        sums = raw[0]
        for s, (b, g) in enumerate(sets[1:], start=1):
            sums = sums + derivative(derivative(raw[s], -2, b), -1, g)
        sums = to_exponentials(to_exponentials(torch.complex(sums[0], sums[1]), -2), -1)
        parts.append(torch.view_as_real(sums.flatten(1).T.contiguous()))
    return torch.cat(parts) if parts else frac.new_zeros((0, n_channels, 2))
