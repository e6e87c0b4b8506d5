"""Charges outside the model, such as ions or a force field, and their potential at the density."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scfmlip_kernels.constants import constant

from ..segments import Segments
from ..waiting import when
from .coulomb import Coulomb
from .geometry import Geometry

# keys of a batch
KEYS = ("external_charges", "external_positions", "n_external")


@dataclass(frozen=True)
class ExternalCharges:
    """
    Gaussian charges at given positions, as wide as the density's widest Gaussians, in their system's cell.

    The density's energy in their potential is part of the model's energy; the interaction of the charges with
    each other is not. In a cell they have periodic images like the atoms. A background balances the total
    charge of both.

    Attributes:
        charges: ``[n_external]`` e.
        positions: ``[n_external, 3]`` angstrom.
        index: ``[n_external]`` int64 system of each, not decreasing.
    """

    charges: Tensor
    positions: Tensor
    index: Tensor

    @classmethod
    def from_batch(cls, batch: Mapping[str, Tensor]) -> ExternalCharges | None:
        """
        Read them from a batch, see `Model.forward`; None if there are none.

        Raises:
            ValueError: for missing parts, shapes that do not match, or numbers that are not finite.
        """
        given = [batch.get(key) for key in KEYS]
        if all(value is None for value in given):
            return None
        charges, positions, counts = given
        if charges is None or positions is None or counts is None:
            missing = [key for key, value in zip(KEYS, given, strict=True) if value is None]
            raise ValueError(f"external charges need {', '.join(KEYS)}: the batch lacks {', '.join(missing)}")
        n_systems, total = len(batch["ptr"]) - 1, int(counts.sum())
        if (
            counts.shape != (n_systems,)
            or total != len(charges)
            or charges.ndim != 1
            or positions.shape != (total, 3)
        ):
            raise ValueError(
                f"external charges need n_external [{n_systems}], external_charges [{total}] and "
                f"external_positions [{total}, 3] for n_external = {counts.tolist()}, got shapes "
                f"{list(counts.shape)}, {list(charges.shape)} and {list(positions.shape)}"
            )
        like = batch["positions"]
        charges, positions = charges.to(like), positions.to(like)
        for name, values in (("external_charges", charges), ("external_positions", positions)):
            _check_finite(name, values)
        owners = torch.arange(n_systems, device=counts.device)
        return cls(charges, positions, owners.repeat_interleave(counts, output_size=total))


def _check_finite(name: str, values: Tensor) -> None:
    finite = torch.isfinite(values.detach()).view(len(values), -1).all(1)

    def refuse() -> None:
        bad = int(torch.nonzero(~finite)[0])
        raise ValueError(f"{name} are NaN or infinite, first at charge {bad}. Nothing was computed")

    when((~finite).any(), refuse)


class Embedding:
    """
    The potential of external charges at the atoms; differentiable in both positions and the cell.

    Args:
        coulomb: The operator of the density.
        external: The charges.
        positions, cell, pbc: Geometry of the atoms, as in `Coulomb.prepare`.
        segments: The system of each atom. Processes that share one have the same external charges, of which
            each adds its share to the sums: they count once, and so do gradients in their positions.
        counter_charge: Counter-charges of slabs, or None.
    """

    def __init__(
        self,
        coulomb: Coulomb,
        external: ExternalCharges,
        positions: Tensor,
        cell: Tensor,
        pbc: Tensor,
        segments: Segments,
        counter_charge: Tensor | None,
    ) -> None:
        mine = (external.charges, external.positions, external.index)
        charges, outside, index = (segments.share(values) for values in mine)
        both = torch.cat((segments.index, index))
        order = torch.argsort(both, stable=True)
        self._atoms = torch.argsort(order)[: len(positions)]
        places, owners = torch.cat((positions, outside))[order], both[order]
        systems = segments.of_others(owners) if segments.shared else owners
        source = coulomb.source
        self._geometry: Geometry = coulomb.prepare(places, cell, pbc, systems, counter_charge=counter_charge)
        column = source.widths.index(max(source.widths))  # charges come first
        rows = positions.new_zeros(len(both), source.dim)
        charges = torch.cat((positions.new_zeros(len(positions)), charges))[order]
        self._rows = rows.index_copy(1, constant((column,), torch.int64, rows.device), charges[:, None])

    def potential(self) -> Tensor:
        """``[n_atoms, dim]`` conjugate to the operator's rows: times the density's rows it is the energy."""
        return self._geometry.potential(self._rows)[self._atoms]

    def features(self, widths: tuple[float, ...], l_max: int) -> Tensor:
        """``[n_atoms, n_widths * (l_max + 1)^2]`` projections as in `Geometry.features`."""
        return self._geometry.features(self._rows, widths, l_max)[self._atoms]
