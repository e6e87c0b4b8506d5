"""Warnings about energies of partly periodic systems in PolarMACE, which depend on more than the system."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..electrostatics.kept import Plans

_PADDING = (
    "the height of mace-torch's padded cell, five cutoffs times the atoms' largest coordinate. mace-torch "
    "does the same; other rules of scfmlip.models do not have this problem"
)
_CHARGED = (
    "the electrostatics of this model has no terms for the charge of a slab, so its energy depends, by many "
    f"eV, on the slab's position along z, on the image chosen for each atom, and on {_PADDING}"
)
_NEUTRAL = (
    "potentials in this model are not measured from the vacuum, so the energy of a slab with a dipole "
    f"depends on its position along z, and that of any slab on {_PADDING}"
)
_OTHER = (
    "this model knows slabs along z only and sums this system as a crystal, so its energy depends on its "
    f"images and on {_PADDING}"
)


def warn_of_slabs(model: Any, data: Mapping[str, Tensor], plans: Plans) -> None:
    """
    Warn once per model and kind of partly periodic system about what is wrong with its energies.

    Args:
        model: The accelerated PolarMACE; it remembers which warnings were given.
        data: A batch, in mace-torch's layout.
        plans: Its plans, which know whether the periodicity has changed.
    """
    pbc = data["pbc"].view(-1, 3)

    def ask() -> bool:
        return bool((pbc.any(1) & ~pbc.all(1)).any())

    if plans.fact("partly periodic", ask):
        _tell(model, pbc, pbc.any(1) & ~pbc.all(1), data["total_charge"])


def _tell(model: Any, pbc: Tensor, partly: Tensor, total_charge: Tensor) -> None:
    """Warn, where that was not done yet."""
    along_z = pbc[:, 0] & pbc[:, 1]
    charged = total_charge.abs() > 1e-6
    told = getattr(model, "_scfmlip_told_of", ())
    kinds = (
        (partly & ~along_z, _OTHER),
        (partly & along_z & charged, _CHARGED),
        (partly & along_z & ~charged, _NEUTRAL),
    )
    for which, cause in kinds:
        if bool(which.any()) and cause not in told:
            told = (*told, cause)
            model._scfmlip_told_of = told
            system = int(which.nonzero()[0])
            flags = pbc[system].tolist()
            warnings.warn(f"PolarMACE, system {system} with pbc={flags}: {cause}", stacklevel=8)
