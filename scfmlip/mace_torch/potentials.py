"""Electrostatic potentials of the densities that models predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..electrostatics import Coulomb

if TYPE_CHECKING:
    from ase import Atoms


def site_potential(atoms: Atoms, rows: np.ndarray, sigma: float | Sequence[float]) -> np.ndarray:
    """
    Electrostatic potential at every atom from all other atoms' densities.

    It is exact for the frame's own periodicity (crystal with neutralising background, slab, molecule),
    averaged over the atom's Gaussian, and excludes the atom's own contribution.

    Args:
        atoms: The frame.
        rows: ``[n_atoms, (l_max + 1)^2]`` rows ``[q]`` or ``[q, d_y, d_z, d_x]`` (MACE's order), e and
            e angstrom.
        sigma: Gaussian width, angstrom.

    Returns:
        ``[n_atoms]`` V.
    """
    l_max = 0 if rows.shape[1] == 1 else 1
    coulomb = Coulomb(l_max=l_max, sigma=sigma, order="e3nn")
    geometry = coulomb.prepare(
        torch.as_tensor(atoms.positions, dtype=torch.float64),
        torch.as_tensor(np.asarray(atoms.cell), dtype=torch.float64) if atoms.pbc.any() else None,
        torch.as_tensor(np.asarray(atoms.pbc)),
    )
    return geometry.potential(torch.as_tensor(rows, dtype=torch.float64))[:, 0].numpy()


def add_potential(model: torch.nn.Module, atoms: Atoms, result: dict[str, Any]) -> None:
    """Add ``potential`` to a result of a MACE-POLAR model that holds a density."""
    if "density_coefficients" in result and sum(atoms.pbc) != 1:
        sigma = float(model.atomic_multipoles_smearing_width)  # type: ignore[arg-type]
        result["potential"] = site_potential(atoms, result["density_coefficients"], sigma)
