"""What energies of partly periodic systems depend on in PolarMACE, besides the system."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_PADDING = (
    "the height of the cell that mace-torch makes, five cutoffs times the atoms' largest coordinate. This is "
    "so in mace-torch; other rules of scfmlip.models are free of it"
)
_CHARGED = (
    "the electrostatics of this model has no terms for the charge of a slab, so that its energy depends, by "
    f"many eV, on where the slab stands along z, on the image chosen of each atom, and on {_PADDING}"
)
_NEUTRAL = (
    "potentials in this model are not taken from the vacuum, so that the energy of a slab with a dipole "
    f"depends on where it stands along z, and that of any slab on {_PADDING}"
)
_OTHER = (
    "this model knows slabs along z alone and sums this system as a crystal, so that its energy depends on "
    f"its images and on {_PADDING}"
)


def warn_of_slabs(model: Any, data: Mapping[str, Tensor]) -> None:
    """
    Say once for a model and each kind of partly periodic system what is wrong with its energies.

    Args:
        model: The accelerated PolarMACE; remembers what was said.
        data: A batch, in mace-torch's layout.
    """
    pbc = data["pbc"].view(-1, 3)
    partly = pbc.any(1) & ~pbc.all(1)
    if not bool(partly.any()):
        return
    along_z = pbc[:, 0] & pbc[:, 1]
    charged = data["total_charge"].abs() > 1e-6
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
            warnings.warn(f"PolarMACE, system {system} with pbc={flags}: {cause}", stacklevel=4)
