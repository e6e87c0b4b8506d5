"""One geometry as passed to graph-longrange's modules: atoms in any order, and a separate volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...electrostatics import Boundary, Geometry
from ...units import COULOMB_CONSTANT


@dataclass
class Prepared:
    """
    One geometry as it was passed.

    Attributes:
        geometry: The geometry, with contiguous systems.
        order: ``[n_atoms]`` indices of its atoms in the call, or None if the order is the same.
        scale: ``[n_systems]`` volume of the cell over the volume of the call, or None if they are equal.
        boxes: ``[n_systems]`` charge terms of molecules in boxes, per e, that must not be scaled; for
            energies and for features, V.
    """

    geometry: Geometry
    order: Tensor | None
    scale: Tensor | None
    boxes: tuple[Tensor, Tensor] | None

    def rows(self, rows: Tensor) -> Tensor:
        """Sort rows into the geometry's order."""
        return rows if self.order is None else rows[self.order]

    def energy(self, rows: Tensor) -> Tensor:
        """Energy ``[n_systems]``, eV, of rows ``[n_atoms, .]``."""
        rows = self.rows(rows)
        if self.scale is None or self.boxes is None:
            return self.geometry.energy(rows)
        whole, without = (self.geometry.energy(rows, self_interaction=s) for s in (True, False))
        charge = self._charges(rows[:, None])[:, 0]
        changed = whole * self.scale + 0.5 * self.boxes[0] * charge**2
        return changed if self.geometry.coulomb.self_interaction else changed - (whole - without)

    def features(self, rows: Tensor, widths: Sequence[float], l_max: int) -> Tensor:
        """Features ``[n_atoms, (n_channels,) .]`` of rows ``[n_atoms, (n_channels,) .]``."""
        rows = self.rows(rows)
        if self.scale is None or self.boxes is None:
            out = self.geometry.features(rows, widths, l_max)
        else:
            given = rows if rows.ndim == 3 else rows[:, None]
            whole, without = (
                self.geometry.features(given, widths, l_max, self_interaction=s) for s in (True, False)
            )
            index = self.geometry.plan.segments.index
            out = whole * self.scale[index][:, None, None]
            offset = self.boxes[1][:, None] * self._charges(given)
            # a potential of 1 V adds sqrt(4 pi) to the first feature of each width
            first = math.sqrt(4 * math.pi) * offset[index][..., None].expand(-1, -1, len(widths))
            out = torch.cat((out[..., : len(widths)] + first, out[..., len(widths) :]), -1)
            if not self.geometry.coulomb.self_interaction:
                out = out - (whole - without)
            out = out if rows.ndim == 3 else out[:, 0]
        if self.order is None:
            return out
        return torch.zeros_like(out).index_copy(0, self.order, out)

    def potential(self, rows: Tensor) -> Tensor:
        """Potential at the atoms, ``[n_atoms]`` V, not averaged over a Gaussian."""
        geometry = self.geometry
        if any(b not in (Boundary.PERIODIC, Boundary.SLAB) for b in geometry.plan.boundaries):
            raise ValueError("potentials at atoms are for crystals and slabs only: pbc TTT or TTF")
        # the same waves as elsewhere: the average over a Gaussian of zero width
        out = geometry.features(self.rows(rows), (1e-7,), 0, self_interaction=True)[:, 0]
        out = out / math.sqrt(4 * math.pi)
        if self.scale is not None:
            out = out * self.scale[geometry.plan.segments.index]
        return out if self.order is None else torch.zeros_like(out).index_copy(0, self.order, out)

    def _charges(self, rows: Tensor) -> Tensor:
        """Total charges ``[n_systems, n_channels]``, e."""
        plan = self.geometry.plan
        return plan.segments.sum(rows[..., 0])


def volume_terms(
    geometry: Geometry, cell: Tensor, volume: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]] | tuple[None, None]:
    """`Prepared.scale` and ``boxes``; None if the volume is the cell's and needs no gradient."""
    given, own = volume.reshape(-1).double(), torch.linalg.det(cell.double()).abs()
    close = 1e-5 if cell.dtype == torch.float32 else 1e-9
    if not volume.requires_grad and bool(((given - own).abs() <= close * own).all()):
        return None, None
    scale = own / given
    kinds = [float(b == Boundary.MOLECULE_IN_BOX) for b in geometry.plan.boundaries]
    box = torch.tensor(kinds, dtype=given.dtype, device=given.device)
    opened = torch.tensor([b == Boundary.OPEN for b in geometry.plan.boundaries], device=given.device)
    quirks = geometry.coulomb.quirks
    energies, features = (
        (box * quirks.madelung * COULOMB_CONSTANT * (given**-power - scale * own**-power)).to(volume)
        for power in quirks.box_exponents
    )
    return torch.where(opened, 1.0, scale).to(volume), (energies, features)
