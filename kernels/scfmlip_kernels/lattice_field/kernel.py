"""
Fields V_A(u) = Re sum_n P(n) (i n)^A exp(2 pi i n.u) at the atoms, |A| <= RANK.

Grid: (blocks of atoms, channels, splits of the rows x parts of the results). One program owns BLOCK_ATOMS
atoms of one system and walks over its share of that system's rows (h, k). For each row the sums over l are
matrix products of the coefficients times powers of l with cos and sin of l (points +l and -l are combined),
all powers of the part in one walk, see `generate.parts`. The results are multiplied by the row's phase and
its powers of h and k, and summed in float64. Phases are made where they are used: (BLOCK_ROWS + BLOCK_L) *
BLOCK_ATOMS sines for BLOCK_ROWS * 2 BLOCK_L * BLOCK_ATOMS pairs. The text of a rank's kernel is made in
`generate`.

No atomics: each split writes its own partial sums, which the launcher adds in a fixed order.

The adjoint of the structure factor; Essmann et al., J. Chem. Phys. 103, 8577 (1995), eq. 2.10.
"""

import torch
from torch import Tensor

from ..lattice.device import to_turns
from ..lattice.monomials import monomial_count
from ..lattice.tiles import channel_parts, check_places, lattice_launch, splits_for
from ..tuned import compiler_options
from .generate import lattice_field_kernel, parts


def launch_lattice_field(
    frac: Tensor,
    coefficients: Tensor,
    row_tiles: Tensor,
    atom_tiles: Tensor,
    rank: int,
    dtype: torch.dtype,
) -> Tensor:
    """
    Allocate, launch and add the splits.

    ``frac`` and ``coefficients`` as in `lattice_field`, contiguous. Returns
    ``[n_atoms, n_channels, n_monomials]`` of ``dtype``.
    """
    n_atoms, n_channels, n_points = frac.shape[0], coefficients.shape[1], coefficients.shape[0]
    n_monomials = monomial_count(rank)
    check_places("lattice_field", n_atoms, 3)
    several = channel_parts(coefficients)
    if len(several) > 1:
        return torch.cat(
            [launch_lattice_field(frac, part, row_tiles, atom_tiles, rank, dtype) for part in several], 1
        )
    p = coefficients.permute(1, 2, 0).to(dtype).contiguous()
    options = lattice_launch(p.device, p.dtype)
    n_tiles = atom_tiles.shape[0]
    n_parts = len(parts(rank))
    n_splits = splits_for(n_tiles * n_channels * n_parts, row_tiles.shape[0], 1, p)
    out = frac.new_empty((n_splits, n_atoms, n_channels, n_monomials))  # every atom is in a tile
    if n_tiles and n_channels:
        lattice_field_kernel(rank)[(n_tiles, n_channels, n_splits * n_parts)](
            turns_ptr=to_turns(frac, dtype),
            p_ptr=p,
            row_tiles_ptr=row_tiles,
            atom_tiles_ptr=atom_tiles,
            out_ptr=out,
            n_atoms=n_atoms,
            n_points=n_points,
            BLOCK_ROWS=options.rows,
            BLOCK_L=options.l,
            BLOCK_ATOMS=options.field_atoms,
            PRECISION=options.precision,
            PARTS=n_parts,
            **compiler_options(options.field_warps, options.num_stages, frac),
        )
    return (out[0] if n_splits == 1 else torch.sum(out, 0)).to(dtype)
