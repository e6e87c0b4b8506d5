"""Vacuum potentials on both sides of a slab, and work functions."""

from __future__ import annotations

import torch
from torch import Tensor

from .model import Model


def work_functions(model: Model, batch: dict[str, Tensor]) -> Tensor:
    """
    Work functions of slabs, ``-V_vacuum - E_F``: the energy that moves an electron from E_F to either vacuum.

    The vacuum of a side lies beyond all charges, including a counter-charge. The potential is that of the
    model's density. It lacks the contribution of electrons that spill out of real atoms, which is equal on
    both sides, unless the model was trained on Fermi levels on that scale. The difference between the two
    sides is physical in any case.

    Args:
        model: A model whose charge rule has a Fermi level.
        batch: Slabs that are neutral or have a counter-charge, see `Model.forward`.

    Returns:
        ``[n_systems, 2]`` eV, below and above along the normal (on the open cell vector's side).

    Raises:
        ValueError: for a rule without a Fermi level, a system that is not a slab, a charged slab without a
            counter-charge, an external field or external charges.

    Example:
        >>> import ase.io, scfmlip, torch
        >>> from scfmlip.data import path
        >>> from scfmlip.mace_torch.batches import make_batch
        >>> from scfmlip.models import work_functions
        >>> model = scfmlip.load(path("models/al_water-fixed_point.safetensors"))
        >>> slab = ase.io.read(path("al_water.xyz"), 0)  # Al(100) with water on top
        >>> batch = make_batch(model, [slab], torch.device("cpu"), torch.float32)
        >>> below, above = work_functions(model, batch)[0].tolist()
        >>> round(above - below, 2)  # eV: the dipole of the slab and its water
        0.96
    """
    if batch.get("n_external") is not None:
        raise ValueError("work functions are defined without external charges: leave them out")
    out, density = model.evaluate_density(batch)
    level, geometry = out.get("fermi_level"), density.geometry
    if level is None or geometry is None:
        raise ValueError(
            "work functions need a Fermi level: a rule with the constraint 'charge' or 'fermi_level'"
        )
    with torch.no_grad():
        vacuum = geometry.vacuum_levels(density.rows)
    return (-vacuum - level[:, None]).to(level.dtype)
