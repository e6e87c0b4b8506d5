"""
CPU path of the structure factor: matrix products, over the atoms, of row functions with column functions.

Row functions are sines and cosines of ``2 pi h u`` times multipoles; column functions are sines and cosines
of ``2 pi (k v + l w)`` (`lattice.sphere`). One product per run of planes uses the columns that reach the run.
Products over chunks of atoms are added in float64. Derivatives in v and w multiply the sums by k and l.

Small systems, whose phases all fit in the cache, need one product with the stored phases.
"""

import torch
from torch import Tensor

from ..lattice.monomials import monomials, rank_of_count
from ..lattice.series import combine, plane_sets
from ..lattice.sphere import HalfSphere, half_spheres
from ..lattice.waves import Waves, chunk_atoms, kept_waves, make_waves, rotated


def _by_phases(moments: Tensor, sphere: HalfSphere, phases: Tensor, rank: int) -> Tensor:
    """``[2, n_channels, n]`` of one system from its stored phases; ``moments [M, n_channels, n_atoms]``."""
    sums = (moments.flatten(0, 1) @ phases.T).view(1, *moments.shape[:2], len(phases))
    found = combine(sums, sphere.powers(monomials(rank), moments.dtype), rank, 3)[0].permute(2, 0, 1)
    torch.neg(found[1], out=found[1])
    return found


def _row_functions(rows: Tensor, moments: Tensor, rank: int) -> Tensor:
    """
    Functions of the first axis times multipoles, differentiated as the multipoles' rank requires.

    Args:
        rows: ``[n_planes, 2, n]`` sine and cosine.
        moments: ``[n_monomials, n_channels, n]``.
        rank: Rank of the multipoles.

    Returns:
        ``[2 n_planes * n_sets * n_channels, n]``.
    """
    sets = plane_sets(rank)
    place = {m: i for i, m in enumerate(monomials(rank))}
    index = torch.arange(len(rows))
    found = moments.new_empty((2 * len(rows), len(sets), *moments.shape[1:]))
    for a in range(rank + 1):
        keep = [place[a, b, g] for b, g in sets if a + b + g <= rank]
        mine, functions = moments[keep], rows.flatten(0, 1)[:, None, None]
        if a == 0:
            torch.mul(functions, mine, out=found)
        else:
            found[:, : len(keep)].addcmul_(functions, mine)
        if a < rank:
            rows = rotated(rows, index)
    return found.flatten(0, 2)


def _by_columns(frac: Tensor, moments: Tensor, sphere: HalfSphere, waves: Waves | None, rank: int) -> Tensor:
    """``[2, n_channels, n]`` of one system, plane by plane; ``moments [M, n_channels, n_atoms]``."""
    n_channels, n_atoms = moments.shape[1:]
    sets, n_columns = plane_sets(rank), len(sphere.columns)
    per_row = len(sets) * n_channels
    step = chunk_atoms(n_columns, 2 * sphere.n_planes * per_row, moments.dtype)
    runs = sphere.runs(min(step, n_atoms), per_row)
    sums = moments.new_empty((2 * sphere.n_planes * per_row, 2 * n_columns))
    total = sums if n_atoms <= step else torch.zeros_like(sums, dtype=torch.float64)
    for begin in range(0, n_atoms, step):
        end = min(begin + step, n_atoms)
        if waves is None:
            here = make_waves(frac[begin:end], sphere, moments.dtype)
            rows, columns = here.rows, here.chunk(0, end - begin)
        else:
            rows, columns = waves.rows[..., begin:end], waves.chunk(begin, end)
        functions = _row_functions(rows, moments[..., begin:end], rank)
        for first, last, reach in runs:
            # sin(0) = 0 needs no product
            mine = slice(max(2 * first, 1) * per_row, 2 * last * per_row)
            torch.mm(functions[mine], columns[: 2 * reach].T, out=sums[mine, : 2 * reach])
            if total is not sums:
                total[mine, : 2 * reach] += sums[mine, : 2 * reach]
    total[:per_row] = 0
    total = total.view(2 * sphere.n_planes, len(sets), n_channels, 2 * n_columns)
    pairs = combine(total, sphere.powers(sets, total.dtype), rank, 2)
    pairs = pairs.view(sphere.n_planes, 2, n_channels, n_columns, 2).permute(1, 4, 2, 0, 3)
    (sin_c, sin_s), (cos_c, cos_s) = pairs  # against cosine and sine of the columns
    # S(h, k, l) = (cos - i sin)(c - i s), its mirror image's column (cos - i sin)(c + i s)
    found = total.new_empty((2, n_channels, 2, sphere.n_planes, n_columns))
    torch.sub(cos_c, sin_s, out=found[0, :, 0])
    torch.add(cos_s, sin_c, out=found[1, :, 0]).neg_()
    torch.add(cos_c, sin_s, out=found[0, :, 1])
    torch.sub(cos_s, sin_c, out=found[1, :, 1])
    return found.flatten(2)[..., sphere.slots]


def structure_factor_cpu(frac: Tensor, moments: Tensor, points: Tensor, atom_ptr: Tensor) -> Tensor:
    """Sums at points inside the sphere, 0 elsewhere; arguments as in `structure_factor`, on the CPU."""
    rank = rank_of_count(moments.shape[-1])
    ptr, spheres = atom_ptr.tolist(), half_spheres(points)
    kept = kept_waves(frac, spheres, ptr, moments.dtype)
    by_monomial = moments.permute(2, 1, 0).contiguous()
    out = frac.new_zeros((len(points), moments.shape[1], 2))
    for i, sphere in enumerate(spheres):
        mine, waves = slice(ptr[i], ptr[i + 1]), kept[i]
        if ptr[i + 1] == ptr[i] or moments.shape[1] == 0:
            continue
        if waves is not None and waves.phases is not None:
            found = _by_phases(by_monomial[..., mine], sphere, waves.phases, rank)
        else:
            found = _by_columns(frac[mine], by_monomial[..., mine], sphere, waves, rank)
        out[sphere.points] = found.permute(2, 1, 0).to(out.dtype)
    return out
