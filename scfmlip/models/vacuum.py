"""The electrons' way out of a slab: potential of the vacuum on both sides, and the work functions."""

from __future__ import annotations

import torch
from torch import Tensor

from .model import Model


def work_functions(model: Model, batch: dict[str, Tensor]) -> Tensor:
    """
    Work functions of slabs, ``-V_vacuum - E_F``: what takes an electron from the Fermi level to either side.

    The vacuum of a side lies beyond everything, a counter-charge included. The potential is that of the
    model's density. What electrons spilling out of real atoms add to both sides alike is not in it, unless
    levels it was trained on are given on that scale; the difference of the two sides is physical in any case.

    Args:
        model: With a charge rule that knows a Fermi level.
        batch: Slabs in neutral systems or with a counter-charge, see `Model.forward`.

    Returns:
        ``[n_systems, 2]`` eV below and above, along the normal (the open cell vector's side).

    Raises:
        ValueError: for a rule without a Fermi level, a system that is not a slab, a charged slab without a
            counter-charge, an external field or external charges.
    """
    if batch.get("n_external") is not None:
        raise ValueError("work functions are those of a slab without external charges: leave them out")
    out, density = model.evaluate_density(batch)
    level, geometry = out.get("fermi_level"), density.geometry
    if level is None or geometry is None:
        raise ValueError(
            "work functions need a Fermi level: a rule with the constraint 'charge' or 'fermi_level'"
        )
    with torch.no_grad():
        vacuum = geometry.vacuum_levels(density.rows)
    return (-vacuum - level[:, None]).to(level.dtype)
