"""The electrons' way out of a slab: potential of the vacuum on both sides, and the work functions."""

from __future__ import annotations

import torch
from torch import Tensor

from ..electrostatics.boundary import Boundary
from .model import Model

# points per lattice direction of the planes that potentials are averaged over
_GRID = 12
# widths after which a Gaussian has ended: what is left of the potential of a charged plane is 1e-4 of it
_REACH = 3.5


def work_functions(model: Model, batch: dict[str, Tensor]) -> Tensor:
    """
    Work functions of slabs, ``-V_vacuum - E_F``: what takes an electron from the Fermi level to either side.

    The potential is that of the model's density. What electrons spilling out of real atoms add to both sides
    alike is not in it, unless levels it was trained on are given on that scale; the difference of the two
    sides is physical in any case.

    Args:
        model: With a charge rule that knows a Fermi level.
        batch: Slabs in neutral systems or with a counter-charge, see `Model.forward`.

    Returns:
        ``[n_systems, 2]`` eV below and above, along the normal (the open cell vector's direction).

    Raises:
        ValueError: for a rule without a Fermi level, a system that is no slab, external charges, or too
            little vacuum between the slab and its image for the atoms' Gaussians to have ended.
    """
    if batch.get("n_external") is not None:
        raise ValueError("work functions are those of a slab without external charges: leave them out")
    out, result = model.evaluate_density(batch)
    level, geometry = out.get("fermi_level"), result.geometry
    if level is None or geometry is None:
        raise ValueError(
            "work functions need a Fermi level: a rule with the constraint 'charge' or 'fermi_level'"
        )
    plan, sigma = geometry.plan, max(geometry.coulomb.source.widths)
    points, owners = [], []
    for i, kind in enumerate(plan.boundaries):
        if kind != Boundary.SLAB:
            raise ValueError(f"system {i} of the batch is no slab (pbc): work functions are for slabs")
        pbc, cell = batch["pbc"].view(-1, 3)[i], batch["cell"].view(-1, 3, 3)[i].double()
        axis = int((~pbc).nonzero()[0])
        first, second = (cell[j] for j in range(3) if j != axis)
        normal = torch.linalg.cross(first, second)
        normal = normal / normal.norm() * torch.sign(normal @ cell[axis])
        height = batch["positions"].detach()[batch["batch"] == i].double() @ normal
        gap = float(cell[axis] @ normal - (height.max() - height.min()))
        reach = min(8 * sigma, 0.5 * gap)
        if reach < _REACH * sigma:
            raise ValueError(
                f"system {i} of the batch has {gap:.1f} angstrom of vacuum; its Gaussians (width {sigma:g}) "
                f"need {2 * _REACH * sigma:.1f} to end on both sides: lengthen the open cell vector"
            )
        steps = torch.arange(_GRID, dtype=cell.dtype, device=cell.device) / _GRID
        plane = (steps[:, None, None] * first + steps[:, None] * second).reshape(-1, 3)
        plane = plane - (plane @ normal)[:, None] * normal
        for z in (height.min() - reach, height.max() + reach):
            points.append(plane + z * normal)
            owners.append(torch.full((len(plane),), i, device=cell.device))
    dtype = geometry.positions.dtype
    with torch.no_grad():
        values = geometry.at(torch.cat(points).to(dtype), result.rows, torch.cat(owners)).potential
    vacuum = values.view(plan.n_systems, 2, -1).mean(2)
    return -vacuum - level[:, None]
